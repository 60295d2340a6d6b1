//! Folded stacks: `outermost;…;leaf BYTES`, one line per stack, for flame graph tools.
//!
//! The sum of the last column is the report's native total (plus the Go heap where it is merged).

use std::collections::BTreeMap;

use super::ReportOptions;
use crate::outstanding::books::Books;
use crate::outstanding::frames::FrameKind;
use crate::sanitize::visible;

pub(super) fn render(books: &Books<'_>, options: &ReportOptions) -> String {
    // Rows that differ in lines only read the same here.
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    let mut add = |stack: String, bytes: u64| {
        if bytes > 0 {
            let sum = lines.entry(stack).or_default();
            *sum = sum.saturating_add(bytes);
        }
    };
    for line in &books.stacks {
        let labels = line
            .frames
            .iter()
            .filter(|frame| options.show_runtime_frames || frame.kind != FrameKind::Glue)
            .map(|frame| component(&frame.label()));
        let root = options.merge_go.then(|| "[native]".to_owned());
        add(fold(root, labels.collect()), books.ranked(line).bytes);
    }
    if options.merge_go
        && let Some(go) = books.snapshot.go.value()
    {
        for stack in &go.stacks {
            let labels = stack.frames.iter().map(|frame| component(&frame.function));
            add(fold(Some("[go]".to_owned()), labels.collect()), stack.inuse_bytes);
        }
    }
    lines.into_iter().map(|(stack, bytes)| format!("{stack} {bytes}\n")).collect()
}

fn fold(root: Option<String>, leaf_first: Vec<String>) -> String {
    let outermost_first = root.into_iter().chain(leaf_first.into_iter().rev());
    outermost_first.collect::<Vec<_>>().join(";")
}

/// One name: no separator, no line end in it.
fn component(label: &str) -> String {
    let shown = visible(label).replace(';', ":");
    if shown.is_empty() { "[unnamed]".to_owned() } else { shown }
}
