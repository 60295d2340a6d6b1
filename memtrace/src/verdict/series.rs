//! The figures of a recording as series: by stack, by the program's own call, in all; and the part
//! of the recording in which there was load. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{FEWEST_SNAPSHOTS, trend};
use crate::outstanding::books::Librarian;
use crate::outstanding::callers::own_frame;
use crate::outstanding::frames::Frame;
use crate::snapshot::{Known, Snapshot, StackTotals};

/// An interval with less than this part of the usual allocations is none under load.
const IDLE_PART: f64 = 0.1;
/// What an idle process still allocates, by what it allocates in the busiest quarter: not usual.
const NEGLIGIBLE_PART: f64 = 0.01;

/// The snapshots under load, by position: from the first one to the last one after which the process
/// was idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub first: usize,
    pub last: usize,
    /// Where its second half begins: what is still growing there has not levelled off.
    pub half: usize,
    pub from_ns: u64,
    pub to_ns: u64,
    /// Snapshots after it.
    pub idle_after: usize,
}

impl Window {
    /// Unknown where a recording is too short to tell anything over time.
    pub fn of(snapshots: &[Snapshot]) -> Known<Self> {
        let too_few = |found: usize| {
            Known::unknown(format!(
                "{found} snapshot{} cannot tell a leak from a cache: at least {FEWEST_SNAPSHOTS} \
                 under load can; record with --interval",
                if found == 1 { "" } else { "s" }
            ))
        };
        if snapshots.len() < FEWEST_SNAPSHOTS {
            return too_few(snapshots.len());
        }
        let allocated: Vec<u64> = snapshots
            .iter()
            .map(|at| {
                let blocks = at.native.stacks.iter().map(|row| row.allocated_blocks);
                blocks.fold(0u64, u64::saturating_add)
            })
            .collect();
        let rate = |at: usize| {
            let time = snapshots[at].elapsed_ns.saturating_sub(snapshots[at - 1].elapsed_ns);
            let blocks = allocated[at].saturating_sub(allocated[at - 1]) as f64;
            if time == 0 { 0.0 } else { blocks / time as f64 }
        };
        let rates: Vec<f64> = (1..snapshots.len()).map(rate).collect();
        let usual = usual(&rates);
        let busy = |rate: &f64| *rate > 0.0 && *rate >= usual * IDLE_PART;
        // Who never allocates in C may well grow elsewhere: all of the recording counts then.
        let (first, last) = match (rates.iter().position(busy), rates.iter().rposition(busy)) {
            (Some(first), Some(last)) if last + 2 - first >= FEWEST_SNAPSHOTS => (first, last + 1),
            _ => (0, snapshots.len() - 1),
        };
        let (from_ns, to_ns) = (snapshots[first].elapsed_ns, snapshots[last].elapsed_ns);
        let middle = from_ns + to_ns.saturating_sub(from_ns) / 2;
        let within = &snapshots[first..=last];
        let half = first + within.partition_point(|at| at.elapsed_ns < middle);
        Known::Value(Self {
            first,
            last,
            // A gap in the first half must not leave the second one without points.
            half: half.min(last.saturating_sub(3)).max(first),
            from_ns,
            to_ns,
            idle_after: snapshots.len() - 1 - last,
        })
    }

    pub fn seconds(&self) -> f64 {
        self.to_ns.saturating_sub(self.from_ns) as f64 / 1e9
    }
}

/// The median of the intervals that move at all, however many idle ones are beside them.
fn usual(rates: &[f64]) -> f64 {
    let mut moving: Vec<f64> = rates.iter().copied().filter(|rate| *rate > 0.0).collect();
    moving.sort_by(f64::total_cmp);
    let Some(&upper) = moving.get(moving.len() * 3 / 4) else { return 0.0 };
    trend::median(moving.into_iter().filter(|rate| *rate >= upper * NEGLIGIBLE_PART))
}

/// What one line held at one snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct At {
    pub bytes: u64,
    pub blocks: u64,
    pub allocated_bytes: u64,
    pub allocated_blocks: u64,
    pub freed_blocks: u64,
}

impl At {
    fn add(&mut self, row: &StackTotals) {
        let sum = |a: &mut u64, b: u64| *a = a.saturating_add(b);
        sum(&mut self.bytes, row.allocated_bytes.saturating_sub(row.freed_bytes));
        sum(&mut self.blocks, row.allocated_blocks.saturating_sub(row.freed_blocks));
        sum(&mut self.allocated_bytes, row.allocated_bytes);
        sum(&mut self.allocated_blocks, row.allocated_blocks);
        sum(&mut self.freed_blocks, row.freed_blocks);
    }
}

/// A stack, a call, or all together, over all snapshots.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// Ascending.
    pub ids: Vec<u64>,
    /// How many stacks that read differently.
    pub stacks: usize,
    /// Leaf first; of a call those of its largest stack.
    pub frames: Arc<[Arc<Frame>]>,
    /// The program's own frame nearest to the allocator.
    pub site: Option<Arc<Frame>>,
    /// The Go function above it, where it is C.
    pub go_caller: Option<Arc<Frame>>,
    /// One for each snapshot.
    pub at: Vec<At>,
    /// What lives of each interval, by the snapshot at which it was counted: [`Series::counted`].
    pub survivors: Vec<Vec<(u64, u64)>>,
}

/// A snapshot at which survivors were counted, and the intervals there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    pub position: usize,
    pub ends_ns: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
pub struct Series {
    pub times_ns: Vec<u64>,
    pub stacks: Vec<Line>,
    pub sites: Vec<Line>,
    pub native: Line,
    /// Two of them, where blocks were read: two thirds into the load, and at its end.
    pub counted: Vec<Counted>,
}

impl Series {
    pub fn of(librarian: &Librarian<'_>) -> Self {
        let recording = librarian.recording();
        let snapshots = &recording.snapshots;
        let mut lines: BTreeMap<usize, Line> = BTreeMap::new();
        for (position, snapshot) in snapshots.iter().enumerate() {
            for row in &snapshot.native.stacks {
                let Some(group) = librarian.group_of(row.stack) else { continue };
                let line = lines.entry(group).or_default();
                line.at.resize(snapshots.len(), At::default());
                line.at[position].add(row);
                line.ids.push(row.stack);
            }
        }
        let executable = &recording.header.tracee.executable;
        for (group, line) in &mut lines {
            line.ids.sort_unstable();
            line.ids.dedup();
            line.stacks = 1;
            line.frames = librarian.frames_of(*group);
            let (site, go_caller) = own_frame(&line.frames, executable);
            (line.site, line.go_caller) = (site.cloned(), go_caller.cloned());
        }
        let counted = survivors(librarian, &mut lines);
        let stacks: Vec<Line> = lines.into_values().collect();
        let mut sites: Vec<Line> = Vec::new();
        let mut position: HashMap<_, usize> = HashMap::new();
        let mut native = Line::default();
        for line in &stacks {
            let key = (
                line.site.as_ref().map(|it| it.name()),
                line.go_caller.as_ref().map(|it| it.name()),
            );
            let next = sites.len();
            let at = *position.entry(key).or_insert(next);
            if at == next {
                sites.push(Line::default());
            }
            join(&mut sites[at], line);
            join(&mut native, line);
        }
        drop(position);
        native.at.resize(snapshots.len(), At::default());
        let times_ns = snapshots.iter().map(|at| at.elapsed_ns).collect();
        Self { times_ns, stacks, sites, native, counted }
    }
}

fn join(sum: &mut Line, line: &Line) {
    let last = |line: &Line| line.at.last().map_or(0, |at| at.bytes);
    if sum.stacks == 0 || last(line) > sum.at.iter().map(|at| at.bytes).max().unwrap_or(0) {
        sum.frames = line.frames.clone();
        (sum.site, sum.go_caller) = (line.site.clone(), line.go_caller.clone());
    }
    sum.stacks += line.stacks;
    sum.ids.extend_from_slice(&line.ids);
    sum.ids.sort_unstable();
    sum.at.resize(line.at.len().max(sum.at.len()), At::default());
    for (sum, at) in sum.at.iter_mut().zip(&line.at) {
        let add = |a: &mut u64, b: u64| *a = a.saturating_add(b);
        add(&mut sum.bytes, at.bytes);
        add(&mut sum.blocks, at.blocks);
        add(&mut sum.allocated_bytes, at.allocated_bytes);
        add(&mut sum.allocated_blocks, at.allocated_blocks);
        add(&mut sum.freed_blocks, at.freed_blocks);
    }
    sum.survivors.resize(line.survivors.len().max(sum.survivors.len()), Vec::new());
    for (sum, counts) in sum.survivors.iter_mut().zip(&line.survivors) {
        sum.resize(counts.len().max(sum.len()), (0, 0));
        for (sum, count) in sum.iter_mut().zip(counts) {
            *sum = (sum.0.saturating_add(count.0), sum.1.saturating_add(count.1));
        }
    }
}

/// Fills in what lives of each interval at two instants of the load.
fn survivors(librarian: &Librarian<'_>, lines: &mut BTreeMap<usize, Line>) -> Vec<Counted> {
    let snapshots = &librarian.recording().snapshots;
    let Known::Value(window) = Window::of(snapshots) else { return Vec::new() };
    let two_thirds = window.from_ns + window.to_ns.saturating_sub(window.from_ns) / 3 * 2;
    let middle = window.first
        + snapshots[window.first..=window.last].partition_point(|at| at.elapsed_ns < two_thirds);
    let mut counted = Vec::new();
    for wanted in [middle.min(window.last), window.last] {
        // Of a long recording not every snapshot has them.
        let has = |at: &usize| !snapshots[*at].native.cohorts.ends_ns.is_empty();
        let Some(position) = (window.first..=wanted).rev().find(has) else { return Vec::new() };
        let cohorts = &snapshots[position].native.cohorts;
        let intervals = cohorts.ends_ns.len() + 1;
        for line in lines.values_mut() {
            line.survivors.push(vec![(0, 0); intervals]);
        }
        for row in &cohorts.rows {
            let line = librarian.group_of(row.stack).and_then(|group| lines.get_mut(&group));
            let counts = line.and_then(|line| line.survivors.last_mut());
            if let Some(count) = counts.and_then(|counts| counts.get_mut(row.cohort as usize)) {
                count.0 = count.0.saturating_add(row.bytes);
                count.1 = count.1.saturating_add(row.blocks);
            }
        }
        counted.push(Counted { position, ends_ns: cohorts.ends_ns.clone() });
    }
    counted
}

/// A process that is stopped calls nothing; one that waits may not, either.
const SHORTEST_PAUSE_NS: u64 = 2_000_000_000;

/// Stretches of the load in which there was no call at all, in words.
fn pauses(load: &[Snapshot]) -> Vec<String> {
    let calls: Vec<u64> = load
        .iter()
        .map(|at| {
            let counts = at.native.stacks.iter();
            let counts = counts.map(|row| row.allocated_blocks.wrapping_add(row.freed_blocks));
            counts.fold(0, u64::wrapping_add)
        })
        .collect();
    let busy = calls.windows(2).filter(|pair| pair[0] != pair[1]).count();
    // One that rarely calls anything is always at rest.
    if busy * 2 < load.len() {
        return Vec::new();
    }
    let mut pauses = Vec::new();
    let mut from = 0;
    for still in calls.chunk_by(|one, next| one == next) {
        let (first, last) = (&load[from], &load[from + still.len() - 1]);
        from += still.len();
        let length = last.elapsed_ns.saturating_sub(first.elapsed_ns);
        if length >= SHORTEST_PAUSE_NS && still.len() > 2 {
            pauses.push(format!(
                "between the snapshots {} and {} ({:.1} s) the program called no allocator at all: it \
                 was stopped, or waited",
                first.sequence,
                last.sequence,
                length as f64 / 1e9
            ));
        }
    }
    pauses
}

/// What makes the series itself doubtful, in words.
pub fn doubts(snapshots: &[Snapshot], window: &Window) -> Vec<String> {
    let mut doubts = Vec::new();
    let pairs: Vec<_> = snapshots.windows(2).collect();
    let step = |pair: &&[Snapshot]| pair[1].elapsed_ns.saturating_sub(pair[0].elapsed_ns);
    let usual = trend::median(pairs.iter().map(|pair| step(pair) as f64));
    for pair in &pairs {
        let elapsed = step(pair);
        if elapsed as f64 > usual * 3.0 && elapsed > 2_000_000_000 {
            doubts.push(format!(
                "between the snapshots {} and {} there are {:.1} s, where {:.1} s are usual: memtrace \
                 or the host was stopped",
                pair[0].sequence,
                pair[1].sequence,
                elapsed as f64 / 1e9,
                usual / 1e9
            ));
        }
        let wall = i128::from(pair[1].unix_ns) - i128::from(pair[0].unix_ns);
        let jump = wall - i128::from(elapsed);
        if jump.abs() > 2_000_000_000 {
            doubts.push(format!(
                "the clock jumped by {:+.1} s between the snapshots {} and {}: rates count from the \
                 monotonic clock, which did not",
                jump as f64 / 1e9,
                pair[0].sequence,
                pair[1].sequence
            ));
        }
    }
    doubts.extend(pauses(&snapshots[window.first..=window.last]));
    if window.idle_after * 10 > snapshots.len() {
        doubts.push(format!(
            "the last {} snapshots are of an idle process: growth is judged before them",
            window.idle_after
        ));
    }
    let lost = snapshots[window.last].native.losses.iter();
    let lost = lost.fold(0u64, |sum, (_, count)| sum.saturating_add(*count));
    if lost > 0 {
        doubts.push(format!("{lost} calls were lost: see LOSSES"));
    }
    doubts
}
