//! `/proc/PID/smaps` and `smaps_rollup`: one pass, fields by name. Lines that make no sense are
//! counted, not guessed at.

use crate::snapshot::facts::{MappingFacts, Rollup};
use crate::tracee::mappings::parse_maps;

/// Most mappings that are kept of one process: twice the kernel's default `vm.max_map_count`.
pub(super) const MOST_MAPPINGS: usize = 131_060;

/// The mappings, and how many were damaged or beyond the most that are kept.
pub(super) fn parse_smaps(text: &[u8]) -> (Vec<MappingFacts>, u64) {
    let mut mappings: Vec<MappingFacts> = Vec::new();
    let mut lost = 0;
    // Fields of a mapping that was not understood are nobody's.
    let mut in_mapping = false;
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        if let Some((name, value)) = field(line) {
            if in_mapping && let Some(mapping) = mappings.last_mut() {
                take_field(mapping, name, value);
            }
            continue;
        }
        let (parsed, _) = parse_maps(line);
        in_mapping = false;
        match parsed.into_iter().next() {
            Some(line) if mappings.len() < MOST_MAPPINGS => {
                in_mapping = true;
                mappings.push(MappingFacts {
                    start: line.start,
                    end: line.end,
                    readable: line.readable,
                    writable: line.writable,
                    executable: line.executable,
                    shared: line.shared,
                    file_offset: line.file_offset,
                    device: line.device,
                    inode: line.inode,
                    name: String::from_utf8_lossy(&line.path).into_owned(),
                    ..MappingFacts::default()
                });
            }
            _ => lost += 1,
        }
    }
    (mappings, lost)
}

/// `Rss:      12 kB`; a line of a mapping begins with a hexadecimal digit in lower case.
fn field(line: &[u8]) -> Option<(&str, &str)> {
    if !line.first()?.is_ascii_uppercase() {
        return None;
    }
    str::from_utf8(line).ok()?.split_once(':')
}

fn kib(value: &str) -> u64 {
    let number = value.split_ascii_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

fn take_field(mapping: &mut MappingFacts, name: &str, value: &str) {
    match name {
        "Rss" => mapping.rss = kib(value),
        "Pss" => mapping.pss = kib(value),
        "Private_Clean" => mapping.private_clean = kib(value),
        "Private_Dirty" => mapping.private_dirty = kib(value),
        "Anonymous" => mapping.anonymous = kib(value),
        "LazyFree" => mapping.lazy_free = kib(value),
        "AnonHugePages" => mapping.anon_huge = kib(value),
        "Swap" => mapping.swap = kib(value),
        "Shared_Hugetlb" | "Private_Hugetlb" => {
            mapping.hugetlb = mapping.hugetlb.saturating_add(kib(value));
        }
        "VmFlags" => {
            mapping.no_huge_page = value.split_ascii_whitespace().any(|flag| flag == "nh");
        }
        _ => {}
    }
}

/// `None` where it holds no `Rss`: the process has no memory any more.
pub(super) fn parse_rollup(text: &str) -> Option<Rollup> {
    let mut rollup = Rollup::default();
    let mut seen = false;
    for line in text.lines() {
        let Some((name, value)) = field(line.as_bytes()) else { continue };
        let bytes = kib(value);
        match name {
            "Rss" => {
                rollup.rss = bytes;
                seen = true;
            }
            "Pss" => rollup.pss = bytes,
            "Pss_Anon" => rollup.pss_anon = Some(bytes),
            "Pss_File" => rollup.pss_file = Some(bytes),
            "Pss_Shmem" => rollup.pss_shmem = Some(bytes),
            "Private_Clean" => rollup.private_clean = bytes,
            "Private_Dirty" => rollup.private_dirty = bytes,
            "Anonymous" => rollup.anonymous = bytes,
            "LazyFree" => rollup.lazy_free = bytes,
            "AnonHugePages" => rollup.anon_huge = bytes,
            "Swap" => rollup.swap = bytes,
            "SwapPss" => rollup.swap_pss = bytes,
            _ => {}
        }
    }
    seen.then_some(rollup)
}

#[cfg(test)]
#[path = "smaps_tests.rs"]
mod tests;
