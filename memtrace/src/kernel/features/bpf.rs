//! Probes of `bpf(2)` itself: maps, helpers, programs.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::State;
use crate::kernel::sys::{BPF_MAP_CREATE, BPF_PROG_LOAD, bpf};

/// `enum bpf_map_type`, `enum bpf_prog_type`, include/uapi/linux/bpf.h.
const MAP_HASH: u32 = 1;
const MAP_ARRAY: u32 = 2;
const MAP_RINGBUF: u32 = 27;
const PROGRAM_SOCKET_FILTER: u32 = 1;
pub(super) const PROGRAM_KPROBE: u32 = 2;
const PROGRAM_PERF_EVENT: u32 = 7;
const F_NO_PREALLOC: u32 = 1;

/// Numbers of helpers, `enum bpf_func_id`.
const HELPER_LOOKUP: i32 = 1;
pub(super) const HELPER_SEND_SIGNAL: i32 = 109;
const HELPER_KTIME_COARSE: i32 = 160;
pub(super) const HELPER_ATTACH_COOKIE: i32 = 174;
pub(super) const HELPER_LOOP: i32 = 181;

/// One instruction: `opcode:8 dst:4 src:4 offset:16 immediate:32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Instruction(u64);

impl Instruction {
    pub(super) const fn new(opcode: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Self {
        Self(
            opcode as u64
                | (dst as u64) << 8
                | (src as u64) << 12
                | (offset as u16 as u64) << 16
                | (immediate as u32 as u64) << 32,
        )
    }

    pub(super) const fn call(helper: i32) -> Self {
        Self::new(0x85, 0, 0, 0, helper)
    }

    pub(super) const fn set(register: u8, immediate: i32) -> Self {
        Self::new(0xb7, register, 0, 0, immediate)
    }

    pub(super) const EXIT: Self = Self::new(0x95, 0, 0, 0, 0);

    /// Two slots: the address of a map.
    pub(super) fn map(register: u8, map: &OwnedFd) -> [Self; 2] {
        [Self::new(0x18, register, 1, 0, map.as_raw_fd()), Self(0)]
    }
}

#[repr(C)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

fn create_map(mut attr: MapAttr) -> io::Result<OwnedFd> {
    // SAFETY: the attributes hold no addresses.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attr) }?;
    // SAFETY: a fresh descriptor that no one else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn create_array() -> io::Result<OwnedFd> {
    create_map(MapAttr {
        map_type: MAP_ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        map_flags: 0,
    })
}

pub(super) fn create_ring() -> io::Result<OwnedFd> {
    // The size is a multiple of the page size: 64 KiB is, everywhere.
    create_map(MapAttr {
        map_type: MAP_RINGBUF,
        key_size: 0,
        value_size: 0,
        max_entries: 1 << 16,
        map_flags: 0,
    })
}

#[repr(C)]
struct ProgramAttr {
    prog_type: u32,
    insn_count: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// Loads a program. On failure the verifier's log is returned as well.
pub(super) fn load_program(
    prog_type: u32,
    expected_attach_type: u32,
    instructions: &[Instruction],
) -> Result<OwnedFd, (io::Error, String)> {
    let mut log = vec![0_u8; 1 << 14];
    let mut attr = ProgramAttr {
        prog_type,
        insn_count: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log_buf: log.as_mut_ptr() as u64,
        kern_version: 0,
        prog_flags: 0,
        prog_name: [0; 16],
        prog_ifindex: 0,
        expected_attach_type,
    };
    // SAFETY: instructions, licence and log live through the call and have the stated sizes.
    match unsafe { bpf(BPF_PROG_LOAD, &mut attr) } {
        // SAFETY: a fresh descriptor that no one else owns.
        Ok(fd) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Err(error) => {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            Err((error, String::from_utf8_lossy(&log[..end]).into_owned()))
        }
    }
}

/// Whether uprobe programs may call a helper: the verifier says when it does not know it, before
/// it complains about the arguments that are not there.
pub(super) fn has_helper(helper: i32) -> State {
    has_helper_in(PROGRAM_KPROBE, helper)
}

fn has_helper_in(prog_type: u32, helper: i32) -> State {
    match load_program(prog_type, 0, &[Instruction::call(helper), Instruction::EXIT]) {
        Ok(_) => State::Available,
        Err((error, log)) => {
            let unknown = ["invalid func ", "unknown func ", "cannot use helper "];
            if unknown.iter().any(|text| log.contains(text)) {
                State::missing("this kernel does not know the helper")
            } else if log.is_empty() {
                State::from_error(&error)
            } else {
                State::Available
            }
        }
    }
}

/// Came with the same release as the accounting of BPF memory to cgroups, which cannot be asked
/// for itself; libbpf looks at the same helper.
pub(super) fn memcg_accounting() -> State {
    has_helper_in(PROGRAM_SOCKET_FILTER, HELPER_KTIME_COARSE)
}

/// Perf event programs run in any context, and may use maps that are not preallocated only where
/// the kernel allocates for them safely.
pub(super) fn growing_maps() -> State {
    let map = create_map(MapAttr {
        map_type: MAP_HASH,
        key_size: 4,
        value_size: 8,
        max_entries: 16,
        map_flags: F_NO_PREALLOC,
    });
    let map = match map {
        Ok(map) => map,
        Err(error) => return State::from_error(&error),
    };
    let [first, second] = Instruction::map(1, &map);
    let program = [
        // *(u32 *)(r10 - 4) = 0; lookup(map, r10 - 4)
        Instruction::new(0x62, 10, 0, -4, 0),
        first,
        second,
        Instruction::new(0xbf, 2, 10, 0, 0),
        Instruction::new(0x07, 2, 0, 0, -4),
        Instruction::call(HELPER_LOOKUP),
        Instruction::set(0, 0),
        Instruction::EXIT,
    ];
    match load_program(PROGRAM_PERF_EVENT, 0, &program) {
        Ok(_) => State::Available,
        Err((error, log)) if log.is_empty() => State::from_error(&error),
        Err((_, log)) => State::missing(log.lines().last().unwrap_or_default().to_owned()),
    }
}
