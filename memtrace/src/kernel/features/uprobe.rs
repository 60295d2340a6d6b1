//! Probes of uprobes, on a function of memtrace's own: attached, called, counted, detached.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use super::State;
use super::bpf::{HELPER_ATTACH_COOKIE, Instruction, PROGRAM_KPROBE, create_array, load_program};
use crate::kernel::sys::{BPF_LINK_CREATE, RawMap, bpf};

const EXECUTABLE: &std::ffi::CStr = c"/proc/self/exe";
const COOKIE: u64 = 0x6d65_6d74;
const HELPER_LOOKUP: i32 = 1;
/// `enum bpf_attach_type`
const ATTACH_PERF_EVENT: u32 = 41;
const ATTACH_UPROBE_MULTI: u32 = 48;

/// include/uapi/linux/perf_event.h
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// What is probed. It must have a place of its own and be called for real.
#[inline(never)]
extern "C" fn probed(value: u64) -> u64 {
    std::hint::black_box(value).rotate_left(7)
}

/// Attached by a link with a cookie: the program must see that cookie.
pub(super) fn entry_with_cookie() -> State {
    State::from_result(fires(false, Some(COOKIE)))
        .or_if_cookie_fails(|| State::from_result(fires(false, None)))
}

pub(super) fn return_of_a_function() -> State {
    State::from_result(fires(true, None))
}

impl State {
    /// Tells a kernel without cookies from one without uprobes.
    fn or_if_cookie_fails(self, without: impl FnOnce() -> Self) -> Self {
        match self {
            Self::Missing { reason } if without() == Self::Available => {
                Self::missing(format!("uprobes work, but not with a cookie: {reason}"))
            }
            state => state,
        }
    }
}

fn fires(on_return: bool, cookie: Option<u64>) -> io::Result<()> {
    let (map, program) = storing_program()?;
    let event = open_event(function_offset()?, on_return)?;
    let _link = link_event(&program, &event, cookie)?;
    called_and_seen(map, cookie.unwrap_or(0))
}

/// A program that stores its cookie plus one.
fn storing_program() -> io::Result<(OwnedFd, OwnedFd)> {
    let map = create_array()?;
    let [first, second] = Instruction::map(1, &map);
    let instructions = [
        // r6 = cookie(ctx) + 1
        Instruction::call(HELPER_ATTACH_COOKIE),
        Instruction::new(0xbf, 6, 0, 0, 0),
        Instruction::new(0x07, 6, 0, 0, 1),
        // r0 = lookup(map, &0)
        Instruction::new(0x62, 10, 0, -4, 0),
        first,
        second,
        Instruction::new(0xbf, 2, 10, 0, 0),
        Instruction::new(0x07, 2, 0, 0, -4),
        Instruction::call(HELPER_LOOKUP),
        // if r0 != 0: *r0 = r6
        Instruction::new(0x15, 0, 0, 1, 0),
        Instruction::new(0x7b, 0, 6, 0, 0),
        Instruction::set(0, 0),
        Instruction::EXIT,
    ];
    let program = load_program(PROGRAM_KPROBE, 0, &instructions).map_err(|(error, _)| error)?;
    Ok((map, program))
}

fn called_and_seen(map: OwnedFd, cookie: u64) -> io::Result<()> {
    std::hint::black_box(probed(std::hint::black_box(1)));
    let seen = RawMap::<u32, u64>::new(map).get(&0)?.unwrap_or(0);
    match seen {
        0 => Err(io::Error::other("attached, but not hit")),
        seen if seen == cookie + 1 => Ok(()),
        _ => Err(io::Error::other("hit, but with another cookie")),
    }
}

/// Where the function lies in the executable's file.
fn function_offset() -> io::Result<u64> {
    let address = probed as *const () as u64;
    let maps = fs::read("/proc/self/maps")?;
    let maps = String::from_utf8_lossy(&maps);
    maps.lines()
        .find_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (start, end) = fields.next()?.split_once('-')?;
            let start = u64::from_str_radix(start, 16).ok()?;
            let end = u64::from_str_radix(end, 16).ok()?;
            let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
            (start..end).contains(&address).then_some(address - start + offset)
        })
        .ok_or_else(|| io::Error::other("memtrace's own function is in no mapping"))
}

/// The first 112 bytes of `struct perf_event_attr`.
#[repr(C)]
#[derive(Default)]
struct EventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample: [u64; 3],
    flags: u64,
    wakeup_and_bp_type: u64,
    path: u64,
    offset: u64,
    rest: [u64; 5],
}
const _: () = assert!(size_of::<EventAttr>() == 112);

fn open_event(offset: u64, on_return: bool) -> io::Result<OwnedFd> {
    let device = "/sys/bus/event_source/devices/uprobe";
    let number = |name: &str, prefix: &str| -> io::Result<u32> {
        let path = format!("{device}/{name}");
        let text = fs::read_to_string(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("`{path}`: {error}")))?;
        let value = text.trim().trim_start_matches(prefix);
        value.parse().map_err(|_| io::Error::other(format!("`{path}` is no number")))
    };
    let mut attr = EventAttr {
        kind: number("type", "")?,
        size: size_of::<EventAttr>() as u32,
        path: EXECUTABLE.as_ptr() as u64,
        offset,
        ..EventAttr::default()
    };
    if on_return {
        attr.config = 1 << number("format/retprobe", "config:")?;
    }
    // SAFETY: `attr` and the path in it live through the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            std::process::id(),
            -1,
            -1,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that no one else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    /// perf event: the cookie; uprobe_multi: path.
    first: u64,
    offsets: u64,
    ref_counters: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    pid: u32,
    pad: u32,
}

fn create_link(attr: &mut LinkAttr) -> io::Result<OwnedFd> {
    // SAFETY: the addresses in it are of locals of the callers.
    let fd = unsafe { bpf(BPF_LINK_CREATE, attr) }?;
    // SAFETY: a fresh descriptor that no one else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn link_event(program: &OwnedFd, event: &OwnedFd, cookie: Option<u64>) -> io::Result<OwnedFd> {
    create_link(&mut LinkAttr {
        program: program.as_raw_fd() as u32,
        target: event.as_raw_fd() as u32,
        attach_type: ATTACH_PERF_EVENT,
        first: cookie.unwrap_or(0),
        ..LinkAttr::default()
    })
}

/// By one link for many functions of a file.
pub(super) fn multi_link() -> State {
    State::from_result(try_multi_link())
}

fn try_multi_link() -> io::Result<()> {
    let instructions = [Instruction::set(0, 0), Instruction::EXIT];
    let program = load_program(PROGRAM_KPROBE, ATTACH_UPROBE_MULTI, &instructions)
        .map_err(|(error, _)| error)?;
    // This link takes a path by itself, no magic one of /proc.
    let path = fs::read_link("/proc/self/exe")?;
    let path = CString::new(path.into_os_string().into_vec())?;
    let offsets = [function_offset()?];
    create_link(&mut LinkAttr {
        program: program.as_raw_fd() as u32,
        attach_type: ATTACH_UPROBE_MULTI,
        first: path.as_ptr() as u64,
        offsets: offsets.as_ptr() as u64,
        count: 1,
        pid: std::process::id(),
        ..LinkAttr::default()
    })
    .map(drop)
}
