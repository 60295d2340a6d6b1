//! The few bpf(2) calls that trying a feature takes, with programs assembled by hand.
//!
//! Everything made here is a file descriptor, and closing it is all the cleaning there is. Errors
//! are the kernel's own errno; [`super::refusal`] turns them into sentences.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::kernel::sys::{self, BatchAttr, ElementAttr};

// Numbers of `linux/bpf.h`.
const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_PROG_LOAD: i32 = 5;
const BPF_RAW_TRACEPOINT_OPEN: i32 = 17;
const BPF_MAP_LOOKUP_BATCH: i32 = 24;
const BPF_LINK_CREATE: i32 = 28;
const BPF_ENABLE_STATS: i32 = 32;

pub const MAP_HASH: u32 = 1;
pub const MAP_ARRAY: u32 = 2;
pub const MAP_RINGBUF: u32 = 27;
pub const MAP_NO_PREALLOC: u32 = 1;
pub const MAP_MMAPABLE: u32 = 1 << 10;

pub const PROGRAM_KPROBE: u32 = 2;
pub const PROGRAM_PERF_EVENT: u32 = 7;
pub const PROGRAM_RAW_TRACEPOINT: u32 = 17;

pub const ATTACH_PERF_EVENT: u32 = 41;
pub const ATTACH_UPROBE_MULTI: u32 = 48;
pub const ATTACH_UPROBE_SESSION: u32 = 57;

pub const HELPER_MAP_LOOKUP_ELEM: i32 = 1;
pub const HELPER_SEND_SIGNAL: i32 = 109;
pub const HELPER_GET_ATTACH_COOKIE: i32 = 174;
pub const HELPER_LOOP: i32 = 181;

/// The kernel gives up loading a program when a signal comes in, and says EAGAIN.
const LOAD_ATTEMPTS: u32 = 5;

/// One instruction: operation, registers (destination low), offset, immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    operation: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const _: () = assert!(size_of::<Instruction>() == 8);

const fn instruction(operation: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { operation, registers: to | from << 4, offset, immediate }
}

/// `to = from`
pub const fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

/// `to = value`
pub const fn set(to: u8, value: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, value)
}

/// `to += value`
pub const fn add(to: u8, value: i32) -> Instruction {
    instruction(0x07, to, 0, 0, value)
}

/// `*(u32 *)(base + offset) = value`
pub const fn store_u32(base: u8, offset: i16, value: i32) -> Instruction {
    instruction(0x62, base, 0, offset, value)
}

/// `*(u64 *)(base + offset) = from`
pub const fn store_u64(base: u8, offset: i16, from: u8) -> Instruction {
    instruction(0x7b, base, from, offset, 0)
}

/// `lock *(u64 *)(base + offset) += from`
pub const fn atomic_add_u64(base: u8, offset: i16, from: u8) -> Instruction {
    instruction(0xdb, base, from, offset, 0)
}

/// `if (register == 0) skip`
pub const fn skip_if_zero(register: u8, skipped: i16) -> Instruction {
    instruction(0x15, register, 0, skipped, 0)
}

pub const fn call(helper: i32) -> Instruction {
    instruction(0x85, 0, 0, 0, helper)
}

pub const fn exit() -> Instruction {
    instruction(0x95, 0, 0, 0, 0)
}

/// `to = map`; takes two instructions.
pub fn load_map(to: u8, map: &OwnedFd) -> [Instruction; 2] {
    const MAP_BY_FD: u8 = 1;
    [instruction(0x18, to, MAP_BY_FD, 0, map.as_raw_fd()), instruction(0, 0, 0, 0, 0)]
}

/// The kernel takes the attributes by size, so one struct per command is enough; it refuses
/// nonzero bytes that it does not know, with E2BIG.
fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: pointers inside `attributes` are to buffers that its caller keeps alive for the call.
    unsafe { sys::bpf(command, attributes) }
}

/// The same for the commands that answer with a file descriptor.
fn bpf_fd<T>(command: i32, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: these commands return a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn create_map(
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attributes = [kind, key_bytes, value_bytes, entries, flags];
    bpf_fd(BPF_MAP_CREATE, &mut attributes)
}

/// Reads the value of a map with a `u32` key and an `N × u64` value.
pub fn lookup<const N: usize>(map: &OwnedFd, key: u32) -> io::Result<[u64; N]> {
    let mut value = [0u64; N];
    let mut element = ElementAttr {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: (&raw const key) as u64,
        value_or_next: (&raw mut value) as u64,
        flags: 0,
    };
    bpf(BPF_MAP_LOOKUP_ELEM, &mut element)?;
    Ok(value)
}

/// Writes the `u64` value of a map with a `u32` key.
pub fn update(map: &OwnedFd, key: u32, value: u64) -> io::Result<()> {
    let mut element = ElementAttr {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: (&raw const key) as u64,
        value_or_next: (&raw const value) as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut element).map(drop)
}

/// How many entries of a `u32` to `u64` hash one batch lookup brings, of at most `N`.
pub fn lookup_batch<const N: usize>(map: &OwnedFd) -> io::Result<u32> {
    let (mut keys, mut values) = ([0u32; N], [0u64; N]);
    let mut position = 0u64;
    let mut batch = BatchAttr {
        in_batch: 0,
        out_batch: (&raw mut position) as u64,
        keys: (&raw mut keys) as u64,
        values: (&raw mut values) as u64,
        count: N as u32,
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    match bpf(BPF_MAP_LOOKUP_BATCH, &mut batch) {
        // ENOENT says that the map ended within this batch.
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(batch.count),
    }
}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

/// Loads a program; `log` receives what the verifier says, empty for none.
pub fn load_program(
    kind: u32,
    attach_type: u32,
    instructions: &[Instruction],
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    let mut attributes = ProgramLoad {
        kind,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_bytes: log.len() as u32,
        log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        expected_attach_type: attach_type,
        ..ProgramLoad::default()
    };
    let mut attempt = 1;
    loop {
        match bpf_fd(BPF_PROG_LOAD, &mut attributes) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempt < LOAD_ATTEMPTS => {
                attempt += 1;
            }
            loaded => return loaded,
        }
    }
}

/// Whether programs of this kind may call the helper, asked of the verifier by a call without
/// proper arguments: an unknown helper is refused as such, a known one for its arguments.
pub fn knows_helper(kind: u32, helper: i32) -> io::Result<bool> {
    let program = [call(helper), set(0, 0), exit()];
    let mut log = vec![0u8; 4096];
    match load_program(kind, 0, &program, &mut log) {
        Ok(_) => Ok(true),
        Err(error) => {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let said = String::from_utf8_lossy(&log[..end]);
            match said {
                said if said.contains("invalid func") || said.contains("unknown func") => Ok(false),
                said if said.contains("cannot use helper") => Ok(false),
                // The verifier came as far as the arguments.
                said if said.contains("!read_ok") || said.contains("type=") => Ok(true),
                _ => Err(error),
            }
        }
    }
}

#[repr(C)]
struct RawTracepointOpen {
    name: u64,
    program: u32,
    padding: u32,
}

pub fn open_raw_tracepoint(name: &std::ffi::CStr, program: &OwnedFd) -> io::Result<OwnedFd> {
    let mut attributes = RawTracepointOpen {
        name: name.as_ptr() as u64,
        program: program.as_raw_fd() as u32,
        padding: 0,
    };
    bpf_fd(BPF_RAW_TRACEPOINT_OPEN, &mut attributes)
}

#[repr(C)]
struct PerfEventLink {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    cookie: u64,
}

/// Attaches the program to a perf event, with a cookie that the program can read.
pub fn link_perf_event(program: &OwnedFd, event: &OwnedFd, cookie: u64) -> io::Result<OwnedFd> {
    let mut attributes = PerfEventLink {
        program: program.as_raw_fd() as u32,
        target: event.as_raw_fd() as u32,
        attach_type: ATTACH_PERF_EVENT,
        flags: 0,
        cookie,
    };
    bpf_fd(BPF_LINK_CREATE, &mut attributes)
}

#[repr(C)]
struct UprobeMultiLink {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    reference_counters: u64,
    cookies: u64,
    count: u32,
    uprobe_flags: u32,
    process: u32,
    padding: u32,
}

/// Attaches the program to one place of a file, by the link that could take many, for one process.
pub fn link_uprobe_multi(
    program: &OwnedFd,
    attach_type: u32,
    path: &std::ffi::CStr,
    file_offset: u64,
    process: u32,
) -> io::Result<OwnedFd> {
    let mut attributes = UprobeMultiLink {
        program: program.as_raw_fd() as u32,
        target: 0,
        attach_type,
        flags: 0,
        path: path.as_ptr() as u64,
        offsets: (&raw const file_offset) as u64,
        reference_counters: 0,
        cookies: 0,
        count: 1,
        uprobe_flags: 0,
        process,
        padding: 0,
    };
    bpf_fd(BPF_LINK_CREATE, &mut attributes)
}

/// The kernel counts the runs and the time of programs for as long as the descriptor is open.
pub fn enable_stats() -> io::Result<OwnedFd> {
    const RUN_TIME: u32 = 0;
    bpf_fd(BPF_ENABLE_STATS, &mut [RUN_TIME])
}
