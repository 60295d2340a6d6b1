//! How the blocks of one stack, or of one call, behave over time. Pure.
//!
//! ```text
//! growing    the second half still rises, or every interval leaves survivors that nobody frees
//! shrinking  the second half falls
//! churn      nearly all is freed again, and little of it lives at a time
//! held       nothing is allocated any more, and what is there stays
//! plateau    allocated and freed, and the level stays: a cache, a pool
//! ```

use std::sync::Arc;

use super::SMALLEST_GROWTH;
use super::series::{Line, Series, Window};
use super::trend::{Trend, median, trend};
use crate::outstanding::frames::Frame;

/// Of a trend that counts.
const SURE: f64 = 0.05;
/// Growth over the second half below this part of the level is none.
const STEADY_PART: f64 = 0.02;
/// Part of the inner intervals that must have survivors.
const MOST_INTERVALS: f64 = 0.7;
/// Part of the survivors of early intervals that lives on in the last third of the load: a cache
/// that evicts is below, a leak is 1.
const SURVIVE: f64 = 0.8;
/// The same where survivors are all that there is to go by.
const SURVIVE_SURELY: f64 = 0.97;
/// Freed blocks by allocated ones, and live bytes by allocated ones, of what is churn.
const CHURN_FREED: f64 = 0.9;
const CHURN_LIVE: f64 = 0.1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Behaviour {
    Growing,
    Shrinking,
    Churn,
    Held,
    Plateau,
    /// None of these is sure.
    Unclear,
}

impl Behaviour {
    pub fn key(self) -> &'static str {
        match self {
            Self::Growing => "growing",
            Self::Shrinking => "shrinking",
            Self::Churn => "churn",
            Self::Held => "held",
            Self::Plateau => "plateau",
            Self::Unclear => "unclear",
        }
    }
}

/// What lives of what was allocated in each interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Survival {
    /// Inner intervals: not the first ones, not the youngest quarter.
    pub intervals: usize,
    /// Of them, those of which something lives.
    pub with_survivors: usize,
    /// Of the survivors of the first third of the load, the part that lived on through the last
    /// third; 1 where there were none to lose.
    pub lived_on: f64,
    /// What the inner intervals left, bytes per second of them.
    pub bytes_per_second: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct StackVerdict {
    pub ids: Vec<u64>,
    pub stacks: usize,
    pub frames: Arc<[Arc<Frame>]>,
    pub site: Option<Arc<Frame>>,
    pub go_caller: Option<Arc<Frame>>,
    pub behaviour: Behaviour,
    /// From the beginning of the load to its end.
    pub growth_bytes: i128,
    pub growth_blocks: i128,
    /// Bytes outstanding at the end of the load.
    pub last: u64,
    /// Of all of the load; bytes per second. `None` where too little moves, too.
    pub trend: Option<Trend>,
    /// Of its second half.
    pub late: Option<Trend>,
    pub survival: Option<Survival>,
    /// Blocks allocated and freed during the load.
    pub allocated_blocks: u64,
    pub freed_blocks: u64,
    pub allocated_bytes: u64,
}

impl StackVerdict {
    /// Bytes per second: what the interior intervals leave where growth hides in churn, else the
    /// slope over the load.
    pub fn rate(&self) -> f64 {
        let total = self.trend.map_or(0.0, |trend| trend.slope);
        match self.survival {
            Some(survival) if self.hidden_in_churn() => survival.bytes_per_second,
            _ => total,
        }
    }

    /// The level alone does not show it.
    pub fn hidden_in_churn(&self) -> bool {
        !self.late.is_some_and(|late| late.p < SURE && late.low > 0.0)
    }
}

pub fn judge(line: &Line, series: &Series, window: &Window) -> StackVerdict {
    let point = |at: usize| (series.times_ns[at] as f64 / 1e9, line.at[at].bytes as f64);
    let all: Vec<(f64, f64)> = (window.first..=window.last).map(point).collect();
    let late_points: Vec<(f64, f64)> = (window.half..=window.last).map(point).collect();
    let (first, last) = (line.at[window.first], line.at[window.last]);
    // Of most stacks nothing moves that could count, and a trend asks for all pairs of points.
    let moved = line.at[window.first..=window.last].iter().map(|at| at.bytes);
    let range = moved.clone().max().unwrap_or(0) - moved.min().unwrap_or(0);
    let trend_of = |points: &[(f64, f64)]| (range >= SMALLEST_GROWTH / 4).then(|| trend(points))?;
    let (late, survival) = (trend_of(&late_points), survival(line, series, window));
    let mut verdict = StackVerdict {
        ids: line.ids.clone(),
        stacks: line.stacks,
        frames: line.frames.clone(),
        site: line.site.clone(),
        go_caller: line.go_caller.clone(),
        behaviour: Behaviour::Unclear,
        growth_bytes: i128::from(last.bytes) - i128::from(first.bytes),
        growth_blocks: i128::from(last.blocks) - i128::from(first.blocks),
        last: last.bytes,
        trend: trend_of(&all),
        late,
        survival,
        allocated_blocks: last.allocated_blocks.saturating_sub(first.allocated_blocks),
        freed_blocks: last.freed_blocks.saturating_sub(first.freed_blocks),
        allocated_bytes: last.allocated_bytes.saturating_sub(first.allocated_bytes),
    };
    let half = line.at[window.half];
    let late_allocated = last.allocated_blocks.saturating_sub(half.allocated_blocks);
    let late_freed = last.freed_blocks.saturating_sub(half.freed_blocks);
    let level = median(late_points.iter().map(|(_, bytes)| *bytes));
    verdict.behaviour = behaviour(&verdict, level, late_allocated, late_freed, series, window);
    verdict
}

fn behaviour(
    of: &StackVerdict,
    level: f64,
    late_allocated: u64,
    late_freed: u64,
    series: &Series,
    window: &Window,
) -> Behaviour {
    if grows(of, level, late_allocated, series, window) {
        return Behaviour::Growing;
    }
    let late_seconds =
        series.times_ns[window.last].saturating_sub(series.times_ns[window.half]) as f64 / 1e9;
    let change = of.late.map_or(0.0, |late| late.slope * late_seconds);
    let material = (level * STEADY_PART).max(SMALLEST_GROWTH as f64 / 2.0);
    if of.late.is_some_and(|late| late.p < SURE && late.high < 0.0) && -change >= material {
        return Behaviour::Shrinking;
    }
    if late_allocated == 0 && late_freed == 0 {
        return Behaviour::Held;
    }
    let freed = of.freed_blocks as f64 >= of.allocated_blocks as f64 * CHURN_FREED;
    if freed && level <= of.allocated_bytes as f64 * CHURN_LIVE {
        return Behaviour::Churn;
    }
    if change.abs() < material.max(level * 0.1) { Behaviour::Plateau } else { Behaviour::Unclear }
}

fn grows(
    of: &StackVerdict,
    level: f64,
    late_allocated: u64,
    series: &Series,
    window: &Window,
) -> bool {
    if late_allocated == 0 {
        return false;
    }
    let enough_survivors = of.survival.is_none_or(|survival| {
        survival.lived_on >= SURVIVE
            && survival.with_survivors as f64 >= survival.intervals as f64 * MOST_INTERVALS
    });
    let late_seconds =
        series.times_ns[window.last].saturating_sub(series.times_ns[window.half]) as f64 / 1e9;
    let rises = of.late.is_some_and(|late| {
        let grown = late.slope * late_seconds;
        late.p < SURE
            && late.low > 0.0
            && grown >= (level * STEADY_PART).max(SMALLEST_GROWTH as f64 / 4.0)
    });
    if rises && enough_survivors && of.growth_bytes >= i128::from(SMALLEST_GROWTH) {
        return true;
    }
    // A slow leak below the noise of heavy churn: each interval leaves something that stays.
    of.survival.is_some_and(|survival| {
        survival.intervals >= 3
            && survival.with_survivors == survival.intervals
            && survival.lived_on >= SURVIVE_SURELY
            && survival.bytes_per_second * window.seconds() >= SMALLEST_GROWTH as f64
    })
}

/// `None` where blocks were not read, or the intervals are too few.
fn survival(line: &Line, series: &Series, window: &Window) -> Option<Survival> {
    let ([before, end], [counts_before, counts]) = (&series.counted[..], &line.survivors[..])
    else {
        return None;
    };
    let length = window.to_ns.saturating_sub(window.from_ns);
    // The first tenth warms up, the youngest quarter may still be in use.
    let from = window.from_ns + length / 10;
    let to = window.to_ns - length / 4;
    let (mut intervals, mut with_survivors, mut bytes, mut time) = (0, 0, 0u64, 0u64);
    let mut begin = 0;
    for (end, (live, _)) in end.ends_ns.iter().zip(counts) {
        if begin >= from && *end <= to {
            intervals += 1;
            with_survivors += usize::from(*live > 0);
            bytes = bytes.saturating_add(*live);
            time = time.saturating_add(end.saturating_sub(begin));
        }
        begin = *end;
    }
    if intervals == 0 || time == 0 {
        return None;
    }
    // Intervals merge while time goes on, and never split: an end that both know is the same.
    let third = window.from_ns + length / 3;
    let common = end.ends_ns.iter().filter(|end| **end <= third);
    let common = common.filter(|end| before.ends_ns.contains(end)).max().copied();
    let until = |ends: &[u64], counts: &[(u64, u64)], limit: u64| {
        let within = ends.iter().zip(counts).filter(|(end, _)| **end <= limit);
        within.fold(0u64, |sum, (_, (_, blocks))| sum.saturating_add(*blocks))
    };
    let lived_on = common.map_or(1.0, |limit| {
        let early = until(&before.ends_ns, counts_before, limit);
        let late = until(&end.ends_ns, counts, limit);
        if early == 0 { 1.0 } else { late as f64 / early as f64 }
    });
    Some(Survival {
        intervals,
        with_survivors,
        lived_on,
        bytes_per_second: bytes as f64 / (time as f64 / 1e9),
    })
}
