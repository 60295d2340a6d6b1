//! What a verdict says to a person: the sentence, the figures, what would refute it, what to do.

use super::owners::{Owner, OwnerVerdict};
use super::stacks::StackVerdict;
use super::trend::Trend;
use super::{Figure, Finding, How, Kind, Unit};
use crate::outstanding::frames::{Frame, base_name};

fn figure(key: &'static str, label: &'static str, value: f64, unit: Unit, how: How) -> Figure {
    Figure { key, label, value, unit, how }
}

/// `parse_feed (feeds_xml.c:7), called by main.(*feeds).importFeed (feeds.go:30)`
pub fn place(site: &StackVerdict) -> String {
    let Some(frame) = &site.site else { return "[no stack]".to_owned() };
    match &site.go_caller {
        Some(caller) => format!("{}, called by {}", named(frame), named(caller)),
        None => named(frame),
    }
}

fn named(frame: &Frame) -> String {
    match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!("{} ({}:{line})", frame.label(), base_name(file)),
        _ => match &frame.module {
            Some(module) if frame.function.is_some() => {
                format!("{} ({})", frame.label(), base_name(module))
            }
            _ => frame.label(),
        },
    }
}

fn trend_figures(trend: Option<Trend>, unit: Unit, figures: &mut Vec<Figure>) {
    let Some(trend) = trend else { return };
    figures.extend([
        figure("slope", "slope (Theil–Sen)", trend.slope, unit, How::Derived),
        figure("slope_low", "at least, with 95 % confidence", trend.low, unit, How::Derived),
        figure("slope_high", "at most", trend.high, unit, How::Derived),
        figure("p", "p without a trend (Mann–Kendall)", trend.p, Unit::Probability, How::Derived),
        figure("points", "snapshots", trend.points as f64, Unit::Count, How::Measured),
    ]);
}

pub(super) fn leak_candidate(at: usize, site: &StackVerdict) -> Finding {
    let mut figures = vec![
        figure(
            "growth",
            "grown over the load",
            site.growth_bytes as f64,
            Unit::Bytes,
            How::Measured,
        ),
        figure(
            "growth_blocks",
            "in blocks",
            site.growth_blocks as f64,
            Unit::Blocks,
            How::Measured,
        ),
        figure("outstanding", "not freed at its end", site.last as f64, Unit::Bytes, How::Measured),
        figure(
            "allocated_blocks",
            "blocks allocated under load",
            site.allocated_blocks as f64,
            Unit::Blocks,
            How::Measured,
        ),
        figure(
            "freed_blocks",
            "blocks freed",
            site.freed_blocks as f64,
            Unit::Blocks,
            How::Measured,
        ),
    ];
    trend_figures(site.trend, Unit::BytesPerSecond, &mut figures);
    if let Some(survival) = site.survival {
        figures.extend([
            figure(
                "intervals",
                "inner intervals of the load",
                survival.intervals as f64,
                Unit::Count,
                How::Measured,
            ),
            figure(
                "with_survivors",
                "of them with survivors",
                survival.with_survivors as f64,
                Unit::Count,
                How::Measured,
            ),
            figure(
                "lived_on",
                "early survivors that lived on",
                survival.lived_on,
                Unit::Share,
                How::Measured,
            ),
            figure(
                "survivor_rate",
                "left by the inner intervals",
                survival.bytes_per_second,
                Unit::BytesPerSecond,
                How::Derived,
            ),
        ]);
    }
    let never = match (site.freed_blocks, site.hidden_in_churn()) {
        (0, _) => ": not one block was freed",
        (_, true) => ": most is freed, and each interval leaves some that stays",
        _ => "",
    };
    Finding {
        kind: Kind::LeakCandidate,
        what: format!("leak candidate: {} grows by {} B/s{never}", place(site), shown(site.rate())),
        bytes: site.growth_bytes,
        figures,
        refuted_by: "a longer run under the same load in which it levels off (a cache that was \
                     still filling), or blocks of early intervals being freed"
            .to_owned(),
        remedy:
            "free what this call allocates on the path that forgets it, or bound the cache that \
                 keeps it; `memtrace diff` of two marks shows what each request leaves"
                .to_owned(),
        site: Some(at),
    }
}

fn shown(rate: f64) -> String {
    crate::report::grouped(rate.round() as i64)
}

/// Of an owner that grows; `None` for those that have a verdict of their own, or do not grow.
pub(super) fn growth(of: &OwnerVerdict) -> Option<Finding> {
    if !of.grows {
        return None;
    }
    let (kind, remedy, refuted_by) = match of.owner {
        // Its blocks, or their retention, are judged by themselves.
        Owner::CHeap => return None,
        Owner::NativeMappings => (
            Kind::NativeMappingsGrowth,
            "look at NATIVE MAPPINGS for who maps it; an arena or a memory-mapped database has a \
             limit of its own",
            "mappings that level off in a longer run",
        ),
        Owner::GoHeap => (
            Kind::GoHeapGrowth,
            "a heap profile of Go (`go tool pprof -diff_base`) names the sites; GOMEMLIMIT and GOGC \
             bound garbage, not what is live",
            "a heap that falls back after a collection: with few collections it is garbage",
        ),
        Owner::GoIdle => (
            Kind::GoIdle,
            "GOMEMLIMIT makes the runtime give it back; debug.FreeOSMemory does so at once",
            "the scavenger giving it back within minutes",
        ),
        Owner::GoStacks => (
            Kind::GoroutineGrowth,
            "a goroutine profile (/debug/pprof/goroutine) names where they wait: channels nobody \
             reads, contexts nobody cancels",
            "a number of goroutines that levels off under the same load",
        ),
        Owner::Threads => (
            Kind::ThreadGrowth,
            "join or detach the threads, or bound the pool; in Go, calls into C that block each hold \
             a thread",
            "a number of threads that levels off under the same load",
        ),
        Owner::PageCache => (
            Kind::PageCacheGrowth,
            "nothing to fix as long as it can be reclaimed: it counts against the container's \
             charge, not its need; O_DIRECT or posix_fadvise(DONTNEED) for files read once",
            "a working set that grows with it: then files are in use, not merely cached",
        ),
        Owner::Tmpfs => (
            Kind::TmpfsGrowth,
            "remove the files, or limit the mount (size=, an emptyDir's sizeLimit): it is memory \
             that only deleting frees",
            "files that are removed later by themselves",
        ),
        Owner::Kernel => (
            Kind::KernelGrowth,
            "open files, sockets, pipes and threads hold it: compare /proc/PID/fd and the thread \
             count; dentries and inodes are reclaimed under pressure",
            "slab that is reclaimed under pressure",
        ),
        Owner::OtherProcesses => (
            Kind::OtherProcessesGrowth,
            "record the other processes of the container, the largest first (`memtrace explain` \
             lists them)",
            "processes that end",
        ),
    };
    let grown = i128::from(of.last) - i128::from(of.first);
    let (unit, rate) = match of.owner.counts_bytes() {
        true => (Unit::Bytes, Unit::BytesPerSecond),
        false => (Unit::Count, Unit::Count),
    };
    let mut figures = vec![
        figure("first", "at the beginning of the load", of.first as f64, unit, How::Measured),
        figure("last", "at its end", of.last as f64, unit, How::Measured),
        figure("peak", "at most", of.peak as f64, unit, How::Measured),
    ];
    trend_figures(of.trend, rate, &mut figures);
    let what = match of.owner.counts_bytes() {
        true => format!(
            "not C's heap: {} grew from {:.1} to {:.1} MiB",
            of.owner.label(),
            of.first as f64 / f64::from(1 << 20),
            of.last as f64 / f64::from(1 << 20)
        ),
        false => format!("{} grew from {} to {}", of.owner.label(), of.first, of.last),
    };
    Some(Finding {
        kind,
        what: match of.owner {
            Owner::NativeMappings => what.replacen("not C's heap: ", "", 1),
            _ => what,
        },
        bytes: grown,
        figures,
        refuted_by: refuted_by.to_owned(),
        remedy: remedy.to_owned(),
        site: None,
    })
}
