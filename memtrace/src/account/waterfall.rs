//! From pprof's figure to the container's: the steps between what `go tool pprof` shows and what
//! the kernel charges, each with its sign, which add up without a rest.

use serde::Serialize;

use super::owners::{Bands, Owner};
use super::row::How;

/// One step; the first starts from nothing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Stable, for programs.
    pub key: &'static str,
    /// For people.
    pub label: String,
    pub bytes: i128,
    pub how: How,
}

/// What the tracing knows beside the ledger.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traced {
    /// `inuse_space` of Go's heap profile, where there is one.
    pub pprof: Option<u64>,
    /// Blocks that the probes saw allocated and not freed.
    pub outstanding: u64,
}

pub fn steps(bands: &Bands, traced: Traced) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut step = |key, label: &str, bytes, how| {
        if bytes != 0 {
            steps.push(Step { key, label: label.to_owned(), bytes, how });
        }
    };
    let heap = bands.bytes(Owner::GoHeap);
    match traced.pprof {
        Some(pprof) => {
            let pprof = i128::from(pprof);
            step("pprof", "pprof: Go heap in use (inuse_space)", pprof, How::Sampled);
            let rest = "rest of the Go heap: garbage, idle, goroutine stacks, sampling error";
            step("go_rest", rest, heap - pprof, How::Derived);
        }
        None => step("go_heap", Owner::GoHeap.label(), heap, How::Measured),
    }
    step("go_runtime", Owner::GoRuntime.label(), bands.bytes(Owner::GoRuntime), How::Measured);
    // Blocks live in glibc's heap, in another allocator's regions, or in mappings of their own.
    let owners = [Owner::CHeap, Owner::Allocator, Owner::NativeAnonymous];
    let native: i128 = owners.iter().map(|owner| bands.bytes(*owner)).sum();
    let outstanding = i128::from(traced.outstanding);
    step("outstanding", "C: allocated while traced, not freed", outstanding, How::Measured);
    let rest = "C: from before the attach, kept by the allocator, less what is untouched";
    step("native_rest", rest, native - outstanding, How::Derived);
    for owner in Owner::ALL {
        let (key, how) = match owner {
            Owner::RuntimeHeap => ("runtime_heap", How::Measured),
            Owner::ThreadStacks => ("thread_stacks", How::Measured),
            Owner::Programs => ("programs", How::Measured),
            Owner::OtherAnonymous => ("other_anonymous", How::Derived),
            Owner::SharedMemory => ("shared_memory", How::Measured),
            Owner::PageCache => ("page_cache", How::Measured),
            Owner::Network => ("network", How::Measured),
            Owner::Kernel => ("kernel", How::Measured),
            Owner::Late => ("late", How::Derived),
            Owner::GoHeap
            | Owner::GoRuntime
            | Owner::CHeap
            | Owner::Allocator
            | Owner::NativeAnonymous => continue,
        };
        step(key, owner.label(), bands.bytes(owner), how);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Ledger;
    use crate::account::fixtures::{self, MIB};
    use crate::snapshot::Known;
    use crate::snapshot::facts::CgroupVersion;

    #[test]
    fn the_steps_add_up_to_the_charge_whatever_the_probes_saw() {
        let mappings = vec![
            fixtures::mapping(0x1000_0000, 4 * MIB, "rw-p", "[heap]", 3 * MIB),
            fixtures::mapping(0xc0_0000_0000, 64 * MIB, "rw-p", "[anon: Go: heap]", 2 * MIB),
        ];
        let cgroup = Known::Value(fixtures::cgroup(CgroupVersion::V2, fixtures::V2));
        let process = fixtures::process(7, mappings);
        let bands = Bands::of(&Ledger::of(&fixtures::facts(cgroup, vec![process])));
        for (pprof, outstanding) in [(None, 0), (Some(MIB), MIB), (Some(9 * MIB), 90 * MIB)] {
            let Known::Value(steps) = bands.map(|it| steps(it, Traced { pprof, outstanding }))
            else {
                panic!("no steps")
            };
            let sum: i128 = steps.iter().map(|step| step.bytes).sum();
            assert_eq!(Some(sum), bands.value().map(|bands| bands.whole));
            let first = steps.first().map(|step| (step.key, step.bytes));
            let go = 2 * i128::from(MIB);
            assert_eq!(first, Some(pprof.map_or(("go_heap", go), |it| ("pprof", it.into()))));
        }
    }

    #[test]
    fn an_unknown_whole_gives_no_steps_but_the_reason() {
        let bands: Known<Bands> = Known::unknown("no cgroup");
        let steps = bands.map(|it| steps(it, Traced::default()));
        assert_eq!(steps.reason(), Some("no cgroup"));
    }
}
