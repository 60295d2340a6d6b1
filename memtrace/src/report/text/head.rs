//! What was traced, when and how; and what is wrong with it.

use std::collections::BTreeMap;

use super::Page;
use super::layout::keep_start;
use crate::outstanding::frames::base_name;
use crate::plan::system_calls::KERNEL;
use crate::report::numbers::{bytes, count, duration, grouped, instant};
use crate::sanitize::visible;

impl Page<'_> {
    pub(super) fn head(&mut self) {
        let header = &self.recording.header;
        let tracee = &header.tracee;
        let mut title = format!(
            "memtrace {} · {} (pid {})",
            visible(&header.memtrace),
            visible(&tracee.comm),
            tracee.id.pid
        );
        if let Some(container) = &tracee.container {
            let short_id: String = container.id.chars().take(12).collect();
            let name = container.name.as_deref().unwrap_or(&short_id);
            title.push_str(&format!(" in container {}", visible(name)));
        }
        let title = self.paint.heading(&keep_start(&title, self.width));
        self.line(&title);

        if let Some(container) = &tracee.container {
            let short_id: String = container.id.chars().take(12).collect();
            let image = match &container.image {
                Some(image) => format!(", image {}", visible(image)),
                None => String::new(),
            };
            let text = format!("{} {}{image}", visible(&container.runtime), visible(&short_id));
            self.field("container", &text);
        }
        let command = match &tracee.command_line[..] {
            [] => visible(&tracee.executable).into_owned(),
            words => words.iter().map(|word| visible(word)).collect::<Vec<_>>().join(" "),
        };
        let command = keep_start(&command, self.width.saturating_sub(13) * 2);
        self.field("command", &command);
        if let Some(version) = &tracee.go_version {
            self.field("built with", &visible(version));
        }
        self.field("traced", &self.traced());
        self.field("probes", &self.probes());
        let host = &header.host;
        self.field(
            "host",
            &format!(
                "Linux {}, {}, {}",
                visible(&host.kernel_release),
                visible(&host.architecture),
                count(host.cpus.into(), "CPU")
            ),
        );
    }

    fn traced(&self) -> String {
        let at = self.books.snapshot;
        let snapshots = self.recording.snapshots.len();
        let mut text = format!(
            "for {} from {}",
            duration(at.elapsed_ns),
            instant(self.recording.header.armed_at_unix_ns)
        );
        if snapshots > 1 {
            let position = self
                .recording
                .snapshots
                .iter()
                .position(|snapshot| std::ptr::eq(snapshot, at))
                .map_or(0, |position| position + 1);
            text.push_str(&format!("; snapshot {position} of {snapshots}"));
        }
        text.push_str(&format!("; read in {}", duration(at.read_ns)));
        if at.moving {
            text.push_str(" while the process kept allocating");
        }
        if let Some(reason) = &at.ended {
            text.push_str(&format!("; ended: {}", visible(reason)));
        }
        text
    }

    fn probes(&self) -> String {
        let probes = &self.recording.header.probes;
        let mut by_object: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for probe in &probes.attached {
            *by_object.entry((&probe.object, &probe.allocator)).or_default() += 1;
        }
        if by_object.is_empty() {
            return "none armed: nothing below was measured".to_owned();
        }
        let objects: Vec<String> = by_object
            .iter()
            .map(|((object, allocator), probes)| {
                if *object == KERNEL {
                    return format!("{} system calls that map memory", grouped(*probes));
                }
                let (object, allocator) = (visible(base_name(object)), visible(allocator));
                format!("{} functions of {allocator} in {object}", grouped(*probes))
            })
            .collect();
        let mut text = objects.join(", ");
        match probes.not_probed.len() {
            0 => {}
            1 => text.push_str("; 1 thing not probed, see below"),
            n => text.push_str(&format!("; {n} things not probed, see below")),
        }
        text
    }

    /// What makes the figures below uncertain, in one place and before them.
    pub(super) fn warnings(&mut self) {
        let books = self.books;
        let mut warnings = Vec::new();
        if let Some(torn) = &self.options.torn {
            warnings.push(format!("The recording is torn: {}.", visible(torn)));
        }
        for check in books.checks.iter().filter(|check| !check.holds) {
            warnings.push(format!(
                "Does not hold: {}: {} ≠ {} (difference {}); {}.",
                check.law,
                grouped(check.left),
                grouped(check.right),
                grouped(check.left - check.right),
                check.hint
            ));
        }
        if books.snapshot.own.probe_hits == 0 {
            warnings.push(
                "No probe was hit: the process made no allocator call in this time, or what it has \
                 mapped is not what was probed (a library replaced or copied since it started)."
                    .to_owned(),
            );
        }
        warnings.extend(books.doubts.iter().map(|doubt| format!("{}.", doubt.text)));
        let lost = books.losses.iter().filter(|loss| loss.count > 0).count();
        if lost > 0 {
            let kinds = count(lost as u64, "kind");
            warnings.push(format!("Figures are incomplete: {kinds} of losses, listed below."));
        }
        if books.truncated.bytes > 0 {
            warnings.push(format!(
                "{} in {} have no complete stack: in the total, not fully attributed.",
                bytes(books.truncated.bytes),
                count(books.truncated.blocks, "block")
            ));
        }
        if books.min_age_ns > 0 && books.aged.is_none() {
            warnings.push("Ages were not read for this snapshot: all blocks are shown.".to_owned());
        }
        if warnings.is_empty() {
            return;
        }
        self.blank();
        for warning in warnings {
            let wrapped = super::layout::wrap(&warning, 2, self.width);
            for (i, part) in wrapped.lines().enumerate() {
                let mark = if i == 0 { "! " } else { "" };
                let part = self.paint.warning(&format!("{mark}{part}"));
                self.line(&part);
            }
        }
    }
}
