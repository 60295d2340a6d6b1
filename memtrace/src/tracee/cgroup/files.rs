//! The memory controller's files of one cgroup, by file and key; never by position.
//!
//! A file that is not there (an older kernel, no swap, no PSI) is absent with its reason.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Instant;

use super::locate::{Place, ancestors, below};
use super::nanoseconds;
use crate::snapshot::Known;
use crate::snapshot::facts::{
    CgroupFacts, CgroupReading, CgroupVersion, LimitFacts, NO_LIMIT, NestedFacts,
};
use crate::tracee::container::cgroup::read_bounded;

const FILE_BYTES: u64 = 1 << 20;
const MOST_NESTED: usize = 256;
/// How often the charge is read until it stood still around the other files.
const ATTEMPTS: u32 = 3;

/// Files of one figure, and of a key and a figure a line.
struct Files {
    usage: &'static str,
    /// What must be of one instant with the charge.
    terms: &'static [&'static str],
    others: &'static [&'static str],
    limits: &'static [&'static str],
}

const V1: Files = Files {
    usage: "memory.usage_in_bytes",
    terms: &["memory.stat", "memory.kmem.usage_in_bytes"],
    others: &[
        "memory.max_usage_in_bytes",
        "memory.failcnt",
        "memory.memsw.usage_in_bytes",
        "memory.kmem.tcp.usage_in_bytes",
        "memory.oom_control",
    ],
    limits: &[
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.soft_limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.memsw.usage_in_bytes",
    ],
};

const V2: Files = Files {
    usage: "memory.current",
    terms: &["memory.stat"],
    others: &[
        "memory.peak",
        "memory.swap.current",
        "memory.zswap.current",
        "memory.events",
        "memory.swap.events",
    ],
    limits: &[
        "memory.max",
        "memory.high",
        "memory.low",
        "memory.min",
        "memory.swap.max",
        "memory.current",
        "memory.swap.current",
    ],
};

fn files_of(version: CgroupVersion) -> &'static Files {
    match version {
        CgroupVersion::V1 => &V1,
        CgroupVersion::V2 => &V2,
    }
}

pub(super) fn read(place: &Place, start: Instant) -> CgroupReading {
    let files = files_of(place.version);
    let mut reading = CgroupReading::default();
    for _ in 0..ATTEMPTS {
        take(&mut reading, &place.directory, files.usage);
        reading.usage_before = reading.figures.get(files.usage).copied().unwrap_or(0);
        for file in files.terms {
            take(&mut reading, &place.directory, file);
        }
        take(&mut reading, &place.directory, files.usage);
        reading.at_ns = nanoseconds(start);
        if reading.figures.get(files.usage) == Some(&reading.usage_before) {
            break;
        }
    }
    for file in files.others {
        take(&mut reading, &place.directory, file);
    }
    if place.version == CgroupVersion::V2 {
        let pressure = read_bounded(&place.directory.join("memory.pressure"), FILE_BYTES);
        reading.pressure = pressure.ok().map(|text| text.trim_end().to_owned());
    }
    reading
}

/// The second reading, and what does not move: limits, nested cgroups.
pub(super) fn complete(place: &Place, before: CgroupReading, start: Instant) -> Known<CgroupFacts> {
    let after = read(place, start);
    let files = files_of(place.version);
    if !after.figures.contains_key(files.usage) {
        let why = after.absent.get(files.usage).map_or("it is gone", String::as_str);
        return Known::unknown(format!(
            "the cgroup `{}` vanished or cannot be read: {why}",
            place.path
        ));
    }
    let limits = ancestors(place)
        .into_iter()
        .map(|(path, directory)| {
            let mut of_ancestor = CgroupReading::default();
            for file in files.limits {
                take(&mut of_ancestor, &directory, file);
            }
            LimitFacts { path, figures: of_ancestor.figures }
        })
        .collect();
    let (directories, nested_beyond) = below(&place.directory, MOST_NESTED);
    let nested = directories
        .iter()
        .map(|directory| {
            let mut of_nested = CgroupReading::default();
            take(&mut of_nested, directory, files.usage);
            let pids = read_bounded(&directory.join("cgroup.procs"), 32 << 20);
            NestedFacts {
                path: directory
                    .strip_prefix(&place.directory)
                    .unwrap_or(directory)
                    .display()
                    .to_string(),
                usage: of_nested.figures.get(files.usage).copied().unwrap_or(0),
                processes: pids
                    .map_or(0, |text| u32::try_from(text.lines().count()).unwrap_or(u32::MAX)),
            }
        })
        .collect();
    Known::Value(CgroupFacts {
        version: place.version,
        path: place.path.clone(),
        directory: place.directory.display().to_string(),
        before,
        after,
        limits,
        ancestors_hidden: place.ancestors_hidden,
        nested,
        nested_beyond,
        mapped_file_pages: Known::unknown("the pages were not looked at"),
    })
}

fn take(reading: &mut CgroupReading, directory: &Path, file: &str) {
    match read_bounded(&directory.join(file), FILE_BYTES) {
        Ok(text) => {
            reading.absent.remove(file);
            parse(file, &text, &mut reading.figures);
        }
        Err(error) => {
            reading.absent.insert(file.to_owned(), why_absent(file, &error));
        }
    }
}

fn why_absent(file: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => format!("this kernel or cgroup has no `{file}`"),
        Some(libc::ENODEV) => format!("the cgroup of `{file}` has gone"),
        _ => format!("failed to read `{file}`: {error}"),
    }
}

/// The largest number of pages, in bytes, as v1 shows no limit for pages of 4 KiB to 64 KiB.
fn is_no_limit(bytes: u64) -> bool {
    bytes >= (i64::MAX as u64) & !0xffff
}

/// One figure, `max`, or a key and a figure a line. Lines that are neither are passed over.
pub(crate) fn parse(file: &str, text: &str, figures: &mut BTreeMap<String, u64>) {
    let mut words = text.split_ascii_whitespace();
    if let (Some(word), None) = (words.next(), words.next()) {
        let bytes = if word == "max" { Some(NO_LIMIT) } else { word.parse().ok() };
        if let Some(bytes) = bytes {
            let bytes = if is_no_limit(bytes) { NO_LIMIT } else { bytes };
            figures.insert(file.to_owned(), bytes);
        }
        return;
    }
    for line in text.lines() {
        let Some((key, value)) = line.split_once(' ') else { continue };
        if let Ok(value) = value.trim().parse() {
            figures.insert(format!("{file} {key}"), value);
        }
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
