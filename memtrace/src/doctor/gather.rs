//! Reads what [`super::DoctorFacts`] holds. Decides nothing.

use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use super::cgroups::{self, CgroupFacts, Mount};
use super::{DoctorFacts, MemlockLimit, Namespace, runtimes};
use crate::kernel::features;
use crate::plan::host::{Emulation, HostFacts};
use crate::tracee::capabilities::Capabilities;

/// Inode numbers of the namespaces that the kernel starts with (`linux/proc_ns.h`).
const INITIAL_CGROUP_NAMESPACE: u64 = 0xeffffffb;
const INITIAL_PID_NAMESPACE: u64 = 0xeffffffc;
const INITIAL_USER_NAMESPACE: u64 = 0xeffffffd;

/// Everything. Takes as long as [`features::probe`].
pub fn gather() -> DoctorFacts {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mounts = cgroups::mounts_of(&read_lossy("/proc/self/mountinfo"));
    let mounted_at = |kind: &str| mounts.iter().find(|m| m.kind == kind).map(place_of);
    DoctorFacts {
        host: gather_host(),
        uid: effective_uid(&status),
        capabilities: Capabilities::from_status(&status),
        has_seccomp_filter: field(&status, "Seccomp:").map(|mode| mode == "2"),
        user_namespace: namespace("user", INITIAL_USER_NAMESPACE),
        pid_namespace: namespace("pid", INITIAL_PID_NAMESPACE),
        cgroup_namespace: namespace("cgroup", INITIAL_CGROUP_NAMESPACE),
        cgroups: CgroupFacts::from_mounts(&mounts, |mount| {
            fs::read_to_string(mount.join("cgroup.controllers")).ok()
        }),
        lockdown: fs::read_to_string("/sys/kernel/security/lockdown")
            .ok()
            .and_then(|modes| chosen_mode(&modes)),
        perf_event_paranoid: setting("kernel/perf_event_paranoid"),
        kptr_restrict: setting("kernel/kptr_restrict"),
        unprivileged_bpf_disabled: setting("kernel/unprivileged_bpf_disabled"),
        tracefs: mounted_at("tracefs"),
        debugfs: mounted_at("debugfs"),
        memlock: memlock_limit(),
        runtimes: runtimes::find_sockets(std::env::var("DOCKER_HOST").ok().as_deref()),
    }
}

/// The machine with its features tried, which takes up to half a second.
pub fn gather_host() -> HostFacts {
    HostFacts { features: features::probe(), ..gather_plain_host() }
}

/// The part that the plan reads; tries nothing.
pub fn gather_plain_host() -> HostFacts {
    let (kernel_release, architecture) = release_and_machine();
    HostFacts {
        emulation: Emulation::of_release(&kernel_release),
        kernel_release,
        architecture,
        cpus: u32::try_from(system_constant(libc::_SC_NPROCESSORS_ONLN)).unwrap_or_default(),
        page_size_bytes: system_constant(libc::_SC_PAGESIZE),
        features: Vec::new(),
    }
}

fn place_of(mount: &Mount) -> PathBuf {
    mount.place.clone()
}

/// Mount points may be any bytes.
fn read_lossy(path: impl AsRef<Path>) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// `Uid:` real, effective, saved, file system.
fn effective_uid(status: &str) -> Option<u32> {
    field(status, "Uid:")?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// `[none] integrity confidentiality` → `none`
fn chosen_mode(modes: &str) -> Option<String> {
    let (_, rest) = modes.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode.to_owned())
}

fn setting(name: &str) -> Option<i64> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().parse().ok()
}

fn namespace(kind: &str, initial: u64) -> Namespace {
    match fs::read_link(Path::new("/proc/self/ns").join(kind)) {
        Ok(link) => namespace_of(&link.to_string_lossy(), initial),
        Err(_) => Namespace::Unknown,
    }
}

/// `pid:[4026531836]`
fn namespace_of(link: &str, initial: u64) -> Namespace {
    let inode = link.split_once('[').and_then(|(_, rest)| rest.strip_suffix(']'));
    match inode.and_then(|inode| inode.parse::<u64>().ok()) {
        Some(inode) if inode == initial => Namespace::Initial,
        Some(_) => Namespace::Nested,
        None => Namespace::Unknown,
    }
}

fn release_and_machine() -> (String, String) {
    let mut names = MaybeUninit::<libc::utsname>::zeroed();
    // SAFETY: `names` is large enough, and all zeroes is a valid `utsname` of empty names.
    let names = unsafe {
        libc::uname(names.as_mut_ptr());
        names.assume_init()
    };
    (text_of(&names.release), text_of(&names.machine))
}

fn text_of(name: &[libc::c_char]) -> String {
    let bytes: Vec<u8> =
        name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// 0 where the system does not tell.
fn system_constant(name: libc::c_int) -> u64 {
    // SAFETY: takes and returns a number.
    u64::try_from(unsafe { libc::sysconf(name) }).unwrap_or_default()
}

fn memlock_limit() -> Option<MemlockLimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to a live struct.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    let bytes = |value| (value != libc::RLIM_INFINITY).then_some(value);
    (result == 0).then(|| MemlockLimit {
        soft_bytes: bytes(limit.rlim_cur),
        hard_bytes: bytes(limit.rlim_max),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_user_counts() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t0\t0\n"), Some(0));
        assert_eq!(effective_uid("Name:\tx\n"), None);
    }

    #[test]
    fn the_lockdown_mode_is_the_one_in_brackets() {
        assert_eq!(chosen_mode("none [integrity] confidentiality\n").as_deref(), Some("integrity"));
        assert_eq!(chosen_mode("nonsense"), None);
    }

    #[test]
    fn a_namespace_is_known_by_its_number() {
        assert_eq!(namespace_of("pid:[4026531836]", INITIAL_PID_NAMESPACE), Namespace::Initial);
        assert_eq!(namespace_of("pid:[4026532211]", INITIAL_PID_NAMESPACE), Namespace::Nested);
        assert_eq!(namespace_of("pid:[x]", INITIAL_PID_NAMESPACE), Namespace::Unknown);
    }
}
