//! Names for a recording's addresses once more, from debug files that came later.
//!
//! A recording holds addresses, the executable mappings of each object and its build id: enough to
//! look names up again without the process. A file is taken by its build id (`debuginfo`). Names
//! that were better before stay. Go's stacks are named by Go's own table, and are left alone.
//!
//! A debug file that was split off keeps the object's virtual addresses, but not its file offsets:
//! where each mapping belongs is then told by the executable segments' order and size, and where
//! that does not fit, nothing is named.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;

use memtrace_common::unwind::plain;

use super::elf::{Elf, FileSource, Segment};
use super::symbolize::{Options, Sources, SymbolizerStats};
use crate::debuginfo::{BuildId, Finder, Found, Holds, Refused};
use crate::snapshot::{Name, Object, ObjectMapping, Recording};

/// Functions that a signal's handler returns to: what they stand above was interrupted, not called.
const SIGNAL_RETURNS: [&str; 5] = [
    "__restore_rt",
    "__restore",
    "restore_rt",
    "runtime.sigreturn__sigaction",
    "__vdso_rt_sigreturn",
];

/// What became of the objects of a recording, those with addresses in its stacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedAgain {
    pub objects: Vec<ObjectAgain>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectAgain {
    pub path: String,
    pub build_id: Option<String>,
    /// Addresses of the recording that lie in it.
    pub addresses: u64,
    /// Of them, those with a line: before, and now.
    pub lines_before: u64,
    pub lines: u64,
    /// Of them, those whose names are other ones now.
    pub changed: u64,
    pub outcome: Outcome,
    /// What was looked at and not taken.
    pub refused: Vec<Refused>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every address had a line: nothing was looked for.
    NamedBefore,
    /// The recording has no usable build id of it.
    NoBuildId,
    NotFound,
    /// Found, but the recorded mappings are not those of such a file.
    OtherLayout {
        from: String,
    },
    /// Found, but its names could not be read.
    Unreadable {
        from: String,
    },
    Found {
        from: String,
        holds: Holds,
    },
    /// Found, but its debug information is damaged or larger than the limit: symbols were taken.
    SymbolsAlone {
        from: String,
    },
}

/// Names of one address: looked up as it is, and as a return address.
#[derive(Default)]
struct Both {
    here: Vec<Name>,
    back: Vec<Name>,
}

/// Looks for the debug files of a recording's objects, and names its addresses with them.
pub fn name_again(recording: &mut Recording, finder: &mut Finder) -> NamedAgain {
    let objects: Vec<Object> =
        recording.header.tracee.objects.iter().chain(&recording.new_objects).cloned().collect();
    let mut rows: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, names) in recording.names.iter().enumerate() {
        let object = names.object.map(|index| index as usize);
        if let Some(object) = object.filter(|index| *index < objects.len()) {
            rows.entry(object).or_default().push(at);
        }
    }
    let mut again = NamedAgain::default();
    let mut answers: HashMap<usize, Both> = HashMap::new();
    // Objects of several processes share their files.
    let mut files: HashMap<BuildId, (Option<Found>, Vec<Refused>)> = HashMap::new();
    let mut told: Vec<(usize, &[usize])> = Vec::new();
    for (index, rows) in &rows {
        let object = &objects[*index];
        let names = || rows.iter().map(|at| &recording.names[*at]);
        let lines_before = names().filter(|row| has_line(&row.names)).count() as u64;
        let mut row = ObjectAgain {
            path: object.path.clone(),
            build_id: object.build_id.clone(),
            addresses: rows.len() as u64,
            lines_before,
            lines: lines_before,
            changed: 0,
            outcome: Outcome::NamedBefore,
            refused: Vec::new(),
        };
        if lines_before < row.addresses {
            row.outcome = match object.build_id.as_deref().and_then(BuildId::parse) {
                None => Outcome::NoBuildId,
                Some(id) => {
                    let (found, refused) = files.entry(id).or_insert_with_key(|id| {
                        let search = finder.find(id, &object.path);
                        (search.found, search.refused)
                    });
                    row.refused.clone_from(refused);
                    match found {
                        None => Outcome::NotFound,
                        Some(found) => {
                            let address = |at: &usize| plain(recording.names[*at].address);
                            let rows = rows.iter().map(|at| (*at, address(at))).collect();
                            look_up(object, found, rows, &mut answers)
                        }
                    }
                }
            };
        }
        told.push((again.objects.len(), rows));
        again.objects.push(row);
    }
    let as_it_is = looked_up_as_they_are(recording, &answers);
    let told_of: HashMap<usize, usize> =
        told.iter().flat_map(|(told, rows)| rows.iter().map(|at| (*at, *told))).collect();
    for (at, both) in answers {
        let row = &mut recording.names[at];
        let new = match as_it_is.contains(&(row.image, row.address)) {
            true => both.here,
            false => both.back,
        };
        if is_better(&new, &row.names) {
            row.names = new;
            if let Some(told) = told_of.get(&at) {
                again.objects[*told].changed += 1;
            }
        }
    }
    for (told, rows) in told {
        let lines = rows.iter().filter(|at| has_line(&recording.names[**at].names)).count();
        again.objects[told].lines = lines as u64;
    }
    again
}

fn has_line(names: &[Name]) -> bool {
    names.iter().any(|name| name.line.is_some())
}

/// `libfoo.so+0x12` names nothing.
fn is_offset(names: &[Name]) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    match names {
        [] => true,
        [one] => {
            one.file.is_none()
                && one.function.rsplit_once("+0x").is_some_and(|(_, offset)| digits(offset))
        }
        _ => false,
    }
}

/// Lines before none, more inlined calls before fewer; of two without lines the later one, which
/// comes from the larger table.
fn is_better(new: &[Name], old: &[Name]) -> bool {
    if is_offset(new) || new == old {
        return false;
    }
    match (has_line(new), has_line(old)) {
        (true, true) => new.len() > old.len(),
        (new, old) => new >= old,
    }
}

/// Frames whose addresses are no return addresses.
fn looked_up_as_they_are(
    recording: &Recording,
    answers: &HashMap<usize, Both>,
) -> HashSet<(u32, u64)> {
    let returns =
        |names: &[Name]| names.iter().any(|name| SIGNAL_RETURNS.contains(&name.function.as_str()));
    let trampolines: HashSet<(u32, u64)> = recording
        .names
        .iter()
        .enumerate()
        .filter(|(at, row)| {
            returns(&row.names) || answers.get(at).is_some_and(|both| returns(&both.here))
        })
        .map(|(_, row)| (row.image, row.address))
        .collect();
    let mut found = trampolines.clone();
    for stack in &recording.stacks {
        found.extend(stack.frames.first().map(|frame| (stack.image, *frame)));
        let interrupted =
            stack.frames.windows(2).filter(|pair| trampolines.contains(&(stack.image, pair[0])));
        found.extend(interrupted.map(|pair| (stack.image, pair[1])));
    }
    found
}

/// Names what lies in one object: rows and their addresses.
fn look_up(
    object: &Object,
    found: &Found,
    rows: Vec<(usize, u64)>,
    answers: &mut HashMap<usize, Both>,
) -> Outcome {
    let from = found.from.clone();
    match names_in(&found.file, object, &rows) {
        Err(NoNames::Unreadable) => Outcome::Unreadable { from },
        Err(NoNames::OtherLayout) => Outcome::OtherLayout { from },
        Ok((named, stats)) => {
            answers.extend(named);
            // Too large or damaged: symbols alone were read.
            match stats.debug_info_too_large + stats.debug_info_broken {
                0 => Outcome::Found { from, holds: found.holds },
                _ => Outcome::SymbolsAlone { from },
            }
        }
    }
}

enum NoNames {
    Unreadable,
    OtherLayout,
}

fn names_in(
    file: &File,
    object: &Object,
    addresses: &[(usize, u64)],
) -> Result<(BTreeMap<usize, Both>, SymbolizerStats), NoNames> {
    let source = FileSource::new(file).map_err(|_| NoNames::Unreadable)?;
    let elf = Elf::parse(&source).map_err(|_| NoNames::Unreadable)?;
    // Split off, its code is left out and its offsets are no longer those that were mapped.
    let is_whole = !elf.sections.iter().any(|it| it.name == ".text" && !it.has_bytes());
    let placed = place(&elf.segments.loads, &object.mappings, is_whole);
    let vaddr = |address: u64| {
        let (_, bias) =
            placed.iter().find(|(mapping, _)| (mapping.start..mapping.end).contains(&address))?;
        Some(address.wrapping_sub(*bias))
    };
    let mut asked: Vec<(usize, bool, u64)> = Vec::new();
    for (at, address) in addresses {
        asked.extend(vaddr(*address).map(|vaddr| (*at, true, vaddr)));
        asked.extend(vaddr(address.wrapping_sub(1)).map(|vaddr| (*at, false, vaddr)));
    }
    if asked.is_empty() {
        return Err(NoNames::OtherLayout);
    }
    let (options, mut stats) = (Options::default(), SymbolizerStats::default());
    let mut sources = Sources::of(&elf, None, &options, &mut stats).ok_or(NoNames::Unreadable)?;
    let vaddrs: Vec<u64> = asked.iter().map(|(_, _, vaddr)| *vaddr).collect();
    let mut named: BTreeMap<usize, Both> = BTreeMap::new();
    for ((at, here, _), names) in asked.into_iter().zip(sources.symbolize(&vaddrs, &mut stats)) {
        let both = named.entry(at).or_default();
        match here {
            true => both.here = names,
            false => both.back = names,
        }
    }
    Ok((named, stats))
}

/// Which virtual address each mapping begins with: mapping and load bias. Of mappings that do not
/// fit nothing is said.
fn place(
    loads: &[Segment],
    mappings: &[ObjectMapping],
    offsets_are_kept: bool,
) -> Vec<(ObjectMapping, u64)> {
    const PAGE: u64 = 4095;
    if offsets_are_kept {
        let segments = super::elf::ElfSegments { loads: loads.to_vec() };
        let biased = mappings.iter().filter_map(|it| Some((*it, segments.load_bias(it)?)));
        return biased.collect();
    }
    let mut segments: Vec<(u64, u64)> = loads
        .iter()
        .filter(|load| load.executable)
        .filter_map(|load| {
            let end = load.vaddr.checked_add(load.memory_size)?.checked_add(PAGE)? & !PAGE;
            Some((load.vaddr & !PAGE, end))
        })
        .collect();
    segments.sort_unstable();
    let mut offsets: Vec<u64> = mappings.iter().map(|it| it.file_offset).collect();
    offsets.sort_unstable();
    offsets.dedup();
    let length = |mapping: &ObjectMapping| mapping.end.saturating_sub(mapping.start);
    let vaddr_of = |mapping: &ObjectMapping| match &segments[..] {
        // A segment may be mapped in several pieces.
        [(start, end)] => {
            let into = mapping.file_offset.checked_sub(*offsets.first()?)?;
            let last = start.checked_add(into)?.checked_add(length(mapping))?;
            (last <= *end).then(|| start.wrapping_add(into))
        }
        many if many.len() == offsets.len() => {
            let (start, end) = many[offsets.binary_search(&mapping.file_offset).ok()?];
            (end - start == length(mapping)).then_some(start)
        }
        _ => None,
    };
    mappings
        .iter()
        .filter_map(|mapping| Some((*mapping, mapping.start.wrapping_sub(vaddr_of(mapping)?))))
        .collect()
}

#[cfg(test)]
#[path = "again_tests.rs"]
mod tests;
