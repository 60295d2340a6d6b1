//! Who holds it: native stacks, native mappings, Go allocation sites.

use std::sync::Arc;

use super::Page;
use super::layout::{cells, keep_end, keep_start, pad_left};
use crate::outstanding::books::{GrowthBase, RangeLine, StackLine};
use crate::outstanding::frames::{Frame, FrameKind, base_name};
use crate::report::numbers::{ages, bytes, count, duration, grouped, rate};
use crate::sanitize::visible;
use crate::snapshot::{GoBooks, GoMemory, GoProfile, RangeOwner};

/// Stacks below 0.05 % would read 0.0 %: they are summed up.
const SMALLEST_SHARE: f64 = 0.0005;
const FRAME_INDENT: usize = 6;
/// Calls that are worth a line above the stacks.
const MOST_CALLERS: usize = 5;

impl Page<'_> {
    pub(super) fn native_stacks(&mut self) {
        let books = self.books;
        self.section("NATIVE BLOCKS NOT FREED");
        let outstanding = books.outstanding;
        let mut text = format!(
            "{} ({} B) in {}",
            bytes(outstanding.bytes),
            grouped(outstanding.bytes),
            count(outstanding.blocks, "block")
        );
        if let Some(growth) = books.growth {
            text.push_str(&format!(", {} {}", rate(growth.bytes_per_second), self.since()));
        }
        text.push_str(&format!(
            ". Peak {} at {} (of the snapshots). Since the attach {} allocated in {}, {} freed in {}.",
            bytes(books.peak_bytes),
            duration(books.peak_elapsed_ns),
            bytes(books.allocated.bytes),
            count(books.allocated.blocks, "block"),
            bytes(books.freed.bytes),
            count(books.freed.blocks, "block"),
        ));
        self.paragraph(2, &text);
        if let Some(aged) = books.aged.filter(|_| books.min_age_ns > 0) {
            let text = format!(
                "At least {} old: {} ({} B) in {}. Stacks are ranked by that.",
                duration(books.min_age_ns),
                bytes(aged.bytes),
                grouped(aged.bytes),
                count(aged.blocks, "block")
            );
            self.paragraph(2, &text);
        }

        let held: Vec<&StackLine> =
            books.stacks.iter().filter(|line| books.ranked(line).blocks > 0).collect();
        if held.is_empty() {
            self.paragraph(2, "No stack holds anything.");
            return;
        }
        self.callers(held.len());
        // Rows are sorted: what is too small to read stands at the end. One row is always shown.
        let worth_reading =
            held.partition_point(|line| line.share >= SMALLEST_SHARE).max(1).min(self.options.top);
        for (rank, line) in held.iter().take(worth_reading).enumerate() {
            self.stack(rank + 1, line);
        }
        let rest = &held[worth_reading..];
        if let Some(largest) = rest.first() {
            let rest_bytes =
                rest.iter().fold(0u64, |sum, line| sum.saturating_add(books.ranked(line).bytes));
            self.blank();
            let text = format!(
                "{} more {} {} ({:.1} % the largest): --top shows more, JSON and pprof all.",
                grouped(rest.len() as u64),
                if rest.len() == 1 { "stack holds" } else { "stacks hold" },
                bytes(rest_bytes),
                largest.share * 100.0
            );
            self.paragraph(2, &text);
        }
    }

    /// Who asked for it, where that is shorter than the list of stacks.
    fn callers(&mut self, stacks: usize) {
        let callers = &self.books.callers;
        if callers.len() >= stacks {
            return;
        }
        self.blank();
        self.paragraph(2, "Added up by the program's own call nearest to the allocator:");
        for line in callers.iter().take(MOST_CALLERS) {
            let mut facts = vec![
                format!("{:.1} %", line.share * 100.0),
                count(line.held.blocks, "block"),
                count(line.stacks as u64, "stack"),
            ];
            facts.extend(line.growth.map(|growth| rate(growth.bytes_per_second)));
            let figure = pad_left(&bytes(line.held.bytes), 11);
            let text = format!("{figure}   {}", facts.join(" · "));
            self.line(&keep_start(&text, self.width));
            let frames: Vec<_> = line.frame.iter().chain(&line.go_caller).cloned().collect();
            self.frames(&frames);
        }
        let rest = &callers[callers.len().min(MOST_CALLERS)..];
        if !rest.is_empty() {
            let held = rest.iter().fold(0u64, |sum, line| sum.saturating_add(line.held.bytes));
            let text = format!("{} more hold {}.", count(rest.len() as u64, "call"), bytes(held));
            self.paragraph(2, &text);
        }
        self.blank();
        self.paragraph(2, "By complete stack:");
    }

    fn since(&self) -> String {
        match self.books.growth_base {
            GrowthBase { sequence: None, .. } => "since the attach".to_owned(),
            GrowthBase { elapsed_ns, .. } => {
                let between = self.books.snapshot.elapsed_ns.saturating_sub(elapsed_ns);
                format!("over the last {}", duration(between))
            }
        }
    }

    fn stack(&mut self, rank: usize, line: &StackLine) {
        let held = self.books.ranked(line);
        let mut facts = vec![format!("{:.1} %", line.share * 100.0), count(held.blocks, "block")];
        facts.extend(line.ages_ns.map(ages));
        if let Some(growth) = line.growth {
            facts.push(rate(growth.bytes_per_second));
        }
        if line.peak_bytes > line.outstanding.bytes {
            facts.push(format!("peak {}", bytes(line.peak_bytes)));
        }
        if held != line.outstanding {
            facts.push(format!("of {} not freed", bytes(line.outstanding.bytes)));
        }
        self.ranked(rank, held.bytes, &facts);
        self.frames(&line.frames);
    }

    fn ranked(&mut self, rank: usize, held: u64, facts: &[String]) {
        self.blank();
        let rank = pad_left(&format!("{rank}."), 4);
        let figure = bytes(held);
        // The facts wrap beside the figure; the figure is painted, so its width is taken before.
        let at = 4 + 1 + cells(&figure) + 3;
        let mut lines = vec![String::new()];
        for fact in facts {
            let last = lines.len() - 1;
            let sep = if lines[last].is_empty() { "" } else { " · " };
            if !lines[last].is_empty()
                && at + cells(&lines[last]) + cells(sep) + cells(fact) > self.width
            {
                lines.push(fact.clone());
            } else {
                lines[last].push_str(sep);
                lines[last].push_str(fact);
            }
        }
        let facts = lines.join(&format!("\n{}", " ".repeat(at)));
        let figure = self.paint.figure(&figure);
        self.line(&format!("{rank} {figure}   {facts}"));
    }

    pub(super) fn frames(&mut self, frames: &[Arc<Frame>]) {
        let shown: Vec<&Frame> = frames
            .iter()
            .map(Arc::as_ref)
            .filter(|frame| self.options.show_runtime_frames || frame.kind != FrameKind::Glue)
            .collect();
        let room = self.width.saturating_sub(FRAME_INDENT);
        let names: Vec<String> = shown.iter().map(|frame| self.frame_name(frame)).collect();
        // The places stand in one column: as far right as the names need, and not beyond 60 %.
        let column = names
            .iter()
            .map(|name| cells(name))
            .filter(|name| *name <= room * 3 / 5)
            .max()
            .unwrap_or(0);
        for (frame, name) in shown.iter().zip(&names) {
            let place = frame_place(frame, self.width >= 120);
            let name = keep_start(name, room);
            let painted = match frame.kind {
                FrameKind::Go => self.paint.go(&name),
                FrameKind::Glue => self.paint.faint(&name),
                FrameKind::Note => self.paint.warning(&name),
                FrameKind::Native => name.clone(),
            };
            let indent = " ".repeat(FRAME_INDENT);
            let gap = column.saturating_sub(cells(&name)) + 2;
            let left = room.saturating_sub(column + 2);
            if place.is_empty() {
                self.line(&format!("{indent}{painted}"));
            } else if cells(&name) <= column && left >= 12 {
                let place = self.paint.faint(&keep_end(&place, left));
                self.line(&format!("{indent}{painted}{}{place}", " ".repeat(gap)));
            } else {
                self.line(&format!("{indent}{painted}"));
                let place = self.paint.faint(&keep_end(&place, room.saturating_sub(4)));
                self.line(&format!("{indent}    {place}"));
            }
        }
    }

    fn frame_name(&self, frame: &Frame) -> String {
        let label = frame.label();
        let inlined = if frame.inlined { " (inlined)" } else { "" };
        format!("{}{inlined}", visible(&label))
    }

    pub(super) fn native_ranges(&mut self) {
        let books = self.books;
        if books.ranges.is_empty() {
            return;
        }
        self.section("NATIVE MAPPINGS");
        let of = |wanted: &dyn Fn(&&RangeLine) -> bool| {
            books.ranges.iter().filter(wanted).fold((0u64, 0u64), |(bytes, ranges), line| {
                (bytes.saturating_add(line.bytes), ranges + line.ranges)
            })
        };
        let (mapped, ranges) = of(&|line| line.owner == RangeOwner::Native && !line.reserved);
        let mut text = format!(
            "{} in {} mapped by native code itself since the attach, and still mapped.",
            bytes(mapped),
            count(ranges, "range")
        );
        let others = [
            ("Go's runtime", RangeOwner::GoRuntime),
            ("the allocators' own", RangeOwner::AllocatorInternal),
            ("thread stacks", RangeOwner::ThreadStack),
            ("files", RangeOwner::File),
        ];
        let others: Vec<String> = others
            .into_iter()
            .map(|(name, owner)| (name, of(&|line| line.owner == owner)))
            .filter(|(_, (_, ranges))| *ranges > 0)
            .map(|(name, (mapped, ranges))| {
                format!("{name} {} ({})", bytes(mapped), grouped(ranges))
            })
            .collect();
        if !others.is_empty() {
            text.push_str(&format!(" Told apart from it: {}.", others.join(", ")));
        }
        self.paragraph(2, &text);
        let native: Vec<&RangeLine> =
            books.ranges.iter().filter(|line| line.owner == RangeOwner::Native).collect();
        for (rank, line) in native.iter().take(self.options.top.min(5)).enumerate() {
            let mut facts = vec![count(line.ranges, "range"), ages(line.ages_ns)];
            if line.reserved {
                facts.push("reserved (PROT_NONE)".to_owned());
            }
            self.ranked(rank + 1, line.bytes, &facts);
            self.frames(&line.frames);
        }
    }

    pub(super) fn go_heap(&mut self) {
        let Some(go) = self.books.snapshot.go.value() else { return };
        self.section("GO HEAP IN USE");
        let sampled = match go.sample_rate_bytes {
            0 => "sampled at an unknown rate".to_owned(),
            1 => "every allocation recorded".to_owned(),
            rate => format!("sampled, one per {} on average", bytes(rate)),
        };
        let text = match &go.no_profile {
            Some(reason) => format!("No heap profile: {}.", visible(reason)),
            None => format!(
                "{} in {}, {sampled}, {}; from {}.",
                bytes(go.inuse_bytes),
                count(go.inuse_objects, "object"),
                self.age_of_go_profile(go),
                visible(&go.source)
            ),
        };
        self.paragraph(2, &text);
        if let (Some(memory), None) = (&go.memory, &go.no_profile) {
            let text = format!(
                "The runtime counts {} now (HeapAlloc, measured: live objects, and garbage since \
                 the last collection).",
                bytes(memory.heap_alloc)
            );
            self.paragraph(2, &text);
            if let Some(text) = pace(memory) {
                self.paragraph(2, &text);
            }
        }
        for why in &go.tried {
            self.paragraph(2, &format!("Not read elsewhere: {}.", visible(why)));
        }
        let mut stacks: Vec<_> = go.stacks.iter().filter(|stack| stack.inuse_bytes > 0).collect();
        stacks.sort_by(|a, b| {
            let key = |stack: &crate::snapshot::GoStack| {
                stack.frames.iter().map(|frame| frame.function.clone()).collect::<Vec<_>>()
            };
            b.inuse_bytes.cmp(&a.inuse_bytes).then_with(|| key(a).cmp(&key(b)))
        });
        for stack in stacks.iter().take(self.options.top.min(3)) {
            // The allocating function and who called it: the whole stack is pprof's to show.
            let names: Vec<_> =
                stack.frames.iter().take(4).map(|frame| visible(&frame.function)).collect();
            let figure = pad_left(&bytes(stack.inuse_bytes), 12);
            let room = self.width.saturating_sub(15);
            let names = self.paint.go(&keep_start(&names.join(" ← "), room));
            let figure = self.paint.figure(&figure);
            self.line(&format!("{figure}   {names}"));
        }
    }
}

impl Page<'_> {
    /// Which state of the heap a profile shows, and how long ago that was.
    fn age_of_go_profile(&self, go: &GoBooks) -> String {
        if go.profile == GoProfile::Current {
            return "as of now (frees as of the last sweep)".to_owned();
        }
        let Some(old) = go.collections_old else {
            return "as of the last completed collection".to_owned();
        };
        let last = go.memory.and_then(|memory| {
            let ended = memory.last_gc_unix_ns.filter(|ended| *ended > 0)?;
            let ago = duration(self.books.snapshot.unix_ns.saturating_sub(ended));
            Some(format!("number {}, {ago} ago", memory.num_gc))
        });
        match (old, last) {
            (_, None) => "everything so far, as there was no collection yet".to_owned(),
            (0, Some(last)) => format!("as of the last collection ({last})"),
            (old, Some(last)) => {
                format!("as of {} before the last ({last})", count(old.into(), "collection"))
            }
        }
    }
}

/// When the collector starts next, and who says so.
fn pace(memory: &GoMemory) -> Option<String> {
    let gogc = match memory.gogc_percent? {
        -1 => "off".to_owned(),
        percent => percent.to_string(),
    };
    let limit = match memory.memory_limit? {
        none if none >= i64::MAX.cast_unsigned() => "none".to_owned(),
        limit => bytes(limit),
    };
    let next = match memory.next_gc {
        never if never >= 1 << 60 => "No collection starts by itself".to_owned(),
        at => format!("The next collection is to end before the heap holds {} (NextGC)", bytes(at)),
    };
    Some(format!("{next}; GOGC {gogc}, GOMEMLIMIT {limit}."))
}

/// `file:line`, with the module behind it where there is room; else the module.
fn frame_place(frame: &Frame, wide: bool) -> String {
    let module = frame.module.as_deref().map(base_name);
    let place = match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!("{file}:{line}"),
        (Some(file), None) => file.clone(),
        (None, _) => match (module, &frame.function) {
            // Without a function the label is the module already.
            (Some(module), Some(_)) => module.to_owned(),
            _ => String::new(),
        },
    };
    let place = match module {
        Some(module) if wide && frame.file.is_some() && frame.kind == FrameKind::Native => {
            format!("{place} ({module})")
        }
        _ => place,
    };
    visible(&place).into_owned()
}
