//! `memtrace doctor`: what this host can do, which mode works, and what to try where one does not.
//!
//! [`gather`] looks and never fails: what cannot be read is `None`. [`examine`] is pure. Nothing
//! is changed on the host; the probes that [`crate::kernel::features`] tries are gone on return.

mod cgroups;
mod examine;
mod gather;
mod render;
mod runtimes;

use std::path::PathBuf;

use serde::Serialize;

pub use self::cgroups::CgroupFacts;
pub use self::examine::examine;
pub use self::gather::{gather, gather_host, gather_plain_host};
pub use self::runtimes::{Answer, RuntimeSocket};
use crate::plan::host::HostFacts;
use crate::tracee::capabilities::Capabilities;

/// What was found on this host. `None` is what could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DoctorFacts {
    pub host: HostFacts,
    /// The effective user id.
    pub uid: Option<u32>,
    pub capabilities: Option<Capabilities>,
    /// Whether system calls of this process go through a seccomp filter.
    pub has_seccomp_filter: Option<bool>,
    pub user_namespace: Namespace,
    pub pid_namespace: Namespace,
    pub cgroup_namespace: Namespace,
    pub cgroups: CgroupFacts,
    /// `none`, `integrity` or `confidentiality`.
    pub lockdown: Option<String>,
    pub perf_event_paranoid: Option<i64>,
    pub kptr_restrict: Option<i64>,
    pub unprivileged_bpf_disabled: Option<i64>,
    pub tracefs: Option<PathBuf>,
    pub debugfs: Option<PathBuf>,
    pub memlock: Option<MemlockLimit>,
    pub runtimes: Vec<RuntimeSocket>,
}

/// Whether a namespace is the one that the kernel started with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Namespace {
    Initial,
    Nested,
    #[default]
    Unknown,
}

/// RLIMIT_MEMLOCK; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemlockLimit {
    pub soft_bytes: Option<u64>,
    pub hard_bytes: Option<u64>,
}

/// The verdict, in the order of the text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DoctorReport {
    pub checks: Vec<Check>,
    pub modes: Vec<Mode>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub area: Area,
    pub name: String,
    pub state: State,
    pub detail: String,
    /// What to do about it; never missing where `state` is `Fail`.
    #[serde(rename = "try")]
    pub try_: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Area {
    Host,
    Privileges,
    Kernel,
    Cgroups,
    Containers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Ok,
    /// Works, but something is dearer or not seen.
    Warn,
    /// `record` does not work.
    Fail,
    /// Makes no difference; told because it is asked for.
    Info,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mode {
    pub mode: String,
    pub usable: bool,
    /// What it needs in general, or what it lacks here.
    pub needs: String,
}

impl DoctorReport {
    /// Whether `memtrace record --pid` works here: no check failed.
    pub fn can_record(&self) -> bool {
        self.checks.iter().all(|check| check.state != State::Fail)
    }
}
