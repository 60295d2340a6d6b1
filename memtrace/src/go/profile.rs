//! A Go heap profile, as `/debug/pprof/heap` serves it or `go tool pprof` saves it: profile.proto,
//! mostly gzip'd, or the `?debug=1` text. What is inside is not trusted.
//!
//! Promise: never a panic, never more memory than the limits allow times a small constant; a profile
//! that contradicts itself is refused with the reason.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use prost::Message;
use thiserror::Error;

use super::debug1;
use super::profile_proto as proto;
use crate::snapshot::{GoBooks, GoStack, Name};

/// What is accepted from a source that is not trusted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// As served.
    pub body_bytes: usize,
    /// Decompressed. A profile of a large service has a few MiB.
    pub inflated_bytes: usize,
    /// Samples, locations, functions, strings, each.
    pub rows: usize,
    /// Of one sample.
    pub frames: usize,
    /// All names of all stacks together: on the wire a long name costs once, here each time.
    pub expanded_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // The Go runtime keeps at most 1024 + a few frames per stack.
        Self {
            body_bytes: 32 << 20,
            inflated_bytes: 64 << 20,
            rows: 1 << 20,
            frames: 2048,
            expanded_bytes: 512 << 20,
        }
    }
}

/// What may still be expanded.
#[derive(Debug)]
pub(super) struct Budget {
    left: usize,
    limit: usize,
}

impl Budget {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { left: limits.expanded_bytes, limit: limits.expanded_bytes }
    }

    pub(super) fn take(&mut self, name: &Name) -> Result<(), ProfileError> {
        let bytes = size_of::<Name>()
            + name.function.len()
            + name.file.as_ref().map_or(0, |file| file.len());
        self.left = self
            .left
            .checked_sub(bytes)
            .ok_or(ProfileError::TooMany { what: "bytes of names", limit: self.limit })?;
        Ok(())
    }
}

/// Why a body is not a usable heap profile.
#[derive(Debug, Error)]
pub enum ProfileError {
    #[error("the answer is empty")]
    Empty,
    #[error("the answer is neither a heap profile nor its debug=1 text (it begins `{start}`)")]
    NotAProfile { start: String },
    #[error("the gzip'd profile is damaged: {0}")]
    Gzip(std::io::Error),
    #[error("the profile inflates to more than {limit} bytes")]
    Bomb { limit: usize },
    #[error("the profile is damaged: {0}")]
    Proto(#[from] prost::DecodeError),
    #[error("the profile holds more than {limit} {what}")]
    TooMany { what: &'static str, limit: usize },
    #[error("not a heap profile: it measures {types}, not inuse_space")]
    NotAHeapProfile { types: String },
    #[error("the profile contradicts itself: {0}")]
    Contradiction(&'static str),
    #[error("line {line} of the debug=1 text is not understood: {why}")]
    Text { line: usize, why: &'static str },
}

/// Parses whatever form of heap profile `body` holds. `source` is kept as where it came from.
pub fn parse(body: &[u8], source: &str, limits: &Limits) -> Result<GoBooks, ProfileError> {
    if body.is_empty() {
        return Err(ProfileError::Empty);
    }
    if body.starts_with(b"heap profile:") {
        return debug1::parse(body, source, limits);
    }
    if !body.starts_with(&[0x1f, 0x8b]) {
        return parse_proto(body, source, limits).map_err(|error| match error {
            // A page of some other server is no damaged profile.
            ProfileError::Proto(_) => not_a_profile(body),
            other => other,
        });
    }
    let mut inflated = Vec::new();
    let limit = limits.inflated_bytes;
    flate2::read::MultiGzDecoder::new(body)
        .take(limit as u64 + 1)
        .read_to_end(&mut inflated)
        .map_err(ProfileError::Gzip)?;
    if inflated.len() > limit {
        return Err(ProfileError::Bomb { limit });
    }
    parse_proto(&inflated, source, limits)
}

fn not_a_profile(body: &[u8]) -> ProfileError {
    let start = String::from_utf8_lossy(&body[..body.len().min(24)]);
    let start = start.chars().map(|c| if c.is_control() { '.' } else { c }).collect();
    ProfileError::NotAProfile { start }
}

fn parse_proto(bytes: &[u8], source: &str, limits: &Limits) -> Result<GoBooks, ProfileError> {
    count_rows(bytes, limits)?;
    let profile = proto::Profile::decode(bytes)?;
    let string = |index: i64| {
        usize::try_from(index)
            .ok()
            .and_then(|index| profile.string_table.get(index))
            .map(String::as_str)
            .ok_or(ProfileError::Contradiction("a string index beyond the table"))
    };

    let mut types = Vec::new();
    for value_type in &profile.sample_type {
        types.push(string(value_type.r#type)?);
    }
    let column = |name: &str| types.iter().position(|found| *found == name);
    let (Some(inuse_space), Some(inuse_objects)) = (column("inuse_space"), column("inuse_objects"))
    else {
        let types = if types.is_empty() { "nothing".to_owned() } else { types.join(", ") };
        return Err(ProfileError::NotAHeapProfile { types: types.chars().take(200).collect() });
    };
    let (alloc_space, alloc_objects) = (column("alloc_space"), column("alloc_objects"));

    let mut functions: HashMap<u64, (&str, &str)> = HashMap::new();
    for function in &profile.function {
        functions.insert(function.id, (string(function.name)?, string(function.filename)?));
    }
    let mut budget = Budget::new(limits);
    let mut locations: HashMap<u64, Vec<Name>> = HashMap::new();
    for location in &profile.location {
        locations.insert(location.id, names(location, &functions, &mut budget)?);
    }

    let mut stacks = Vec::with_capacity(profile.sample.len());
    for sample in &profile.sample {
        if sample.value.len() != types.len() {
            return Err(ProfileError::Contradiction("a sample without a value for each type"));
        }
        let value = |column: Option<usize>| {
            let value = column.and_then(|column| sample.value.get(column)).copied().unwrap_or(0);
            u64::try_from(value).map_err(|_| {
                ProfileError::Contradiction(
                    "a negative value (is it a difference of two profiles?)",
                )
            })
        };
        let mut frames = Vec::new();
        for id in &sample.location_id {
            let names = locations.get(id).ok_or(ProfileError::Contradiction(
                "a sample names a location that is not there",
            ))?;
            if frames.len() + names.len() > limits.frames {
                let (what, limit) = ("frames in one stack", limits.frames);
                return Err(ProfileError::TooMany { what, limit });
            }
            for name in names {
                budget.take(name)?;
                frames.push(name.clone());
            }
        }
        let values = [
            value(Some(inuse_space))?,
            value(Some(inuse_objects))?,
            value(alloc_space)?,
            value(alloc_objects)?,
        ];
        stacks.push((frames, values));
    }
    let rate = u64::try_from(profile.period).unwrap_or(0);
    assemble(source, rate, stacks)
}

/// Innermost first; all but the outermost of one location are inlined.
fn names(
    location: &proto::Location,
    functions: &HashMap<u64, (&str, &str)>,
    budget: &mut Budget,
) -> Result<Vec<Name>, ProfileError> {
    if location.line.is_empty() {
        let function = format!("{:#x}", location.address);
        return Ok(vec![Name { function, file: None, line: None, inlined: false }]);
    }
    let outermost = location.line.len() - 1;
    let mut name = |(depth, line): (usize, &proto::Line)| {
        let (function, file) = functions
            .get(&line.function_id)
            .ok_or(ProfileError::Contradiction("a line names a function that is not there"))?;
        let name = Name {
            function: (*function).to_owned(),
            file: (!file.is_empty()).then(|| (*file).to_owned()),
            line: u32::try_from(line.line).ok().filter(|line| *line > 0),
            inlined: depth < outermost,
        };
        budget.take(&name)?;
        Ok(name)
    };
    location.line.iter().enumerate().map(&mut name).collect()
}

/// In use: bytes, objects; allocated: bytes, objects.
pub(super) type Values = [u64; 4];

/// Folds stacks that read the same, sums up and sorts: the largest first.
pub(super) fn assemble(
    source: &str,
    sample_rate_bytes: u64,
    stacks: Vec<(Vec<Name>, Values)>,
) -> Result<GoBooks, ProfileError> {
    let mut by_frames: HashMap<Vec<Name>, Values> = HashMap::new();
    for (frames, values) in stacks {
        let sums = by_frames.entry(frames).or_default();
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = sum.checked_add(value).ok_or(TOO_LARGE)?;
        }
    }
    let stacks = by_frames.into_iter().map(
        |(frames, [inuse_bytes, inuse_objects, alloc_bytes, alloc_objects])| GoStack {
            frames: frames.into_iter().map(Arc::new).collect(),
            inuse_bytes,
            inuse_objects,
            alloc_bytes,
            alloc_objects,
        },
    );
    let mut stacks: Vec<GoStack> = stacks.collect();
    stacks.sort_by(|a, b| {
        let values = |stack: &GoStack| (stack.inuse_bytes, stack.alloc_bytes);
        values(b).cmp(&values(a)).then_with(|| by_names(&a.frames, &b.frames))
    });
    sum_up(source, sample_rate_bytes, stacks)
}

const TOO_LARGE: ProfileError = ProfileError::Contradiction("values beyond 64 bits");

/// The order of stacks that hold the same.
fn by_names(a: &[Arc<Name>], b: &[Arc<Name>]) -> Ordering {
    fn names(frames: &[Arc<Name>]) -> impl Iterator<Item = (&str, Option<u32>)> {
        frames.iter().map(|name| (name.function.as_str(), name.line))
    }
    names(a).cmp(names(b))
}

/// Sums up stacks that are folded and sorted already.
pub(super) fn sum_up(
    source: &str,
    sample_rate_bytes: u64,
    stacks: Vec<GoStack>,
) -> Result<GoBooks, ProfileError> {
    let mut total = [0u64; 4];
    for stack in &stacks {
        let values =
            [stack.inuse_bytes, stack.inuse_objects, stack.alloc_bytes, stack.alloc_objects];
        for (total, value) in total.iter_mut().zip(values) {
            *total = total.checked_add(value).ok_or(TOO_LARGE)?;
        }
    }
    let [inuse_bytes, inuse_objects, alloc_bytes, alloc_objects] = total;
    Ok(GoBooks {
        source: source.to_owned(),
        inuse_bytes,
        inuse_objects,
        alloc_bytes,
        alloc_objects,
        sample_rate_bytes,
        stacks,
        ..GoBooks::default()
    })
}

/// Counts the rows of each table before any of them is decoded: a two-byte message on the wire is a
/// hundred in memory.
fn count_rows(bytes: &[u8], limits: &Limits) -> Result<(), ProfileError> {
    use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};
    let mut rows = [0usize; 16];
    let mut left = bytes;
    while !left.is_empty() {
        let (tag, wire_type) = decode_key(&mut left)?;
        if wire_type == WireType::LengthDelimited
            && let Some(count) = rows.get_mut(tag as usize)
        {
            *count += 1;
        }
        skip_field(wire_type, tag, &mut left, DecodeContext::default())?;
    }
    let tables = [
        (1, "sample types"),
        (2, "samples"),
        (3, "mappings"),
        (4, "locations"),
        (5, "functions"),
        (6, "strings"),
    ];
    for (tag, what) in tables {
        let limit = if tag == 1 { 64 } else { limits.rows };
        if rows[tag] > limit {
            return Err(ProfileError::TooMany { what, limit });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
