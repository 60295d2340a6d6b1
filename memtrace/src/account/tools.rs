//! What each tool shows and why: its formula, its figure from the same instant, and the rows of the
//! ledger that it covers.
//!
//! The formulas are the tools' own, read in their sources: docker's CLI (`stats_helpers.go`),
//! podman (`pkg/cgroups/memory_linux.go` of containers/common), cAdvisor (`handler.go`), procps,
//! the Go runtime's documentation. `docs/accounting.md` says which versions.

use serde::Serialize;

use super::charge::Charge;
use super::limits::Limits;
use super::process::ProcessLedger;
use super::row::How;
use super::{go, row};
use crate::snapshot::Known;
use crate::snapshot::facts::{CgroupVersion, Facts, NO_LIMIT, ProcessFacts};

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tool {
    /// Stable, for programs.
    pub key: &'static str,
    /// As a user calls it.
    pub name: String,
    pub bytes: Known<i128>,
    pub how: How,
    pub formula: String,
    /// Keys of the rows whose bytes it shows.
    pub covers: Vec<&'static str>,
    /// In words: what is in it, and what is not.
    pub why: String,
}

pub(super) fn tools(
    facts: &Facts,
    charge: Option<&Charge>,
    limits: Option<&Limits>,
    processes: &[ProcessLedger],
) -> Vec<Tool> {
    let mut tools = Vec::new();
    if let Some(charge) = charge {
        of_the_cgroup(&mut tools, charge, limits);
    }
    tools.extend(first_victim(facts));
    if let Some(main) = main_process(facts, processes) {
        tools.push(rss(main));
    }
    if processes.len() > 1 {
        tools.push(sum_of_rss(processes));
    }
    for process in &facts.processes {
        // Who was not named and did not tell has nothing to show here.
        let named = facts.subject.main_pid == Some(process.id.pid);
        if named || process.go.value().is_some() {
            of_go(&mut tools, process);
        }
    }
    tools
}

const EVERYTHING: [&str; 5] = ["anon", "file", "kernel", "sock", "epsilon"];
const WITHOUT_COLD_CACHE: [&str; 6] = ["anon", "active_file", "shmem", "kernel", "sock", "epsilon"];

fn of_the_cgroup(tools: &mut Vec<Tool>, charge: &Charge, limits: Option<&Limits>) {
    let usage = charge.usage.source.clone();
    let inactive = charge.inactive_file.source.clone();
    let less_inactive = |key, name: &str, why: &str| Tool {
        key,
        name: name.to_owned(),
        bytes: match charge.inactive_file.bytes.reason() {
            Some(reason) => Known::unknown(reason),
            None => Known::Value(charge.working_set().into()),
        },
        how: How::Derived,
        formula: format!("{usage} − {inactive}"),
        covers: WITHOUT_COLD_CACHE.to_vec(),
        why: why.to_owned(),
    };
    let mut docker = less_inactive(
        "docker",
        "docker stats (MEM USAGE)",
        "all but the cold page cache: files used lately, kernel memory and what malloc or Go keep are in it",
    );
    // docker's guard: with more cold cache than charge it shows the charge.
    if charge.inactive_file.known() >= charge.usage.known() {
        docker.bytes = Known::Value(charge.usage.known().into());
    }
    tools.push(docker);
    tools.push(match charge.version {
        CgroupVersion::V2 => less_inactive(
            "podman",
            "podman stats (MEM USAGE)",
            "as docker; podman before 5 computed it otherwise",
        ),
        CgroupVersion::V1 => Tool {
            key: "podman",
            name: "podman stats (MEM USAGE)".to_owned(),
            bytes: Known::Value(charge.usage.known().into()),
            how: How::Measured,
            formula: usage.clone(),
            covers: EVERYTHING.to_vec(),
            why: "on cgroup v1 (podman 4) the whole charge, cold cache included".to_owned(),
        },
    });
    tools.push(less_inactive(
        "kubectl",
        "kubectl top (working set)",
        "container_memory_working_set_bytes, as of the kubelet's last look (10 to 15 s ago); a pod \
         is the sum of its containers. The kubelet evicts by it",
    ));
    tools.push(Tool {
        key: "cadvisor_rss",
        name: "container_memory_rss".to_owned(),
        bytes: row::wide(&charge.anon.bytes),
        how: How::Measured,
        formula: charge.anon.source.clone(),
        covers: vec!["anon"],
        why: "anonymous memory only; not what ps calls RSS".to_owned(),
    });
    let limit = limits.and_then(|limits| limits.effective.as_ref());
    tools.push(Tool {
        key: "oom",
        name: "OOM killer (what it compares)".to_owned(),
        bytes: Known::Value(charge.usage.known().into()),
        how: How::Measured,
        formula: match limit {
            Some(limit) => format!("{usage} against {} of {}", limit.file, limit.path),
            None => format!("{usage} against nothing: no limit is set"),
        },
        covers: EVERYTHING.to_vec(),
        why: "it kills when a charge does not fit after reclaim".to_owned(),
    });
    tools.push(Tool {
        key: "oom_floor",
        name: "  of it not reclaimable".to_owned(),
        bytes: Known::Value(charge.unreclaimable().into()),
        how: How::Derived,
        formula: match charge.version {
            CgroupVersion::V2 => {
                "anon + shmem + kernel − slab_reclaimable + sock (memory.stat)".to_owned()
            }
            CgroupVersion::V1 => {
                "total_rss + total_shmem + memory.kmem.usage_in_bytes: v1 does not tell which slab \
                 can go"
                    .to_owned()
            }
        },
        covers: vec!["anon", "shmem", "kernel", "sock"],
        why: "without swap, this must fit the limit".to_owned(),
    });
}

/// Whom the OOM killer takes first: `oom_badness` in `mm/oom_kill.c`.
fn first_victim(facts: &Facts) -> Option<Tool> {
    let scored = facts.processes.iter().filter(|process| process.oom_score_adj != Some(-1000));
    let victim = scored
        .filter(|process| process.oom_score.is_some())
        .max_by_key(|process| (process.oom_score, process.status.vm_rss))?;
    let status = &victim.status;
    let (pid, score) = (victim.id.pid, victim.oom_score.unwrap_or(0));
    let parts = [status.vm_rss?, status.vm_swap.unwrap_or(0), status.vm_pte.unwrap_or(0)];
    let adjusted = match victim.oom_score_adj {
        Some(0) | None => String::new(),
        Some(by) => format!(", moved by oom_score_adj {by}"),
    };
    Some(Tool {
        key: "oom_victim",
        name: format!("  its first victim (pid {pid})"),
        bytes: Known::Value(parts.iter().map(|part| i128::from(*part)).sum()),
        how: How::Derived,
        formula: format!("VmRSS + VmSwap + VmPTE of {} (oom_score {score}{adjusted})", victim.comm),
        covers: RESIDENT.to_vec(),
        why: "the process with the highest score is killed, not the one whose charge did not fit"
            .to_owned(),
    })
}

fn main_process<'a>(facts: &Facts, processes: &'a [ProcessLedger]) -> Option<&'a ProcessLedger> {
    let main = facts.subject.main_pid;
    processes.iter().find(|process| Some(process.pid) == main).or_else(|| processes.first())
}

const RESIDENT: [&str; 3] = ["anon", "file_mapped", "charged_elsewhere"];

fn rss(process: &ProcessLedger) -> Tool {
    let pid = process.pid;
    Tool {
        key: "rss",
        name: format!("ps, top (RSS of pid {pid})"),
        bytes: match process.vm_rss {
            Some(bytes) => Known::Value(bytes.into()),
            None => Known::unknown("the process has no VmRSS"),
        },
        how: How::Measured,
        formula: format!("/proc/{pid}/status VmRSS"),
        covers: RESIDENT.to_vec(),
        why: "one process: its anonymous memory and all file pages it maps, whoever they are \
              charged to; no page cache beyond that, no kernel memory"
            .to_owned(),
    }
}

fn sum_of_rss(processes: &[ProcessLedger]) -> Tool {
    let sum = processes.iter().filter_map(|process| process.vm_rss).map(i128::from).sum();
    Tool {
        key: "rss_sum",
        name: format!("ps, top (Σ RSS of {} processes)", processes.len()),
        bytes: Known::Value(sum),
        how: How::Derived,
        formula: "Σ /proc/PID/status VmRSS".to_owned(),
        covers: RESIDENT.to_vec(),
        why: "counts a page that n processes share n times".to_owned(),
    }
}

fn of_go(tools: &mut Vec<Tool>, process: &ProcessFacts) {
    if process.go_version.is_none() && process.go.value().is_none() {
        return;
    }
    let pid = process.id.pid;
    let of_books =
        |of: fn(&crate::snapshot::GoMemory) -> i128| process.go.and_then(|go| go.memory.map(of));
    let source = process.go.value().map_or(String::new(), |go| format!(" ({})", go.source));
    tools.push(Tool {
        key: "pprof",
        name: format!("pprof inuse_space (pid {pid})"),
        bytes: process.go.and_then(|go| row::wide(&go.inuse)),
        how: match process.go.value().map(|go| go.sample_rate) {
            Some(1) => How::Measured,
            _ => How::Sampled,
        },
        formula: format!("Σ inuse_space of the heap profile{source}"),
        covers: vec!["go_live"],
        why: "live Go objects at the last collection, estimated from samples: no garbage, no \
              stacks, no idle heap, nothing of C"
            .to_owned(),
    });
    tools.push(Tool {
        key: "go_retained",
        name: format!("Go Sys − HeapReleased (pid {pid})"),
        bytes: of_books(go::retained),
        how: How::Derived,
        formula: format!("runtime.MemStats Sys − HeapReleased{source}"),
        covers: vec!["go_heap", "go_runtime", "go_tables"],
        why: match process.go.value().map(|go| &go.memory_limit) {
            Some(Known::Value(NO_LIMIT)) => {
                "what GOMEMLIMIT bounds; it is not set. Nothing of C is in it".to_owned()
            }
            Some(Known::Value(limit)) => {
                format!("what GOMEMLIMIT bounds, {limit} B here. Nothing of C is in it")
            }
            _ => "what GOMEMLIMIT bounds: all that the runtime holds, nothing of C".to_owned(),
        },
    });
}
