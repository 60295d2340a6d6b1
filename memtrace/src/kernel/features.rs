//! What this host's kernel can do, found by doing it: maps are made, programs loaded, probes
//! attached to memtrace's own binary and hit. Nothing is concluded from the version.
//!
//! [`probe`] never fails and leaves nothing behind. Where the kernel refuses for want of a
//! privilege, the feature is [`FeatureState::Unknown`], because nothing was learned about it. It
//! takes half a second (measured on two busy CPUs), most of it waiting for the kernel to take
//! probes away again.

mod attach;
mod bpf;

use std::io;

use self::attach::{End, TryError};
use crate::plan::host::{Feature, FeatureState};

// The names, for who asks for one; see [`find`].
pub const BPF: &str = "bpf(2)";
pub const CHARGED_TO_CGROUP: &str = "map memory charged to the cgroup";
pub const KERNEL_BTF: &str = "kernel BTF";
pub const RING_BUFFER: &str = "ring buffer";
pub const GROWING_HASH: &str = "growing hash maps in probes";
pub const MMAPABLE_ARRAY: &str = "mmapable arrays";
pub const BATCH_LOOKUP: &str = "batch lookup";
pub const BPF_LOOP: &str = "bpf_loop";
pub const SEND_SIGNAL: &str = "bpf_send_signal";
pub const UPROBE: &str = "uprobe";
pub const RETURN_PROBE: &str = "return probe";
pub const ATTACH_COOKIE: &str = "attach cookie";
pub const RAW_TRACEPOINT: &str = "raw tracepoint";
pub const UPROBE_MULTI: &str = "uprobe_multi link";
pub const UPROBE_SESSION: &str = "uprobe session";
pub const BPF_STATS: &str = "BPF run-time statistics";

/// Without one of these, `memtrace record` does not work.
pub const REQUIRED: [&str; 7] =
    [BPF, RING_BUFFER, MMAPABLE_ARRAY, UPROBE, RETURN_PROBE, ATTACH_COOKIE, RAW_TRACEPOINT];

/// Tried because later versions of memtrace may use them; `record` does not.
pub const UNUSED: [&str; 4] = [KERNEL_BTF, SEND_SIGNAL, UPROBE_MULTI, UPROBE_SESSION];

/// The oldest upstream release with everything that is [`REQUIRED`], for advice. The verdict is
/// not taken from it.
pub const OLDEST_KERNEL: &str = "5.15";

/// The feature of that name.
pub fn find<'a>(features: &'a [Feature], name: &str) -> Option<&'a Feature> {
    features.iter().find(|feature| feature.name == name)
}

/// What [`REQUIRED`] names and this kernel does not have, with the reason.
pub(super) fn missing_required(features: &[Feature]) -> impl Iterator<Item = (&str, &str)> {
    features.iter().filter_map(|feature| match &feature.state {
        FeatureState::Missing { reason } if REQUIRED.contains(&feature.name.as_str()) => {
            Some((feature.name.as_str(), reason.as_str()))
        }
        _ => None,
    })
}

/// Tries each feature, in the order in which they build on each other.
pub fn probe() -> Vec<Feature> {
    CATALOGUE
        .iter()
        .map(|entry| Feature {
            name: entry.name.to_owned(),
            state: match (entry.attempt)() {
                Ok(()) => FeatureState::Available,
                Err(error) => state_of(entry.name, &error),
            },
            needed_by: entry.needed_by.to_owned(),
            without_it: entry.without_it.to_owned(),
        })
        .collect()
}

struct Entry {
    name: &'static str,
    attempt: fn() -> Result<(), TryError>,
    needed_by: &'static str,
    without_it: &'static str,
}

const CATALOGUE: [Entry; 16] = [
    Entry {
        name: BPF,
        attempt: try_bpf,
        needed_by: "everything that record does",
        without_it: "nothing can be traced; recordings can be reported",
    },
    Entry {
        name: CHARGED_TO_CGROUP,
        attempt: try_charged_to_cgroup,
        needed_by: "maps that grow without a limit to raise first",
        without_it: "the limit has to be raised first",
    },
    Entry {
        name: KERNEL_BTF,
        attempt: try_kernel_btf,
        needed_by: "nothing that record does today",
        without_it: "no difference",
    },
    Entry {
        name: RING_BUFFER,
        attempt: try_ring_buffer,
        needed_by: "the ordered events of mmap, munmap and mremap",
        without_it: "nothing can be traced",
    },
    Entry {
        name: GROWING_HASH,
        attempt: try_growing_hash,
        needed_by: "maps that take memory only as they fill",
        without_it: "entries come from the kernel's general allocator: dearer, and the kernel warns once in its log",
    },
    Entry {
        name: MMAPABLE_ARRAY,
        attempt: try_mmapable_array,
        needed_by: "handing the unwind tables to the kernel side",
        without_it: "no complete stacks, so nothing is traced",
    },
    Entry {
        name: BATCH_LOOKUP,
        attempt: try_batch_lookup,
        needed_by: "taking a snapshot of many blocks with few system calls",
        without_it: "one system call for every block: snapshots take longer",
    },
    Entry {
        name: BPF_LOOP,
        attempt: bpf_loop,
        needed_by: "walking stacks in one program",
        without_it: "stacks are walked by programs that call one another",
    },
    Entry {
        name: SEND_SIGNAL,
        attempt: try_send_signal,
        needed_by: "nothing that record does today",
        without_it: "no difference",
    },
    Entry {
        name: UPROBE,
        attempt: || attach::uprobe_fires(End::Entry),
        needed_by: "seeing every call of malloc, free and their kind",
        without_it: "nothing can be traced",
    },
    Entry {
        name: RETURN_PROBE,
        attempt: || attach::uprobe_fires(End::Return),
        needed_by: "seeing what an allocator returned",
        without_it: "nothing can be traced",
    },
    Entry {
        name: ATTACH_COOKIE,
        attempt: attach::cookie_arrives,
        needed_by: "telling the probed functions apart in one program",
        without_it: "nothing can be traced",
    },
    Entry {
        name: RAW_TRACEPOINT,
        attempt: try_raw_tracepoint,
        needed_by: "noticing that a traced process or thread has ended",
        without_it: "nothing can be traced",
    },
    Entry {
        name: UPROBE_MULTI,
        attempt: attach::uprobe_multi_fires,
        needed_by: "nothing that record does today; it would do without CAP_SYS_ADMIN",
        without_it: "no difference",
    },
    Entry {
        name: UPROBE_SESSION,
        attempt: attach::uprobe_session_fires,
        needed_by: "nothing that record does today; it would save a probe per allocator",
        without_it: "no difference",
    },
    Entry {
        name: BPF_STATS,
        attempt: try_stats,
        needed_by: "telling how much time the kernel side took",
        without_it: "the report says how often the probes ran, but not for how long",
    },
];

fn refused(step: &'static str) -> impl Fn(io::Error) -> TryError {
    move |source| TryError::Refused { step, source }
}

fn try_bpf() -> Result<(), TryError> {
    bpf::create_map(bpf::MAP_ARRAY, 4, 8, 1, 0).map_err(refused("create an array map"))?;
    let program = [bpf::set(0, 0), bpf::exit()];
    bpf::load_program(bpf::PROGRAM_KPROBE, 0, &program, &mut [])
        .map_err(refused("load a probe program"))
        .map(drop)
}

/// Makes a map in a child process that may lock no memory: the limit of this one stays as it is,
/// and the map goes with the child.
fn try_charged_to_cgroup() -> Result<(), TryError> {
    bpf::create_map(bpf::MAP_ARRAY, 4, 8, 1, 0).map_err(refused("create an array map"))?;
    // SAFETY: the child makes system calls only (setrlimit, bpf, _exit): nothing that allocates
    // or takes a lock which another thread might have held at the fork.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(refused("start a child process")(io::Error::last_os_error()));
    }
    if child == 0 {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the struct is initialised; lowering one's own limit is always allowed.
        let limited = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &none) };
        let code = match bpf::create_map(bpf::MAP_ARRAY, 4, 8, 1, 0) {
            _ if limited != 0 => 2,
            Ok(_) => 0,
            Err(_) => 1,
        };
        // SAFETY: ends this child at once, running no handlers of the parent's.
        unsafe { libc::_exit(code) };
    }
    match exit_code_of(child).map_err(refused("wait for a child process"))? {
        Some(0) => Ok(()),
        Some(1) => Err(TryError::Wrong(
            "this kernel charges maps to RLIMIT_MEMLOCK: with the limit at 0 none can be created"
                .to_owned(),
        )),
        _ => Err(TryError::Untried("the child process that tried it ended early".to_owned())),
    }
}

fn exit_code_of(child: libc::pid_t) -> io::Result<Option<i32>> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a live integer, `child` a child of this process.
        if unsafe { libc::waitpid(child, &mut status, 0) } >= 0 {
            return Ok(libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn try_kernel_btf() -> Result<(), TryError> {
    use std::io::Read;
    const MAGIC: u16 = 0xeb9f;
    let mut magic = [0u8; 2];
    std::fs::File::open("/sys/kernel/btf/vmlinux")
        .and_then(|mut file| file.read_exact(&mut magic))
        .map_err(refused("read `/sys/kernel/btf/vmlinux`"))?;
    match u16::from_ne_bytes(magic) {
        MAGIC => Ok(()),
        other => Err(TryError::Wrong(format!("`/sys/kernel/btf/vmlinux` starts with {other:#x}"))),
    }
}

fn page_bytes() -> usize {
    // SAFETY: asks for a constant of the system.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

fn try_ring_buffer() -> Result<(), TryError> {
    bpf::create_map(bpf::MAP_RINGBUF, 0, 0, page_bytes() as u32, 0)
        .map_err(refused("create a ring buffer"))
        .map(drop)
}

/// The kernel lets programs that may run anywhere (perf events) insert into a hash that allocates
/// as it grows only since it has an allocator made for that (6.1).
fn try_growing_hash() -> Result<(), TryError> {
    let map = bpf::create_map(bpf::MAP_HASH, 4, 8, 16, bpf::MAP_NO_PREALLOC)
        .map_err(refused("create a hash map without preallocation"))?;
    let mut program = vec![bpf::store_u32(10, -4, 0), bpf::copy(2, 10), bpf::add(2, -4)];
    program.extend(bpf::load_map(1, &map));
    program.extend([bpf::call(bpf::HELPER_MAP_LOOKUP_ELEM), bpf::set(0, 0), bpf::exit()]);
    bpf::load_program(bpf::PROGRAM_PERF_EVENT, 0, &program, &mut [])
        .map_err(refused("load a program that uses a hash map without preallocation"))
        .map(drop)
}

fn try_mmapable_array() -> Result<(), TryError> {
    const VALUE: u64 = 0x0123_4567_89ab_cdef;
    let map = bpf::create_map(bpf::MAP_ARRAY, 4, 8, 4, bpf::MAP_MMAPABLE)
        .map_err(refused("create an array map with BPF_F_MMAPABLE"))?;
    let bytes = page_bytes();
    // SAFETY: a new shared mapping of an open descriptor, at an address the kernel chooses.
    let values = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            std::os::fd::AsRawFd::as_raw_fd(&map),
            0,
        )
    };
    if values == libc::MAP_FAILED {
        return Err(refused("mmap an array map")(io::Error::last_os_error()));
    }
    // SAFETY: the mapping is a writable page, aligned, and element 2 of 4 lies inside.
    unsafe { values.cast::<u64>().add(2).write_volatile(VALUE) };
    let read = bpf::lookup::<1>(&map, 2);
    // SAFETY: the mapping made above, used no more.
    unsafe { libc::munmap(values, bytes) };
    match read.map_err(refused("read an array map"))? {
        [VALUE] => Ok(()),
        [other] => Err(TryError::Wrong(format!("wrote {VALUE:#x} by mmap and read {other:#x}"))),
    }
}

fn try_batch_lookup() -> Result<(), TryError> {
    const ENTRIES: u32 = 3;
    let map = bpf::create_map(bpf::MAP_HASH, 4, 8, 64, bpf::MAP_NO_PREALLOC)
        .map_err(refused("create a hash map without preallocation"))?;
    for key in 0..ENTRIES {
        bpf::update(&map, key, 1).map_err(refused("write to a hash map"))?;
    }
    match bpf::lookup_batch::<64>(&map).map_err(refused("look up a batch of a hash map"))? {
        ENTRIES => Ok(()),
        found => Err(TryError::Wrong(format!("a batch brought {found} of {ENTRIES} entries"))),
    }
}

/// Whether programs may call `bpf_loop`.
pub fn bpf_loop() -> Result<(), TryError> {
    match bpf::knows_helper(bpf::PROGRAM_KPROBE, bpf::HELPER_LOOP) {
        Ok(true) => Ok(()),
        Ok(false) => Err(TryError::Wrong(
            "the verifier knows no such helper for probes (it came with 5.17)".to_owned(),
        )),
        Err(source) => Err(refused("ask the verifier about a helper")(source)),
    }
}

fn try_send_signal() -> Result<(), TryError> {
    let program = [
        bpf::set(1, libc::SIGUSR1),
        bpf::call(bpf::HELPER_SEND_SIGNAL),
        bpf::set(0, 0),
        bpf::exit(),
    ];
    bpf::load_program(bpf::PROGRAM_KPROBE, 0, &program, &mut [])
        .map_err(refused("load a program that sends a signal"))
        .map(drop)
}

fn try_raw_tracepoint() -> Result<(), TryError> {
    let program = [bpf::set(0, 0), bpf::exit()];
    let program = bpf::load_program(bpf::PROGRAM_RAW_TRACEPOINT, 0, &program, &mut [])
        .map_err(refused("load a raw tracepoint program"))?;
    bpf::open_raw_tracepoint(c"sched_process_exit", &program)
        .map_err(refused("attach to raw tracepoint `sched_process_exit`"))
        .map(drop)
}

fn try_stats() -> Result<(), TryError> {
    bpf::enable_stats().map_err(refused("turn on BPF statistics")).map(drop)
}

fn state_of(name: &str, error: &TryError) -> FeatureState {
    match error {
        TryError::Wrong(reason) => FeatureState::Missing { reason: reason.clone() },
        TryError::Untried(reason) => FeatureState::Unknown { reason: reason.clone() },
        TryError::Refused { step, source } => {
            let (meaning, says_missing) = refusal(source);
            let reason = format!("failed to {step}: {meaning}");
            // Whether bpf(2) may be used is the question there, so a refusal is its answer.
            if says_missing || name == BPF {
                FeatureState::Missing { reason }
            } else {
                FeatureState::Unknown { reason }
            }
        }
    }
}

/// What an errno of these calls means, and whether it says that the kernel lacks the feature.
fn refusal(error: &io::Error) -> (String, bool) {
    /// Kernel-internal "not supported", which leaks out of bpf(2) and perf_event_open(2).
    const ENOTSUPP: i32 = 524;
    let (meaning, says_missing) = match error.raw_os_error() {
        Some(libc::EPERM) => ("not permitted (EPERM)", false),
        Some(libc::EACCES) => ("permission denied (EACCES)", false),
        Some(libc::EINVAL) => ("this kernel does not know it (EINVAL)", true),
        Some(libc::E2BIG) => ("this kernel does not know its attributes (E2BIG)", true),
        Some(libc::ENOSYS) => ("this kernel is built without the system call (ENOSYS)", true),
        Some(libc::ENOENT) => ("this kernel has no such thing (ENOENT)", true),
        Some(libc::EOPNOTSUPP | ENOTSUPP) => ("this kernel does not support it", true),
        Some(libc::ENOMEM) => ("no memory for it (ENOMEM)", false),
        Some(libc::EMFILE | libc::ENFILE) => ("too many open files (EMFILE, ENFILE)", false),
        _ => return (error.to_string(), false),
    };
    (meaning.to_owned(), says_missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused_with(errno: i32) -> TryError {
        TryError::Refused { step: "x", source: io::Error::from_raw_os_error(errno) }
    }

    #[test]
    fn a_missing_privilege_says_nothing_about_the_kernel() {
        for errno in [libc::EPERM, libc::EACCES, libc::ENOMEM, libc::EMFILE, libc::EIO] {
            let state = state_of(UPROBE, &refused_with(errno));
            assert!(matches!(state, FeatureState::Unknown { .. }), "{errno}: {state:?}");
        }
        assert!(matches!(state_of(BPF, &refused_with(libc::EPERM)), FeatureState::Missing { .. }));
    }

    #[test]
    fn a_kernel_that_does_not_know_a_thing_lacks_it() {
        for errno in [libc::EINVAL, libc::E2BIG, libc::ENOSYS, libc::ENOENT, libc::EOPNOTSUPP, 524]
        {
            let state = state_of(UPROBE_MULTI, &refused_with(errno));
            assert!(matches!(state, FeatureState::Missing { .. }), "{errno}: {state:?}");
        }
    }

    #[test]
    fn every_required_feature_is_tried_once() {
        for name in REQUIRED {
            assert_eq!(CATALOGUE.iter().filter(|entry| entry.name == name).count(), 1, "{name}");
        }
    }

    #[test]
    fn only_what_is_required_and_surely_missing_is_blamed() {
        let feature = |name: &str, state| Feature {
            name: name.to_owned(),
            state,
            needed_by: String::new(),
            without_it: String::new(),
        };
        let missing = || FeatureState::Missing { reason: "no such helper".to_owned() };
        let features = [
            feature(BPF, FeatureState::Available),
            feature(ATTACH_COOKIE, missing()),
            feature(UPROBE_MULTI, missing()),
            feature(UPROBE, FeatureState::Unknown { reason: "not permitted".to_owned() }),
        ];
        let blamed: Vec<_> = missing_required(&features).collect();
        assert_eq!(blamed, [(ATTACH_COOKIE, "no such helper")]);
    }

    #[test]
    fn an_unknown_helper_is_told_from_a_known_one() {
        const NO_HELPER: i32 = 1_000_000;
        assert!(bpf::knows_helper(bpf::PROGRAM_KPROBE, bpf::HELPER_GET_ATTACH_COOKIE).unwrap());
        assert!(!bpf::knows_helper(bpf::PROGRAM_KPROBE, NO_HELPER).unwrap());
        // Known to the kernel, not to this kind of program.
        const SKB_STORE_BYTES: i32 = 9;
        assert!(!bpf::knows_helper(bpf::PROGRAM_KPROBE, SKB_STORE_BYTES).unwrap());
    }
}
