//! The ledger as JSON: the contract of `docs/json.md`. Unknown is `null` with a reason beside it.

use serde_json::{Map, Value, json};

use super::ReportError;
use super::json::SafeStrings;
use crate::account::Ledger;
use crate::account::charge::Charge;
use crate::account::limits::{Limit, Limits};
use crate::account::process::ProcessLedger;
use crate::account::row::Row;
use crate::snapshot::Known;
use crate::snapshot::facts::{CgroupVersion, Facts};

/// Changes when a reader of the old contract would misread the new one. Additions do not count.
pub const LEDGER_SCHEMA: u32 = 1;

/// One document on one line.
pub fn render_json(facts: &Facts, ledger: &Ledger) -> Result<Vec<u8>, ReportError> {
    let document = document(facts, ledger);
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, SafeStrings);
    serde::Serialize::serialize(&document, &mut serializer)?;
    out.push(b'\n');
    Ok(out)
}

/// A number of any size that JSON readers take; beyond 64 bits as its digits.
fn number(value: i128) -> Value {
    match (i64::try_from(value), u64::try_from(value)) {
        (Ok(value), _) => value.into(),
        (_, Ok(value)) => value.into(),
        _ => value.to_string().into(),
    }
}

/// `key` and, where it is unknown, `key_reason`.
fn put(object: &mut Map<String, Value>, key: &str, known: &Known<u64>) {
    object.insert(key.to_owned(), known.value().map_or(Value::Null, |value| (*value).into()));
    if let Some(reason) = known.reason() {
        object.insert(format!("{key}_reason"), reason.into());
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

/// The document as a value, for a document that contains it.
pub(super) fn document(facts: &Facts, ledger: &Ledger) -> Value {
    let cgroup = facts.cgroup.value();
    let mut document = object(json!({
        "schema": LEDGER_SCHEMA,
        "memtrace": facts.memtrace,
        "unix_ns": facts.unix_ns,
        "read_ns": facts.read_ns,
        "books_read_ns": facts.books_read_ns,
        "host": facts.host,
        "subject": facts.subject,
        "cgroup": cgroup.map(|cgroup| json!({
            "version": match cgroup.version { CgroupVersion::V1 => 1, CgroupVersion::V2 => 2 },
            "path": cgroup.path,
            "directory": cgroup.directory,
            "figures": cgroup.after.figures,
            "absent": cgroup.after.absent,
            "pressure": cgroup.after.pressure,
            "nested": cgroup.nested,
            "nested_beyond": cgroup.nested_beyond,
            "mapped_file_pages": cgroup.mapped_file_pages.value(),
            "mapped_file_pages_reason": cgroup.mapped_file_pages.reason(),
        })),
        "cgroup_reason": facts.cgroup.reason(),
        "charge": ledger.charge.value().map(row),
        "charge_reason": ledger.charge.reason(),
        "epsilon": ledger.figures.value().map(epsilon),
        "beside": ledger.beside.iter().map(row).collect::<Vec<_>>(),
        "processes": ledger.processes.iter().map(process).collect::<Vec<_>>(),
        "unread": facts.unread,
        "overhead": facts.overhead.iter().map(|it| {
            let mut of = object(json!({
                "pid": it.pid, "comm": it.comm, "evidence": it.evidence, "cgroup": it.cgroup_path,
            }));
            for (key, field) in [("pss", 0), ("rss", 1)] {
                put(&mut of, key, &it.rollup.map(|rollup| [rollup.pss, rollup.rss][field]));
            }
            Value::Object(of)
        }).collect::<Vec<_>>(),
        "limits": ledger.limits.as_ref().map(limits),
        "freeze": facts.freeze,
    }));
    document.insert("tools".to_owned(), tools(ledger));
    document.insert(
        "drift".to_owned(),
        match &ledger.drift {
            None => Value::Null,
            Some(drift) => json!({
                "between_ns": drift.between_ns,
                "moved": drift.moved.iter()
                    .map(|(name, bytes)| (name.clone(), number(*bytes)))
                    .collect::<Map<_, _>>(),
            }),
        },
    );
    document.insert("checks".to_owned(), checks(ledger));
    document.insert("advice".to_owned(), advice(ledger));
    Value::Object(document)
}

fn row(row: &Row) -> Value {
    let mut of = object(json!({
        "key": row.key,
        "label": row.label,
        "kind": row.kind,
        "known": row.how,
        "source": row.source,
    }));
    of.insert("bytes".to_owned(), row.value().map_or(Value::Null, number));
    if let Some(reason) = row.bytes.reason() {
        of.insert("reason".to_owned(), reason.into());
    }
    if let Some(note) = &row.note {
        of.insert("note".to_owned(), note.as_str().into());
    }
    if !row.rows.is_empty() {
        of.insert("rows".to_owned(), row.rows.iter().map(self::row).collect());
    }
    Value::Object(of)
}

fn epsilon(charge: &Charge) -> Value {
    json!({
        "bytes": number(charge.epsilon),
        "lowest": number(charge.bound.lowest()),
        "highest": number(charge.bound.highest()),
        "stock": charge.bound.stock,
        "lag": charge.bound.lag,
        "moved": charge.bound.moved,
        "swap_cached": charge.bound.swap_cached,
    })
}

fn process(process: &ProcessLedger) -> Value {
    let mut of = object(json!({
        "pid": process.pid,
        "comm": process.comm,
        "executable": process.executable,
        "threads": process.threads,
        "go_version": process.go_version,
        "allocator": process.allocator,
        "vm_rss": process.vm_rss,
        "vm_hwm": process.vm_hwm,
        "vm_pte": process.vm_pte,
        "classes": process.classes,
        "resident": process.resident.value().map(row),
        "resident_reason": process.resident.reason(),
        "anonymous": process.anonymous.value().map(row),
        "anonymous_reason": process.anonymous.reason(),
    }));
    for (key, known) in [
        ("rss", &process.rss),
        ("pss", &process.pss),
        ("uss", &process.uss),
        ("pss_anon", &process.pss_anon),
        ("pss_file", &process.pss_file),
        ("pss_shmem", &process.pss_shmem),
        ("swap", &process.swap),
    ] {
        put(&mut of, key, known);
    }
    Value::Object(of)
}

fn limits(limits: &Limits) -> Value {
    let one = |limit: &Limit| {
        let mut of = object(json!({
            "path": limit.path,
            "file": limit.file,
            "bytes": limit.bytes,
            "usage": limit.usage,
            "hard": limit.hard,
        }));
        of.insert("headroom".to_owned(), limit.headroom().map_or(Value::Null, number));
        Value::Object(of)
    };
    let mut of = object(json!({
        "effective": limits.effective.as_ref().map(one),
        "all": limits.all.iter().map(one).collect::<Vec<_>>(),
        "protected": limits.protected.iter().map(one).collect::<Vec<_>>(),
        "swap": limits.swap.iter().map(one).collect::<Vec<_>>(),
        "ancestors_hidden": limits.ancestors_hidden,
        "events": limits.events.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "pressure": limits.pressure,
    }));
    put(&mut of, "peak", &limits.peak.bytes);
    put(&mut of, "host_memory", &limits.host_memory);
    Value::Object(of)
}

fn tools(ledger: &Ledger) -> Value {
    let one = |tool: &crate::account::tools::Tool| {
        let mut of = object(json!({
            "key": tool.key,
            "name": tool.name.trim(),
            "known": tool.how,
            "formula": tool.formula,
            "covers": tool.covers,
            "why": tool.why,
        }));
        of.insert("bytes".to_owned(), tool.bytes.value().map_or(Value::Null, |it| number(*it)));
        if let Some(reason) = tool.bytes.reason() {
            of.insert("reason".to_owned(), reason.into());
        }
        Value::Object(of)
    };
    ledger.tools.iter().map(one).collect()
}

fn checks(ledger: &Ledger) -> Value {
    let one = |check: &crate::account::invariants::Check| {
        let mut of = object(json!({
            "name": check.name,
            "law": check.law,
            "subject": check.subject,
            "holds": check.holds,
            "reason": check.unknown,
        }));
        for (key, value) in
            [("left", check.left), ("right", check.right), ("tolerance", check.tolerance)]
        {
            of.insert(key.to_owned(), number(value));
        }
        Value::Object(of)
    };
    ledger.checks.iter().map(one).collect()
}

fn advice(ledger: &Ledger) -> Value {
    let one = |advice: &crate::account::advice::Advice| {
        let mut of = object(json!({
            "key": advice.key,
            "what": advice.what,
            "known": advice.how,
            "arithmetic": advice.arithmetic,
            "evidence": advice.evidence,
        }));
        of.insert("bytes".to_owned(), number(advice.bytes));
        Value::Object(of)
    };
    ledger.advice.iter().map(one).collect()
}
