//! The doctor on this very host: as root, where all that `record` needs is promised to work, and
//! again in a process without any privilege.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use memtrace::doctor::{State, examine, gather};
use memtrace::kernel::features;
use memtrace::plan::host::FeatureState;

/// Stands before the report that the unprivileged child prints.
const MARK: &str = "REPORT ";
const NOBODY: u32 = 65_534;

#[test]
fn as_root_all_that_record_needs_is_there() {
    let report = examine(&gather());
    let failed: Vec<_> = report.checks.iter().filter(|c| c.state == State::Fail).collect();
    assert!(report.can_record(), "{failed:#?}");
}

#[test]
fn trying_the_features_leaves_nothing_open() {
    // Once before, for what the runtime itself opens on first use.
    features::probe();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let programs = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        links
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .filter(|link| link.to_string_lossy().contains("bpf"))
            .count()
    };
    // Other tests of this binary hold some for a moment, so only lasting growth counts.
    let before = open();
    for _ in 0..3 {
        let found = features::probe();
        for name in features::REQUIRED {
            let feature = features::find(&found, name).unwrap();
            assert_eq!(feature.state, FeatureState::Available, "{name}");
        }
    }
    let settled = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        programs() == 0 && open() <= before
    });
    assert!(settled, "{} descriptors, {} before; {} of BPF", open(), before, programs());
}

#[test]
fn without_privileges_it_names_the_missing_capabilities() {
    let report = report_of_nobody();
    assert_eq!(report["can_record"], false);
    let checks = report["checks"].as_array().unwrap();
    let check = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap();
    for name in ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF", "CAP_PERFMON", "CAP_DAC_READ_SEARCH"]
    {
        assert_eq!(check(name)["state"], "fail", "{name}");
        assert!(check(name)["try"].as_str().unwrap().contains("sudo"), "{name}");
    }
    assert_eq!(check("user")["detail"], "uid 65534");
    assert_eq!(check("uprobe")["detail"], "cannot be tried with these privileges");
    for mode in report["modes"].as_array().unwrap() {
        assert_eq!(mode["usable"], mode["mode"] == "report", "{mode}");
    }
}

/// Runs a copy of this test binary as user nobody, who may not be able to reach the original.
fn report_of_nobody() -> serde_json::Value {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = directory.path().join("doctor");
    std::fs::copy("/proc/self/exe", &copy).unwrap();
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
    let output = Command::new(&copy)
        .args(["--ignored", "--exact", "tell_the_report", "--nocapture"])
        .current_dir("/")
        .gid(NOBODY)
        .uid(NOBODY)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let (_, report) = said.split_once(MARK).unwrap_or_else(|| panic!("no report in {said}"));
    // The test harness goes on after it.
    serde_json::Deserializer::from_str(report).into_iter().next().unwrap().unwrap()
}

#[test]
#[ignore = "it is what the unprivileged child runs"]
fn tell_the_report() {
    println!("{MARK}{}", examine(&gather()).render_json());
}
