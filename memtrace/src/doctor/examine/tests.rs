//! One thing is wrong at a time, on a host where everything else is right.

use std::path::PathBuf;

use super::super::{CgroupFacts, RuntimeSocket};
use super::*;
use crate::plan::host::{Feature, HostFacts};
use crate::tracee::capabilities::Capabilities;

const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const SYS_RESOURCE: u32 = 24;
const DAC_OVERRIDE: u32 = 1;
const ALL: u64 = (1 << 41) - 1;

fn feature(name: &str) -> Feature {
    Feature {
        name: name.to_owned(),
        state: FeatureState::Available,
        needed_by: "what needs it".to_owned(),
        without_it: "what is lost".to_owned(),
    }
}

fn good_host() -> DoctorFacts {
    let others = [
        features::KERNEL_BTF,
        features::CHARGED_TO_CGROUP,
        features::GROWING_HASH,
        features::BPF_LOOP,
        features::BPF_STATS,
    ];
    DoctorFacts {
        host: HostFacts {
            kernel_release: "6.1.0".to_owned(),
            architecture: "x86_64".to_owned(),
            features: REQUIRED.iter().copied().chain(others).map(feature).collect(),
            ..HostFacts::default()
        },
        uid: Some(0),
        capabilities: Some(Capabilities(ALL)),
        has_seccomp_filter: Some(false),
        user_namespace: Namespace::Initial,
        pid_namespace: Namespace::Initial,
        cgroup_namespace: Namespace::Initial,
        cgroups: CgroupFacts {
            v2: Some(PathBuf::from("/sys/fs/cgroup")),
            v2_has_memory: true,
            ..CgroupFacts::default()
        },
        lockdown: Some("none".to_owned()),
        perf_event_paranoid: Some(3),
        memlock: Some(MemlockLimit { soft_bytes: Some(65_536), hard_bytes: Some(65_536) }),
        ..DoctorFacts::default()
    }
}

fn set(facts: &mut DoctorFacts, name: &str, state: FeatureState) {
    facts.host.features.iter_mut().find(|feature| feature.name == name).unwrap().state = state;
}

fn missing() -> FeatureState {
    FeatureState::Missing { reason: "this kernel does not know it (EINVAL)".to_owned() }
}

fn refused() -> FeatureState {
    FeatureState::Unknown { reason: "not permitted (EPERM)".to_owned() }
}

fn without(bits: &[u32]) -> Option<Capabilities> {
    Some(Capabilities(bits.iter().fold(ALL, |held, bit| held & !(1 << bit))))
}

fn refuse_bpf(facts: &mut DoctorFacts) {
    for name in REQUIRED {
        set(facts, name, refused());
    }
    set(facts, BPF, FeatureState::Missing { reason: "not permitted (EPERM)".to_owned() });
}

fn the<'a>(report: &'a DoctorReport, name: &str) -> &'a Check {
    let mut found = report.checks.iter().filter(|check| check.name == name);
    let check = found.next().unwrap_or_else(|| panic!("no check `{name}`"));
    assert!(found.next().is_none(), "`{name}` twice");
    check
}

fn advice<'a>(report: &'a DoctorReport, name: &str) -> &'a str {
    the(report, name).try_.as_deref().unwrap_or_else(|| panic!("no advice for `{name}`"))
}

fn failed(report: &DoctorReport) -> Vec<&str> {
    let failed = report.checks.iter().filter(|check| check.state == State::Fail);
    failed.map(|check| check.name.as_str()).collect()
}

#[test]
fn a_good_host_records_without_a_warning() {
    let report = examine(&good_host());
    assert!(report.can_record());
    assert!(report.checks.iter().all(|check| check.state != State::Warn));
    assert!(report.modes.iter().all(|mode| mode.usable));
}

#[test]
fn a_missing_capability_is_named_with_the_option_that_gives_it() {
    let mut facts = good_host();
    facts.capabilities = without(&[SYS_PTRACE]);
    let report = examine(&facts);
    assert_eq!(failed(&report), ["CAP_SYS_PTRACE"]);
    assert!(advice(&report, "CAP_SYS_PTRACE").contains("--cap-add SYS_PTRACE"));
    assert!(!report.can_record());
    let usable: Vec<_> = report.modes.iter().filter(|mode| mode.usable).collect();
    assert_eq!(usable.len(), 1);
    assert_eq!(usable[0].mode, "report");
    assert_eq!(report.modes[0].needs, "fails on: CAP_SYS_PTRACE");
}

#[test]
fn the_capability_to_administer_includes_those_of_bpf() {
    let mut facts = good_host();
    facts.capabilities = Some(Capabilities(1 << SYS_ADMIN | 1 << SYS_PTRACE | 1 << DAC_OVERRIDE));
    facts.uid = Some(1000);
    let report = examine(&facts);
    assert!(report.can_record(), "{:?}", failed(&report));
    assert!(the(&report, "CAP_BPF").detail.contains("CAP_SYS_ADMIN includes it"));
    assert!(the(&report, "CAP_DAC_READ_SEARCH").detail.contains("CAP_DAC_OVERRIDE includes it"));
}

#[test]
fn without_any_capability_the_kernel_is_not_blamed() {
    let mut facts = good_host();
    facts.uid = Some(65_534);
    facts.capabilities = Some(Capabilities(0));
    refuse_bpf(&mut facts);
    let report = examine(&facts);
    assert_eq!(
        failed(&report),
        ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF", "CAP_PERFMON", "CAP_DAC_READ_SEARCH"]
    );
    assert_eq!(the(&report, features::UPROBE).state, State::Info);
}

#[test]
fn a_capability_that_this_kernel_did_not_ask_for_is_a_warning() {
    let mut facts = good_host();
    facts.capabilities = without(&[SYS_ADMIN]);
    let report = examine(&facts);
    assert_eq!(the(&report, "CAP_SYS_ADMIN").state, State::Warn);
    assert!(report.can_record());
}

#[test]
fn an_old_kernel_is_told_by_what_it_lacks() {
    let mut facts = good_host();
    // The release says nothing: a distribution may carry attach cookies in it.
    facts.host.kernel_release = "5.14.0-el9".to_owned();
    assert!(examine(&facts).can_record());
    set(&mut facts, features::ATTACH_COOKIE, missing());
    let report = examine(&facts);
    assert_eq!(failed(&report), ["attach cookie"]);
    assert!(advice(&report, "attach cookie").contains("Linux 5.15 or newer"));
    assert!(the(&report, "attach cookie").detail.contains("what is lost"));
}

#[test]
fn without_bpf_loop_stacks_are_walked_another_way() {
    let mut facts = good_host();
    set(&mut facts, features::BPF_LOOP, missing());
    let report = examine(&facts);
    assert_eq!(the(&report, features::BPF_LOOP).state, State::Warn);
    assert!(report.can_record());
}

#[test]
fn a_kernel_without_btf_records() {
    let mut facts = good_host();
    set(&mut facts, features::KERNEL_BTF, missing());
    let report = examine(&facts);
    assert_eq!(the(&report, features::KERNEL_BTF).state, State::Info);
    assert!(the(&report, features::KERNEL_BTF).detail.ends_with("not needed"));
    assert!(report.can_record());
}

#[test]
fn a_feature_that_saves_cost_is_a_warning_where_it_lacks() {
    let mut facts = good_host();
    set(&mut facts, features::BPF_STATS, missing());
    let report = examine(&facts);
    assert_eq!(the(&report, features::BPF_STATS).state, State::Warn);
    assert!(report.can_record());
}

#[test]
fn lockdown_is_named_where_it_refuses_although_all_capabilities_are_held() {
    let mut facts = good_host();
    facts.lockdown = Some("confidentiality".to_owned());
    assert!(examine(&facts).can_record());
    refuse_bpf(&mut facts);
    let report = examine(&facts);
    assert_eq!(failed(&report), REQUIRED);
    assert!(advice(&report, BPF).contains("lockdown=none"));
    assert_eq!(the(&report, "lockdown").state, State::Warn);
}

#[test]
fn a_seccomp_filter_is_named_where_it_refuses() {
    let mut facts = good_host();
    facts.has_seccomp_filter = Some(true);
    assert_eq!(the(&examine(&facts), "seccomp").state, State::Info);
    refuse_bpf(&mut facts);
    assert!(advice(&examine(&facts), BPF).contains("seccomp=unconfined"));
}

#[test]
fn a_refusal_without_a_known_cause_leads_to_the_kernel_log() {
    let mut facts = good_host();
    refuse_bpf(&mut facts);
    assert!(advice(&examine(&facts), BPF).contains("dmesg"));
}

#[test]
fn a_nested_user_namespace_outweighs_its_capabilities() {
    let mut facts = good_host();
    facts.user_namespace = Namespace::Nested;
    refuse_bpf(&mut facts);
    let report = examine(&facts);
    assert_eq!(failed(&report), ["user namespace"]);
    assert!(advice(&report, "user namespace").contains("rootless"));
}

#[test]
fn a_nested_pid_namespace_needs_the_hosts() {
    let mut facts = good_host();
    facts.pid_namespace = Namespace::Nested;
    let report = examine(&facts);
    assert_eq!(failed(&report), ["pid namespace"]);
    assert!(advice(&report, "pid namespace").contains("--pid=host"));
}

#[test]
fn another_architecture_does_not_record() {
    let mut facts = good_host();
    facts.host.architecture = "aarch64".to_owned();
    assert_eq!(failed(&examine(&facts)), ["architecture"]);
}

#[test]
fn a_small_memlock_limit_counts_only_where_maps_are_charged_to_it() {
    let mut facts = good_host();
    assert_eq!(the(&examine(&facts), "RLIMIT_MEMLOCK").state, State::Info);
    set(&mut facts, CHARGED_TO_CGROUP, missing());
    assert!(examine(&facts).can_record(), "root may raise it");
    facts.capabilities = without(&[SYS_RESOURCE]);
    let report = examine(&facts);
    assert_eq!(failed(&report), ["RLIMIT_MEMLOCK"]);
    assert!(advice(&report, "RLIMIT_MEMLOCK").contains("ulimit -l unlimited"));
    facts.memlock = Some(MemlockLimit { soft_bytes: Some(65_536), hard_bytes: None });
    assert!(examine(&facts).can_record(), "up to the hard limit everyone may raise it");
}

#[test]
fn hosts_of_either_cgroup_version_say_where_the_memory_controller_is() {
    let mut facts = good_host();
    assert_eq!(the(&examine(&facts), "version").detail, "2");
    facts.cgroups = CgroupFacts {
        v1_memory: Some(PathBuf::from("/sys/fs/cgroup/memory")),
        has_v1: true,
        v2: Some(PathBuf::from("/sys/fs/cgroup/unified")),
        v2_has_memory: false,
    };
    let report = examine(&facts);
    assert_eq!(the(&report, "version").detail, "1 and 2 (hybrid)");
    assert!(the(&report, "memory controller").detail.contains("/sys/fs/cgroup/memory"));
    facts.cgroups = CgroupFacts::default();
    let report = examine(&facts);
    assert_eq!(the(&report, "memory controller").state, State::Warn);
    assert!(report.can_record());
}

#[test]
fn a_runtime_that_does_not_answer_is_no_hindrance() {
    let mut facts = good_host();
    let answer =
        Answer::Refused { reason: "nobody listens on it".to_owned(), is_permission: false };
    facts.runtimes = vec![RuntimeSocket {
        runtime: "docker".to_owned(),
        path: PathBuf::from("/run/docker.sock"),
        answer,
    }];
    let report = examine(&facts);
    assert!(report.can_record());
    assert!(advice(&report, "docker").contains("start the daemon"));
    assert!(report.modes[1].needs.contains("by id only"));
}

#[test]
fn every_failure_says_what_to_try() {
    // Nothing could be read at all, and nothing works.
    let mut worst = good_host();
    refuse_bpf(&mut worst);
    worst.host.architecture = String::new();
    worst.capabilities = Some(Capabilities(0));
    worst.pid_namespace = Namespace::Nested;
    worst.user_namespace = Namespace::Nested;
    set(&mut worst, CHARGED_TO_CGROUP, missing());
    for facts in [worst, DoctorFacts::default()] {
        let report = examine(&facts);
        assert!(!report.can_record());
        for check in report.checks.iter().filter(|check| check.state == State::Fail) {
            assert!(check.try_.is_some(), "{}", check.name);
        }
    }
}

#[test]
fn what_was_never_tried_is_not_taken_for_working() {
    let mut facts = good_host();
    facts.host.features.clear();
    let report = examine(&facts);
    assert!(!report.can_record());
}
