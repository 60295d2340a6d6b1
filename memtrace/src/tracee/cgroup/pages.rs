//! To which cgroup the file pages that a container has mapped are charged, page by page: the
//! process's `pagemap` tells the page frame, `/proc/kpagecgroup` the inode of the cgroup's directory.
//!
//! Limits: needs `CAP_SYS_ADMIN` (frames are hidden otherwise); [`MOST_PAGES`] pages; a page that
//! moves between the two reads may be counted wrongly.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::locate::below;
use super::processes::page_bytes;
use crate::snapshot::Known;
use crate::snapshot::facts::{FilePages, ProcessFacts};
use crate::tracee::capabilities::missing_for;

/// 1 GiB of pages of 4 KiB.
const MOST_PAGES: usize = 1 << 18;
const PRESENT: u64 = 1 << 63;
/// The page is of a file, or shared and anonymous.
const OF_FILE: u64 = 1 << 61;
const FRAME: u64 = (1 << 55) - 1;
/// Frames closer than this are read in one go.
const GAP: u64 = 64;

/// Counts each page once, however many processes map it.
pub(super) fn charged(directory: &Path, processes: &[ProcessFacts]) -> Known<FilePages> {
    let table = Path::new("/proc/kpagecgroup");
    let table = match File::open(table) {
        Ok(table) => table,
        Err(error) => {
            return Known::unknown(format!("failed to open `{}`: {error}", table.display()));
        }
    };
    let page = page_bytes();
    let mut frames = HashSet::new();
    let mut beyond = 0u64;
    for process in processes {
        let pid = process.id.pid;
        let Some(mappings) = process.mappings.value() else { continue };
        let Ok(pagemap) = File::open(format!("/proc/{pid}/pagemap")) else { continue };
        for mapping in mappings.iter().filter(|mapping| mapping.rss > mapping.anonymous) {
            let pages = (mapping.end - mapping.start) / page;
            for entries in entries(&pagemap, mapping.start / page, pages) {
                for entry in entries.into_iter().filter(|it| it & PRESENT != 0 && it & OF_FILE != 0)
                {
                    if entry & FRAME == 0 {
                        return Known::unknown(format!(
                            "page frames are hidden; missing capability: {} (run memtrace as root)",
                            missing_for(&["CAP_SYS_ADMIN"])
                        ));
                    }
                    if frames.len() < MOST_PAGES {
                        frames.insert(entry & FRAME);
                    } else {
                        beyond += 1;
                    }
                }
            }
        }
    }
    let own = inodes(directory);
    let mut counted: BTreeMap<u64, u64> = BTreeMap::new();
    for inode in owners(&table, frames) {
        *counted.entry(inode).or_default() += page;
    }
    let mut pages = FilePages { beyond_bytes: beyond.saturating_mul(page), ..FilePages::default() };
    for (inode, bytes) in counted {
        match inode {
            0 => pages.uncharged_bytes += bytes,
            inode if own.contains(&inode) => pages.here_bytes += bytes,
            _ => {
                pages.elsewhere_bytes += bytes;
                pages.other_cgroups += 1;
            }
        }
    }
    Known::Value(pages)
}

/// The entries of `pagemap` for some pages, in parts.
fn entries(pagemap: &File, first: u64, pages: u64) -> impl Iterator<Item = Vec<u64>> + '_ {
    const PART: u64 = 8192;
    (0..pages.div_ceil(PART)).map_while(move |part| {
        let from = first + part * PART;
        let wanted = (pages - part * PART).min(PART);
        let mut bytes = vec![0u8; usize::try_from(wanted * 8).ok()?];
        pagemap.read_exact_at(&mut bytes, from * 8).ok()?;
        Some(words(&bytes))
    })
}

fn words(bytes: &[u8]) -> Vec<u64> {
    let words = bytes.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok());
    words.map(u64::from_le_bytes).collect()
}

/// The owner of each frame; 0 for none.
fn owners(table: &File, frames: HashSet<u64>) -> Vec<u64> {
    let mut frames: Vec<u64> = frames.into_iter().collect();
    frames.sort_unstable();
    let mut owners = Vec::with_capacity(frames.len());
    for run in runs(&frames) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let Ok(length) = usize::try_from((last - first + 1) * 8) else { continue };
        let mut bytes = vec![0u8; length];
        if table.read_exact_at(&mut bytes, first * 8).is_err() {
            owners.extend(run.iter().map(|_| 0));
            continue;
        }
        let words = words(&bytes);
        let at = |frame: &u64| usize::try_from(frame - first).ok().and_then(|at| words.get(at));
        owners.extend(run.iter().map(|frame| at(frame).copied().unwrap_or(0)));
    }
    owners
}

/// Ascending frames in runs without large gaps, of bounded length.
fn runs(frames: &[u64]) -> impl Iterator<Item = &[u64]> {
    const LONGEST: u64 = 8192;
    let mut rest = frames;
    std::iter::from_fn(move || {
        let first = *rest.first()?;
        let mut length = 1;
        while let (Some(last), Some(next)) = (rest.get(length - 1), rest.get(length))
            && next - last <= GAP
            && next - first < LONGEST
        {
            length += 1;
        }
        let (run, after) = rest.split_at(length);
        rest = after;
        Some(run)
    })
}

/// Of the cgroup's directory and of those below it.
fn inodes(directory: &Path) -> HashSet<u64> {
    let (below, _) = below(directory, 4096);
    let own = std::iter::once(PathBuf::from(directory));
    own.chain(below).filter_map(|path| Some(path.metadata().ok()?.ino())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_in_runs_each_once_and_in_order() {
        let frames = [1, 2, 60, 200, 201, 10_000, 18_191, 18_192];
        let found: Vec<Vec<u64>> = runs(&frames).map(<[u64]>::to_vec).collect();
        assert_eq!(found, [vec![1, 2, 60], vec![200, 201], vec![10_000], vec![18_191, 18_192]]);
        assert_eq!(runs(&[]).count(), 0);
        let dense: Vec<u64> = (0..20_000).collect();
        let lengths: Vec<usize> = runs(&dense).map(<[u64]>::len).collect();
        assert_eq!(lengths, [8192, 8192, 3616]);
    }

    #[test]
    fn the_owner_of_a_frame_stands_at_its_number() {
        let mut file = tempfile::tempfile().unwrap();
        let table: Vec<u8> = (0u64..100).flat_map(|frame| (frame * 10).to_le_bytes()).collect();
        std::io::Write::write_all(&mut file, &table).unwrap();
        let mut found = owners(&file, HashSet::from([3, 4, 99, 90]));
        found.sort_unstable();
        assert_eq!(found, [30, 40, 900, 990]);
        // Beyond the table nobody is told to be the owner.
        assert_eq!(owners(&file, HashSet::from([5_000])), [0]);
    }
}
