//! Bytes of another process, read from outside: in batches, without stopping it, within a budget.
//!
//! Reading needs the right to ptrace the process (root, or `CAP_SYS_PTRACE`). Pages that the
//! process has mapped and not touched are read as zeros.

use std::cell::Cell;
use std::io::IoSliceMut;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

/// What can be read at addresses of the process; a test gives an array.
pub trait Memory {
    /// Fills every part, each (address, buffer), or fails.
    fn read_many(&self, parts: &mut [(u64, &mut [u8])]) -> Result<(), Unreadable>;

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Unreadable> {
        self.read_many(&mut [(address, bytes)])
    }

    fn word(&self, address: u64) -> Result<u64, Unreadable> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn half_word(&self, address: u64) -> Result<u32, Unreadable> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// Why memory could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("nothing is mapped at {address:#x}")]
    NotMapped { address: u64 },
    #[error("not permitted to read the process's memory (run memtrace as root)")]
    NotPermitted,
    #[error("the process has exited")]
    Gone,
    #[error("more than {limit} bytes would have to be read")]
    Budget { limit: u64 },
    #[error("the kernel refused to read at {address:#x}: {errno}")]
    Refused { address: u64, errno: Errno },
}

/// Most bytes of one reading: the data of a very large program fits.
const BUDGET_BYTES: u64 = 512 << 20;
/// `IOV_MAX`.
const MOST_PARTS: usize = 1024;

/// A process's memory by `process_vm_readv`.
#[derive(Debug)]
pub struct ProcessMemory {
    pid: Pid,
    left: Cell<u64>,
}

impl ProcessMemory {
    pub fn of(pid: u32) -> Self {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX));
        Self { pid, left: Cell::new(BUDGET_BYTES) }
    }
}

impl Memory for ProcessMemory {
    fn read_many(&self, parts: &mut [(u64, &mut [u8])]) -> Result<(), Unreadable> {
        for parts in parts.chunks_mut(MOST_PARTS) {
            let wanted: usize = parts.iter().map(|(_, bytes)| bytes.len()).sum();
            let left = self.left.get().checked_sub(wanted as u64);
            self.left.set(left.ok_or(Unreadable::Budget { limit: BUDGET_BYTES })?);
            let address = parts.first().map_or(0, |(address, _)| *address);
            let remote: Vec<RemoteIoVec> = parts
                .iter()
                .map(|(address, bytes)| RemoteIoVec { base: *address as usize, len: bytes.len() })
                .collect();
            let mut local: Vec<IoSliceMut<'_>> =
                parts.iter_mut().map(|(_, bytes)| IoSliceMut::new(bytes)).collect();
            match process_vm_readv(self.pid, &mut local, &remote) {
                Ok(read) if read == wanted => {}
                Ok(_) | Err(Errno::EFAULT | Errno::EIO) => {
                    return Err(Unreadable::NotMapped { address });
                }
                Err(Errno::EPERM | Errno::EACCES) => return Err(Unreadable::NotPermitted),
                Err(Errno::ESRCH) => return Err(Unreadable::Gone),
                Err(errno) => return Err(Unreadable::Refused { address, errno }),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Memory made by a test: regions by address.
    #[derive(Clone, Debug, Default)]
    pub struct Image {
        pub regions: BTreeMap<u64, Vec<u8>>,
    }

    impl Image {
        pub fn bytes_mut(&mut self, address: u64, length: usize) -> &mut [u8] {
            let (start, bytes) = self.regions.range_mut(..=address).next_back().unwrap();
            let at = (address - start) as usize;
            &mut bytes[at..at + length]
        }

        pub fn put(&mut self, address: u64, value: u64) {
            self.bytes_mut(address, 8).copy_from_slice(&value.to_le_bytes());
        }

        pub fn put_half(&mut self, address: u64, value: u32) {
            self.bytes_mut(address, 4).copy_from_slice(&value.to_le_bytes());
        }

        pub fn add(&mut self, address: u64, by: u64) {
            let value = self.word(address).unwrap();
            self.put(address, value.wrapping_add(by));
        }
    }

    impl Memory for Image {
        fn read_many(&self, parts: &mut [(u64, &mut [u8])]) -> Result<(), Unreadable> {
            for (address, bytes) in parts {
                let address = *address;
                let found =
                    self.regions.range(..=address).next_back().and_then(|(start, region)| {
                        let at = usize::try_from(address - start).ok()?;
                        region.get(at..at.checked_add(bytes.len())?)
                    });
                bytes.copy_from_slice(found.ok_or(Unreadable::NotMapped { address })?);
            }
            Ok(())
        }
    }

    #[test]
    fn own_memory_is_read_in_one_batch_and_a_bad_address_is_an_error() {
        let memory = ProcessMemory::of(std::process::id());
        let (first, second) = (0x1122_3344_5566_7788_u64, [7u8; 5000]);
        let (mut word, mut bytes) = ([0; 8], vec![0; 5000]);
        memory
            .read_many(&mut [
                (&raw const first as u64, &mut word[..]),
                (&raw const second as u64, &mut bytes[..]),
            ])
            .unwrap();
        assert_eq!((u64::from_le_bytes(word), &bytes[..]), (first, &second[..]));
        assert_eq!(memory.word(8), Err(Unreadable::NotMapped { address: 8 }));
        assert_eq!(memory.word(u64::MAX), Err(Unreadable::NotMapped { address: u64::MAX }));
    }

    #[test]
    fn more_than_the_budget_is_not_read() {
        let memory = ProcessMemory::of(std::process::id());
        memory.left.set(15);
        let word = 1u64;
        assert_eq!(memory.word(&raw const word as u64), Ok(1));
        assert!(matches!(memory.word(&raw const word as u64), Err(Unreadable::Budget { .. })));
    }

    #[test]
    fn a_process_that_is_not_there_says_so() {
        assert_eq!(ProcessMemory::of(u32::MAX).word(8), Err(Unreadable::Gone));
    }
}
