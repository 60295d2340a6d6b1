//! The processes of a container: `status`, `smaps_rollup`, `smaps`, stack pointers.
//!
//! A process may vanish while it is read: it is listed as not read then, with the reason. Reading
//! stops nobody and writes nothing.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::go_version::go_version;
use super::layout::{Memory, examine};
use super::runtimes;
use super::smaps::{parse_rollup, parse_smaps};
use super::stat::{parse_stack_pointer, parse_tmpfs_devices, read_number, read_stat, read_status};
use super::{MOST_PROCESSES, Wanted};
use crate::snapshot::facts::{ProcessFacts, Rollup, Unread};
use crate::snapshot::{Known, ProcessId};
use crate::tracee::capabilities::missing_for;
use crate::tracee::container::cgroup::read_bounded;
use crate::tracee::root::open_magic_link;

/// 131,060 mappings of 25 lines each.
const SMAPS_BYTES: u64 = 256 << 20;
const FILE_BYTES: u64 = 256 << 10;
const MOUNTINFO_BYTES: u64 = 64 << 20;
const MOST_THREADS: usize = 65_536;
/// How often `smaps` is read until the process stood still around it.
const ATTEMPTS: u32 = 3;
const PAGE_PRESENT: u64 = 1 << 63;

/// Reads every process; mappings of the first and the largest only, the main one always.
pub(super) fn read(pids: &[u32], wanted: &Wanted) -> (Vec<ProcessFacts>, Vec<Unread>) {
    let Wanted { first, most_smaps, .. } = wanted;
    let mut unread = Vec::new();
    let mut begun = Vec::new();
    for (number, pid) in pids.iter().enumerate() {
        if number >= MOST_PROCESSES {
            let reason = format!("beyond the {MOST_PROCESSES} processes that are read");
            unread.push(Unread { pid: *pid, comm: String::new(), reason });
            continue;
        }
        match begin(*pid) {
            Ok(process) => begun.push(process),
            Err(missed) => unread.push(missed),
        }
    }
    let resident = |process: &ProcessFacts| process.status.vm_rss.unwrap_or(0);
    begun.sort_by_cached_key(|process| {
        let pid = process.id.pid;
        let is_main = Some(pid) == wanted.subject.main_pid;
        (!is_main, !first.contains(&pid), std::cmp::Reverse(resident(process)), pid)
    });
    let mut processes = Vec::with_capacity(begun.len());
    for (number, mut process) in begun.into_iter().enumerate() {
        let directory = directory_of(process.id.pid);
        if number < *most_smaps {
            read_mappings(&mut process, &directory);
        } else {
            process.rollup_after = read_rollup(&directory, process.id.pid);
            process.rollup_before = process.rollup_after.clone();
            process.mappings = Known::unknown(format!(
                "not among the {most_smaps} processes whose mappings are read"
            ));
        }
        // What was read is of this process only if its pid still is.
        match read_stat(&directory) {
            Ok(Some(stat)) if stat.start_time_ticks == process.id.start_time_ticks => {
                processes.push(process);
            }
            _ => unread.push(Unread {
                pid: process.id.pid,
                comm: process.comm,
                reason: "it ended while it was read".to_owned(),
            }),
        }
    }
    (processes, unread)
}

fn directory_of(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// What is cheap: identity, `status`.
fn begin(pid: u32) -> Result<ProcessFacts, Unread> {
    let directory = directory_of(pid);
    let missed = |comm: &str, reason: String| Unread { pid, comm: comm.to_owned(), reason };
    let stat = match read_stat(&directory) {
        Ok(Some(stat)) => stat,
        Ok(None) => return Err(missed("", format!("failed to understand `/proc/{pid}/stat`"))),
        Err(error) => return Err(missed("", why_unread(pid, "stat", &error))),
    };
    if matches!(stat.state, 'Z' | 'X') {
        let reason = "it has ended, and only waits for its parent (zombie)".to_owned();
        return Err(missed(&stat.comm, reason));
    }
    let status = read_status(&directory)
        .map_err(|error| missed(&stat.comm, why_unread(pid, "status", &error)))?;
    if status.vm_rss.is_none() {
        let reason = "it has no memory of its own (a kernel thread, or ending)".to_owned();
        return Err(missed(&stat.comm, reason));
    }
    let executable = fs::read_link(directory.join("exe"))
        .map_or(String::new(), |path| path.to_string_lossy().into_owned());
    let not_read = |what: &str| format!("{what} was not read");
    Ok(ProcessFacts {
        id: ProcessId { pid, start_time_ticks: stat.start_time_ticks },
        comm: stat.comm,
        executable,
        status,
        oom_score: read_number(&directory.join("oom_score")),
        oom_score_adj: read_number(&directory.join("oom_score_adj")),
        rollup_before: Known::unknown(not_read("smaps_rollup")),
        rollup_after: Known::unknown(not_read("smaps_rollup")),
        attempts: 0,
        mappings: Known::unknown(not_read("smaps")),
        mappings_lost: 0,
        stack_pointers: Vec::new(),
        threads_without_pointer: 0,
        tmpfs_devices: Vec::new(),
        go_version: open_magic_link(&format!("/proc/{pid}/exe"))
            .ok()
            .and_then(|(file, _)| go_version(&file)),
        go: Known::unknown("not asked for (--go-profile)"),
        go_ranges: Known::unknown("the runtime's own address ranges were not read"),
        glibc_heaps: Known::unknown("the heaps' headers were not read"),
        runtime_ranges: Vec::new(),
        runtime_places_beyond: 0,
        heap: Known::unknown("glibc's own headers were not read"),
    })
}

fn read_mappings(process: &mut ProcessFacts, directory: &Path) {
    let pid = process.id.pid;
    process.tmpfs_devices = read_bounded(&directory.join("mountinfo"), MOUNTINFO_BYTES)
        .map_or(Vec::new(), |text| parse_tmpfs_devices(&text));
    read_stack_pointers(process, directory);
    while process.attempts < ATTEMPTS {
        process.attempts += 1;
        process.rollup_before = read_rollup(directory, pid);
        let smaps = read_smaps(directory);
        process.rollup_after = read_rollup(directory, pid);
        match smaps {
            Ok(text) => {
                let (mappings, lost) = parse_smaps(&text);
                let sum = mappings.iter().fold(0u64, |sum, it| sum.saturating_add(it.rss));
                process.mappings = Known::Value(mappings);
                process.mappings_lost = lost;
                let (before, after) = (process.rollup_before.value(), process.rollup_after.value());
                let still =
                    before.is_some_and(|it| it.rss == sum) && after.is_some_and(|it| it.rss == sum);
                if still {
                    break;
                }
            }
            Err(error) => {
                process.mappings = Known::unknown(why_unread(pid, "smaps", &error));
                break;
            }
        }
    }
    // An exec in the midst leaves nothing.
    if matches!(&process.mappings, Known::Value(mappings) if mappings.is_empty()) {
        process.mappings = Known::unknown("the process has no mappings any more");
    }
    if let Known::Value(mappings) = &mut process.mappings {
        process.glibc_heaps = match ProcessMemory::open(directory) {
            Ok(memory) => {
                let found = runtimes::find(mappings, &memory);
                process.runtime_ranges = found.ranges;
                process.runtime_places_beyond = found.places_beyond;
                Known::Value(examine(mappings, &process.runtime_ranges, &memory))
            }
            Err(error) => Known::unknown(why_unread(pid, "mem", &error)),
        };
    }
}

fn read_smaps(directory: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(directory.join("smaps"))?.take(SMAPS_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

/// Also for processes of which nothing else is wanted.
pub(super) fn read_rollup(directory: &Path, pid: u32) -> Known<Rollup> {
    match read_bounded(&directory.join("smaps_rollup"), FILE_BYTES) {
        Ok(text) => match parse_rollup(&text) {
            Some(rollup) => Known::Value(rollup),
            None => Known::unknown("the process has no memory any more"),
        },
        Err(error) => Known::unknown(why_unread(pid, "smaps_rollup", &error)),
    }
}

fn read_stack_pointers(process: &mut ProcessFacts, directory: &Path) {
    let Ok(entries) = fs::read_dir(directory.join("task")) else { return };
    for entry in entries.flatten().take(MOST_THREADS) {
        let text = read_bounded(&entry.path().join("syscall"), 4096);
        match text.ok().and_then(|text| parse_stack_pointer(&text)) {
            Some(pointer) => process.stack_pointers.push(pointer),
            None => process.threads_without_pointer += 1,
        }
    }
}

fn why_unread(pid: u32, file: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => "it ended while it was read".to_owned(),
        Some(libc::EACCES | libc::EPERM) => format!(
            "not permitted to read `/proc/{pid}/{file}`; missing capability: {} (run memtrace as root)",
            missing_for(&["CAP_SYS_PTRACE"])
        ),
        _ => format!("failed to read `/proc/{pid}/{file}`: {error}"),
    }
}

/// Of this machine; 4 KiB where it does not tell.
pub(super) fn page_bytes() -> u64 {
    let told = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    told.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0).unwrap_or(4096)
}

/// Reads what is present, and only that.
struct ProcessMemory {
    memory: File,
    pagemap: File,
    page_bytes: u64,
}

impl ProcessMemory {
    fn open(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            memory: File::open(directory.join("mem"))?,
            pagemap: File::open(directory.join("pagemap"))?,
            page_bytes: page_bytes(),
        })
    }
}

impl Memory for ProcessMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> bool {
        let end = address.saturating_add(buffer.len() as u64);
        // Within one page, as every header here is.
        let one_page = address / self.page_bytes == (end - 1) / self.page_bytes;
        one_page
            && self.resident(address, address + 1).is_some_and(|bytes| bytes > 0)
            && self.memory.read_exact_at(buffer, address).is_ok()
    }

    fn resident(&self, start: u64, end: u64) -> Option<u64> {
        let mut page = start / self.page_bytes;
        let last = end.div_ceil(self.page_bytes);
        let mut present = 0u64;
        let mut entries = vec![0u8; 8 * 8192];
        while page < last {
            let wanted = usize::try_from((last - page).min(8192)).ok()? * 8;
            let chunk = entries.get_mut(..wanted)?;
            self.pagemap.read_exact_at(chunk, page * 8).ok()?;
            let words = chunk.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok());
            let here = words.map(u64::from_le_bytes).filter(|entry| entry & PAGE_PRESENT != 0);
            present += here.count() as u64;
            page += wanted as u64 / 8;
        }
        Some(present * self.page_bytes)
    }

    fn page_bytes(&self) -> u64 {
        self.page_bytes
    }
}
