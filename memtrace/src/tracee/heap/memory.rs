//! Another process's memory, read a piece at a time and never written, stopped or grown.
//!
//! `/proc/PID/mem` stays with the memory that was there when it was opened: after an `exec` or an
//! exit it reads nothing, and never another program's. Where the process has swapped pages out,
//! each page is asked for in `/proc/PID/pagemap` first: reading one would bring it back.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::tracee::process::{Process, ProcessError, read_error};

pub const PAGE: u64 = 4096;

/// Why a piece of memory could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("nothing is mapped at {address:#x} (any more)")]
    NotMapped { address: u64 },
    #[error("the page at {address:#x} is swapped out, and reading it would bring it back")]
    SwappedOut { address: u64 },
    #[error("the process has gone, or runs another program now")]
    Gone,
    #[error("the memory at {address:#x} cannot be read: {reason}")]
    Failed { address: u64, reason: String },
}

/// Memory by address.
pub trait MemoryReader {
    /// Fills `buffer` with what is at `address`, all of it or nothing.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), ReadError>;

    /// The whole pages in `start..end` that are resident, joined; `None` where that cannot be
    /// known.
    fn resident(&self, start: u64, end: u64) -> Option<Vec<Range<u64>>> {
        _ = (start, end);
        None
    }
}

/// The memory of a live process.
#[derive(Debug)]
pub struct ProcessMemory {
    memory: File,
    pagemap: Option<File>,
    /// Some of its pages are swapped out.
    swapped: bool,
}

/// Most bytes of pagemap read at a time: 4 MiB of memory.
const PAGEMAP_PIECE: usize = 8192;
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

impl ProcessMemory {
    /// Needs the right to trace the process (`CAP_SYS_PTRACE` for others' processes).
    pub fn open(process: &Process) -> Result<Self, ProcessError> {
        let pid = process.pid();
        let path = format!("/proc/{pid}/mem");
        let memory = File::open(&path).map_err(|source| read_error(pid, &path, source))?;
        Ok(Self {
            memory,
            pagemap: File::open(format!("/proc/{pid}/pagemap")).ok(),
            swapped: process.memory()?.swap > 0,
        })
    }

    /// The entries of pagemap for the pages from `first` on.
    fn pages<'b>(
        &self,
        first: u64,
        buffer: &'b mut [u8],
    ) -> Option<impl Iterator<Item = u64> + 'b> {
        let pagemap = self.pagemap.as_ref()?;
        pagemap.read_exact_at(buffer, first.checked_mul(8)?).ok()?;
        Some(buffer.as_chunks().0.iter().map(|entry| u64::from_le_bytes(*entry)))
    }

    fn is_swapped(&self, address: u64, length: u64) -> bool {
        let first = address / PAGE;
        let last = address.saturating_add(length.saturating_sub(1)) / PAGE;
        let mut piece = [0; 8];
        (first..=last).any(|page| {
            self.pages(page, &mut piece).is_some_and(|mut found| found.any(|e| e & SWAPPED != 0))
        })
    }
}

impl MemoryReader for ProcessMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        if self.swapped && self.is_swapped(address, buffer.len() as u64) {
            return Err(ReadError::SwappedOut { address });
        }
        self.memory.read_exact_at(buffer, address).map_err(|error| match error.raw_os_error() {
            _ if error.kind() == io::ErrorKind::UnexpectedEof => ReadError::Gone,
            Some(libc::ESRCH) => ReadError::Gone,
            Some(libc::EIO | libc::EFAULT) => ReadError::NotMapped { address },
            _ => ReadError::Failed { address, reason: error.to_string() },
        })
    }

    fn resident(&self, start: u64, end: u64) -> Option<Vec<Range<u64>>> {
        let (mut page, last) = (start.div_ceil(PAGE), end / PAGE);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut buffer = [0; PAGEMAP_PIECE];
        while page < last {
            let count = (last - page).min((PAGEMAP_PIECE / 8) as u64);
            let piece = buffer.get_mut(..usize::try_from(count).ok()? * 8)?;
            for (page, entry) in (page..).zip(self.pages(page, piece)?) {
                let (start, end) = (page * PAGE, (page + 1) * PAGE);
                match ranges.last_mut() {
                    _ if entry & PRESENT == 0 => {}
                    Some(last) if last.end == start => last.end = end,
                    _ => ranges.push(start..end),
                }
            }
            page += count;
        }
        Some(ranges)
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    use super::*;

    #[test]
    fn this_process_reads_its_own_memory() {
        let memory = ProcessMemory::open(&Process::open(std::process::id()).unwrap()).unwrap();
        let known = [0x5a_u8; 100];
        let mut read = [0; 100];
        memory.read(known.as_ptr() as u64, &mut read).unwrap();
        assert_eq!(read, known);
    }

    #[test]
    fn an_address_where_nothing_is_mapped_is_an_error() {
        let memory = ProcessMemory::open(&Process::open(std::process::id()).unwrap()).unwrap();
        for address in [0, 0x1000, u64::MAX - 4096, 1 << 62] {
            let refused = memory.read(address, &mut [0; 8]);
            assert!(refused.is_err(), "{address:#x}");
        }
    }

    #[test]
    fn a_touched_page_is_resident_and_an_untouched_one_is_not() {
        let process = Process::open(std::process::id()).unwrap();
        let memory = ProcessMemory::open(&process).unwrap();
        // A mapping of its own: an allocator may hand out pages that were used before.
        const LENGTH: usize = 4 << 20;
        let (read_write, private) =
            (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: at no given address, so nothing that is there is replaced.
        let mapped =
            unsafe { mmap_anonymous(None, LENGTH.try_into().unwrap(), read_write, private) };
        let pages = mapped.unwrap().cast::<u8>();
        let start = pages.as_ptr() as u64;
        let end = start + LENGTH as u64;
        let resident = |start, end| {
            let ranges = memory.resident(start, end).unwrap();
            ranges.iter().map(|range| range.end - range.start).sum::<u64>()
        };
        assert_eq!(resident(start, end), 0);
        for page in [0, 7, 1000] {
            // SAFETY: within the mapping, which is writable.
            unsafe { pages.add(page * 4096).write(1) };
        }
        // Huge pages, where they are on, make it more.
        assert!(resident(start, end) >= 3 * PAGE);
        assert_eq!(resident(start + 1, start + 4096), 0);
        // SAFETY: the whole mapping of above, which nothing refers to any more.
        unsafe { munmap(pages.cast(), LENGTH) }.unwrap();
    }

    #[test]
    fn after_its_end_a_process_reads_as_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let memory = ProcessMemory::open(&Process::open(child.id()).unwrap()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(memory.read(0x1000, &mut [0; 8]), Err(ReadError::Gone));
    }
}
