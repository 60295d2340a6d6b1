//! `memtrace diff`: how it is told, as text, JSON and pprof.

use serde_json::{Value, json};

use super::json::{SafeStrings, frame};
use super::numbers::{bytes, grouped, rate};
use super::style::Paint;
use super::{ReportError, json::number, pprof};
use crate::outstanding::books::Amount;
use crate::outstanding::diff::{Diff, DiffLine};
use crate::outstanding::frames::{FrameKind, base_name};
use crate::sanitize::visible;
use crate::snapshot::{Recording, Snapshot};

/// One side, as it is named to the reader.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    /// As the user gave it.
    pub asked: &'a str,
    pub recording: &'a Recording,
    pub snapshot: &'a Snapshot,
}

#[derive(Clone, Copy, Debug)]
pub struct DiffOptions {
    /// Most stacks of each kind.
    pub top: usize,
    pub colour: bool,
    pub show_runtime_frames: bool,
}

fn signed(value: i128) -> String {
    let shown = bytes(u64::try_from(value.unsigned_abs()).unwrap_or(u64::MAX));
    match value {
        0 => "±0 B".to_owned(),
        1.. => format!("+{shown}"),
        _ => format!("−{shown}"),
    }
}

fn signed_count(value: i128) -> String {
    let shown = grouped(i128::try_from(value.unsigned_abs()).unwrap_or(i128::MAX));
    format!("{}{shown}", if value < 0 { '−' } else { '+' })
}

pub fn text(before: Named<'_>, after: Named<'_>, diff: &Diff, options: DiffOptions) -> String {
    let paint = Paint::new(options.colour);
    let mut out = String::new();
    let mut line = |text: &str| {
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&paint.heading("NATIVE BLOCKS NOT FREED, COMPARED"));
    for (what, side) in [("before", before), ("after", after)] {
        let tracee = &side.recording.header.tracee;
        let mark = side.snapshot.mark.as_deref().map(|mark| format!(", mark {}", visible(mark)));
        line(&format!(
            "  {what:<7}{}: snapshot {} at {:.1} s{} of PID {} ({})",
            visible(side.asked),
            side.snapshot.sequence,
            side.snapshot.elapsed_ns as f64 / 1e9,
            mark.unwrap_or_default(),
            tracee.id.pid,
            visible(&tracee.comm)
        ));
    }
    let total = &diff.total;
    line(&format!(
        "  in all {} → {}: {} ({} B), {} blocks{}",
        bytes(total.before.bytes),
        bytes(total.after.bytes),
        paint.figure(&signed(total.bytes())),
        signed_count(total.bytes()),
        signed_count(total.blocks()),
        rates(total)
    ));
    if diff.seconds.is_none() {
        line("  Two recordings: rates are what each left per second (or request), subtracted.");
    }
    let grew: Vec<&DiffLine> = diff.lines.iter().filter(|line| line.bytes() > 0).collect();
    let shrank: Vec<&DiffLine> = diff.lines.iter().filter(|line| line.bytes() < 0).collect();
    for (title, lines) in [("GREW", grew), ("SHRANK", shrank)] {
        line("");
        line(&paint.heading(title));
        if lines.is_empty() {
            line("  nothing");
        }
        for (rank, it) in lines.iter().take(options.top).enumerate() {
            line(&format!(
                "{:>3}. {}  {} blocks · {} → {}{}",
                rank + 1,
                paint.figure(&signed(it.bytes())),
                signed_count(it.blocks()),
                bytes(it.before.bytes),
                bytes(it.after.bytes),
                rates(it)
            ));
            for frame in it.frames.iter() {
                if frame.kind == FrameKind::Glue && !options.show_runtime_frames {
                    continue;
                }
                let place = match (&frame.file, frame.line) {
                    (Some(file), Some(line)) => format!("{file}:{line}"),
                    (Some(file), None) => file.clone(),
                    _ => frame.module.as_deref().map_or("", base_name).to_owned(),
                };
                let name = visible(&frame.label()).into_owned();
                let place = paint.faint(&visible(&place));
                line(&format!("      {name:<40}  {place}"));
            }
        }
        if lines.len() > options.top {
            let rest = &lines[options.top..];
            let sum = rest.iter().map(|it| it.bytes()).sum::<i128>();
            line(&format!(
                "  {} more: {} together; --top shows more, JSON and pprof all.",
                grouped(rest.len() as u64),
                signed(sum)
            ));
        }
    }
    out
}

fn rates(line: &DiffLine) -> String {
    let mut text = String::new();
    if let Some(per_second) = line.rates.per_second {
        text.push_str(&format!(" · {}", rate(per_second)));
    }
    if let Some(per_request) = line.rates.per_request {
        text.push_str(&format!(" · {per_request:+.1} B per request"));
    }
    text
}

/// The contract of `docs/json.md`, `diff`.
pub fn json(before: Named<'_>, after: Named<'_>, diff: &Diff) -> Result<Vec<u8>, ReportError> {
    use serde::Serialize;
    let side = |side: Named<'_>| {
        json!({
            "asked": side.asked,
            "pid": side.recording.header.tracee.id.pid,
            "comm": side.recording.header.tracee.comm,
            "sequence": side.snapshot.sequence,
            "elapsed_ns": side.snapshot.elapsed_ns,
            "unix_ns": side.snapshot.unix_ns,
            "mark": side.snapshot.mark,
        })
    };
    let document = json!({
        "schema": 1,
        "memtrace": env!("CARGO_PKG_VERSION"),
        "before": side(before),
        "after": side(after),
        "seconds": diff.seconds,
        "total": told(&diff.total),
        "stacks": diff.lines.iter().map(|line| {
            let mut row = told(line);
            row["frames"] = line.frames.iter().map(|it| frame(it)).collect();
            row
        }).collect::<Vec<_>>(),
    });
    let mut out = Vec::new();
    document.serialize(&mut serde_json::Serializer::with_formatter(&mut out, SafeStrings))?;
    out.push(b'\n');
    Ok(out)
}

fn told(line: &DiffLine) -> Value {
    let amount = |amount: Amount| json!({ "bytes": amount.bytes, "blocks": amount.blocks });
    json!({
        "before": amount(line.before),
        "after": amount(line.after),
        "bytes": number(line.bytes()),
        "blocks": number(line.blocks()),
        "bytes_per_second": line.rates.per_second,
        "bytes_per_request": line.rates.per_request,
    })
}

/// As `go tool pprof -diff_base` makes it: after less before, negative where it shrank.
pub fn profile(after: Named<'_>, diff: &Diff) -> Result<Vec<u8>, ReportError> {
    pprof::render_diff(after.snapshot, diff)
}
