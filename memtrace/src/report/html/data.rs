//! What the page is made from, as one JSON document: series by instant, stacks as a tree of frames,
//! and of the last instant everything that is told of one.
//!
//! Limits: ledger and waterfall are of every snapshot; stacks are of at most [`MOST_INSTANTS`], and
//! the page says so.

use serde::Serialize;
use serde_json::{Value, json};

use super::stacks::{self, Stacks};
use crate::account::Ledger;
use crate::account::owners::{Bands, Owner};
use crate::account::probed::Seen;
use crate::account::waterfall::{self, Step, Traced};
use crate::outstanding::books::{Books, Librarian};
use crate::report::json::frame;
use crate::report::{ReportOptions, ledger_json, verdict_json};
use crate::snapshot::{Known, Snapshot};

/// Changes of stacks are kept for so many instants; more would make the page large, not clearer.
pub(super) const MOST_INSTANTS: usize = 240;

#[derive(Serialize)]
pub(super) struct Page<'a> {
    memtrace: &'a str,
    armed_at_unix_ns: u64,
    torn: &'a Option<String>,
    host: Value,
    tracee: Value,
    not_probed: Value,
    instants: Vec<Instant<'a>>,
    whole: Whole,
    owners: Vec<Series>,
    /// The smallest limit that holds for the container.
    limit: Vec<Option<i64>>,
    pprof: Vec<Option<i64>>,
    outstanding: Vec<i64>,
    waterfalls: Vec<Falls>,
    stacks: Stacks,
    /// What was found over time; `null` with a reason where too little was seen.
    verdict: Value,
    verdict_reason: Option<String>,
    last: Value,
}

#[derive(Serialize)]
struct Instant<'a> {
    sequence: u32,
    elapsed_s: f64,
    unix_ns: u64,
    moving: bool,
    /// The phase that begins here.
    mark: &'a Option<String>,
    ended: Option<String>,
    /// Why the bands are not known.
    reason: Option<String>,
}

#[derive(Serialize)]
struct Whole {
    label: String,
    source: String,
    bytes: Vec<Option<i64>>,
}

#[derive(Serialize)]
struct Series {
    key: Owner,
    label: &'static str,
    bytes: Vec<Option<i64>>,
}

/// The steps from pprof's figure to the container's at one instant.
#[derive(Serialize)]
struct Falls {
    steps: Vec<Step>,
    reason: Option<String>,
}

/// A reader of JSON in a browser holds integers up to 2^53; these are bytes of one machine.
pub(super) fn number(value: i128) -> i64 {
    const MOST: i128 = 1 << 53;
    value.clamp(-MOST, MOST) as i64
}

pub(super) fn page<'a>(
    librarian: &Librarian<'a>,
    books: &Books<'a>,
    options: &'a ReportOptions,
) -> Page<'a> {
    let recording = librarian.recording();
    let header = &recording.header;
    let ledgers: Vec<Known<Ledger>> =
        recording.snapshots.iter().map(|at| at.memory.map(Ledger::of)).collect();
    let bands: Vec<Known<Bands>> =
        ledgers.iter().map(|ledger| ledger.and_then(Bands::of)).collect();
    let held: Vec<u64> = (0..recording.snapshots.len())
        .map(|at| librarian.held_at(at).fold(0u64, |sum, (_, it)| sum.saturating_add(it.bytes)))
        .collect();
    let falls = recording.snapshots.iter().zip(&bands).zip(&held).map(|((at, bands), held)| {
        let traced = Traced { pprof: in_use(at), outstanding: *held };
        match bands.map(|bands| waterfall::steps(bands, traced)) {
            Known::Value(steps) => Falls { steps, reason: None },
            Known::Unknown { reason } => Falls { steps: Vec::new(), reason: Some(reason) },
        }
    });
    let verdict = crate::verdict::judge(librarian);
    let any = bands.iter().find_map(Known::value);
    Page {
        memtrace: &header.memtrace,
        armed_at_unix_ns: header.armed_at_unix_ns,
        torn: &options.torn,
        host: json!(header.host),
        tracee: json!({
            "pid": header.tracee.id.pid,
            "comm": header.tracee.comm,
            "executable": header.tracee.executable,
            "command_line": header.tracee.command_line,
            "container": header.tracee.container,
            "go_version": header.tracee.go_version,
        }),
        not_probed: json!(header.probes.not_probed),
        instants: recording
            .snapshots
            .iter()
            .zip(&bands)
            .map(|(at, bands)| Instant {
                sequence: at.sequence,
                elapsed_s: at.elapsed_ns as f64 / 1e9,
                unix_ns: at.unix_ns,
                moving: at.moving,
                mark: &at.mark,
                ended: at.ended.clone(),
                reason: bands.reason().map(str::to_owned),
            })
            .collect(),
        whole: Whole {
            label: any.map_or_else(String::new, |bands| bands.label.clone()),
            source: any.map_or_else(String::new, |bands| bands.source.clone()),
            bytes: bands.iter().map(|at| at.value().map(|at| number(at.whole))).collect(),
        },
        owners: Owner::ALL.iter().filter_map(|owner| series(*owner, &bands)).collect(),
        limit: ledgers.iter().map(limit).collect(),
        pprof: recording
            .snapshots
            .iter()
            .map(|at| in_use(at).map(|it| number(it.into())))
            .collect(),
        outstanding: held.iter().map(|bytes| number((*bytes).into())).collect(),
        waterfalls: falls.collect(),
        stacks: stacks::collect(librarian, books, MOST_INSTANTS),
        verdict: verdict.value().map_or(Value::Null, |verdict| {
            json!({
                "findings": verdict.findings.iter()
                    .map(|it| verdict_json::finding(it, verdict))
                    .collect::<Vec<_>>(),
                "doubts": verdict.doubts,
            })
        }),
        verdict_reason: verdict.reason().map(str::to_owned),
        last: last(books),
    }
}

/// An owner that never holds anything has no band.
fn series(owner: Owner, bands: &[Known<Bands>]) -> Option<Series> {
    let bytes: Vec<_> =
        bands.iter().map(|at| at.value().map(|at| number(at.bytes(owner)))).collect();
    let holds = bytes.iter().flatten().any(|bytes| *bytes != 0);
    holds.then(|| Series { key: owner, label: owner.label(), bytes })
}

/// `inuse_space`, where the Go runtime gave a heap profile.
fn in_use(at: &Snapshot) -> Option<u64> {
    at.go.value().filter(|go| go.no_profile.is_none()).map(|go| go.inuse_bytes)
}

fn limit(ledger: &Known<Ledger>) -> Option<i64> {
    let limits = ledger.value()?.limits.as_ref()?;
    limits.effective.as_ref().map(|limit| number(limit.bytes.into()))
}

/// Everything of the last snapshot that is not a stack.
fn last(books: &Books<'_>) -> Value {
    let at = books.snapshot;
    // With what only a recording knows: who allocated it.
    let memory = at.memory.value().map_or(Value::Null, |facts| {
        let ledger = Ledger::of_recorded(facts, &Seen::of(books, facts));
        ledger_json::document(facts, &ledger)
    });
    let counters = |lines: &[crate::outstanding::books::CounterLine]| {
        lines
            .iter()
            .map(|line| json!({ "label": line.label, "count": line.count, "hint": line.hint }))
            .collect::<Vec<_>>()
    };
    json!({
        "memory": memory,
        "memory_reason": at.memory.reason(),
        "go_reason": at.go.reason(),
        "go_source": at.go.value().map(|go| &go.source),
        "go_sample_rate_bytes": at.go.value().map(|go| go.sample_rate_bytes),
        "losses": counters(&books.losses),
        "tallies": counters(&books.tallies),
        "checks": books.checks.iter().map(|check| json!({
            "name": check.name,
            "law": check.law,
            "holds": check.holds,
            "left": number(check.left),
            "right": number(check.right),
        })).collect::<Vec<_>>(),
        "callers": books.callers.iter().map(|line| json!({
            "bytes": line.held.bytes,
            "blocks": line.held.blocks,
            "stacks": line.stacks,
            "growth": line.growth.map(|growth| json!({
                "bytes": number(growth.bytes), "bytes_per_second": growth.bytes_per_second,
            })),
            "frame": line.frame.as_deref().map(frame),
            "go_caller": line.go_caller.as_deref().map(frame),
        })).collect::<Vec<_>>(),
        "outstanding": { "bytes": books.outstanding.bytes, "blocks": books.outstanding.blocks },
        "truncated": { "bytes": books.truncated.bytes, "blocks": books.truncated.blocks },
        "self": at.own,
    })
}
