//! gzip'd profile.proto, as `go tool pprof` and its web view open it.
//!
//! Sample types in the order of Go's own heap profile; `inuse_*` is what is outstanding. Each
//! native sample carries the label `origin=native`; with the Go heap merged in, its samples carry
//! `origin=go`. Totals equal the other reports'. Mapped ranges are not samples: they are no blocks.

use std::collections::HashMap;
use std::io::Write;

use flate2::{Compression, GzBuilder};
use prost::Message;

use super::{ReportError, ReportOptions};
use crate::go::profile_proto as proto;
use crate::outstanding::books::{Books, Librarian};
use crate::outstanding::diff::Diff;
use crate::outstanding::frames::{CodeAddress, FrameIndex};
use crate::sanitize::visible;
use crate::snapshot::{GoBooks, Snapshot, StackDef};

pub(super) fn render(
    librarian: &Librarian<'_>,
    books: &Books<'_>,
    options: &ReportOptions,
) -> Result<Vec<u8>, ReportError> {
    compress(&build(librarian, books, options))
}

fn build(librarian: &Librarian<'_>, books: &Books<'_>, options: &ReportOptions) -> proto::Profile {
    let header = &librarian.recording().header;
    let mut builder = Builder::new(librarian.index());
    builder.add_native(books);
    if options.merge_go
        && let Some(go) = books.snapshot.go.value()
    {
        builder.add_go(go);
    }

    let Builder { mut strings, mut profile, .. } = builder;
    profile.sample_type = sample_types(&mut strings);
    // Every native block is recorded: the mean distance between samples is one byte.
    profile.period_type = Some(value_type(&mut strings, "space", "bytes"));
    profile.period = 1;
    profile.default_sample_type = strings.index("inuse_space");
    profile.time_nanos = signed(books.snapshot.unix_ns);
    profile.duration_nanos = signed(books.snapshot.elapsed_ns);

    let mut comments =
        vec![format!("memtrace {} of pid {}", visible(&header.memtrace), header.tracee.id.pid)];
    if books.min_age_ns > 0 {
        let seconds = books.min_age_ns as f64 / 1e9;
        comments.push(format!("inuse counts native blocks at least {seconds} s old"));
    }
    let losses = books.losses.iter().filter(|loss| loss.count > 0);
    comments.extend(
        losses
            .map(|loss| format!("lost: {} = {}: {}", visible(&loss.label), loss.count, loss.hint)),
    );
    let broken = books.checks.iter().filter(|check| !check.holds);
    comments
        .extend(broken.map(|check| {
            format!("does not hold: {}: {} ≠ {}", check.law, check.left, check.right)
        }));
    profile.comment = comments.iter().map(|comment| strings.index(comment)).collect();
    profile.string_table = strings.table;
    profile
}

/// After less before, by name alone: the addresses of two processes have nothing in common.
pub(super) fn render_diff(after: &Snapshot, diff: &Diff) -> Result<Vec<u8>, ReportError> {
    let index = FrameIndex::empty();
    let mut builder = Builder::new(&index);
    let label = builder.origin("native");
    let change = |after: u64, before: u64| {
        let change = i128::from(after) - i128::from(before);
        i64::try_from(change).unwrap_or(if change < 0 { i64::MIN } else { i64::MAX })
    };
    for line in &diff.lines {
        let (old, new) = (line.allocated_before, line.allocated_after);
        let value = vec![
            change(new.blocks, old.blocks),
            change(new.bytes, old.bytes),
            change(line.after.blocks, line.before.blocks),
            change(line.after.bytes, line.before.bytes),
        ];
        if value.iter().all(|value| *value == 0) {
            continue;
        }
        let frames = line.frames.iter();
        let location_id = frames
            .map(|frame| {
                let file = frame.file.as_deref().unwrap_or("");
                builder.named_location(&frame.label(), file, frame.line)
            })
            .collect();
        builder.profile.sample.push(proto::Sample { location_id, value, label: vec![label] });
    }
    let Builder { mut strings, mut profile, .. } = builder;
    profile.sample_type = sample_types(&mut strings);
    profile.period_type = Some(value_type(&mut strings, "space", "bytes"));
    profile.period = 1;
    profile.default_sample_type = strings.index("inuse_space");
    profile.time_nanos = signed(after.unix_ns);
    profile.comment = vec![strings.index("memtrace diff: after less before")];
    profile.string_table = strings.table;
    compress(&profile)
}

fn compress(profile: &proto::Profile) -> Result<Vec<u8>, ReportError> {
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    gzip.write_all(&profile.encode_to_vec())?;
    Ok(gzip.finish()?)
}

fn value_type(strings: &mut Strings, name: &str, unit: &str) -> proto::ValueType {
    proto::ValueType { r#type: strings.index(name), unit: strings.index(unit) }
}

/// In the order of Go's own heap profile.
fn sample_types(strings: &mut Strings) -> Vec<proto::ValueType> {
    vec![
        value_type(strings, "alloc_objects", "count"),
        value_type(strings, "alloc_space", "bytes"),
        value_type(strings, "inuse_objects", "count"),
        value_type(strings, "inuse_space", "bytes"),
    ]
}

/// profile.proto counts in `i64`.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

struct Strings {
    table: Vec<String>,
    index: HashMap<String, i64>,
}

impl Strings {
    fn index(&mut self, text: &str) -> i64 {
        if let Some(index) = self.index.get(text) {
            return *index;
        }
        let index = self.table.len() as i64;
        self.table.push(text.to_owned());
        self.index.insert(text.to_owned(), index);
        index
    }
}

/// What makes a location one: an address (as a leaf or as a return address), or a name without one.
#[derive(PartialEq, Eq, Hash)]
enum LocationKey {
    Address(CodeAddress),
    Named { function: u64, line: i64 },
}

struct Builder<'a, 'r> {
    index: &'a FrameIndex<'r>,
    strings: Strings,
    functions: HashMap<(i64, i64), u64>,
    locations: HashMap<LocationKey, u64>,
    /// `(start, end, position in profile.mapping)`, sorted; the start with whose it is.
    spans: Vec<(CodeAddress, u64, usize)>,
    profile: proto::Profile,
}

impl<'a, 'r> Builder<'a, 'r> {
    fn new(index: &'a FrameIndex<'r>) -> Self {
        let strings =
            Strings { table: vec![String::new()], index: HashMap::from([(String::new(), 0)]) };
        let mut builder = Self {
            index,
            strings,
            functions: HashMap::new(),
            locations: HashMap::new(),
            spans: Vec::new(),
            profile: proto::Profile::default(),
        };
        for object in index.objects() {
            for mapping in &object.mappings {
                let position = builder.profile.mapping.len();
                let start = CodeAddress { image: object.image, address: mapping.start };
                builder.spans.push((start, mapping.end, position));
                builder.profile.mapping.push(proto::Mapping {
                    id: position as u64 + 1,
                    memory_start: mapping.start,
                    memory_limit: mapping.end,
                    file_offset: mapping.file_offset,
                    filename: builder.strings.index(&visible(&object.path)),
                    build_id: builder
                        .strings
                        .index(&visible(object.build_id.as_deref().unwrap_or(""))),
                    ..Default::default()
                });
            }
        }
        builder.spans.sort_unstable();
        builder
    }

    fn add_native(&mut self, books: &Books<'_>) {
        let label = self.origin("native");
        let mut rows: Vec<_> = books.snapshot.native.stacks.iter().collect();
        rows.sort_by_key(|row| row.stack);
        for row in rows {
            let inuse = books.ranked_row(row);
            let value = [row.allocated_blocks, row.allocated_bytes, inuse.blocks, inuse.bytes];
            if value == [0; 4] {
                continue;
            }
            let location_id = self.native_locations(row.stack);
            let value = value.into_iter().map(signed).collect();
            self.profile.sample.push(proto::Sample { location_id, value, label: vec![label] });
        }
    }

    fn add_go(&mut self, go: &GoBooks) {
        let label = self.origin("go");
        for stack in &go.stacks {
            let location_id = stack
                .frames
                .iter()
                .map(|name| {
                    let file = name.file.as_deref().unwrap_or("");
                    self.named_location(&name.function, file, name.line)
                })
                .collect();
            let value =
                [stack.alloc_objects, stack.alloc_bytes, stack.inuse_objects, stack.inuse_bytes];
            let value = value.into_iter().map(signed).collect();
            self.profile.sample.push(proto::Sample { location_id, value, label: vec![label] });
        }
    }

    fn origin(&mut self, origin: &str) -> proto::Label {
        proto::Label {
            key: self.strings.index("origin"),
            str: self.strings.index(origin),
            ..Default::default()
        }
    }

    fn native_locations(&mut self, stack: u64) -> Vec<u64> {
        let addresses = self.index.stack(stack).into_iter().flat_map(StackDef::addresses);
        let mut locations: Vec<u64> = addresses
            .enumerate()
            .map(|(depth, at)| self.address_location(at, depth == 0))
            .collect();
        // A walk that ended early says so as the outermost frame.
        let note = self.index.note(stack);
        locations.extend(note.map(|note| self.named_location(&note.label(), "", None)));
        locations
    }

    fn address_location(&mut self, at: CodeAddress, is_leaf: bool) -> u64 {
        // The call stands before the return address: tools that look an address up want the call.
        let plain = memtrace_common::unwind::plain(at.address);
        let shown = if is_leaf { plain } else { plain.saturating_sub(1) };
        let shown_at = CodeAddress { address: shown, ..at };
        let key = LocationKey::Address(shown_at);
        if let Some(id) = self.locations.get(&key) {
            return *id;
        }
        let mapping = self.mapping_of(shown_at);
        let mut line = Vec::new();
        let index = self.index;
        for frame in index.frames_at(at) {
            let Some(function) = frame.function.as_deref() else { continue };
            let file = frame.file.as_deref().unwrap_or("");
            let function_id = self.function(function, file);
            line.push(proto::Line { function_id, line: frame.line.map_or(0, i64::from) });
            if let Some(mapping) = mapping.and_then(|at| self.profile.mapping.get_mut(at)) {
                mapping.has_functions = true;
                mapping.has_inline_frames = true;
                mapping.has_filenames |= frame.file.is_some();
                mapping.has_line_numbers |= frame.line.is_some();
            }
        }
        let mapping_id = mapping.map_or(0, |position| position as u64 + 1);
        self.location(key, proto::Location { id: 0, mapping_id, address: shown, line })
    }

    fn named_location(&mut self, function: &str, file: &str, line: Option<u32>) -> u64 {
        let function = self.function(function, file);
        let line = line.map_or(0, i64::from);
        let key = LocationKey::Named { function, line };
        if let Some(id) = self.locations.get(&key) {
            return *id;
        }
        let line = vec![proto::Line { function_id: function, line }];
        self.location(key, proto::Location { id: 0, mapping_id: 0, address: 0, line })
    }

    fn location(&mut self, key: LocationKey, location: proto::Location) -> u64 {
        let id = self.profile.location.len() as u64 + 1;
        self.profile.location.push(proto::Location { id, ..location });
        self.locations.insert(key, id);
        id
    }

    fn function(&mut self, name: &str, file: &str) -> u64 {
        // `go tool pprof -top` prints names to a terminal as they are.
        let (name, filename) =
            (self.strings.index(&visible(name)), self.strings.index(&visible(file)));
        if let Some(id) = self.functions.get(&(name, filename)) {
            return *id;
        }
        let id = self.profile.function.len() as u64 + 1;
        self.profile.function.push(proto::Function { id, name, system_name: name, filename });
        self.functions.insert((name, filename), id);
        id
    }

    fn mapping_of(&self, at: CodeAddress) -> Option<usize> {
        let after = self.spans.partition_point(|(start, ..)| *start <= at);
        let (start, end, position) = *self.spans.get(after.checked_sub(1)?)?;
        (start.image == at.image && at.address < end).then_some(position)
    }
}
