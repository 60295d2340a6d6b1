//! The few `bpf(2)` commands that aya does not offer, or not by the batch: typed access to maps,
//! and the counters of a program.
//!
//! A map that a probe writes to is read without stopping anyone: each entry is right, the set of
//! entries is not of one instant.

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, OwnedFd};

use memtrace_common::rows::{
    BlockKey, BlockRow, ChangesRow, ConfigRow, NoticedKey, ProcessRow, StackRow, TotalsKey,
    TotalsRow,
};

/// `enum bpf_cmd`, include/uapi/linux/bpf.h.
const BPF_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_MAP_DELETE_ELEM: i32 = 3;
const BPF_MAP_GET_NEXT_KEY: i32 = 4;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_MAP_LOOKUP_BATCH: i32 = 24;
/// A flag of updates: the key must be there.
const BPF_EXIST: u64 = 2;

/// A value that is its bytes: any bit pattern is valid, and there is no padding.
///
/// # Safety
/// Both must hold; `memtrace_common::rows` asserts the sizes.
pub(super) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($row:ty),*) => {
        $(
            // SAFETY: integers only, `repr(C)`, size asserted where it is defined.
            unsafe impl Plain for $row {}
        )*
    };
}
plain!(
    u32, u64, BlockKey, BlockRow, ChangesRow, ConfigRow, NoticedKey, ProcessRow, StackRow,
    TotalsKey, TotalsRow
);

/// `bpf(2)`. Returns what the system call returned.
///
/// # Safety
/// Every address in `attr` must be valid for what `command` does with it.
pub(in crate::kernel) unsafe fn bpf<T>(command: i32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is valid for its size; the caller vouches for the addresses in it.
    let status =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(status as i32) }
}

/// The part of `union bpf_attr` for single elements.
#[repr(C)]
pub(in crate::kernel) struct ElementAttr {
    pub map_fd: u32,
    pub pad: u32,
    pub key: u64,
    pub value_or_next: u64,
    pub flags: u64,
}

/// The part of `union bpf_attr` for batches.
#[repr(C)]
pub(in crate::kernel) struct BatchAttr {
    pub in_batch: u64,
    pub out_batch: u64,
    pub keys: u64,
    pub values: u64,
    pub count: u32,
    pub map_fd: u32,
    pub elem_flags: u64,
    pub flags: u64,
}

/// A map by its descriptor, with the types of its rows.
#[derive(Debug)]
pub(super) struct RawMap<K, V> {
    fd: OwnedFd,
    rows: PhantomData<(K, V)>,
}

impl<K: Plain, V: Plain> RawMap<K, V> {
    /// The caller names the types that the map was made with.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd, rows: PhantomData }
    }

    fn element(&self, key: *const K, value_or_next: u64, flags: u64) -> ElementAttr {
        ElementAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            pad: 0,
            key: key as u64,
            value_or_next,
            flags,
        }
    }

    pub(super) fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        self.update(key, value, 0)
    }

    /// Replaces the value of a key; `false` where there is none.
    pub(super) fn replace(&self, key: &K, value: &V) -> io::Result<bool> {
        match self.update(key, value, BPF_EXIST) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            updated => updated.map(|()| true),
        }
    }

    fn update(&self, key: &K, value: &V, flags: u64) -> io::Result<()> {
        let mut attr = self.element(key, std::ptr::from_ref(value) as u64, flags);
        // SAFETY: key and value live through the call and have the map's sizes.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    pub(super) fn remove(&self, key: &K) -> io::Result<()> {
        let mut attr = self.element(key, 0, 0);
        // SAFETY: the key lives through the call and has the map's size.
        unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attr) }.map(drop)
    }

    pub(super) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        let mut attr = self.element(key, value.as_mut_ptr() as u64, 0);
        // SAFETY: key and value live through the call and have the map's sizes.
        match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) } {
            // SAFETY: the kernel has written the whole value, and any bytes are a valid one.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn next_key(&self, after: Option<&K>) -> io::Result<Option<K>> {
        let mut next = MaybeUninit::<K>::uninit();
        let after = after.map_or(std::ptr::null(), std::ptr::from_ref);
        let mut attr = self.element(after, next.as_mut_ptr() as u64, 0);
        // SAFETY: as in `get`; a null key asks for the first one.
        match unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) } {
            // SAFETY: the kernel has written the whole key.
            Ok(_) => Ok(Some(unsafe { next.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Calls `each` for every entry of a hash map: by batches (kernel 5.6), or one by one. By
    /// batches an entry comes once, as each bucket is read under its lock; one by one an entry may
    /// come again when the walk starts over, so `each` is told whether it must look for doubles.
    pub(super) fn for_each(&self, mut each: impl FnMut(&K, &V, MayRepeat)) -> io::Result<()> {
        match self.for_each_batch(&mut each) {
            Err(error) if is_unsupported(&error) => self.for_each_single(&mut each),
            done => done,
        }
    }

    fn for_each_batch(&self, each: &mut impl FnMut(&K, &V, MayRepeat)) -> io::Result<()> {
        // Larger than any bucket will be: a bucket that does not fit is asked for again, larger.
        let mut capacity = 16_384_usize;
        let mut keys: Vec<K> = Vec::with_capacity(capacity);
        let mut values: Vec<V> = Vec::with_capacity(capacity);
        // The kernel's cursor is a bucket number; a key's size is asked for to be safe.
        let mut cursor = [0_u64; 8];
        let mut started = false;
        loop {
            let mut attr = BatchAttr {
                in_batch: if started { cursor.as_ptr() as u64 } else { 0 },
                out_batch: cursor.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: capacity as u32,
                map_fd: self.fd.as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: the buffers have room for `count` entries and live through the call.
            let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
            let last = match result {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && capacity < 1 << 24 => {
                    capacity *= 4;
                    keys = Vec::with_capacity(capacity);
                    values = Vec::with_capacity(capacity);
                    continue;
                }
                // Some entries were told: it is too late to walk one by one.
                Err(error) if started => return Err(io::Error::other(error)),
                Err(error) => return Err(error),
            };
            let count = (attr.count as usize).min(capacity);
            // SAFETY: the kernel has written `count` entries, within the capacity.
            unsafe {
                keys.set_len(count);
                values.set_len(count);
            }
            for (key, value) in keys.iter().zip(&values) {
                each(key, value, MayRepeat::No);
            }
            keys.clear();
            values.clear();
            if last {
                return Ok(());
            }
            started = true;
        }
    }

    fn for_each_single(&self, each: &mut impl FnMut(&K, &V, MayRepeat)) -> io::Result<()> {
        let mut after = None;
        while let Some(key) = self.next_key(after.as_ref())? {
            if let Some(value) = self.get(&key)? {
                each(&key, &value, MayRepeat::Yes);
            }
            after = Some(key);
        }
        Ok(())
    }
}

/// Whether an entry may have been passed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MayRepeat {
    No,
    Yes,
}

fn is_unsupported(error: &io::Error) -> bool {
    // EINVAL: no such command; 524: ENOTSUPP, not of this map.
    matches!(error.raw_os_error(), Some(libc::EINVAL | 524))
}

/// The kernel's counters of one program; the times are 0 unless they are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProgramCounters {
    pub(super) run_time_ns: u64,
    pub(super) run_count: u64,
    pub(super) missed: u64,
}

/// `struct bpf_prog_info` up to `recursion_misses` (kernel 5.12; the kernel fills what it has).
const PROGRAM_INFO_WORDS: usize = 28;
const RUN_TIME_WORD: usize = 192 / 8;

#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

pub(super) fn program_counters(fd: i32) -> io::Result<ProgramCounters> {
    let mut info = [0_u64; PROGRAM_INFO_WORDS];
    let mut attr = InfoAttr {
        fd: fd as u32,
        length: size_of::<[u64; PROGRAM_INFO_WORDS]>() as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: `info` has the stated length, lives through the call, and asks for no arrays.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(ProgramCounters {
        run_time_ns: info[RUN_TIME_WORD],
        run_count: info[RUN_TIME_WORD + 1],
        missed: info[RUN_TIME_WORD + 2],
    })
}

/// `memlock` of a descriptor's fdinfo: what a map or program weighs, bytes.
pub(super) fn memlock_bytes(fd: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"))?;
    line.trim().parse().ok()
}
