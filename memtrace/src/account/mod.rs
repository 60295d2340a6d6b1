//! The ledger of a container's memory: parts + signed residual = whole, at every level. Pure.
//!
//! ```text
//! charge of the cgroup ─► its processes ─► each process's mappings ─► Go's and C's own books
//! ```
//!
//! Every figure says the file and the key that it was read from, or the formula that made it; what
//! is not known is unknown with its reason. The laws, with their bounds: `docs/accounting.md`.

pub mod advice;
pub mod charge;
pub mod classes;
pub mod invariants;
pub mod limits;
pub mod owners;
pub mod probed;
pub mod process;
pub mod row;
pub mod tools;
pub mod waterfall;

mod go;
mod native;
mod runtimes;
mod tree;

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod laws_tests;

use serde::Serialize;

use crate::snapshot::Known;
use crate::snapshot::facts::{Facts, OverheadFacts};
use advice::Advice;
use charge::{Charge, Drift};
use invariants::Check;
use limits::Limits;
use probed::Seen;
use process::ProcessLedger;
use row::Row;
use tools::Tool;

/// Everything that one reading tells.
#[derive(Clone, Debug, Serialize)]
pub struct Ledger {
    /// Where the charge of the cgroup is. Unknown where no cgroup could be read: the processes'
    /// ledgers stand alone then.
    pub charge: Known<Row>,
    /// The same figures as the tools and the laws use them.
    pub figures: Known<Charge>,
    /// What is there for the container and not part of its charge.
    pub beside: Vec<Row>,
    pub processes: Vec<ProcessLedger>,
    pub tools: Vec<Tool>,
    pub limits: Option<Limits>,
    pub drift: Option<Drift>,
    pub checks: Vec<Check>,
    pub advice: Vec<Advice>,
}

impl Ledger {
    pub fn of(facts: &Facts) -> Self {
        Self::of_recorded(facts, &Seen::default())
    }

    /// The same of a recording, whose probes saw what is outstanding.
    pub fn of_recorded(facts: &Facts, seen: &Seen) -> Self {
        let processes = facts.processes.iter();
        let processes: Vec<_> = processes
            .map(|process| ProcessLedger::of(process, facts, seen.of_process(process.id.pid)))
            .collect();
        let figures = facts.cgroup.and_then(|cgroup| Charge::of(cgroup, facts));
        let charge = figures.map(|charge| tree::charge_row(charge, facts, &processes));
        let limits = facts.cgroup.value().map(|cgroup| Limits::of(cgroup, facts));
        let drift = facts.cgroup.value().map(Drift::of);
        let tools = tools::tools(facts, figures.value(), limits.as_ref(), &processes);
        let beside = tree::beside(facts, figures.value(), &processes);
        let mut ledger = Self {
            charge,
            figures,
            beside,
            processes,
            tools,
            limits,
            drift,
            checks: Vec::new(),
            advice: Vec::new(),
        };
        ledger.checks = invariants::checks(facts, &ledger);
        ledger.advice = advice::advice(facts, &ledger);
        ledger
    }

    pub fn all_laws_hold(&self) -> bool {
        self.checks.iter().all(|check| check.holds != Some(false))
    }
}

/// Resident memory of a runtime's process for this container, as its Pss.
fn overhead_bytes(process: &OverheadFacts) -> Known<i128> {
    process.rollup.map(|rollup| rollup.pss.into())
}
