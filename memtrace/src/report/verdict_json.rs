//! The verdict in JSON: `docs/json.md`, `verdict`.

use serde_json::{Value, json};

use super::json::frame;
use crate::snapshot::Known;
use crate::verdict::owners::OwnerVerdict;
use crate::verdict::stacks::StackVerdict;
use crate::verdict::trend::Trend;
use crate::verdict::{Figure, Finding, How, Unit, Verdict};

/// `{"verdict": …, "verdict_reason": …}` as two values.
pub(super) fn parted(verdict: &Known<Verdict>) -> (Value, Option<&str>) {
    match verdict {
        Known::Value(verdict) => (told(verdict), None),
        Known::Unknown { reason } => (Value::Null, Some(reason)),
    }
}

fn told(verdict: &Verdict) -> Value {
    let window = verdict.window.map(|window| {
        json!({
            "from_ns": window.from_ns,
            "to_ns": window.to_ns,
            "snapshots": window.last - window.first + 1,
            "idle_after": window.idle_after,
        })
    });
    json!({
        "window": window,
        "findings": verdict.findings.iter().map(|it| finding(it, verdict)).collect::<Vec<_>>(),
        "native": verdict.native.as_ref().map(line),
        "sites": verdict.sites.iter().map(site).collect::<Vec<_>>(),
        "stacks": verdict.stacks.iter().map(line).collect::<Vec<_>>(),
        "owners": verdict.owners.iter().map(owner).collect::<Vec<_>>(),
        "doubts": verdict.doubts,
    })
}

pub(super) fn finding(of: &Finding, verdict: &Verdict) -> Value {
    json!({
        "kind": of.kind.key(),
        "what": of.what,
        "bytes": i64::try_from(of.bytes).unwrap_or(i64::MAX),
        "figures": of.figures.iter().map(figure).collect::<Vec<_>>(),
        "refuted_by": of.refuted_by,
        "remedy": of.remedy,
        "site": of.site.and_then(|at| verdict.sites.get(at)).map(site),
    })
}

fn figure(of: &Figure) -> Value {
    json!({
        "key": of.key,
        "label": of.label,
        "value": number(of.value),
        "unit": match of.unit {
            Unit::Bytes => "bytes",
            Unit::BytesPerSecond => "bytes_per_second",
            Unit::Blocks => "blocks",
            Unit::Share => "share",
            Unit::Probability => "probability",
            Unit::Count => "count",
            Unit::Seconds => "seconds",
        },
        "known": match of.how {
            How::Measured => "measured",
            How::Sampled => "sampled",
            How::Derived => "derived",
        },
    })
}

/// Whole numbers without a fraction.
pub(super) fn number(value: f64) -> serde_json::Number {
    let whole = value.fract() == 0.0 && value.abs() < 9e15;
    match serde_json::Number::from_f64(value) {
        _ if whole => serde_json::Number::from(value as i64),
        Some(number) => number,
        None => serde_json::Number::from(0),
    }
}

fn trend(of: Option<Trend>) -> Value {
    of.map_or(Value::Null, |of| {
        json!({
            "bytes_per_second": of.slope,
            "low": of.low,
            "high": of.high,
            "p": of.p,
            "points": of.points,
        })
    })
}

fn line(of: &StackVerdict) -> Value {
    json!({
        "behaviour": of.behaviour.key(),
        "ids": of.ids.iter().map(|id| format!("{id:#x}")).collect::<Vec<_>>(),
        "growth_bytes": i64::try_from(of.growth_bytes).unwrap_or(i64::MAX),
        "growth_blocks": i64::try_from(of.growth_blocks).unwrap_or(i64::MAX),
        "outstanding_bytes": of.last,
        "allocated_blocks": of.allocated_blocks,
        "freed_blocks": of.freed_blocks,
        "trend": trend(of.trend),
        "trend_of_second_half": trend(of.late),
        "survival": of.survival.map(|it| json!({
            "intervals": it.intervals,
            "with_survivors": it.with_survivors,
            "lived_on": it.lived_on,
            "bytes_per_second": it.bytes_per_second,
        })),
    })
}

fn site(of: &StackVerdict) -> Value {
    let mut told = line(of);
    told["stacks"] = json!(of.stacks);
    told["frame"] = of.site.as_deref().map_or(Value::Null, frame);
    told["go_caller"] = of.go_caller.as_deref().map_or(Value::Null, frame);
    told["frames"] = of.frames.iter().map(|it| frame(it)).collect();
    told
}

fn owner(of: &OwnerVerdict) -> Value {
    json!({
        "owner": of.owner.key(),
        "source": of.owner.source(),
        "unit": if of.owner.counts_bytes() { "bytes" } else { "count" },
        "first": of.first,
        "last": of.last,
        "peak": of.peak,
        "grows": of.grows,
        "trend": trend(of.trend),
        "values": of.values,
    })
}
