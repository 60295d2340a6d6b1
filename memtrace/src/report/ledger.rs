//! The ledger of a container's memory as text and as JSON. No arithmetic here: every figure comes
//! from the account.
//!
//! What is wrong comes first, then where the memory is, then why each tool says something else,
//! then limits and advice. Nothing of the tracee's reaches the terminal unescaped.

use super::ledger_tree::{Columns, amount, lines, list};
use super::numbers::{count, duration, grouped, instant};
use super::style::Paint;
use super::text::layout::{keep_start, pad_left, pad_right, wrap};
use crate::account::Ledger;
use crate::account::probed::Seen;
use crate::account::process::ProcessLedger;
use crate::account::row::Row;
use crate::sanitize::visible;
use crate::snapshot::Known;
use crate::snapshot::facts::{CgroupVersion, Facts};

pub use super::ledger_json::render_json;

/// How a ledger is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerOptions {
    /// Columns, at least 40.
    pub width: usize,
    pub colour: bool,
    /// Every digit instead of units, and every row however small.
    pub exact: bool,
}

/// Processes whose mappings are shown by class, the largest first.
const DETAILED_PROCESSES: usize = 3;
const WIDEST_PROSE: usize = 110;
/// Rows below this part of the whole share one.
const FOLDED_BELOW: u64 = 400;

/// The text. Deterministic: the same facts and options give the same bytes.
pub fn render_text(facts: &Facts, ledger: &Ledger, options: LedgerOptions) -> String {
    let width = options.width.max(40);
    let mut page = Page {
        facts,
        ledger,
        options,
        paint: Paint::new(options.colour),
        width,
        columns: Columns::of(width, options.exact),
        out: String::new(),
    };
    page.head();
    page.warnings();
    page.charge("WHERE THE MEMORY IS");
    page.beside();
    page.tools();
    page.processes();
    page.limits();
    page.advice();
    page.laws();
    page.out
}

/// The charge and the processes, as sections of another report; nothing where neither is known.
pub(super) fn render_charge(facts: &Facts, seen: &Seen, options: LedgerOptions) -> Option<String> {
    let ledger = Ledger::of_recorded(facts, seen);
    let any_resident = ledger.processes.iter().any(|process| process.resident.value().is_some());
    if ledger.charge.value().is_none() && !any_resident {
        return None;
    }
    let width = options.width.max(40);
    let mut page = Page {
        facts,
        ledger: &ledger,
        options,
        paint: Paint::new(options.colour),
        width,
        columns: Columns::of(width, options.exact),
        out: String::new(),
    };
    page.warnings();
    page.charge("THE CONTAINER'S MEMORY");
    page.residents();
    Some(page.out)
}

struct Page<'a> {
    facts: &'a Facts,
    ledger: &'a Ledger,
    options: LedgerOptions,
    paint: Paint,
    width: usize,
    columns: Columns,
    out: String,
}

impl Page<'_> {
    fn line(&mut self, text: &str) {
        self.out.push_str(text.trim_end());
        self.out.push('\n');
    }

    fn section(&mut self, title: &str) {
        self.out.push('\n');
        let title = self.paint.heading(title);
        self.line(&title);
    }

    fn paragraph(&mut self, indent: usize, text: &str) {
        let wrapped = wrap(&visible(text), indent, self.width.min(WIDEST_PROSE));
        self.line(&format!("{}{wrapped}", " ".repeat(indent)));
    }

    fn field(&mut self, label: &str, text: &str) {
        const TEXT_AT: usize = 13;
        let wrapped = wrap(&visible(text), TEXT_AT, self.width);
        let label = self.paint.faint(&pad_right(label, TEXT_AT - 2));
        self.line(&format!("  {label}{wrapped}"));
    }

    fn amount(&self, bytes: impl Into<i128>) -> String {
        let text = amount(bytes.into(), self.options.exact);
        if self.options.exact { format!("{text} B") } else { text }
    }

    fn head(&mut self) {
        let facts = self.facts;
        let subject = &facts.subject;
        let who = match &subject.container {
            Some(container) => {
                let short_id: String = container.id.chars().take(12).collect();
                let name = container.name.as_deref().unwrap_or(&short_id);
                format!("container {name} ({} {short_id})", container.runtime)
            }
            None => match &subject.pod_uid {
                Some(uid) if *uid == subject.asked => format!("pod {uid}"),
                Some(uid) => format!("pod {} ({uid})", subject.asked),
                None => subject.asked.clone(),
            },
        };
        let title = format!("memtrace {} · explain · {who}", facts.memtrace);
        let title = self.paint.heading(&keep_start(&visible(&title), self.width));
        self.line(&title);
        if let Some(image) = subject.container.as_ref().and_then(|it| it.image.as_ref()) {
            self.field("image", image);
        }
        if let Known::Value(cgroup) = &facts.cgroup {
            let version = match cgroup.version {
                CgroupVersion::V1 => "v1",
                CgroupVersion::V2 => "v2",
            };
            let nested = match cgroup.nested.len() as u64 + cgroup.nested_beyond {
                0 => String::new(),
                below => format!("; {} below it, counted in it", count(below, "cgroup")),
            };
            self.field("cgroup", &format!("{version} {}{nested}", cgroup.path));
        }
        let host = &facts.host;
        self.field(
            "read",
            &format!(
                "{} in {}{}, {}; Linux {}, {}{}",
                instant(facts.unix_ns),
                duration(facts.read_ns),
                match facts.books_read_ns {
                    0 => String::new(),
                    ns => format!(" (and in {} after it the books of Go and malloc)", duration(ns)),
                },
                many(facts.processes.len(), "process", "processes"),
                host.kernel_release,
                count(host.cpus.into(), "CPU"),
                self.moved(),
            ),
        );
        if let Some(freeze) = &facts.freeze {
            let text = match freeze.was_frozen {
                true => format!("it was frozen already, and still is ({})", freeze.file),
                false if freeze.too_long => format!(
                    "for 20 s, which did not suffice: what was read last is of a process at work ({})",
                    freeze.file
                ),
                false => format!(
                    "for {}: the processes stood still while they and their books were read ({})",
                    duration(freeze.frozen_for_ns),
                    freeze.file
                ),
            };
            self.field("frozen", &text);
        }
    }

    /// `; meanwhile the charge moved by +12 KiB`
    fn moved(&self) -> String {
        let Some(drift) = &self.ledger.drift else { return String::new() };
        let Some((_, charge)) = drift.moved.first() else { return String::new() };
        match *charge {
            0 => format!("; the charge stood still for the {} between", duration(drift.between_ns)),
            moved => {
                let sign = if moved > 0 { "+" } else { "" };
                let each: Vec<String> = drift
                    .moved
                    .iter()
                    .skip(1)
                    .filter(|(_, bytes)| *bytes != 0)
                    .map(|(name, bytes)| format!("{name} {}", self.amount(*bytes)))
                    .collect();
                let of =
                    if each.is_empty() { String::new() } else { format!(" ({})", each.join(", ")) };
                format!(
                    "; meanwhile, in {}, the charge moved by {sign}{}{of}",
                    duration(drift.between_ns),
                    self.amount(moved)
                )
            }
        }
    }

    fn warnings(&mut self) {
        let ledger = self.ledger;
        let broken: Vec<_> =
            ledger.checks.iter().filter(|check| check.holds == Some(false)).collect();
        let mut lines: Vec<String> = broken
            .iter()
            .map(|check| {
                format!(
                    "{} does not hold for {}: {} (left {}, right {}, apart {}, tolerance {})",
                    check.name,
                    check.subject,
                    check.law,
                    grouped(check.left),
                    grouped(check.right),
                    grouped(check.left - check.right),
                    grouped(check.tolerance)
                )
            })
            .collect();
        for unread in &self.facts.unread {
            lines.push(format!(
                "process {} {} was not read: {}",
                unread.pid, unread.comm, unread.reason
            ));
        }
        for process in &self.facts.processes {
            if let Some(reason) =
                process.mappings.reason().filter(|why| !why.starts_with("not among"))
            {
                lines.push(format!("mappings of {} {}: {reason}", process.id.pid, process.comm));
            }
            if process.mappings_lost > 0 {
                lines.push(format!(
                    "{} of {} {} were not understood or not kept",
                    count(process.mappings_lost, "mapping"),
                    process.id.pid,
                    process.comm
                ));
            }
        }
        if lines.is_empty() {
            return;
        }
        self.out.push('\n');
        const SHOWN: usize = 12;
        let more = lines.len().saturating_sub(SHOWN);
        for line in lines.into_iter().take(SHOWN) {
            let wrapped = wrap(&visible(&line), 4, self.width.min(WIDEST_PROSE));
            let wrapped = self.paint.warning(&format!("  ! {wrapped}"));
            self.line(&wrapped);
        }
        if more > 0 {
            self.line(&format!("  ! and {more} more"));
        }
    }

    fn tree(&mut self, title: &str, row: &Row) {
        let whole = u64::try_from(row.value().unwrap_or(0).max(0)).unwrap_or(u64::MAX);
        let least = if self.options.exact { 0 } else { whole / FOLDED_BELOW };
        let heading = self.columns.heading(title);
        self.section(&heading);
        for line in lines(&row.folded(least), self.columns, self.paint) {
            self.line(&line);
        }
    }

    fn charge(&mut self, title: &str) {
        match &self.ledger.charge {
            Known::Value(row) => self.tree(title, row),
            Known::Unknown { reason } => {
                self.section(title);
                self.paragraph(2, &format!("The container's charge is unknown: {reason}."));
            }
        }
    }

    fn beside(&mut self) {
        let rows = &self.ledger.beside;
        if rows.is_empty() {
            return;
        }
        let heading = self.columns.heading("BESIDE IT, AND NOT IN THE CHARGE");
        self.section(&heading);
        for line in list(rows, self.columns, self.paint) {
            self.line(&line);
        }
        let notes: Vec<String> = rows
            .iter()
            .filter_map(|row| Some(format!("{}: {}.", row.label, row.note.as_ref()?)))
            .collect();
        for note in notes {
            self.paragraph(4, &note);
        }
    }

    fn tools(&mut self) {
        self.section("WHAT EACH TOOL SHOWS, AND WHY");
        let name_cells = 36.min(self.width / 2);
        for tool in &self.ledger.tools {
            let figure = match &tool.bytes {
                Known::Value(value) => amount(*value, self.options.exact),
                Known::Unknown { .. } => "unknown".to_owned(),
            };
            let name = pad_right(&keep_start(&visible(&tool.name), name_cells - 2), name_cells - 2);
            let figure =
                self.paint.figure(&pad_left(&figure, if self.options.exact { 16 } else { 11 }));
            let at = name_cells + if self.options.exact { 16 } else { 11 } + 2;
            let why = match &tool.bytes {
                Known::Value(_) => format!("= {}", tool.formula),
                Known::Unknown { reason } => format!("unknown: {reason}"),
            };
            if self.width >= at + 30 {
                let why = wrap(&visible(&why), at, self.width);
                self.line(&format!("  {name}{figure}  {why}"));
            } else {
                self.line(&format!("  {name}{figure}"));
                self.paragraph(6, &why);
            }
            let text = wrap(&visible(&tool.why), 6, self.width.min(WIDEST_PROSE));
            let text = self.paint.faint(&text);
            self.line(&format!("      {text}"));
        }
    }

    fn processes(&mut self) {
        let processes = &self.ledger.processes;
        if processes.is_empty() {
            return;
        }
        self.section("PROCESSES");
        let head = ["pid", "RSS", "PSS", "USS", "swap", "threads"];
        let widths =
            if self.options.exact { [9, 17, 17, 17, 17, 8] } else { [9, 11, 11, 11, 11, 8] };
        let cells = |texts: [String; 6]| -> String {
            texts.iter().zip(widths).map(|(text, width)| pad_left(text, width)).collect()
        };
        let line = format!("{}  name", cells(head.map(str::to_owned)));
        let line = self.paint.faint(&keep_start(&line, self.width));
        self.line(&line);
        const SHOWN: usize = 20;
        let mut by_size: Vec<&ProcessLedger> = processes.iter().collect();
        by_size.sort_by_key(|process| std::cmp::Reverse(process.rss.value().copied()));
        for process in by_size.iter().take(SHOWN) {
            let figure = |known: &Known<u64>| match known.value() {
                Some(bytes) => amount((*bytes).into(), self.options.exact),
                None => "unknown".to_owned(),
            };
            let threads = process.threads.map_or("?".to_owned(), grouped);
            let go = process.go_version.as_ref().map_or(String::new(), |go| format!(" ({go})"));
            let row = cells([
                process.pid.to_string(),
                figure(&process.rss),
                figure(&process.pss),
                figure(&process.uss),
                figure(&process.swap),
                threads,
            ]);
            let name = format!("{}{go}", visible(&process.comm));
            self.line(&keep_start(&format!("{row}  {}", visible(&name)), self.width));
        }
        if by_size.len() > SHOWN {
            self.line(&format!("  and {} more", by_size.len() - SHOWN));
        }
        self.residents();
    }

    /// Who was named comes first, then the largest.
    fn residents(&mut self) {
        let ledger = self.ledger;
        let main = self.facts.subject.main_pid;
        let known = ledger.processes.iter().filter(|process| process.resident.value().is_some());
        let mut known: Vec<&ProcessLedger> = known.collect();
        known.sort_by_key(|process| {
            (Some(process.pid) != main, std::cmp::Reverse(process.rss.value().copied()))
        });
        for process in known.iter().take(DETAILED_PROCESSES) {
            self.resident(process);
        }
        if known.len() > DETAILED_PROCESSES {
            let more = known.len() - DETAILED_PROCESSES;
            self.line(&format!("  the mappings of {more} more processes are in the JSON"));
        }
    }

    /// Its mappings by class, down to the books of Go and malloc.
    fn resident(&mut self, process: &ProcessLedger) {
        let title = format!("RESIDENT IN {} (PID {})", process.comm.to_uppercase(), process.pid);
        let title = keep_start(&visible(&title), self.width / 2);
        let Known::Value(row) = &process.resident else { return };
        self.tree(&title, row);
        let mut notes = Vec::new();
        collect_notes(row, &mut notes);
        for note in notes {
            self.paragraph(4, &note);
        }
    }

    fn limits(&mut self) {
        let Some(limits) = &self.ledger.limits else { return };
        self.section("LIMITS");
        if limits.all.is_empty() {
            let text = match limits.host_memory.value() {
                Some(bytes) => format!("none is set: the machine's {} limit", self.amount(*bytes)),
                None => "none is set".to_owned(),
            };
            self.field("limit", &text);
        }
        for limit in &limits.all {
            let usage = match limit.usage {
                Some(usage) => format!(", {} charged", self.amount(usage)),
                None => String::new(),
            };
            let soft = if limit.hard { "" } else { " (not a hard one)" };
            let first = limits.effective.as_ref() == Some(limit);
            let first = if first { ": reached first" } else { "" };
            self.field(
                "limit",
                &format!(
                    "{} {} of {}{usage}{soft}{first}",
                    self.amount(limit.bytes),
                    limit.file,
                    limit.path
                ),
            );
        }
        for limit in &limits.protected {
            let text = format!(
                "{} {} of {}: reclaim spares it",
                self.amount(limit.bytes),
                limit.file,
                limit.path
            );
            self.field("protected", &text);
        }
        for limit in &limits.swap {
            let text = format!("{} {} of {}", self.amount(limit.bytes), limit.file, limit.path);
            self.field("swap", &text);
        }
        if limits.ancestors_hidden {
            self.field(
                "",
                "ancestors beyond this cgroup namespace cannot be seen, and may limit, too",
            );
        }
        match &limits.peak.bytes {
            Known::Value(peak) => {
                self.field("peak", &format!("{} ({})", self.amount(*peak), limits.peak.source));
            }
            Known::Unknown { reason } => self.field("peak", &format!("unknown: {reason}")),
        }
        let happened: Vec<String> = limits
            .events
            .iter()
            .filter(|(_, times)| *times > 0)
            .map(|(name, times)| format!("{name} {}", grouped(*times)))
            .collect();
        if happened.is_empty() {
            self.field("events", "none: never at a limit, nothing killed");
        } else {
            self.field("events", &happened.join(", "));
        }
        if let Some(pressure) = &limits.pressure {
            self.field("pressure", &pressure.lines().collect::<Vec<_>>().join("; "));
        }
    }

    fn advice(&mut self) {
        if self.ledger.advice.is_empty() {
            return;
        }
        self.section("ADVICE");
        for advice in &self.ledger.advice {
            let what = wrap(&visible(&advice.what), 4, self.width.min(WIDEST_PROSE));
            self.line(&format!("  • {what}"));
            self.paragraph(6, &format!("= {}", advice.arithmetic));
            let evidence = wrap(&visible(&advice.evidence), 6, self.width.min(WIDEST_PROSE));
            let evidence = self.paint.faint(&evidence);
            self.line(&format!("      {evidence}"));
        }
    }

    fn laws(&mut self) {
        let checks = &self.ledger.checks;
        let checked = checks.iter().filter(|check| check.holds.is_some()).count();
        let hold = checks.iter().filter(|check| check.holds == Some(true)).count();
        self.section("LAWS");
        let mut text =
            format!("{hold} of {checked} laws checked hold: every row is the sum of its parts.");
        if let Known::Value(charge) = &self.ledger.figures {
            text.push_str(&format!(
                " ε is {}, within {} to +{}: {} of stock (64 pages a CPU for each cgroup), {} counted late, {} moved.",
                self.amount(charge.epsilon),
                self.amount(charge.bound.lowest()),
                self.amount(charge.bound.highest()),
                self.amount(charge.bound.stock),
                self.amount(charge.bound.lag),
                self.amount(charge.bound.moved),
            ));
        }
        for check in checks.iter().filter(|check| check.holds.is_none()) {
            let why = check.unknown.as_deref().unwrap_or("");
            text.push_str(&format!(" {} says nothing of {}: {why}.", check.name, check.subject));
        }
        if !self.columns.shows_sources() {
            text.push_str(" Where each figure was read stands in a wider terminal, and in --json.");
        }
        self.paragraph(2, &text);
    }
}

/// `1 process`, `2 processes`.
fn many(number: usize, one: &str, more: &str) -> String {
    format!("{} {}", grouped(number as u64), if number == 1 { one } else { more })
}

/// Notes of rows that carry a figure worth explaining.
fn collect_notes(row: &Row, notes: &mut Vec<String>) {
    for child in &row.rows {
        if let Some(note) = &child.note
            && child.value() != Some(0)
        {
            notes.push(format!("{}: {note}.", child.label));
        }
        collect_notes(child, notes);
    }
}
