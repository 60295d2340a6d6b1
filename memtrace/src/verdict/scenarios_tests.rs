//! Recordings with a known answer, of simulated programs: every block is there, so that totals and
//! survivors are what a tracer would have counted.

use std::collections::VecDeque;

use super::stacks::Behaviour;
use super::*;
use crate::outstanding::cohorts::Intervals;
use crate::snapshot::synthetic::{self, SECOND_NS};
use crate::snapshot::{CohortRow, Cohorts, GoMemory, Native, Recording, Snapshot, StackTotals};

const LEAK: u64 = synthetic::SQLITE_LEAK;
const BUSY: u64 = synthetic::CHURN;
const CACHE: u64 = synthetic::CSTRING_LEAK;

/// A program of blocks: `(stack, birth, size)`.
struct Program {
    blocks: VecDeque<(u64, u64, u64)>,
    totals: std::collections::BTreeMap<u64, StackTotals>,
    now: u64,
    intervals: Intervals,
    snapshots: Vec<Snapshot>,
    state: u64,
}

impl Program {
    fn new(seed: u64) -> Self {
        Self {
            blocks: VecDeque::new(),
            totals: Default::default(),
            now: 0,
            intervals: Intervals::default(),
            snapshots: Vec::new(),
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % below.max(1)
    }

    fn allocate(&mut self, stack: u64, size: u64) {
        self.blocks.push_back((stack, self.now, size));
        let row = self.totals.entry(stack).or_insert(StackTotals { stack, ..Default::default() });
        row.allocated_bytes += size;
        row.allocated_blocks += 1;
    }

    fn free_at(&mut self, at: usize) {
        if let Some((stack, _, size)) = self.blocks.remove(at) {
            let row = self.totals.get_mut(&stack).unwrap();
            row.freed_bytes += size;
            row.freed_blocks += 1;
        }
    }

    /// The oldest of this stack.
    fn free_oldest(&mut self, stack: u64) {
        if let Some(at) = self.blocks.iter().position(|block| block.0 == stack) {
            self.free_at(at);
        }
    }

    fn held(&self, stack: u64) -> usize {
        self.blocks.iter().filter(|block| block.0 == stack).count()
    }

    fn snapshot(&mut self, change: impl FnOnce(&mut Snapshot)) {
        let ends: Vec<u64> = self.intervals.ends_ns().iter().copied().chain([self.now]).collect();
        let mut rows: std::collections::BTreeMap<(u64, u32), (u64, u64)> = Default::default();
        for (stack, birth, size) in &self.blocks {
            let cohort = ends.partition_point(|end| end < birth) as u32;
            let row = rows.entry((*stack, cohort)).or_default();
            *row = (row.0 + size, row.1 + 1);
        }
        let rows = rows.into_iter().map(|((stack, cohort), (bytes, blocks))| CohortRow {
            stack,
            cohort,
            bytes,
            blocks,
        });
        let template = synthetic::recording().snapshots.swap_remove(0);
        let mut snapshot = Snapshot {
            sequence: self.snapshots.len() as u32,
            unix_ns: 1_790_000_000 * SECOND_NS + self.now,
            elapsed_ns: self.now,
            native: Native {
                stacks: self.totals.values().copied().collect(),
                ranges: Vec::new(),
                cohorts: Cohorts { ends_ns: ends, rows: rows.collect() },
                ages_at_ns: self.now,
                ..template.native.clone()
            },
            ..template
        };
        change(&mut snapshot);
        self.intervals.snapshot_at(self.now);
        self.snapshots.push(snapshot);
    }

    /// `seconds` of work, a snapshot after each.
    fn run(&mut self, seconds: u64, mut work: impl FnMut(&mut Self, u64)) {
        for second in 0..seconds {
            for tick in 1..=10 {
                self.now += SECOND_NS / 10;
                work(self, second * 10 + tick);
            }
            self.snapshot(|_| {});
        }
    }

    fn recording(self) -> Recording {
        Recording { snapshots: self.snapshots, ..synthetic::recording() }
    }

    fn verdict(self) -> Verdict {
        let recording = self.recording();
        match judge(&Librarian::new(&recording)) {
            Known::Value(verdict) => verdict,
            Known::Unknown { reason } => panic!("{reason}"),
        }
    }
}

/// Most blocks are gone by the next tick; some live for a while.
fn churn(program: &mut Program, stack: u64) {
    for _ in 0..40 {
        let size = 200 + program.random(2_000);
        program.allocate(stack, size);
    }
    while program.held(stack) > 60 {
        let oldest = program.random(2) == 0;
        if oldest {
            program.free_oldest(stack);
        } else {
            let nth = program.random(60) as usize;
            let of_stack: Vec<usize> =
                (0..program.blocks.len()).filter(|at| program.blocks[*at].0 == stack).collect();
            program.free_at(of_stack[nth.min(of_stack.len() - 1)]);
        }
    }
}

/// Churn alone.
pub(super) fn steady() -> Recording {
    let mut program = Program::new(1);
    program.run(20, |program, _| churn(program, BUSY));
    program.recording()
}

/// Churn, and so many blocks of 4,099 bytes a second that nobody frees.
pub(super) fn leaking(a_second: u64) -> Recording {
    let mut program = Program::new(1);
    program.run(20, |program, tick| {
        churn(program, BUSY);
        for _ in 0..(tick * a_second / 10 - (tick - 1) * a_second / 10) {
            program.allocate(LEAK, 4099);
        }
    });
    program.recording()
}

fn of(verdict: &Verdict, stack: u64) -> &StackVerdict {
    verdict.stacks.iter().find(|line| line.ids.contains(&stack)).unwrap()
}

fn kinds(verdict: &Verdict) -> Vec<Kind> {
    verdict.findings.iter().map(|finding| finding.kind).collect()
}

#[test]
fn a_healthy_program_has_no_finding() {
    for seed in 1..=20 {
        let mut program = Program::new(seed);
        program.run(20, |program, _| churn(program, BUSY));
        let verdict = program.verdict();
        assert_eq!(kinds(&verdict), [], "seed {seed}: {:#?}", verdict.findings);
        let behaviour = of(&verdict, BUSY).behaviour;
        assert!(matches!(behaviour, Behaviour::Churn | Behaviour::Plateau), "{behaviour:?}");
    }
}

#[test]
fn a_leak_beside_churn_is_found_with_its_rate() {
    for seed in 1..=20 {
        let mut program = Program::new(seed);
        program.run(20, |program, tick| {
            churn(program, BUSY);
            if tick % 2 == 0 {
                program.allocate(LEAK, 4099);
            }
        });
        let verdict = program.verdict();
        assert_eq!(kinds(&verdict), [Kind::LeakCandidate], "seed {seed}");
        let leak = of(&verdict, LEAK);
        assert_eq!((leak.behaviour, leak.freed_blocks), (Behaviour::Growing, 0));
        let truth = 5.0 * 4099.0;
        assert!((leak.rate() - truth).abs() < truth * 0.05, "{} of {truth}", leak.rate());
        assert_eq!(leak.growth_bytes, 19 * 5 * 4099);
        let survival = leak.survival.unwrap();
        assert_eq!(survival.with_survivors, survival.intervals);
        assert_eq!(survival.lived_on, 1.0);
    }
}

#[test]
fn a_leak_inside_the_churn_of_its_own_call_is_found_by_its_survivors() {
    for seed in 1..=20 {
        let mut program = Program::new(seed);
        program.run(30, |program, _| {
            // All through one call: 40 blocks live for a moment, three for ever.
            churn(program, BUSY);
            for _ in 0..3 {
                let at = program.blocks.iter().rposition(|block| block.0 == BUSY).unwrap();
                // Taken out of reach of the frees.
                let (_, birth, size) = program.blocks.remove(at).unwrap();
                program.blocks.push_front((BUSY + 1_000_000, birth, size));
            }
        });
        // Told as what they are: blocks of the same call.
        let mut recording = program.recording();
        for snapshot in &mut recording.snapshots {
            for row in &mut snapshot.native.cohorts.rows {
                row.stack = BUSY;
            }
        }
        let verdict = judge(&Librarian::new(&recording)).value().unwrap().clone();
        assert_eq!(kinds(&verdict), [Kind::LeakCandidate], "seed {seed}: {verdict:#?}");
    }
}

#[test]
fn a_cache_that_fills_and_then_evicts_levels_off() {
    for seed in 1..=20 {
        let mut program = Program::new(seed);
        program.run(24, |program, _| {
            churn(program, BUSY);
            for _ in 0..4 {
                program.allocate(CACHE, 20_000);
            }
            while program.held(CACHE) > 300 {
                program.free_oldest(CACHE);
            }
        });
        let verdict = program.verdict();
        assert_eq!(kinds(&verdict), [], "seed {seed}: {:#?}", verdict.findings);
        assert_eq!(of(&verdict, CACHE).behaviour, Behaviour::Plateau);
    }
}

#[test]
fn what_is_made_once_is_held_and_no_finding() {
    let mut program = Program::new(1);
    program.run(20, |program, tick| {
        churn(program, BUSY);
        if tick < 30 {
            program.allocate(CACHE, 100_000);
        }
    });
    let verdict = program.verdict();
    assert_eq!(kinds(&verdict), []);
    assert_eq!(of(&verdict, CACHE).behaviour, Behaviour::Held);
}

#[test]
fn what_is_given_back_shrinks() {
    let mut program = Program::new(1);
    program.run(4, |program, _| {
        for _ in 0..50 {
            program.allocate(CACHE, 10_000);
        }
        churn(program, BUSY);
    });
    program.run(18, |program, _| {
        churn(program, BUSY);
        program.free_oldest(CACHE);
        program.free_oldest(CACHE);
    });
    let verdict = program.verdict();
    assert_eq!(kinds(&verdict), []);
    assert_eq!(of(&verdict, CACHE).behaviour, Behaviour::Shrinking);
}

#[test]
fn an_idle_end_does_not_hide_what_the_load_leaked() {
    let mut program = Program::new(1);
    program.run(14, |program, _| {
        churn(program, BUSY);
        program.allocate(LEAK, 4099);
    });
    // Timers go on, and the idle seconds are the usual ones.
    program.run(20, |program, tick| {
        if tick % 10 == 0 {
            program.allocate(BUSY, 64);
            program.free_oldest(BUSY);
        }
    });
    let verdict = program.verdict();
    assert_eq!(kinds(&verdict), [Kind::LeakCandidate]);
    assert_eq!(verdict.window.unwrap().idle_after, 20);
    assert!(verdict.doubts.iter().any(|doubt| doubt.contains("idle process")));
    assert_eq!(of(&verdict, LEAK).growth_bytes, 13 * 10 * 4099);
}

#[test]
fn too_few_snapshots_are_no_verdict_but_a_reason() {
    let recording = synthetic::recording();
    let verdict = judge(&Librarian::new(&recording));
    let reason = verdict.reason().unwrap();
    assert!(reason.contains("--interval") && reason.starts_with("3 snapshots"), "{reason}");
}

#[test]
fn a_growing_go_heap_is_told_as_gos_and_not_as_a_leak_in_c() {
    let mut program = Program::new(1);
    for second in 0..20u64 {
        for _ in 0..10 {
            program.now += SECOND_NS / 10;
            churn(&mut program, BUSY);
        }
        program.snapshot(|snapshot| {
            if let Known::Value(books) = &mut snapshot.go {
                books.memory = Some(GoMemory {
                    heap_inuse: (20 + 3 * second + second % 2) << 20,
                    stack_inuse: 1 << 20,
                    ..GoMemory::default()
                });
            }
        });
    }
    let verdict = program.verdict();
    assert_eq!(kinds(&verdict), [Kind::GoHeapGrowth], "{:#?}", verdict.findings);
    assert!(verdict.findings[0].what.starts_with("not C's heap"));
}

#[test]
fn threads_that_become_more_are_told_as_a_number() {
    let mut program = Program::new(1);
    for second in 0..12u32 {
        program.now += SECOND_NS;
        churn(&mut program, BUSY);
        program.snapshot(|snapshot| {
            if let Known::Value(process) = &mut snapshot.process {
                process.threads = 3 + second;
            }
        });
    }
    assert_eq!(kinds(&program.verdict()), [Kind::ThreadGrowth]);
}

#[test]
fn gaps_and_jumps_of_the_clock_are_told() {
    let mut program = Program::new(1);
    program.run(10, |program, _| churn(program, BUSY));
    program.now += 60 * SECOND_NS;
    program.run(10, |program, _| churn(program, BUSY));
    let mut recording = program.recording();
    for snapshot in &mut recording.snapshots[15..] {
        snapshot.unix_ns -= 3_600 * SECOND_NS;
    }
    let verdict = judge(&Librarian::new(&recording)).value().unwrap().clone();
    let doubts = verdict.doubts.join("\n");
    assert!(doubts.contains("memtrace or the host was stopped"), "{doubts}");
    assert!(doubts.contains("the clock jumped by -3600"), "{doubts}");
}

#[test]
fn a_program_that_was_stopped_under_load_is_told() {
    let mut program = Program::new(1);
    program.run(12, |program, _| churn(program, BUSY));
    let mut recording = program.recording();
    let told = |recording: &Recording| {
        let verdict = judge(&Librarian::new(recording));
        let doubts = verdict.value().map(|verdict| verdict.doubts.join("\n"));
        doubts.is_some_and(|doubts| doubts.contains("called no allocator at all"))
    };
    assert!(!told(&recording));
    let still = recording.snapshots[3].native.clone();
    for snapshot in &mut recording.snapshots[4..8] {
        snapshot.native = still.clone();
    }
    assert!(told(&recording));
    // A program that calls next to nothing is always at rest.
    for snapshot in &mut recording.snapshots[8..] {
        snapshot.native = still.clone();
    }
    assert!(!told(&recording));
}

#[test]
fn hostile_figures_are_judged_without_a_panic() {
    let mut program = Program::new(1);
    program.run(12, |program, _| churn(program, BUSY));
    let mut recording = program.recording();
    for (at, snapshot) in recording.snapshots.iter_mut().enumerate() {
        snapshot.elapsed_ns = if at % 2 == 0 { u64::MAX } else { 0 };
        for row in &mut snapshot.native.stacks {
            (row.allocated_bytes, row.allocated_blocks) = (u64::MAX, u64::MAX);
        }
        snapshot.native.cohorts.ends_ns = vec![u64::MAX, 0, 7];
        for row in &mut snapshot.native.cohorts.rows {
            (row.cohort, row.bytes) = (u32::MAX, u64::MAX);
        }
    }
    let _ = judge(&Librarian::new(&recording));
}
