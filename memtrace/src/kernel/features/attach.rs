//! Real probes on a function of memtrace's own binary: attach, call it, read the counter.
//!
//! No other process is touched: every probe is bound to this one, and gone with its descriptors.

use std::ffi::{CStr, c_int};
use std::hint::black_box;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::bpf::{self, Instruction};

/// How often the probed function is called per try.
const CALLS: u64 = 5;
/// Any number that no default could be.
const COOKIE: u64 = 0x6d65_6d74_7261_6365;
/// Symlink that the kernel resolves to the very file this runs from, even when it was replaced.
const OWN_BINARY: &CStr = c"/proc/self/exe";

/// One try at a time: all count the calls of one function.
static ONE_TRY: Mutex<()> = Mutex::new(());

/// The function that gets probed. Its body keeps it apart from every other function, and starts
/// with no `lock` prefix: the kernel refuses to put a probe on one.
#[inline(never)]
extern "C" fn probed_function(argument: u64) -> u64 {
    black_box(argument).wrapping_mul(COOKIE)
}

fn alone() -> MutexGuard<'static, ()> {
    ONE_TRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where it went wrong.
#[derive(Debug, thiserror::Error)]
pub enum TryError {
    #[error("failed to {step}")]
    Refused { step: &'static str, source: io::Error },
    #[error("{0}")]
    Wrong(String),
    #[error("{0}")]
    Untried(String),
}

fn step(step: &'static str) -> impl Fn(io::Error) -> TryError {
    move |source| TryError::Refused { step, source }
}

/// Which end of the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Entry,
    Return,
}

/// Hits by perf event and ioctl, the way that every kernel with uprobes has.
pub fn uprobe_fires(end: End) -> Result<(), TryError> {
    let _alone = alone();
    let counter = Counter::new(0, false)?;
    let event = open_uprobe(end)?;
    set_program(&event, &counter.program).map_err(step("attach a program to a uprobe"))?;
    counter.expect(CALLS)
}

/// The same by a link with a cookie, read back by the program.
pub fn cookie_arrives() -> Result<(), TryError> {
    let _alone = alone();
    let counter = Counter::new(0, true)?;
    let event = open_uprobe(End::Entry)?;
    let _link = bpf::link_perf_event(&counter.program, &event, COOKIE)
        .map_err(step("create a link with a cookie to a uprobe"))?;
    counter.expect(CALLS)?;
    match counter.read()? {
        [_, COOKIE] => Ok(()),
        [_, other] => Err(TryError::Wrong(format!("the program read {other:#x} as its cookie"))),
    }
}

/// One link for entries, bound to this process and hit from a thread that is not its first.
pub fn uprobe_multi_fires() -> Result<(), TryError> {
    multi_fires(bpf::ATTACH_UPROBE_MULTI, CALLS)
}

/// One link for entry and return: the program runs twice a call.
pub fn uprobe_session_fires() -> Result<(), TryError> {
    multi_fires(bpf::ATTACH_UPROBE_SESSION, 2 * CALLS)
}

fn multi_fires(attach_type: u32, hits: u64) -> Result<(), TryError> {
    let _alone = alone();
    let counter = Counter::new(attach_type, false)?;
    let _link = bpf::link_uprobe_multi(
        &counter.program,
        attach_type,
        OWN_BINARY,
        probed_file_offset()?,
        std::process::id(),
    )
    .map_err(step("create a uprobe_multi link"))?;
    counter.expect(hits)
}

/// A program that counts its runs in `[0]` and leaves its cookie in `[1]`.
struct Counter {
    map: OwnedFd,
    program: OwnedFd,
}

impl Counter {
    fn new(attach_type: u32, with_cookie: bool) -> Result<Self, TryError> {
        let map =
            bpf::create_map(bpf::MAP_ARRAY, 4, 16, 1, 0).map_err(step("create an array map"))?;
        let program = bpf::load_program(
            bpf::PROGRAM_KPROBE,
            attach_type,
            &counting_program(&map, with_cookie),
            &mut [],
        )
        .map_err(step(if with_cookie {
            "load a program that asks for its cookie"
        } else {
            "load a uprobe program"
        }))?;
        Ok(Self { map, program })
    }

    fn read(&self) -> Result<[u64; 2], TryError> {
        bpf::lookup(&self.map, 0).map_err(step("read an array map"))
    }

    /// Calls the probed function and compares.
    fn expect(&self, expected: u64) -> Result<(), TryError> {
        let [before, _] = self.read()?;
        let caller = std::thread::Builder::new()
            .name("memtrace-probe".to_owned())
            .spawn(|| {
                for call in 0..CALLS {
                    black_box(black_box(probed_function as extern "C" fn(u64) -> u64)(call));
                }
            })
            .map_err(step("start a thread"))?;
        if caller.join().is_err() {
            return Err(TryError::Wrong("the probed thread ended early".to_owned()));
        }
        let [after, _] = self.read()?;
        match after.wrapping_sub(before) {
            hits if hits == expected => Ok(()),
            hits => Err(TryError::Wrong(format!(
                "it attached, but the program ran {hits} times where {expected} were due"
            ))),
        }
    }
}

fn counting_program(map: &OwnedFd, with_cookie: bool) -> Vec<Instruction> {
    use bpf::{
        HELPER_GET_ATTACH_COOKIE, HELPER_MAP_LOOKUP_ELEM, add, atomic_add_u64, call, copy, exit,
        load_map, set, skip_if_zero, store_u32, store_u64,
    };
    let mut program = vec![set(6, 0)];
    if with_cookie {
        // r1 is still the context.
        program.extend([call(HELPER_GET_ATTACH_COOKIE), copy(6, 0)]);
    }
    program.extend([store_u32(10, -4, 0), copy(2, 10), add(2, -4)]);
    program.extend(load_map(1, map));
    program.extend([
        call(HELPER_MAP_LOOKUP_ELEM),
        skip_if_zero(0, 3),
        set(1, 1),
        atomic_add_u64(0, 0, 1),
        store_u64(0, 8, 6),
        set(0, 0),
        exit(),
    ]);
    program
}

/// The part of `struct perf_event_attr` that a uprobe uses (`PERF_ATTR_SIZE_VER1`).
#[repr(C)]
#[derive(Default)]
struct PerfEventAttributes {
    kind: u32,
    bytes: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_kind: u32,
    path: u64,
    file_offset: u64,
}

const _: () = assert!(size_of::<PerfEventAttributes>() == 72);

fn open_uprobe(end: End) -> Result<OwnedFd, TryError> {
    let device = "/sys/bus/event_source/devices/uprobe";
    let kind = std::fs::read_to_string(format!("{device}/type"))
        .map_err(step("read `/sys/bus/event_source/devices/uprobe/type`"))?;
    let kind = kind.trim().parse().map_err(|_| {
        TryError::Wrong(format!("`{device}/type` holds no number: `{}`", kind.trim()))
    })?;
    let format = std::fs::read_to_string(format!("{device}/format/retprobe"))
        .map_err(step("read `/sys/bus/event_source/devices/uprobe/format/retprobe`"))?;
    let return_bit: u32 = format
        .trim()
        .strip_prefix("config:")
        .and_then(|bit| bit.parse().ok())
        .filter(|bit| *bit < 64)
        .ok_or_else(|| {
            TryError::Wrong(format!("`{device}/format/retprobe` holds `{}`", format.trim()))
        })?;
    let mut attributes = PerfEventAttributes {
        kind,
        bytes: size_of::<PerfEventAttributes>() as u32,
        config: if end == End::Return { 1 << return_bit } else { 0 },
        path: OWN_BINARY.as_ptr() as u64,
        file_offset: probed_file_offset()?,
        ..PerfEventAttributes::default()
    };
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    let (any_cpu, no_group): (c_int, c_int) = (-1, -1);
    // SAFETY: `attributes` is as large as it says, and its path is a static C string.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw mut attributes,
            std::process::id() as libc::pid_t,
            any_cpu,
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return Err(step("open a uprobe with perf_event_open(2)")(error));
    }
    // SAFETY: perf_event_open returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

fn set_program(event: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
    const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
    // SAFETY: both descriptors are open; the request takes the second by value.
    let result =
        unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn probed_file_offset() -> Result<u64, TryError> {
    let address = probed_function as extern "C" fn(u64) -> u64 as usize as u64;
    let maps =
        std::fs::read_to_string("/proc/self/maps").map_err(step("read `/proc/self/maps`"))?;
    file_offset_of(&maps, address).ok_or_else(|| {
        TryError::Wrong(format!("no mapping of `/proc/self/maps` holds {address:#x}"))
    })
}

/// `address − start of its mapping + the mapping's file offset`
fn file_offset_of(maps: &str, address: u64) -> Option<u64> {
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let offset = fields.nth(1)?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end, offset) = (hex(start)?, hex(end)?, hex(offset)?);
        (start..end).contains(&address).then(|| address - start + offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_offset_counts_from_the_mapping_that_holds_the_address() {
        let maps = "55d0-55e0 r--p 00000000 fd:00 12 /bin/x\n\
                    55e0-55f8 r-xp 00000010 fd:00 12 /bin/x\n";
        assert_eq!(file_offset_of(maps, 0x55e4), Some(0x14));
        assert_eq!(file_offset_of(maps, 0x55df), Some(0xf));
        assert_eq!(file_offset_of(maps, 0x55f8), None);
        assert_eq!(file_offset_of("garbage\n", 0x55e4), None);
    }

    #[test]
    fn a_probe_that_is_not_attached_does_not_pass() {
        let _alone = alone();
        let counter = Counter::new(0, false).unwrap();
        let error = counter.expect(CALLS).unwrap_err();
        assert!(error.to_string().contains("ran 0 times where 5 were due"), "{error}");
    }

    #[test]
    fn the_probed_function_is_found_in_the_file_this_runs_from() {
        use std::os::unix::fs::FileExt;
        let _unprobed = alone();
        let offset = probed_file_offset().unwrap();
        let mut in_file = [0u8; 8];
        std::fs::File::open("/proc/self/exe").unwrap().read_exact_at(&mut in_file, offset).unwrap();
        // SAFETY: the function is mapped and at least 8 bytes long, with its padding.
        let in_memory = unsafe { *(probed_function as *const () as *const [u8; 8]) };
        assert_eq!(in_file, in_memory);
    }
}
