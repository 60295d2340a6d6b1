//! Arming, detaching, exec, exit.

use memtrace::kernel::Notice;
use memtrace_common::counters::Tally;

use crate::target::Target;

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
    target.kernel.detach();
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
    assert_eq!(target.kernel.drain_ring().notices, [Notice::Exec { tgid }]);
    let books = target.books();
    assert_eq!(books.outstanding(), (13, 1), "the books of the old image");
    assert_eq!(books.losses(), []);
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
