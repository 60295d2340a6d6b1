//! Uprobes that run a BPF program of a few instructions: nothing at all, which any tracer with the
//! same hooks pays at least, or the kernel's own walk by frame pointers.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

/// One armed probe; dropping it removes it.
pub struct Probe {
    _event: OwnedFd,
}

/// A program, loaded once; it keeps the maps that it names.
pub struct SmallProgram(OwnedFd);

/// One BPF instruction: opcode, registers (source in the upper half), offset, constant.
const fn instruction(opcode: u8, registers: u8, constant: i32) -> u64 {
    opcode as u64 | (registers as u64) << 8 | (constant as u32 as u64) << 32
}
const SET_CONSTANT: u8 = 0xb7;
const LOAD_WIDE: u8 = 0x18;
const CALL: u8 = 0x85;
const EXIT: u64 = instruction(0x95, 0, 0);

impl SmallProgram {
    /// `return 0`
    pub fn empty() -> Result<Self> {
        Self::load(&[instruction(SET_CONSTANT, 0, 0), EXIT])
    }

    /// `return bpf_get_stackid(context, map, BPF_F_USER_STACK)`: what tools that rely on frame
    /// pointers do at each call.
    pub fn kernel_walk() -> Result<Self> {
        const BPF_PSEUDO_MAP_FD: u8 = 1;
        const BPF_F_USER_STACK: i32 = 1 << 8;
        const GET_STACKID: i32 = 27;
        let map = stack_map()?;
        Self::load(&[
            instruction(LOAD_WIDE, 2 | BPF_PSEUDO_MAP_FD << 4, map.as_raw_fd()),
            0,
            instruction(SET_CONSTANT, 3, BPF_F_USER_STACK),
            instruction(CALL, 0, GET_STACKID),
            EXIT,
        ])
    }

    fn load(instructions: &[u64]) -> Result<Self> {
        // include/uapi/linux/bpf.h: `struct bpf_insn`, and of `union bpf_attr` what BPF_PROG_LOAD
        // reads first.
        const BPF_PROG_LOAD: i32 = 5;
        const BPF_PROG_TYPE_KPROBE: u32 = 2;
        #[repr(C)]
        struct ProgLoad {
            prog_type: u32,
            insn_cnt: u32,
            insns: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log_buf: u64,
            kern_version: u32,
            prog_flags: u32,
        }
        let license = c"GPL";
        let attributes = ProgLoad {
            prog_type: BPF_PROG_TYPE_KPROBE,
            insn_cnt: u32::try_from(instructions.len())?,
            insns: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: 0,
        };
        // SAFETY: bpf(2) reads `size_of::<ProgLoad>()` bytes of `attributes` and what it points
        // to; all of it outlives the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_LOAD,
                &raw const attributes,
                size_of::<ProgLoad>(),
            )
        };
        Ok(Self(owned(fd).context("load a BPF program of a few instructions")?))
    }

    /// Arms it in the process `pid` at `file_offset` of `file`.
    pub fn attach(&self, pid: u32, file: &str, file_offset: u64, on_return: bool) -> Result<Probe> {
        // include/uapi/linux/perf_event.h, PERF_ATTR_SIZE_VER1
        #[repr(C)]
        #[derive(Default)]
        struct PerfEventAttr {
            kind: u32,
            size: u32,
            config: u64,
            sample_period: u64,
            sample_type: u64,
            read_format: u64,
            flags: u64,
            wakeup_events: u32,
            bp_type: u32,
            uprobe_path: u64,
            probe_offset: u64,
        }
        const PERF_FLAG_FD_CLOEXEC: u64 = 8;
        const PERF_EVENT_IOC_ENABLE: u64 = 0x2400;
        const PERF_EVENT_IOC_SET_BPF: u64 = 0x4004_2408;
        let kind = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")
            .context("ask for the number of uprobe events")?;
        let path = CString::new(file)?;
        let attributes = PerfEventAttr {
            kind: kind.trim().parse()?,
            size: u32::try_from(size_of::<PerfEventAttr>())?,
            // format/retprobe: bit 0 of config
            config: u64::from(on_return),
            uprobe_path: path.as_ptr() as u64,
            probe_offset: file_offset,
            ..PerfEventAttr::default()
        };
        // SAFETY: perf_event_open(2) reads `attributes.size` bytes of `attributes` and the path,
        // which both outlive the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                i32::try_from(pid)?,
                -1,
                -1,
                PERF_FLAG_FD_CLOEXEC,
            )
        };
        let event = owned(fd).with_context(|| format!("probe {file}+{file_offset:#x}"))?;
        for (request, argument) in
            [(PERF_EVENT_IOC_SET_BPF, self.0.as_raw_fd()), (PERF_EVENT_IOC_ENABLE, 0)]
        {
            // SAFETY: both requests take an integer; the event's descriptor is open.
            let result = unsafe { libc::ioctl(event.as_raw_fd(), request, argument) };
            nix::errno::Errno::result(result)
                .with_context(|| format!("arm the probe at {file}+{file_offset:#x}"))?;
        }
        Ok(Probe { _event: event })
    }
}

/// A stack-trace map for stacks as deep as memtrace's own.
fn stack_map() -> Result<OwnedFd> {
    // include/uapi/linux/bpf.h: of `union bpf_attr` what BPF_MAP_CREATE reads first.
    const BPF_MAP_CREATE: i32 = 0;
    const BPF_MAP_TYPE_STACK_TRACE: u32 = 7;
    #[repr(C)]
    struct MapCreate {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
    }
    let attributes = MapCreate {
        map_type: BPF_MAP_TYPE_STACK_TRACE,
        key_size: 4,
        value_size: 127 * 8,
        max_entries: 1024,
        map_flags: 0,
    };
    // SAFETY: bpf(2) reads `size_of::<MapCreate>()` bytes of `attributes`.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const attributes, size_of::<MapCreate>())
    };
    owned(fd).context("make a map for stacks")
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
