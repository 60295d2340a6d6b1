use super::*;
use crate::plan::decide::tests::{at_path, real};
use crate::plan::host::HostFacts;
use crate::plan::{Signature, decide};
use crate::tracee::elf::{ElfFacts, GoFacts};

const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";

fn executable(interpreter: Option<&str>, go: Option<GoFacts>) -> ObjectFacts {
    let interpreter = interpreter.map(str::to_owned);
    let mut object =
        at_path("/made-up/program", ElfFacts { interpreter, go, ..ElfFacts::default() });
    object.is_executable = true;
    object
}

#[test]
fn a_dynamic_program_makes_its_system_calls_through_libc() {
    assert_eq!(raw_caller(&[executable(Some("/lib/ld.so"), None), real(LIBC)]), None);
    let go = Some(GoFacts::default());
    assert_eq!(raw_caller(&[executable(Some("/lib/ld.so"), go), real(LIBC)]), None);
}

#[test]
fn go_that_maps_memory_and_go_without_libc_make_them_themselves() {
    let go = Some(GoFacts { maps_memory: true, ..GoFacts::default() });
    let why = raw_caller(&[executable(Some("/lib/ld.so"), go), real(LIBC)]).unwrap();
    assert!(why.contains("Go's mmap"), "{why}");
    let why = raw_caller(&[executable(None, Some(GoFacts::default()))]).unwrap();
    assert!(why.contains("Go without libc"), "{why}");
}

#[test]
fn a_static_program_is_seen_in_the_libc_that_it_carries() {
    let mut program = executable(None, Some(GoFacts::default()));
    program.families = vec![Family::Musl];
    assert_eq!(raw_caller(&[program]), None);
    // Without symbols there is nothing to see; what it maps must be asked for.
    assert_eq!(raw_caller(&[executable(None, None)]), None);
}

#[test]
fn the_tracepoints_stand_in_the_place_of_libcs_functions_and_of_nothing_else() {
    let mut plan = decide(&[real(LIBC)], &HostFacts::default());
    let simple = plan.probes.iter().filter(|probe| probe.signature.is_simple()).count();
    assert!(plan.probes.iter().any(|probe| probe.signature == Signature::Mmap));
    take_from_kernel(&mut plan, "a reason");
    assert!(plan.system_calls && simple > 0);
    assert_eq!(plan.probes.len(), simple);
    let left_out: Vec<_> =
        plan.not_probed.iter().filter(|missing| missing.reason.ends_with("a reason")).collect();
    assert!(left_out.iter().any(|missing| missing.function.as_deref() == Some("mmap")));
}
