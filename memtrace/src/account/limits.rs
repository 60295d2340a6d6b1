//! How much the container may have: the limits of every ancestor, what has happened at them, and
//! which one is reached first.

use serde::Serialize;

use super::charge::{Term, term, usage_file};
use crate::snapshot::Known;
use crate::snapshot::facts::{CgroupFacts, CgroupVersion, Facts, NO_LIMIT};

#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// The smallest of all: `None` where nothing but the machine's memory limits.
    pub effective: Option<Limit>,
    pub host_memory: Known<u64>,
    /// Every limit that is set, the container's own first.
    pub all: Vec<Limit>,
    /// v2: what reclaim spares (`memory.low`, `memory.min`), of this cgroup and of ancestors.
    pub protected: Vec<Limit>,
    /// Limits of swap (`memory.swap.max`, v2), as of all.
    pub swap: Vec<Limit>,
    /// Ancestors that could not be seen may limit, too.
    pub ancestors_hidden: bool,
    /// The most that was ever charged.
    pub peak: Term,
    /// Counters of what happened at the limits, by name.
    pub events: Vec<(String, u64)>,
    /// `memory.pressure`, where the kernel has it.
    pub pressure: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limit {
    pub path: String,
    /// The file: `memory.max`, …
    pub file: String,
    pub bytes: u64,
    /// What is charged to that cgroup.
    pub usage: Option<u64>,
    /// Beyond it processes are killed; otherwise they are slowed or reclaimed from.
    pub hard: bool,
}

impl Limit {
    /// What may still be charged; negative where a limit was lowered below the charge.
    pub fn headroom(&self) -> Option<i128> {
        Some(i128::from(self.bytes) - i128::from(self.usage?))
    }
}

const V1_FILES: [(&str, bool); 3] = [
    ("memory.limit_in_bytes", true),
    ("memory.memsw.limit_in_bytes", true),
    ("memory.soft_limit_in_bytes", false),
];
const V2_FILES: [(&str, bool); 2] = [("memory.max", true), ("memory.high", false)];

const V2_PROTECTION: [&str; 2] = ["memory.low", "memory.min"];

const V1_EVENTS: [&str; 3] =
    ["memory.failcnt", "memory.oom_control oom_kill", "memory.oom_control under_oom"];
const V2_EVENTS: [&str; 6] = [
    "memory.events high",
    "memory.events max",
    "memory.events oom",
    "memory.events oom_kill",
    "memory.events oom_group_kill",
    "memory.swap.events fail",
];

impl Limits {
    pub fn of(cgroup: &CgroupFacts, facts: &Facts) -> Self {
        let v2 = cgroup.version == CgroupVersion::V2;
        let files: &[(&str, bool)] = if v2 { &V2_FILES } else { &V1_FILES };
        let mut all = Vec::new();
        for ancestor in &cgroup.limits {
            for (file, hard) in files {
                let set = ancestor.figures.get(*file).filter(|bytes| **bytes != NO_LIMIT);
                let Some(bytes) = set else { continue };
                // The limit of memory and swap together is only ever as large, or of interest with
                // swap.
                let usage = match *file {
                    "memory.memsw.limit_in_bytes" => {
                        ancestor.figures.get("memory.memsw.usage_in_bytes")
                    }
                    _ => ancestor.figures.get(usage_file(cgroup.version)),
                };
                all.push(Limit {
                    path: ancestor.path.clone(),
                    file: (*file).to_owned(),
                    bytes: *bytes,
                    usage: usage.copied(),
                    hard: *hard,
                });
            }
        }
        let each = |file: &'static str, usage: &'static str| {
            cgroup.limits.iter().filter_map(move |ancestor| {
                let bytes = *ancestor.figures.get(file)?;
                Some(Limit {
                    path: ancestor.path.clone(),
                    file: file.to_owned(),
                    bytes,
                    usage: ancestor.figures.get(usage).copied(),
                    hard: false,
                })
            })
        };
        let protection = V2_PROTECTION.iter().flat_map(|file| each(file, "memory.current"));
        let swap = each("memory.swap.max", "memory.swap.current");
        let effective = all
            .iter()
            .filter(|limit| limit.hard && limit.headroom().is_some())
            .min_by_key(|limit| (limit.headroom(), limit.bytes))
            .cloned();
        let reading = &cgroup.after;
        let names: &[&str] = if v2 { &V2_EVENTS } else { &V1_EVENTS };
        let events = names
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), *reading.figures.get(*name)?)))
            .collect();
        Self {
            effective,
            host_memory: facts.host_memory.clone(),
            all,
            protected: protection.filter(|limit| limit.bytes > 0).collect(),
            swap: swap.filter(|limit| limit.bytes != NO_LIMIT).collect(),
            ancestors_hidden: cgroup.ancestors_hidden,
            peak: term(reading, if v2 { "memory.peak" } else { "memory.max_usage_in_bytes" }),
            events,
            pressure: reading.pressure.clone(),
        }
    }

    /// The limit of the container's own cgroup, where one is set.
    pub fn own(&self, path: &str) -> Option<&Limit> {
        self.all.iter().find(|limit| limit.path == path && limit.hard)
    }
}
