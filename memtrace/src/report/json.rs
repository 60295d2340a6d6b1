//! The JSON report: the contract of `docs/json.md`. All snapshots, all stacks, every counter.
//!
//! Strings keep every character; those that a terminal would act on are written as `\u` escapes.

use std::collections::BTreeMap;
use std::io;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::ser::Formatter;
use serde_json::{Value, json};

use super::{ReportError, ReportOptions, ledger_json, processes_json, verdict_json};
use crate::account::Ledger;
use crate::account::probed::Seen;
use crate::outstanding::books::{
    Amount, Books, CounterLine, Growth, Librarian, RangeLine, StackLine,
};
use crate::outstanding::callers::CallerLine;
use crate::outstanding::checks::Check;
use crate::outstanding::doubts::Doubt;
use crate::outstanding::frames::{Frame, FrameKind};
use crate::outstanding::summary::{GoCounted, Summary};
use crate::snapshot::{Cohorts, GoBooks, Header, Known, Name, RangeOwner};

/// Changes when a reader of the old contract would misread the new one. Additions do not count.
pub const JSON_SCHEMA: u32 = 1;

pub(super) fn render(
    librarian: &Librarian<'_>,
    options: &ReportOptions,
) -> Result<Vec<u8>, ReportError> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, SafeStrings);
    Document { librarian, options }.serialize(&mut serializer)?;
    out.push(b'\n');
    Ok(out)
}

/// Compact JSON whose strings hold nothing that a terminal acts on.
pub(super) struct SafeStrings;

impl Formatter for SafeStrings {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut plain = 0;
        for (at, c) in fragment.char_indices() {
            if c.is_ascii() && c != '\u{7f}' || !crate::sanitize::must_escape(c) {
                continue;
            }
            writer.write_all(&fragment.as_bytes()[plain..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            plain = at + c.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[plain..])
    }
}

struct Document<'a, 'r> {
    librarian: &'a Librarian<'r>,
    options: &'a ReportOptions,
}

impl Serialize for Document<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Header { memtrace, armed_at_unix_ns, min_age_ns, host, tracee, probes, .. } =
            &self.librarian.recording().header;
        let objects: Vec<Value> = self
            .librarian
            .index()
            .objects()
            .iter()
            .map(|object| json!({ "path": object.path, "build_id": object.build_id }))
            .collect();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("schema", &JSON_SCHEMA)?;
        map.serialize_entry("memtrace", memtrace)?;
        map.serialize_entry("armed_at_unix_ns", armed_at_unix_ns)?;
        map.serialize_entry("min_age_ns", min_age_ns)?;
        map.serialize_entry("torn", &self.options.torn)?;
        let again = self.options.named_again.as_ref().map(super::named_again::json);
        map.serialize_entry("named_again", &again)?;
        map.serialize_entry("host", host)?;
        map.serialize_entry(
            "tracee",
            &json!({
                "pid": tracee.id.pid,
                "start_time_ticks": tracee.id.start_time_ticks,
                "comm": tracee.comm,
                "executable": tracee.executable,
                "command_line": tracee.command_line,
                "container": tracee.container,
                "go_version": tracee.go_version,
                "objects": objects,
            }),
        )?;
        map.serialize_entry("probes", probes)?;
        map.serialize_entry("processes", &processes_json::processes(self.librarian))?;
        map.serialize_entry("snapshots", &Snapshots(self.librarian))?;
        let verdict = crate::verdict::judge(self.librarian);
        let (verdict, verdict_reason) = verdict_json::parted(&verdict);
        map.serialize_entry("verdict", &verdict)?;
        map.serialize_entry("verdict_reason", &verdict_reason)?;
        map.end()
    }
}

/// One snapshot at a time, and in it one row at a time: a report may be far larger than its books.
struct Snapshots<'a, 'r>(&'a Librarian<'r>);

impl Serialize for Snapshots<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let positions = 0..self.0.recording().snapshots.len();
        serializer
            .collect_seq(positions.filter_map(|position| self.0.books(position, None)).map(Told))
    }
}

struct Told<'r>(Books<'r>);

impl Serialize for Told<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(books) = self;
        let at = books.snapshot;
        let (go, go_reason) = parted(&at.go, go_books);
        let (process, process_reason) = parted(&at.process, |process| json!(process));
        let checks = |check: &Check| {
            json!({
                "name": check.name,
                "law": check.law,
                "holds": check.holds,
                "left": number(check.left),
                "right": number(check.right),
            })
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("sequence", &at.sequence)?;
        map.serialize_entry("unix_ns", &at.unix_ns)?;
        map.serialize_entry("elapsed_ns", &at.elapsed_ns)?;
        map.serialize_entry("moving", &at.moving)?;
        map.serialize_entry("read_ns", &at.read_ns)?;
        map.serialize_entry("ended", &at.ended)?;
        map.serialize_entry("mark", &at.mark)?;
        map.serialize_entry("native", &Native(books))?;
        let processes = Rows(&at.images, processes_json::at_snapshot);
        map.serialize_entry("processes", &processes)?;
        map.serialize_entry("untraced", &at.untraced)?;
        map.serialize_entry("go", &go)?;
        map.serialize_entry("go_reason", &go_reason)?;
        map.serialize_entry("process", &process)?;
        map.serialize_entry("process_reason", &process_reason)?;
        let (memory, memory_reason) = parted(&at.memory, |facts| {
            let ledger = Ledger::of_recorded(facts, &Seen::of(books, facts));
            ledger_json::document(facts, &ledger)
        });
        map.serialize_entry("memory", &memory)?;
        map.serialize_entry("memory_reason", &memory_reason)?;
        map.serialize_entry("summary", &summary(&books.summary))?;
        map.serialize_entry("checks", &Rows(&books.checks, checks))?;
        let doubts = |doubt: &Doubt| json!({ "name": doubt.name, "text": doubt.text });
        map.serialize_entry("doubts", &Rows(&books.doubts, doubts))?;
        map.serialize_entry("self", &at.own)?;
        map.end()
    }
}

/// Rows told one after the other.
struct Rows<'a, T, F>(&'a [T], F);

impl<T, F: Fn(&T) -> Value> Serialize for Rows<'_, T, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(&self.1))
    }
}

/// JSON numbers that every reader holds; beyond, a hostile recording saturates.
pub(super) fn number(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn parted<T>(known: &Known<T>, tell: impl Fn(&T) -> Value) -> (Value, Option<&str>) {
    (known.value().map_or(Value::Null, tell), known.reason())
}

fn amount(amount: Amount) -> Value {
    json!({ "bytes": amount.bytes, "blocks": amount.blocks })
}

fn growth(growth: Option<Growth>) -> Value {
    growth.map_or(Value::Null, |growth| {
        json!({ "bytes": number(growth.bytes), "bytes_per_second": growth.bytes_per_second })
    })
}

fn counters(lines: &[CounterLine]) -> BTreeMap<&str, u64> {
    lines.iter().map(|line| (line.label.as_str(), line.count)).collect()
}

struct Native<'a, 'r>(&'a Books<'r>);

impl Serialize for Native<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(books) = self;
        let since = json!({
            "sequence": books.growth_base.sequence,
            "elapsed_ns": books.growth_base.elapsed_ns,
        });
        let peak = json!({ "bytes": books.peak_bytes, "elapsed_ns": books.peak_elapsed_ns });
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("outstanding", &amount(books.outstanding))?;
        map.serialize_entry("allocated", &amount(books.allocated))?;
        map.serialize_entry("freed", &amount(books.freed))?;
        map.serialize_entry("aged", &books.aged.map(amount))?;
        map.serialize_entry("truncated", &amount(books.truncated))?;
        map.serialize_entry("peak", &peak)?;
        map.serialize_entry("growth", &growth(books.growth))?;
        map.serialize_entry("growth_since", &since)?;
        map.serialize_entry("stacks", &Rows(&books.stacks, stack))?;
        map.serialize_entry("callers", &Rows(&books.callers, caller))?;
        map.serialize_entry("cohorts", &cohorts(&books.snapshot.native.cohorts))?;
        map.serialize_entry("ranges", &Ranges(books))?;
        map.serialize_entry("losses", &counters(&books.losses))?;
        map.serialize_entry("tallies", &counters(&books.tallies))?;
        map.serialize_entry("hits", &books.snapshot.native.hits)?;
        map.end()
    }
}

struct Ranges<'a, 'r>(&'a Books<'r>);

impl Serialize for Ranges<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(books) = self;
        let of = |owner: RangeOwner| {
            let wanted = |line: &&RangeLine| line.owner == owner && !line.reserved;
            let lines = books.ranges.iter().filter(wanted);
            lines.fold(0u64, |sum, line| sum.saturating_add(line.bytes))
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("bytes", &books.summary.native_ranges)?;
        map.serialize_entry("reserved_bytes", &books.summary.reserved)?;
        map.serialize_entry("thread_stack_bytes", &books.summary.thread_stacks)?;
        map.serialize_entry("allocator_internal_bytes", &of(RangeOwner::AllocatorInternal))?;
        map.serialize_entry("go_runtime_bytes", &of(RangeOwner::GoRuntime))?;
        map.serialize_entry("file_bytes", &of(RangeOwner::File))?;
        map.serialize_entry("stacks", &Rows(&books.ranges, range))?;
        map.end()
    }
}

pub(super) fn stack(line: &StackLine) -> Value {
    let (youngest, oldest) = line.ages_ns.unzip();
    json!({
        "bytes": line.outstanding.bytes,
        "blocks": line.outstanding.blocks,
        "allocated": amount(line.allocated),
        "freed": amount(line.freed),
        "aged": line.aged.map(amount),
        "share": line.share,
        "youngest_age_ns": youngest,
        "oldest_age_ns": oldest,
        "growth": growth(line.growth),
        "peak_bytes": line.peak_bytes,
        "by_process": by_process(line),
        "complete": line.is_complete(),
        "ids": line.ids.iter().map(hexadecimal).collect::<Vec<_>>(),
        "frames": line.frames.iter().map(|at| frame(at)).collect::<Vec<_>>(),
    })
}

/// `[{"process": 2, "bytes": …}]`, of those that hold some of it.
fn by_process(line: &StackLine) -> Vec<Value> {
    let row = |(image, held): (&u32, &Amount)| json!({ "process": image, "bytes": held.bytes, "blocks": held.blocks });
    // 0: of a recording that does not tell processes apart.
    let rows = line.by_image.iter().filter(|(image, held)| **image != 0 && held.blocks > 0);
    rows.map(row).collect()
}

fn caller(line: &CallerLine) -> Value {
    json!({
        "bytes": line.held.bytes,
        "blocks": line.held.blocks,
        "stacks": line.stacks,
        "share": line.share,
        "growth": growth(line.growth),
        "frame": line.frame.as_deref().map(frame),
        "go_caller": line.go_caller.as_deref().map(frame),
    })
}

/// Live blocks of the whole process by the interval in which they were allocated.
fn cohorts(of: &Cohorts) -> Value {
    if of.ends_ns.is_empty() {
        return Value::Null;
    }
    let mut sums = vec![(0u64, 0u64); of.ends_ns.len() + 1];
    for row in &of.rows {
        if let Some(sum) = sums.get_mut(row.cohort as usize) {
            *sum = (sum.0.saturating_add(row.bytes), sum.1.saturating_add(row.blocks));
        }
    }
    let ends = of.ends_ns.iter().map(|end| json!(end)).chain([Value::Null]);
    let rows = sums.iter().zip(ends);
    rows.filter(|(_, end)| !end.is_null())
        .map(|((bytes, blocks), end)| json!({ "until_ns": end, "bytes": bytes, "blocks": blocks }))
        .collect()
}

fn range(line: &RangeLine) -> Value {
    json!({
        "owner": line.owner,
        "reserved": line.reserved,
        "bytes": line.bytes,
        "ranges": line.ranges,
        "youngest_age_ns": line.ages_ns.0,
        "oldest_age_ns": line.ages_ns.1,
        "ids": line.ids.iter().map(hexadecimal).collect::<Vec<_>>(),
        "frames": line.frames.iter().map(|at| frame(at)).collect::<Vec<_>>(),
    })
}

/// 64-bit addresses and ids do not survive readers that hold numbers as doubles.
fn hexadecimal(value: &u64) -> String {
    format!("{value:#x}")
}

pub(super) fn frame(frame: &Frame) -> Value {
    json!({
        "function": frame.function,
        "module": frame.module,
        "module_offset": frame.module_offset.as_ref().map(hexadecimal),
        "file": frame.file,
        "line": frame.line,
        "address": frame.address.as_ref().map(hexadecimal),
        "inlined": frame.inlined,
        "kind": match frame.kind {
            FrameKind::Native => "native",
            FrameKind::Go => "go",
            FrameKind::Glue => "glue",
            FrameKind::Note => "note",
        },
    })
}

fn go_books(go: &GoBooks) -> Value {
    let name = |name: &Name| {
        json!({
            "function": name.function,
            "file": name.file,
            "line": name.line,
            "inlined": name.inlined,
        })
    };
    let of_profile = |figure: u64| go.no_profile.is_none().then_some(figure);
    json!({
        "source": go.source,
        "profile": go.profile,
        "collections_old": go.collections_old,
        "no_profile": go.no_profile,
        "inuse_bytes": of_profile(go.inuse_bytes),
        "inuse_objects": of_profile(go.inuse_objects),
        "alloc_bytes": of_profile(go.alloc_bytes),
        "alloc_objects": of_profile(go.alloc_objects),
        "sample_rate_bytes": of_profile(go.sample_rate_bytes),
        "tried": go.tried,
        "cgo": go.cgo,
        "arenas": go.arenas.iter().map(|arena| json!({
            "start": hexadecimal(&arena.start),
            "length_bytes": arena.length_bytes,
        })).collect::<Vec<_>>(),
        "memory": go.memory,
        "stacks": go.stacks.iter().map(|stack| json!({
            "inuse_bytes": stack.inuse_bytes,
            "inuse_objects": stack.inuse_objects,
            "alloc_bytes": stack.alloc_bytes,
            "alloc_objects": stack.alloc_objects,
            "frames": stack.frames.iter().map(|frame| name(frame)).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

/// Each figure with how it is known, or null with the reason.
fn summary(summary: &Summary) -> Value {
    fn figure<T: Copy + Into<i128>>(known: &Known<T>, quality: &str) -> Value {
        match known {
            Known::Value(value) => {
                json!({ "bytes": number((*value).into()), "known": quality })
            }
            Known::Unknown { reason } => json!({ "bytes": null, "reason": reason }),
        }
    }
    let exact = |bytes: u64| figure(&Known::Value(bytes), "measured");
    json!({
        "rss": figure(&summary.rss, "measured"),
        "files": figure(&summary.files, "measured"),
        "go_inuse": figure(&summary.go_inuse, "sampled"),
        "go_retained": figure(&summary.go_retained, "derived"),
        "go_counted": match summary.go_counted {
            GoCounted::Retained => Some("go_retained"),
            GoCounted::InUse => Some("go_inuse"),
            GoCounted::Nothing => None,
        },
        "native_blocks": exact(summary.native_blocks),
        "native_ranges": exact(summary.native_ranges),
        "thread_stacks": exact(summary.thread_stacks),
        "reserved": exact(summary.reserved),
        "unexplained": figure(&summary.unexplained, "derived"),
    })
}
