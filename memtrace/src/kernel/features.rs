//! What this host's kernel can do, for `memtrace doctor`: probed by doing it, never guessed from
//! the version. Everything that is made for a probe is gone when it returns.

mod bpf;
mod uprobe;

use std::fs;
use std::io;

use super::error::advice;

/// One thing that memtrace asks of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    pub name: &'static str,
    pub state: State,
    /// What uses it.
    pub needed_by: &'static str,
    /// What happens where it is missing.
    pub without_it: &'static str,
    /// Nothing can be traced without it.
    pub required: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Available,
    Missing {
        reason: String,
    },
    /// It could not be tried, most often for lack of privileges.
    Unknown {
        reason: String,
    },
}

impl State {
    fn missing(reason: impl Into<String>) -> Self {
        Self::Missing { reason: reason.into() }
    }

    /// A refusal for lack of privileges tells nothing about the kernel.
    fn from_result<T>(result: io::Result<T>) -> Self {
        match result {
            Ok(_) => Self::Available,
            Err(error) => Self::from_error(&error),
        }
    }

    fn from_error(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Unknown { reason: advice(error) },
            _ => Self::missing(error.to_string()),
        }
    }
}

/// Tries everything, in the order in which a reader should mend it. Takes some tenths of a second.
pub fn probe() -> Vec<Feature> {
    let feature = |name, state, needed_by, without_it, required| Feature {
        name,
        state,
        needed_by,
        without_it,
        required,
    };
    vec![
        feature(
            "capabilities",
            capabilities(),
            "loading and attaching",
            "nothing can be traced: run as root, or with CAP_BPF and CAP_PERFMON",
            true,
        ),
        feature(
            "bpf system call",
            State::from_result(bpf::create_array()),
            "everything",
            "nothing can be traced",
            true,
        ),
        feature(
            "memory accounted to cgroups",
            bpf::memcg_accounting(),
            "maps of any size (Linux 5.11)",
            "the limit of locked memory must be raised: memtrace tries, and needs CAP_SYS_RESOURCE",
            false,
        ),
        feature(
            "ring buffer",
            State::from_result(bpf::create_ring()),
            "mmap events and notices (Linux 5.8)",
            "nothing can be traced",
            true,
        ),
        feature(
            "maps that grow with use",
            bpf::growing_maps(),
            "the maps of live blocks and stacks, safely in any context (Linux 6.1)",
            "allocations in the kernel by the older way: memory for maps may be slower to get",
            false,
        ),
        feature(
            "loops in BPF",
            bpf::has_helper(bpf::HELPER_LOOP),
            "walking stacks (bpf_loop, Linux 5.17)",
            "nothing can be traced",
            true,
        ),
        feature(
            "attach cookies",
            bpf::has_helper(bpf::HELPER_ATTACH_COOKIE),
            "one program for many functions (Linux 5.15)",
            "nothing can be traced",
            true,
        ),
        feature(
            "uprobe",
            uprobe::entry_with_cookie(),
            "every probe; tried on a function of memtrace's own, with a cookie",
            "nothing can be traced: is the kernel built with CONFIG_UPROBE_EVENTS?",
            true,
        ),
        feature(
            "return uprobe",
            uprobe::return_of_a_function(),
            "allocators; tried on a function of memtrace's own",
            "no allocator can be traced",
            true,
        ),
        feature(
            "uprobe_multi links",
            uprobe::multi_link(),
            "nothing yet: many probes by one link (Linux 6.6)",
            "one link for each probe",
            false,
        ),
        feature(
            "kernel type information",
            btf(),
            "clearer messages of the kernel's verifier",
            "nothing is missing from the figures",
            false,
        ),
        feature(
            "time in BPF programs",
            State::from_result(
                aya::sys::enable_stats(aya::sys::Stats::RunTime).map_err(|error| error.io_error),
            ),
            "the report of memtrace's own cost (Linux 5.8)",
            "the time in BPF programs is reported as unknown",
            false,
        ),
        feature(
            "signals from BPF",
            bpf::has_helper(bpf::HELPER_SEND_SIGNAL),
            "nothing yet: stopping a process at a threshold (Linux 5.3)",
            "nothing is missing",
            false,
        ),
    ]
}

/// Bits of `CapEff`, include/uapi/linux/capability.h.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

fn capabilities() -> State {
    let status = match fs::read_to_string("/proc/self/status") {
        Ok(status) => status,
        Err(error) => {
            return State::Unknown {
                reason: format!("failed to read `/proc/self/status`: {error}"),
            };
        }
    };
    match effective_capabilities(&status) {
        Some(held) => missing_capabilities(held),
        None => State::Unknown { reason: "`/proc/self/status` tells no CapEff".to_owned() },
    }
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing_capabilities(held: u64) -> State {
    let has = |bit: u32| held & (1 << bit) != 0;
    if has(CAP_SYS_ADMIN) || (has(CAP_BPF) && has(CAP_PERFMON)) {
        return State::Available;
    }
    let missing: Vec<&str> = [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
        .into_iter()
        .filter(|(bit, _)| !has(*bit))
        .map(|(_, name)| name)
        .collect();
    State::missing(format!("{} missing", missing.join(" and ")))
}

fn btf() -> State {
    match fs::metadata("/sys/kernel/btf/vmlinux") {
        Ok(_) => State::Available,
        Err(error) => State::missing(format!("`/sys/kernel/btf/vmlinux`: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_root_or_two_capabilities_are_enough() {
        assert_eq!(missing_capabilities(1 << CAP_SYS_ADMIN), State::Available);
        assert_eq!(missing_capabilities(1 << CAP_BPF | 1 << CAP_PERFMON), State::Available);
    }

    #[test]
    fn what_is_missing_is_named() {
        let State::Missing { reason } = missing_capabilities(1 << CAP_BPF) else { panic!() };
        assert_eq!(reason, "CAP_PERFMON missing");
        let State::Missing { reason } = missing_capabilities(0) else { panic!() };
        assert_eq!(reason, "CAP_BPF and CAP_PERFMON missing");
    }

    #[test]
    fn the_effective_set_is_read() {
        assert_eq!(effective_capabilities("CapPrm:\t3\nCapEff:\t000001ff\n"), Some(0x1ff));
        assert_eq!(effective_capabilities("CapPrm:\t3\n"), None);
    }
}
