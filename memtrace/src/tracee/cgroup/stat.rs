//! Small files of one process: `stat`, `status`, scores. Bounded; what is missing is `None`.

use std::path::Path;

use crate::snapshot::facts::StatusFigures;
use crate::tracee::container::cgroup::read_bounded;

const FILE_BYTES: u64 = 256 << 10;

/// What tells one process from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stat {
    pub comm: String,
    pub state: char,
    pub parent: u32,
    pub start_time_ticks: u64,
}

pub(super) fn read_stat(directory: &Path) -> std::io::Result<Option<Stat>> {
    Ok(parse_stat(&read_bounded(&directory.join("stat"), FILE_BYTES)?))
}

/// `42 (any (thing)) S 1 …`
pub(super) fn parse_stat(text: &str) -> Option<Stat> {
    let (before, after) = text.rsplit_once(')')?;
    let (_, comm) = before.split_once('(')?;
    let mut words = after.split_ascii_whitespace();
    let state = words.next()?.chars().next()?;
    let parent = words.next()?.parse().ok()?;
    // Field 22; two are taken after the name.
    let start_time_ticks = words.nth(17)?.parse().ok()?;
    Some(Stat { comm: comm.to_owned(), state, parent, start_time_ticks })
}

pub(super) fn read_status(directory: &Path) -> std::io::Result<StatusFigures> {
    Ok(parse_status(&read_bounded(&directory.join("status"), FILE_BYTES)?))
}

pub(super) fn parse_status(text: &str) -> StatusFigures {
    let mut figures = StatusFigures::default();
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        let number = || value.split_ascii_whitespace().next()?.parse::<u64>().ok();
        let bytes = || number().map(|kib| kib.saturating_mul(1024));
        match name {
            "VmRSS" => figures.vm_rss = bytes(),
            "RssAnon" => figures.rss_anon = bytes(),
            "RssFile" => figures.rss_file = bytes(),
            "RssShmem" => figures.rss_shmem = bytes(),
            "VmHWM" => figures.vm_hwm = bytes(),
            "VmSize" => figures.vm_size = bytes(),
            "VmPTE" => figures.vm_pte = bytes(),
            "VmSwap" => figures.vm_swap = bytes(),
            "Threads" => figures.threads = number(),
            _ => {}
        }
    }
    figures
}

/// One number in a file of its own.
pub(super) fn read_number(path: &Path) -> Option<i64> {
    read_bounded(path, 64).ok()?.trim().parse().ok()
}

/// The stack pointer of a thread that is not running: the last but one word of its `syscall`.
pub(super) fn parse_stack_pointer(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let pointer = words.len().checked_sub(2).and_then(|at| words.get(at))?;
    u64::from_str_radix(pointer.strip_prefix("0x")?, 16).ok().filter(|pointer| *pointer != 0)
}

/// Devices of `tmpfs` mounts in `mountinfo`.
pub(super) fn parse_tmpfs_devices(mountinfo: &str) -> Vec<(u32, u32)> {
    let device = |line: &str| {
        let (here, filesystem) = line.split_once(" - ")?;
        if filesystem.split(' ').next()? != "tmpfs" {
            return None;
        }
        let (major, minor) = here.split(' ').nth(2)?.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let mut devices: Vec<_> = mountinfo.lines().filter_map(device).collect();
    devices.sort_unstable();
    devices.dedup();
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let rest = "S 7 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 10 20";
        let stat = parse_stat(&format!("42 (a) b (c) {rest}")).unwrap();
        assert_eq!((stat.comm.as_str(), stat.state, stat.parent), ("a) b (c", 'S', 7));
        assert_eq!(stat.start_time_ticks, 4711);
        assert_eq!(parse_stat("42 (x"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_kernel_thread_has_no_memory_and_says_so() {
        assert_eq!(parse_status("Name:\tkswapd\nThreads:\t1\n").vm_rss, None);
        let status = parse_status("VmRSS:\t  10 kB\nRssAnon:\t 6 kB\nVmPTE:\t44 kB\n");
        assert_eq!(
            (status.vm_rss, status.rss_anon, status.vm_pte),
            (Some(10240), Some(6144), Some(45056))
        );
    }

    #[test]
    fn the_stack_pointer_is_the_last_word_but_one() {
        let waiting = "0 0x3 0x7f38b0e48000 0x20000 0x0 0x0 0x0 0x7fffd646adb8 0x7f38b0fc32ad";
        assert_eq!(parse_stack_pointer(waiting), Some(0x7fff_d646_adb8));
        assert_eq!(parse_stack_pointer("-1 0x7ffd0 0x401000"), Some(0x7ffd0));
        assert_eq!(parse_stack_pointer("running"), None);
        assert_eq!(parse_stack_pointer(""), None);
        assert_eq!(parse_stack_pointer("0 0x0 0x0"), None);
    }

    #[test]
    fn only_tmpfs_counts_as_shared_memory() {
        let text = "36 35 98:0 / /mnt rw - ext4 /dev/root rw\n\
                    40 35 0:44 / /dev/shm rw,nosuid - tmpfs shm rw,size=65536k\n\
                    41 35 0:45 / /tmp rw shared:1 - tmpfs tmpfs rw\nnonsense\n";
        assert_eq!(parse_tmpfs_devices(text), [(0, 44), (0, 45)]);
    }
}
