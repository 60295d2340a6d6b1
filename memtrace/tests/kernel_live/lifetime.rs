//! Arming, detaching, exec, exit.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use memtrace::kernel::{Kernel, KernelConfig, Notice};
use memtrace_common::counters::Tally;

use crate::target::{IMAGE, Program, Target, plan, small};

#[test]
fn nothing_is_booked_before_arming_and_after_disarming() {
    let mut target = Target::start();
    target.kernel.disarm().unwrap();
    target.run("malloc 0 13");
    target.kernel.arm().unwrap();
    target.run("malloc 1 17");
    target.kernel.disarm().unwrap();
    target.run("malloc 2 19");
    let books = target.books();
    assert_eq!(books.outstanding(), (17, 1));
    assert!(books.tally(Tally::UnarmedHits) >= 2);
    assert_eq!(books.losses(), []);
}

#[test]
fn nothing_is_seen_after_detaching() {
    let mut target = Target::start();
    target.run("malloc 0 13");
    assert_eq!(target.program.breakpoints(), 11);
    target.kernel.detach();
    assert_eq!(target.program.breakpoints(), 0);
    target.run("malloc 1 17");
    target.run("free 0");
    let books = target.books();
    assert_eq!(books.outstanding(), (13, 1));
    assert_eq!(books.snapshot.hits[0], 1);
}

#[test]
fn an_exec_closes_the_books_and_is_told() {
    let mut target = Target::start();
    target.run("malloc 0 13");
    target.program.send("exec");
    assert_eq!(target.program.answer(), "ready 2");
    target.run("malloc 1 17");
    let tgid = target.program.pid();
    let notices = target.kernel.drain_ring().notices;
    assert!(matches!(notices[..], [Notice::Exec { tgid: of, .. }] if of == tgid), "{notices:?}");
    let books = target.books();
    assert_eq!(books.outstanding(), (13, 1), "the books of the old image");
    assert_eq!(books.losses(), []);
}

#[test]
fn mappings_handed_over_after_an_exec_do_not_bring_the_process_back() {
    let mut target = Target::start();
    target.run("malloc 0 13");
    target.program.send("exec");
    assert_eq!(target.program.answer(), "ready 2");
    // As a look at the mappings does that comes before the notice is read.
    target.set_mappings(|_| true);
    target.run("malloc 1 17");
    assert_eq!(target.books().outstanding(), (13, 1), "the new image's calls are not booked");
    let pid = target.program.pid();
    target.kernel.remove_process(pid).unwrap();
    target.set_mappings(|_| true);
    target.run("malloc 2 19");
    assert_eq!(target.books().outstanding(), (32, 2), "set anew it is traced");
}

/// What the kernel side said, of all tests.
static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Listener;

impl log::Log for Listener {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        SAID.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn the_kernel_sides_diagnostics_are_heard_when_asked_for() {
    log::set_logger(&Listener).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    for verbose in [false, true] {
        let mut target = Target::start_with(&KernelConfig { verbose, ..small() });
        let mut reader = target.kernel.take_log_reader().unwrap();
        target.program.send("exec");
        assert_eq!(target.program.answer(), "ready 2");
        reader.flush();
        let wanted = format!("process {} runs another program", target.program.pid());
        let said = SAID.lock().unwrap().iter().any(|line| line.contains(&wanted));
        assert_eq!(said, verbose);
    }
}

#[test]
fn an_exit_is_told_and_the_books_stay_readable() {
    let mut target = Target::start();
    target.run("malloc 0 13");
    target.program.send("exit");
    target.program.child.wait().unwrap();
    let tgid = target.program.pid();
    assert_eq!(target.kernel.drain_ring().notices, [Notice::Exit { tgid }]);
    let books = target.books();
    assert_eq!(books.outstanding(), (13, 1));
    assert_eq!(books.losses(), []);
    assert_eq!(target.kernel.new_stacks().unwrap().len(), 1);
}

#[test]
fn its_cost_is_known() {
    let mut target = Target::start();
    target.run("blocks 1000 10");
    let cost = target.kernel.own_cost().unwrap();
    assert!(cost.probe_hits >= 1000, "{cost:?}");
    assert!(cost.bpf_runs.unwrap() >= 2000, "{cost:?}");
    assert!(cost.bpf_time_ns.unwrap() > 100_000, "{cost:?}");
    assert!(cost.kernel_memory_bytes > 1 << 16, "{cost:?}");
}

#[test]
fn a_process_that_has_ended_cannot_be_attached_to() {
    let mut target = Target::start();
    let plan = target.program.plan();
    let report = target.kernel.attach(u32::MAX - 1, &plan).unwrap();
    assert_eq!(report.attached(), 0);
    assert_eq!(report.probes.len(), plan.probes.len());
}

#[test]
fn a_file_that_is_gone_fails_its_probe_alone() {
    let mut target = Target::start();
    let mut plan = target.program.plan();
    plan.probes.truncate(2);
    plan.probes[0].attach_path = "/no/such/file".into();
    let report = target.kernel.attach(target.program.pid(), &plan).unwrap();
    assert_eq!(report.attached(), 1);
    assert!(format!("{:?}", report.probes[0]).contains("the file is gone"), "{report:?}");
}

const VICTIM: &str = "lifetime::a_victim_of_sigkill";
const VICTIM_PATH: &str = "KERNEL_LIVE_VICTIM_PATH";
const VICTIM_PID: &str = "KERNEL_LIVE_VICTIM_PID";

#[test]
#[ignore = "a process of its own, started and killed by the next test"]
fn a_victim_of_sigkill() {
    let path = std::env::var_os(VICTIM_PATH).unwrap();
    let pid = std::env::var(VICTIM_PID).unwrap().parse().unwrap();
    let mut kernel = Kernel::load(&small()).unwrap();
    kernel.set_process(pid, IMAGE, &[]).unwrap();
    kernel.attach(pid, &plan(path.as_ref())).unwrap();
    kernel.arm().unwrap();
    println!("\narmed");
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn after_sigkill_no_probe_remains_and_the_program_works_on() {
    let mut program = Program::start();
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([VICTIM, "--exact", "--ignored", "--nocapture"])
        .env(VICTIM_PATH, &program.path)
        .env(VICTIM_PID, program.pid().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(victim.stdout.take().unwrap());
    assert!(output.lines().any(|line| line.unwrap() == "armed"), "the victim did not arm");
    program.run("malloc 0 13");
    assert_eq!(program.breakpoints(), 11);
    // Die in the middle of calls.
    program.send("churn 4 20000 24");
    std::thread::sleep(Duration::from_millis(20));
    victim.kill().unwrap();
    assert!(program.answer().starts_with("done"));
    // The kernel takes the probes away one after the other.
    let started = Instant::now();
    while program.breakpoints() > 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "breakpoints remain");
        std::thread::sleep(Duration::from_millis(100));
    }
    victim.wait().unwrap();
    program.run("churn 4 20000 24");
    program.run("free 0");
}
