//! The laws of the ledger as code, checked on every run: what is broken is shown, never hidden.
//!
//! `holds` is `None` where a law has nothing to say: its terms are not known here.

use serde::Serialize;

use super::charge::Charge;
use super::classes::Class;
use super::{Ledger, go};
use crate::snapshot::Known;
use crate::snapshot::facts::{CgroupVersion, Facts, ProcessFacts, Rollup};

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    pub name: &'static str,
    /// The law, in one line.
    pub law: String,
    /// Of whom: the container, or a process.
    pub subject: String,
    pub holds: Option<bool>,
    pub left: i128,
    pub right: i128,
    /// How far apart both may be.
    pub tolerance: i128,
    /// Where `holds` is `None`, why.
    pub unknown: Option<String>,
}

/// A container whose memory moves by more than this part of it while it is read is at work.
const MOVING: i128 = 16;
/// RSS counters are per CPU and added up late: `SPLIT_RSS_COUNTING` and `percpu_counter` batches.
const RSS_BATCH_PAGES: i128 = 64;

pub(super) fn checks(facts: &Facts, ledger: &Ledger) -> Vec<Check> {
    let mut checks = Vec::new();
    match &ledger.figures {
        Known::Value(charge) => of_the_charge(&mut checks, facts, ledger, charge),
        Known::Unknown { reason } => {
            checks.push(silent(
                "I1",
                "charge = anonymous + cache + kernel + sockets + ε",
                "container",
                reason,
            ));
        }
    }
    for process in &facts.processes {
        of_a_process(&mut checks, facts, ledger, process);
    }
    of_the_sums(&mut checks, ledger);
    checks
}

fn check(
    name: &'static str,
    law: &str,
    subject: &str,
    (left, right): (i128, i128),
    tolerance: i128,
) -> Check {
    Check {
        name,
        law: law.to_owned(),
        subject: subject.to_owned(),
        holds: Some((left - right).abs() <= tolerance),
        left,
        right,
        tolerance,
        unknown: None,
    }
}

fn silent(name: &'static str, law: &str, subject: &str, why: &str) -> Check {
    Check { holds: None, unknown: Some(why.to_owned()), ..check(name, law, subject, (0, 0), 0) }
}

fn of_the_charge(checks: &mut Vec<Check>, facts: &Facts, ledger: &Ledger, charge: &Charge) {
    let container = "container";
    let usage = i128::from(charge.usage.known());
    let sock = match charge.version {
        CgroupVersion::V2 => i128::from(charge.sock.known()),
        CgroupVersion::V1 => 0,
    };
    let kernel = i128::from(charge.kernel.known());
    let anon = i128::from(charge.anon.known());
    let counted = anon + i128::from(charge.file.known()) + kernel + sock;
    let law = "charge = anonymous + cache + kernel + sockets + ε, ε within its bound";
    let missing = [&charge.anon, &charge.file, &charge.kernel];
    match missing.iter().find_map(|term| term.bytes.reason()) {
        Some(reason) => checks.push(silent("I1", law, container, reason)),
        None => checks.push(Check {
            holds: Some(charge.bound.holds(charge.epsilon)),
            tolerance: charge.bound.highest(),
            ..check("I1", law, container, (usage, counted), 0)
        }),
    }
    of_the_tools(checks, ledger, usage, charge);

    // I3: what the tools call the working set, from its terms.
    let law = "working set = anonymous + hot cache + shared memory + locked + kernel + sockets + ε";
    let file_lists = i128::from(charge.active_file.known())
        + i128::from(charge.inactive_file.known())
        + i128::from(charge.shmem.known());
    let unlisted = i128::from(charge.file.known()) - file_lists;
    let from_terms = anon
        + i128::from(charge.active_file.known())
        + i128::from(charge.shmem.known())
        + unlisted
        + kernel
        + sock
        + charge.epsilon;
    // A cold cache larger than the charge floors the working set.
    let floor = (i128::from(charge.inactive_file.known()) - usage).max(0);
    checks.push(check("I3", law, container, (charge.working_set().into(), from_terms), floor));

    // I4: no process explains more anonymous memory than there is, unless it is charged elsewhere.
    let law = "anonymous = Σ Pss_Anon of the processes + residual ≥ 0";
    let shares: Option<i128> = ledger
        .processes
        .iter()
        .map(|process| process.pss_anon.value().map(|bytes| i128::from(*bytes)))
        .sum();
    match shares {
        Some(shares) if facts.unread.is_empty() => {
            let page = i128::from(facts.host.page_size_bytes);
            let drift = ledger.drift.as_ref().map_or(0, |drift| i128::from(drift.of_anon()));
            let moved: i128 = facts.processes.iter().map(moved_anon).sum();
            let tolerance = i128::from(charge.bound.lag)
                + i128::from(charge.swap_cached.known())
                + drift
                + moved
                // A share is rounded down for each mapping.
                + page;
            let mut law = check("I4", law, container, (anon, shares), tolerance);
            // More anonymous memory than its processes tell is a residual, not a broken law.
            law.holds = Some(shares - anon <= tolerance);
            // Processes are read one after the other: what one freed and another took meanwhile is
            // in both, and only a container at rest has a sum.
            if law.holds == Some(false) && (drift + moved) * MOVING > anon {
                law.holds = None;
                law.unknown = Some(format!(
                    "the anonymous memory moved by {} B while the processes were read; --freeze \
                     gives the sum of one instant",
                    drift + moved
                ));
            }
            checks.push(law);
        }
        _ => checks.push(silent("I4", law, container, "not every process could be read")),
    }
}

fn of_the_tools(checks: &mut Vec<Check>, ledger: &Ledger, usage: i128, charge: &Charge) {
    let law = "docker stats = kubectl top = charge − cold cache";
    let of = |key: &str| {
        let tool = ledger.tools.iter().find(|tool| tool.key == key)?;
        tool.bytes.value().copied()
    };
    let expected = usage - i128::from(charge.inactive_file.known());
    match (of("docker"), of("kubectl"), charge.inactive_file.bytes.reason()) {
        (Some(docker), Some(kubectl), None) if expected > 0 => {
            let mut both = check("I2", law, "container", (docker, expected), 0);
            both.holds = Some(docker == expected && kubectl == expected);
            checks.push(both);
        }
        (.., Some(reason)) => checks.push(silent("I2", law, "container", reason)),
        _ => {
            checks.push(silent("I2", law, "container", "the cold cache is larger than the charge"))
        }
    }
}

fn moved_anon(process: &ProcessFacts) -> i128 {
    moved(process, |rollup| rollup.anonymous)
}

/// How far a figure of the rollup moved while the process was read.
fn moved(process: &ProcessFacts, of: fn(&Rollup) -> u64) -> i128 {
    match (process.rollup_before.value(), process.rollup_after.value()) {
        (Some(before), Some(after)) => i128::from(of(before).abs_diff(of(after))),
        _ => 0,
    }
}

fn of_a_process(checks: &mut Vec<Check>, facts: &Facts, ledger: &Ledger, process: &ProcessFacts) {
    let subject = format!("pid {}", process.id.pid);
    let page = i128::from(facts.host.page_size_bytes);
    let law = "Σ Rss of the classes = Rss of smaps_rollup";
    let classes = ledger.processes.iter().find(|it| it.pid == process.id.pid);
    match (process.rollup_after.value(), process.mappings.value(), classes) {
        (Some(rollup), Some(_), Some(classes)) => {
            let sum: i128 = classes.classes.iter().map(|class| i128::from(class.rss)).sum();
            let tolerance = moved(process, |rollup| rollup.rss);
            checks.push(check("I5", law, &subject, (sum, rollup.rss.into()), tolerance));
        }
        _ => checks.push(silent("I5", law, &subject, "smaps or smaps_rollup could not be read")),
    }

    let law = "VmRSS = RssAnon + RssFile + RssShmem";
    let status = &process.status;
    match (status.vm_rss, status.rss_anon, status.rss_file, status.rss_shmem) {
        (Some(rss), Some(anon), Some(file), Some(shmem)) => {
            let sum = i128::from(anon) + i128::from(file) + i128::from(shmem);
            // The kernel adds up the three once for each line of the file.
            let cpus = i128::from(facts.host.cpus.max(1));
            checks.push(check(
                "I6",
                law,
                &subject,
                (rss.into(), sum),
                cpus * RSS_BATCH_PAGES * page,
            ));
        }
        _ => checks.push(silent("I6", law, &subject, "the process has no memory of its own")),
    }
    of_go(checks, facts, ledger, process, &subject);
    of_ranges(checks, facts, process, &subject);
}

fn of_go(
    checks: &mut Vec<Check>,
    facts: &Facts,
    ledger: &Ledger,
    process: &ProcessFacts,
    subject: &str,
) {
    let Some((books, memory)) = go::memory(process) else { return };
    let wide = |bytes: u64| i128::from(bytes);
    let sum = wide(memory.heap_sys)
        + wide(memory.stack_sys)
        + wide(memory.mspan_sys)
        + wide(memory.mcache_sys)
        + wide(memory.buck_hash_sys)
        + wide(memory.gc_sys)
        + wide(memory.other_sys);
    let law = "Sys = HeapSys + StackSys + MSpanSys + MCacheSys + BuckHashSys + GCSys + OtherSys";
    checks.push(check("I7", law, subject, (memory.sys.into(), sum), 0));
    let law = "HeapSys = HeapInuse + HeapIdle, HeapReleased ≤ HeapIdle";
    let parts = wide(memory.heap_inuse) + wide(memory.heap_idle);
    let mut heap = check("I7", law, subject, (memory.heap_sys.into(), parts), 0);
    heap.holds = Some(heap.holds == Some(true) && memory.heap_released <= memory.heap_idle);
    checks.push(heap);
    if let Some(inuse) = books.inuse.value() {
        // What was live at the last collection may have been freed since; it is the heap's still.
        let law = "inuse_space ≤ HeapSys + the sampling's error";
        // Three standard deviations of a sum of n samples of mean `rate`: 3 √(inuse × rate).
        let error = 3.0 * ((*inuse as f64) * (books.sample_rate as f64)).sqrt();
        let mut live =
            check("I7", law, subject, (wide(*inuse), memory.heap_sys.into()), error as i128);
        live.holds = Some(wide(*inuse) <= wide(memory.heap_sys) + error as i128);
        checks.push(live);
    }
    // I8
    let law = "Sys − HeapReleased ≥ resident Go memory − lazily freed";
    let Some(classes) = ledger.processes.iter().find(|it| it.pid == process.id.pid) else { return };
    let go_classes = classes.classes.iter().filter(|class| class.class.is_go());
    let (resident, lazy) = go_classes.fold((0, 0), |(resident, lazy), class| {
        (resident + wide(class.rss), lazy + wide(class.lazy_free))
    });
    let retained = go::retained(memory);
    // The books are read some time before the mappings; huge pages come back in whole.
    let huge = classes.class(Class::GoHeap).map_or(0, |class| wide(class.anon_huge));
    let moved = moved(process, |rollup| rollup.anonymous) + huge;
    let tolerance = moved + 64 * wide(facts.host.page_size_bytes) + retained.abs() / 20;
    let mut check = check("I8", law, subject, (retained, resident - lazy), tolerance);
    check.holds = Some(resident - lazy <= retained + tolerance);
    checks.push(check);
}

/// I10: nothing is said to be malloc's that is not mapped.
fn of_ranges(checks: &mut Vec<Check>, facts: &Facts, process: &ProcessFacts, subject: &str) {
    let Some(mappings) = process.mappings.value() else { return };
    let census = process.heap.value();
    if census.is_none() && process.glibc_heaps.value().is_none_or(Vec::is_empty) {
        return;
    }
    let law = "every heap and arena that malloc tells of is mapped";
    let is_mapped = |address: &u64| {
        // By address, as smaps has them.
        let at = mappings.partition_point(|mapping| mapping.end <= *address);
        mappings.get(at).is_some_and(|mapping| mapping.start <= *address)
    };
    let heaps = process.glibc_heaps.value().into_iter().flatten().map(|heap| heap.start);
    let heaps: Vec<u64> = heaps.collect();
    let arenas = census.into_iter().flat_map(|census| &census.arenas).map(|arena| arena.address);
    let arenas: Vec<u64> = arenas.collect();
    let mapped = |told: &[u64]| told.iter().filter(|address| is_mapped(address)).count();
    let (told, found) = (heaps.len() + arenas.len(), mapped(&heaps) + mapped(&arenas));
    let mut ranges = check("I10", law, subject, (told as i128, found as i128), 0);
    // The books are younger than the mappings; heaps' headers are of the same reading.
    let stood_still = facts.freeze.as_ref().is_some_and(|freeze| !freeze.too_long);
    if ranges.holds == Some(false) && mapped(&heaps) == heaps.len() && !stood_still {
        ranges.holds = None;
        let new = told - found;
        ranges.unknown = Some(format!(
            "{new} arenas are not in the mappings, which were read before: they may be new; --freeze \
             reads both at one instant"
        ));
    }
    checks.push(ranges);
}

/// I12: every row of every tree is the sum of its parts.
fn of_the_sums(checks: &mut Vec<Check>, ledger: &Ledger) {
    let law = "every row = Σ its parts + residual";
    let trees = ledger.processes.iter().flat_map(|process| [&process.resident, &process.anonymous]);
    let mut broken = Vec::new();
    for tree in trees.chain([&ledger.charge]).filter_map(Known::value) {
        tree.broken(&mut broken);
    }
    let mut sums = check("I12", law, "all rows", (broken.len() as i128, 0), 0);
    if let Some((row, sum)) = broken.first() {
        sums.law = format!("{law}; the first that is not: {} ({} parts {sum})", row.label, row.key);
    }
    checks.push(sums);
}
