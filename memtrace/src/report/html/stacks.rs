//! Stacks for the page: frames once, stacks as leaves of one tree of calls, and what each of them
//! held instant by instant, as changes.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use super::data::number;
use crate::outstanding::books::{Books, Librarian};
use crate::outstanding::frames::{Frame, FrameKind, base_name, kind_of};
use crate::snapshot::{Known, Name};

/// Everything by position: in [`Stacks::strings`], [`Stacks::frames`], [`Stacks::nodes`].
#[derive(Default, Serialize)]
pub(super) struct Stacks {
    strings: Vec<String>,
    frames: Vec<FrameRow>,
    /// Parent (-1 at the outermost call) and frame of every node; parents stand before children.
    nodes: Vec<(i64, u32)>,
    /// The innermost node of each stack, and whose heap it is in.
    leaves: Vec<Leaf>,
    /// Position of each kept instant among all.
    instants: Vec<usize>,
    /// For each kept instant: stacks whose figures changed, with bytes and blocks as they are now.
    changes: Vec<Vec<(u32, i64, i64)>>,
    /// Snapshots that the recording has.
    of: usize,
}

/// Function, module, file (positions of strings, -1 where unknown), line (0), kind.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize)]
struct FrameRow(i64, i64, i64, u32, Kind);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Native,
    Go,
    Glue,
    Note,
    Inlined,
}

#[derive(Serialize)]
struct Leaf {
    node: i64,
    go: bool,
    /// Youngest and oldest block at the last snapshot, seconds; of native stacks only.
    ages_s: Option<(f64, f64)>,
}

pub(super) fn collect(librarian: &Librarian<'_>, last: &Books<'_>, most: usize) -> Stacks {
    let snapshots = &librarian.recording().snapshots;
    let mut builder = Builder::default();
    let ages: HashMap<usize, (u64, u64)> = last
        .stacks
        .iter()
        .filter_map(|line| Some((librarian.group_of(*line.ids.first()?)?, line.ages_ns?)))
        .collect();
    for (line, frames) in librarian.lines().enumerate() {
        builder.native(frames, ages.get(&line).copied());
    }
    let mut held: Vec<(i64, i64)> = vec![(0, 0); builder.stacks.leaves.len()];
    let mut now = held.clone();
    for at in spread(snapshots.len(), most) {
        now.fill((0, 0));
        for (line, amount) in librarian.held_at(at) {
            if let Some(cell) = now.get_mut(line) {
                *cell = (number(amount.bytes.into()), number(amount.blocks.into()));
            }
        }
        if let Known::Value(go) = &snapshots[at].go {
            for stack in &go.stacks {
                let leaf = builder.go(&stack.frames);
                now.resize(builder.stacks.leaves.len(), (0, 0));
                let (bytes, blocks) = now[leaf];
                now[leaf] = (
                    number(i128::from(bytes) + i128::from(stack.inuse_bytes)),
                    number(i128::from(blocks) + i128::from(stack.inuse_objects)),
                );
            }
        }
        held.resize(now.len(), (0, 0));
        let changed = now.iter().zip(&held).enumerate().filter(|(_, (now, held))| now != held);
        let changes =
            changed.map(|(leaf, (now, _))| (leaf as u32, now.0, now.1)).collect::<Vec<_>>();
        builder.stacks.instants.push(at);
        builder.stacks.changes.push(changes);
        held.copy_from_slice(&now);
    }
    builder.stacks.of = snapshots.len();
    builder.stacks
}

/// At most `most` of `count` positions, evenly, the first and the last among them.
fn spread(count: usize, most: usize) -> Vec<usize> {
    if count <= most || most < 2 {
        return (0..count).collect();
    }
    let mut kept: Vec<usize> = (0..most).map(|at| at * (count - 1) / (most - 1)).collect();
    kept.dedup();
    kept
}

#[derive(Default)]
struct Builder {
    stacks: Stacks,
    strings: HashMap<String, i64>,
    frames: HashMap<FrameRow, u32>,
    nodes: HashMap<(i64, u32), i64>,
    go: HashMap<i64, usize>,
}

impl Builder {
    fn native(&mut self, frames: &[std::sync::Arc<Frame>], ages_ns: Option<(u64, u64)>) {
        let mut node = -1;
        for frame in frames.iter().rev() {
            let kind = match frame.kind {
                FrameKind::Native if frame.inlined => Kind::Inlined,
                FrameKind::Native => Kind::Native,
                FrameKind::Go => Kind::Go,
                FrameKind::Glue => Kind::Glue,
                FrameKind::Note => Kind::Note,
            };
            let label = frame.label();
            let module = frame.module.as_deref().map(base_name);
            let row = self.row(&label, module, frame.file.as_deref(), frame.line, kind);
            node = self.node(node, row);
        }
        let ages_s = ages_ns.map(|(youngest, oldest)| (youngest as f64 / 1e9, oldest as f64 / 1e9));
        self.stacks.leaves.push(Leaf { node, go: false, ages_s });
    }

    /// The leaf of a stack of Go's heap profile: one, whenever it stands in it.
    fn go(&mut self, frames: &[Arc<Name>]) -> usize {
        // Go's own root keeps its calls apart from the native ones that read the same.
        let root = self.row("Go heap", None, None, None, Kind::Note);
        let mut node = self.node(-1, root);
        for name in frames.iter().rev() {
            let kind = match kind_of(name) {
                FrameKind::Glue => Kind::Glue,
                _ => Kind::Go,
            };
            let row = self.row(&name.function, None, name.file.as_deref(), name.line, kind);
            node = self.node(node, row);
        }
        let leaves = &mut self.stacks.leaves;
        *self.go.entry(node).or_insert_with(|| {
            leaves.push(Leaf { node, go: true, ages_s: None });
            leaves.len() - 1
        })
    }

    fn row(
        &mut self,
        function: &str,
        module: Option<&str>,
        file: Option<&str>,
        line: Option<u32>,
        kind: Kind,
    ) -> u32 {
        let function = self.string(Some(function));
        let (module, file) = (self.string(module), self.string(file));
        let row = FrameRow(function, module, file, line.unwrap_or(0), kind);
        let frames = &mut self.stacks.frames;
        *self.frames.entry(row).or_insert_with(|| {
            frames.push(row);
            (frames.len() - 1) as u32
        })
    }

    fn string(&mut self, text: Option<&str>) -> i64 {
        let Some(text) = text else { return -1 };
        if let Some(known) = self.strings.get(text) {
            return *known;
        }
        let at = self.stacks.strings.len() as i64;
        self.stacks.strings.push(text.to_owned());
        self.strings.insert(text.to_owned(), at);
        at
    }

    fn node(&mut self, parent: i64, frame: u32) -> i64 {
        let nodes = &mut self.stacks.nodes;
        *self.nodes.entry((parent, frame)).or_insert_with(|| {
            nodes.push((parent, frame));
            (nodes.len() - 1) as i64
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::synthetic;

    /// What the page's reader does: apply the changes one after the other.
    fn replayed(stacks: &Stacks, upto: usize) -> Vec<(i64, i64)> {
        let mut held = vec![(0, 0); stacks.leaves.len()];
        for changes in &stacks.changes[..=upto] {
            for (leaf, bytes, blocks) in changes {
                held[*leaf as usize] = (*bytes, *blocks);
            }
        }
        held
    }

    #[test]
    fn changes_replayed_give_the_totals_of_every_instant() {
        let recording = synthetic::recording();
        let librarian = Librarian::new(&recording);
        let count = recording.snapshots.len();
        let last = librarian.books(count - 1, None).unwrap();
        let stacks = collect(&librarian, &last, 240);
        assert_eq!(stacks.instants, (0..count).collect::<Vec<_>>());
        for at in 0..count {
            let books = librarian.books(at, None).unwrap();
            let held = replayed(&stacks, at);
            let sum = |go: bool| -> i64 {
                let of = stacks.leaves.iter().zip(&held).filter(|(leaf, _)| leaf.go == go);
                of.map(|(_, held)| held.0).sum()
            };
            assert_eq!(sum(false) as u64, books.outstanding.bytes, "instant {at}");
            let go = recording.snapshots[at].go.value();
            let go: u64 = go.map_or(0, |go| go.stacks.iter().map(|it| it.inuse_bytes).sum());
            assert_eq!(sum(true) as u64, go, "instant {at}");
        }
    }

    #[test]
    fn a_leaf_leads_to_the_frames_of_its_line_and_parents_stand_first() {
        let recording = synthetic::recording();
        let librarian = Librarian::new(&recording);
        let last = librarian.books(recording.snapshots.len() - 1, None).unwrap();
        let stacks = collect(&librarian, &last, 240);
        for (at, (parent, _)) in stacks.nodes.iter().enumerate() {
            assert!(*parent < at as i64);
        }
        for (line, leaf) in librarian.lines().zip(&stacks.leaves) {
            let mut names = Vec::new();
            let mut node = leaf.node;
            while node >= 0 {
                let (parent, frame) = stacks.nodes[node as usize];
                names.push(stacks.strings[stacks.frames[frame as usize].0 as usize].clone());
                node = parent;
            }
            let expected: Vec<String> = line.iter().map(|frame| frame.label()).collect();
            assert_eq!(names, expected);
        }
    }

    #[test]
    fn instants_are_spread_evenly_with_both_ends() {
        assert_eq!(spread(0, 5), Vec::<usize>::new());
        assert_eq!(spread(3, 5), [0, 1, 2]);
        assert_eq!(spread(101, 5), [0, 25, 50, 75, 100]);
        let kept = spread(100_000, 240);
        assert_eq!((kept.len(), kept[0], kept[239]), (240, 0, 99_999));
    }
}
