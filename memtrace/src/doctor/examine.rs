//! From facts to a verdict. Pure.
//!
//! What was tried outweighs what is known by name: a missing capability that this kernel did not
//! ask for is a warning, and a feature that could not be tried for want of a privilege is not held
//! against the kernel.

use super::runtimes::Answer;
use super::{Area, Check, DoctorFacts, DoctorReport, MemlockLimit, Mode, Namespace, State};
use crate::kernel::features::{self, BPF, CHARGED_TO_CGROUP, REQUIRED, find};
use crate::plan::host::FeatureState;

/// Below this the maps of a small trace do not fit, where they are charged to RLIMIT_MEMLOCK.
const LEAST_MEMLOCK_BYTES: u64 = 64 << 20;

/// The facts, judged.
pub fn examine(facts: &DoctorFacts) -> DoctorReport {
    let mut checks = Vec::new();
    check_host(facts, &mut checks);
    check_privileges(facts, &mut checks);
    check_kernel(facts, &mut checks);
    check_cgroups(facts, &mut checks);
    check_containers(facts, &mut checks);
    let modes = modes_of(facts, &checks);
    DoctorReport { checks, modes }
}

fn check(area: Area, name: &str, state: State, detail: impl Into<String>) -> Check {
    Check { area, name: name.to_owned(), state, detail: detail.into(), try_: None }
}

impl Check {
    fn advise(mut self, advice: impl Into<String>) -> Self {
        self.try_ = Some(advice.into());
        self
    }
}

/// Whether all that `record` needs of the kernel was seen to work, by this process.
fn all_required_work(facts: &DoctorFacts) -> bool {
    REQUIRED.iter().all(|name| works(facts, name))
}

fn works(facts: &DoctorFacts, name: &str) -> bool {
    find(&facts.host.features, name).is_some_and(|f| f.state == FeatureState::Available)
}

fn check_host(facts: &DoctorFacts, checks: &mut Vec<Check>) {
    let host = &facts.host;
    checks.push(check(Area::Host, "kernel", State::Info, format!("Linux {}", host.kernel_release)));
    let architecture = |state| check(Area::Host, "architecture", state, &host.architecture);
    checks.push(match host.architecture.as_str() {
        "x86_64" => architecture(State::Ok),
        _ => architecture(State::Fail)
            .advise("run memtrace on an x86-64 machine: it knows no other instruction set yet"),
    });
}

fn check_privileges(facts: &DoctorFacts, checks: &mut Vec<Check>) {
    let user = match facts.uid {
        Some(0) => "root".to_owned(),
        Some(uid) => format!("uid {uid}"),
        None => "unknown: failed to read `/proc/self/status`".to_owned(),
    };
    checks.push(check(Area::Privileges, "user", State::Info, user));
    check_capabilities(facts, checks);

    const NAMESPACE: &str = "user namespace";
    checks.push(match facts.user_namespace {
        Namespace::Initial => check(Area::Privileges, NAMESPACE, State::Ok, "the host's"),
        Namespace::Unknown => check(Area::Privileges, NAMESPACE, State::Info, "unknown"),
        Namespace::Nested if all_required_work(facts) => {
            check(Area::Privileges, NAMESPACE, State::Info, "not the host's, and yet probes work")
        }
        Namespace::Nested => check(
            Area::Privileges,
            NAMESPACE,
            State::Fail,
            "not the host's: capabilities held in it do not count for BPF and uprobes",
        )
        .advise("run memtrace on the host, as its root, not in a rootless container"),
    });

    checks.push(match facts.pid_namespace {
        Namespace::Initial => check(Area::Privileges, "pid namespace", State::Ok, "the host's"),
        Namespace::Unknown => check(Area::Privileges, "pid namespace", State::Info, "unknown"),
        Namespace::Nested => check(
            Area::Privileges,
            "pid namespace",
            State::Fail,
            "not the host's: the kernel side knows processes by the host's numbers",
        )
        .advise("run memtrace on the host, or in a container started with `--pid=host`"),
    });

    if facts.has_seccomp_filter == Some(true) {
        const NAME: &str = "seccomp";
        let filter = |state, detail| check(Area::Privileges, NAME, state, detail);
        let has_admin = facts.capabilities.is_some_and(|held| held.has("CAP_SYS_ADMIN"));
        checks.push(if works(facts, BPF) {
            filter(State::Info, "a filter is on, and lets bpf(2) through")
        } else if !has_admin {
            // Docker's and podman's own filters open with the capability.
            filter(State::Info, "a filter is on; the usual ones ask for CAP_SYS_ADMIN")
        } else {
            filter(State::Warn, "a filter is on, and may be what refuses bpf(2)")
                .advise("start the container with `--security-opt seccomp=unconfined`")
        });
    }
}

fn check_capabilities(facts: &DoctorFacts, checks: &mut Vec<Check>) {
    let Some(held) = facts.capabilities else {
        checks.push(check(
            Area::Privileges,
            "capabilities",
            State::Warn,
            "unknown: failed to read `CapEff` of `/proc/self/status`",
        ));
        return;
    };
    // What a capability is for, which other one includes it, and what its absence means.
    let is_root = facts.uid == Some(0);
    let unless = |works| if works { State::Warn } else { State::Fail };
    let table = [
        (
            "CAP_SYS_ADMIN",
            "to attach uprobes and to open mapped files",
            None,
            unless(all_required_work(facts)),
        ),
        (
            "CAP_SYS_PTRACE",
            "to read the memory, the files and the namespaces of another process",
            None,
            State::Fail,
        ),
        (
            "CAP_BPF",
            "to create BPF maps and load programs",
            Some("CAP_SYS_ADMIN"),
            unless(works(facts, BPF)),
        ),
        (
            "CAP_PERFMON",
            "to load probe programs and to let them read memory",
            Some("CAP_SYS_ADMIN"),
            unless(works(facts, BPF)),
        ),
        (
            "CAP_DAC_READ_SEARCH",
            if is_root {
                "to read the files in /proc of processes that are not root's"
            } else {
                "to read the files in /proc of other users' processes"
            },
            Some("CAP_DAC_OVERRIDE"),
            if is_root { State::Warn } else { State::Fail },
        ),
        (
            "CAP_CHECKPOINT_RESTORE",
            "to open mapped files that were replaced since (`/proc/PID/map_files`)",
            Some("CAP_SYS_ADMIN"),
            State::Warn,
        ),
    ];
    for (name, purpose, included_in, state_without) in table {
        let included_in = included_in.filter(|other| held.has(other));
        checks.push(match included_in {
            _ if held.has(name) => check(Area::Privileges, name, State::Ok, purpose),
            Some(other) => check(
                Area::Privileges,
                name,
                State::Ok,
                format!("{purpose}; not held, but {other} includes it"),
            ),
            None => {
                check(Area::Privileges, name, state_without, format!("missing; needed {purpose}"))
                    .advise(advice_for_capability(name, is_root))
            }
        });
    }
}

/// Docker before 23 knows no CAP_BPF, so the capability that includes it is named instead.
fn advice_for_capability(name: &str, is_root: bool) -> String {
    let option = match name {
        "CAP_BPF" | "CAP_PERFMON" | "CAP_CHECKPOINT_RESTORE" => "SYS_ADMIN",
        name => name.trim_start_matches("CAP_"),
    };
    if is_root {
        format!(
            "this root is a restricted one: start its container with `--cap-add {option}`, or \
             leave {name} in the unit's `CapabilityBoundingSet`"
        )
    } else {
        format!("run memtrace with `sudo`, or its container with `--cap-add {option}`")
    }
}

fn check_kernel(facts: &DoctorFacts, checks: &mut Vec<Check>) {
    let lacks_privilege =
        checks.iter().any(|c| c.area == Area::Privileges && c.state == State::Fail);
    for feature in &facts.host.features {
        let is_required = REQUIRED.contains(&feature.name.as_str());
        let is_used = !features::UNUSED.contains(&feature.name.as_str());
        let entry = |state, detail| check(Area::Kernel, &feature.name, state, detail);
        checks.push(match &feature.state {
            FeatureState::Available if is_used => entry(State::Ok, feature.needed_by.clone()),
            FeatureState::Available => {
                entry(State::Info, format!("works; needed by {}", feature.needed_by))
            }
            // The privileges above are to blame; with them it can be told.
            FeatureState::Missing { reason } if lacks_privilege && feature.name == BPF => {
                entry(State::Warn, reason.clone())
            }
            FeatureState::Unknown { .. } if lacks_privilege => {
                entry(State::Info, "cannot be tried with these privileges".to_owned())
            }
            FeatureState::Unknown { reason } | FeatureState::Missing { reason } => {
                let detail = format!("{reason}; without it: {}", feature.without_it);
                match (is_required, is_used) {
                    (true, _) => {
                        let advice = advice_for(facts, &feature.name, &feature.state);
                        entry(State::Fail, detail).advise(advice)
                    }
                    (false, true) => entry(State::Warn, detail),
                    (false, false) => entry(State::Info, format!("{reason}; not needed")),
                }
            }
        });
    }
    for name in REQUIRED.iter().filter(|name| find(&facts.host.features, name).is_none()) {
        checks.push(
            check(Area::Kernel, name, State::Fail, "was not tried")
                .advise("run `memtrace doctor` again, and report it when it stays so"),
        );
    }
    checks.push(memlock_check(facts));
    checks.push(lockdown_check(facts));
    push_settings(facts, checks);
}

fn is_untried(state: &FeatureState) -> bool {
    matches!(state, FeatureState::Unknown { .. })
}

/// What to try where a required feature is not there although no privilege is missing.
fn advice_for(facts: &DoctorFacts, name: &str, state: &FeatureState) -> String {
    let is_locked = facts.lockdown.as_deref().is_some_and(|mode| mode != "none");
    let is_refusal = is_untried(state) || name == BPF;
    match () {
        () if is_refusal && facts.has_seccomp_filter == Some(true) => {
            "the capabilities are there, a seccomp filter is in the way: start the container with \
             `--security-opt seccomp=unconfined`"
                .to_owned()
        }
        () if is_refusal && is_locked => {
            "the capabilities are there, kernel lockdown is in the way: boot with `lockdown=none`, \
             or without Secure Boot"
                .to_owned()
        }
        () if is_refusal => {
            "the capabilities are there: look for a security module's denial in the kernel log \
             (`dmesg | grep -iE 'denied|bpf'`)"
                .to_owned()
        }
        () => format!(
            "use a kernel with it: Linux {} or newer, built with CONFIG_BPF_SYSCALL, \
             CONFIG_BPF_EVENTS and CONFIG_UPROBE_EVENTS (Debian 12 and Ubuntu 24.04 have one)",
            features::OLDEST_KERNEL
        ),
    }
}

fn memlock_check(facts: &DoctorFacts) -> Check {
    const NAME: &str = "RLIMIT_MEMLOCK";
    let size = |bytes: Option<u64>| match bytes {
        None => "unlimited".to_owned(),
        Some(bytes) => format!("{} KiB", bytes / 1024),
    };
    let Some(MemlockLimit { soft_bytes, hard_bytes }) = facts.memlock else {
        return check(Area::Kernel, NAME, State::Info, "unknown");
    };
    let limit = size(soft_bytes);
    let charged = find(&facts.host.features, CHARGED_TO_CGROUP).map(|feature| &feature.state);
    let may_raise = facts.capabilities.is_some_and(|held| held.has("CAP_SYS_RESOURCE"));
    let is_enough = |bytes: Option<u64>| bytes.is_none_or(|bytes| bytes >= LEAST_MEMLOCK_BYTES);
    match charged {
        Some(FeatureState::Missing { .. }) if is_enough(soft_bytes) => {
            check(Area::Kernel, NAME, State::Ok, format!("{limit}; maps are charged to it"))
        }
        Some(FeatureState::Missing { .. }) if may_raise || is_enough(hard_bytes) => check(
            Area::Kernel,
            NAME,
            State::Ok,
            format!("{limit}; maps are charged to it, and memtrace can raise it"),
        ),
        Some(FeatureState::Missing { .. }) => check(
            Area::Kernel,
            NAME,
            State::Fail,
            format!("{limit}; maps are charged to it, and it cannot be raised from here"),
        )
        .advise("run `ulimit -l unlimited` as root first, or start the container with `--ulimit memlock=-1`"),
        Some(FeatureState::Available) => check(
            Area::Kernel,
            NAME,
            State::Info,
            format!("{limit}; makes no difference, maps are not charged to it"),
        ),
        _ => check(Area::Kernel, NAME, State::Info, limit),
    }
}

fn lockdown_check(facts: &DoctorFacts) -> Check {
    const NAME: &str = "lockdown";
    match facts.lockdown.as_deref() {
        None => check(
            Area::Kernel,
            NAME,
            State::Info,
            "not told by this kernel, or securityfs is not mounted",
        ),
        Some("none") => check(Area::Kernel, NAME, State::Ok, "none"),
        Some(mode) if all_required_work(facts) => check(
            Area::Kernel,
            NAME,
            State::Info,
            format!("{mode}, and yet all that is needed works"),
        ),
        Some(mode) => check(
            Area::Kernel,
            NAME,
            State::Warn,
            format!(
                "{mode}: the kernel may refuse BPF and tracing, whatever capabilities are held"
            ),
        )
        .advise("boot with `lockdown=none`, or without Secure Boot"),
    }
}

/// Settings that people ask about, and why they do not matter.
fn push_settings(facts: &DoctorFacts, checks: &mut Vec<Check>) {
    let settings = [
        ("perf_event_paranoid", facts.perf_event_paranoid, "binds only who lacks CAP_PERFMON"),
        ("kptr_restrict", facts.kptr_restrict, "no kernel addresses are read"),
        (
            "unprivileged_bpf_disabled",
            facts.unprivileged_bpf_disabled,
            "binds only who lacks CAP_BPF",
        ),
    ];
    for (name, value, meaning) in settings {
        let detail = match value {
            Some(value) => format!("{value}; {meaning}"),
            None => format!("not set on this kernel; {meaning}"),
        };
        checks.push(check(Area::Kernel, name, State::Info, detail));
    }
    for (name, place) in [("tracefs", &facts.tracefs), ("debugfs", &facts.debugfs)] {
        let detail = match place {
            Some(place) => format!("mounted at `{}`; not needed", place.display()),
            None => "not mounted; not needed".to_owned(),
        };
        checks.push(check(Area::Kernel, name, State::Info, detail));
    }
}

fn check_cgroups(facts: &DoctorFacts, checks: &mut Vec<Check>) {
    let cgroups = &facts.cgroups;
    let version = match (cgroups.has_v1, &cgroups.v2) {
        (true, Some(_)) => "1 and 2 (hybrid)",
        (true, None) => "1",
        (false, Some(_)) => "2",
        (false, None) => "none mounted here",
    };
    checks.push(check(Area::Cgroups, "version", State::Info, version));
    const MEMORY: &str = "memory controller";
    checks.push(match (&cgroups.v1_memory, &cgroups.v2) {
        (Some(place), _) => {
            check(Area::Cgroups, MEMORY, State::Ok, format!("version 1, at `{}`", place.display()))
        }
        (None, Some(place)) if cgroups.v2_has_memory => {
            check(Area::Cgroups, MEMORY, State::Ok, format!("version 2, at `{}`", place.display()))
        }
        _ => check(
            Area::Cgroups,
            MEMORY,
            State::Warn,
            "not mounted here: what a container may use and does use is not reported",
        )
        .advise("in a container, add `--cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup:ro`"),
    });
    checks.push(match facts.cgroup_namespace {
        Namespace::Initial => check(Area::Cgroups, "namespace", State::Ok, "the host's"),
        Namespace::Unknown => check(Area::Cgroups, "namespace", State::Info, "unknown"),
        Namespace::Nested => check(
            Area::Cgroups,
            "namespace",
            State::Warn,
            "not the host's: containers' groups are seen by relative paths, or not at all",
        )
        .advise("start memtrace's container with `--cgroupns=host`"),
    });
}

fn check_containers(facts: &DoctorFacts, checks: &mut Vec<Check>) {
    for socket in &facts.runtimes {
        let place = socket.path.display();
        checks.push(match &socket.answer {
            Answer::Listens => {
                check(Area::Containers, &socket.runtime, State::Ok, format!("`{place}` answers"))
            }
            Answer::Refused { reason, is_permission } => check(
                Area::Containers,
                &socket.runtime,
                State::Warn,
                format!("`{place}` cannot be reached: {reason}"),
            )
            .advise(if *is_permission {
                "run memtrace with `sudo`, or as a member of the socket's group".to_owned()
            } else {
                format!("start the daemon of {}, or name containers by id", socket.runtime)
            }),
        });
    }
    if facts.runtimes.is_empty() {
        checks.push(check(
            Area::Containers,
            "runtimes",
            State::Info,
            "no runtime's socket here: names are read from the runtimes' state files, ids from cgroups",
        ));
    }
}

fn modes_of(facts: &DoctorFacts, checks: &[Check]) -> Vec<Mode> {
    let failed: Vec<&str> = checks
        .iter()
        .filter(|check| check.state == State::Fail)
        .map(|check| check.name.as_str())
        .collect();
    let usable = failed.is_empty();
    let record = |mode: &str, needs: String| Mode {
        mode: format!("record {mode}"),
        usable,
        needs: if usable { needs } else { format!("fails on: {}", failed.join(", ")) },
    };
    let listening: Vec<&str> = facts
        .runtimes
        .iter()
        .filter(|socket| socket.answer == Answer::Listens)
        .map(|socket| socket.runtime.as_str())
        .collect();
    let container = match listening.as_slice() {
        [] => "all there, but by id only: no runtime answers to give names".to_owned(),
        runtimes => format!("all there; names from {}", runtimes.join(", ")),
    };
    vec![
        record("--pid", "all there".to_owned()),
        record("--container", container),
        record("-- COMMAND", "all there".to_owned()),
        Mode {
            mode: "report".to_owned(),
            usable: true,
            needs: "nothing but the recording".to_owned(),
        },
    ]
}

#[cfg(test)]
mod tests;
