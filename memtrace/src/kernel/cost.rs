//! What the kernel side costs.

use std::os::fd::{AsFd, AsRawFd};

use aya::Ebpf;
use aya::maps::Map;
use aya::programs::Program;
use memtrace_common::counters::{Loss, Tally};

use super::sys::{memlock_bytes, program_counters};
use super::{Kernel, KernelError};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCost {
    /// Runs of the programs at probes, of entries; foreign and unarmed ones as well.
    pub probe_hits: u64,
    /// Time in BPF programs. `None` where the kernel does not count it.
    pub bpf_time_ns: Option<u64>,
    /// Runs of the programs. `None` likewise.
    pub bpf_runs: Option<u64>,
    /// `memlock` of programs and maps.
    pub kernel_memory_bytes: u64,
}

impl Kernel {
    pub fn own_cost(&self) -> Result<KernelCost, KernelError> {
        let counters = self.read_counters()?;
        let (tallies, hits) = counters[Loss::COUNT..].split_at(Tally::COUNT);
        let passed_by = tallies[Tally::ForeignHits as usize] + tallies[Tally::UnarmedHits as usize];
        let mut cost = KernelCost {
            probe_hits: hits.iter().sum::<u64>() + passed_by,
            ..KernelCost::default()
        };
        let mut time_ns = 0;
        let mut runs = 0;
        for fd in program_fds(&self.ebpf) {
            if let Ok(counters) = program_counters(fd) {
                time_ns += counters.run_time_ns;
                runs += counters.run_count;
            }
            cost.kernel_memory_bytes += memlock_bytes(fd).unwrap_or(0);
        }
        if self.stats.is_some() {
            cost.bpf_time_ns = Some(time_ns);
            cost.bpf_runs = Some(runs);
        }
        cost.kernel_memory_bytes +=
            self.map_fds().iter().filter_map(|fd| memlock_bytes(*fd)).sum::<u64>();
        Ok(cost)
    }

    fn map_fds(&self) -> Vec<i32> {
        let others = self.ebpf.maps().filter_map(|(_, map)| match map {
            Map::Array(data) | Map::HashMap(data) | Map::PerCpuArray(data) | Map::RingBuf(data) => {
                Some(data.fd().as_fd().as_raw_fd())
            }
            _ => None,
        });
        std::iter::once(self.ring.as_raw_fd()).chain(others).collect()
    }
}

pub(super) fn program_fds(ebpf: &Ebpf) -> impl Iterator<Item = i32> {
    ebpf.programs().filter_map(|(_, program)| {
        let fd = match program {
            Program::UProbe(program) => program.fd(),
            Program::RawTracePoint(program) => program.fd(),
            _ => return None,
        };
        Some(fd.ok()?.as_fd().as_raw_fd())
    })
}
