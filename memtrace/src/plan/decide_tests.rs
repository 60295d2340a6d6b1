//! Plans over the allocators of this machine (Debian's libraries), and over made-up objects.

use std::fs::File;
use std::sync::Arc;

use super::*;
use crate::plan::Signature;
use crate::plan::host::Emulation;
use crate::tracee::MappedFile;
use crate::tracee::allocators::{families, is_marker};
use crate::tracee::elf::{self, DebugFiles, ElfFacts, GoFacts, SymbolSource};

const LIBRARIES: [&str; 5] = [
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/ld-musl-x86_64.so.1",
    "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
    "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
    "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2",
];

fn host() -> HostFacts {
    HostFacts { emulation: Emulation { push: true, nop5: true }, ..HostFacts::default() }
}

pub fn at_path(path: &str, elf: ElfFacts) -> ObjectFacts {
    object(path, elf)
}

fn object(path: &str, elf: ElfFacts) -> ObjectFacts {
    let file = File::open(if path.starts_with("/made-up") { "/dev/null" } else { path }).unwrap();
    ObjectFacts {
        file: MappedFile {
            path: path.to_owned(),
            open_path: path.into(),
            file: Arc::new(file),
            deleted: false,
            device: (0, 0),
            inode: 0,
            mappings: Vec::new(),
        },
        families: families(&elf.defined),
        elf,
        is_executable: false,
        is_loader: false,
    }
}

pub fn real(path: &str) -> ObjectFacts {
    let wanted = |name: &str| is_wanted(name) || is_marker(name);
    let facts = elf::read(&File::open(path).unwrap(), &wanted, &DebugFiles::default()).unwrap();
    object(path, facts)
}

fn function(names: &[&str], address: u64, code: &[u8]) -> FunctionSymbol {
    FunctionSymbol {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        address,
        file_offset: address,
        size: code.len() as u64,
        code: code.to_vec(),
        indirect: false,
        local: false,
        source: SymbolSource::Dynsym,
    }
}

fn made_up(functions: Vec<FunctionSymbol>) -> ObjectFacts {
    object("/made-up/x.so", ElfFacts { functions, ..ElfFacts::default() })
}

const PUSH: &[u8] = &[0x55, 0xc3];

#[test]
fn every_function_found_is_probed_or_listed_with_a_reason() {
    for path in LIBRARIES {
        let object = real(path);
        let plan = decide(std::slice::from_ref(&object), &host());
        assert!(object.elf.functions.len() > 5, "{path}");
        for function in &object.elf.functions {
            if !function.names.iter().any(|name| is_wanted(name)) {
                continue; // a mark of the family
            }
            let named = |name: &String| function.names.contains(name);
            let probed = plan.probes.iter().filter(|p| named(&p.function)).count();
            let listed = plan.not_probed.iter().filter(|n| n.function.as_ref().is_some_and(named));
            assert_eq!(probed + listed.count(), 1, "{path}: {:?}", function.names);
        }
        assert!(plan.not_probed.iter().all(|n| !n.reason.is_empty()));
    }
}

#[test]
fn the_allocators_of_this_machine_are_probed_on_cheap_sites() {
    for path in LIBRARIES {
        let plan = decide(&[real(path)], &host());
        for probe in &plan.probes {
            println!(
                "{path} {} {}+{} `{}` emulated={} return={:?} ({})",
                probe.signature as u8,
                probe.function,
                probe.entry_site,
                probe.entry_instruction,
                probe.entry_is_emulated,
                probe.return_site,
                probe.allocator
            );
        }
        for listed in &plan.not_probed {
            println!("{path} not probed: {:?}: {}", listed.function, listed.reason);
        }
        for name in ["malloc", "calloc", "realloc", "free", "posix_memalign", "aligned_alloc"] {
            let probed = plan.probes.iter().any(|p| p.function == name);
            let forwards = plan
                .not_probed
                .iter()
                .any(|n| n.function.as_deref() == Some(name) && n.reason.contains("only forwards"));
            assert!(probed || forwards || aliased(path, name), "{path}: {name} is not covered");
        }
        let single_stepped = |name: &str| {
            plan.probes.iter().any(|probe| probe.function == name && !probe.entry_is_emulated)
        };
        // mimalloc moves the size to another register before its first branch: no better site.
        if !path.contains("mimalloc") {
            for name in ["malloc", "calloc", "realloc", "free"] {
                assert!(!single_stepped(name), "{path}: {name} is single-stepped");
            }
        }
    }
}

/// Whether a function goes by another main name there (glibc's aligned_alloc is its memalign).
fn aliased(path: &str, name: &str) -> bool {
    real(path).elf.functions.iter().any(|f| f.names.iter().any(|n| n == name) && f.names.len() > 1)
}

#[test]
fn a_return_probe_shares_the_site_of_its_entry_probe() {
    for path in LIBRARIES {
        for probe in decide(&[real(path)], &host()).probes {
            let expected = probe.signature.needs_return().then_some(probe.entry_site);
            assert_eq!(probe.return_site, expected, "{probe:?}");
        }
    }
}

#[test]
fn aliases_at_one_address_get_one_probe_under_the_plainest_name() {
    let object = made_up(vec![function(&["__libc_malloc", "malloc", "mi_malloc"], 16, PUSH)]);
    let plan = decide(&[object], &host());
    assert_eq!(plan.probes.len(), 1);
    assert_eq!(plan.probes[0].function, "malloc");
}

#[test]
fn a_function_that_only_forwards_is_not_probed_twice() {
    // operator delete: jmp free
    let delete = function(&["_ZdlPv"], 0, &[0xe9, 0x3b, 0, 0, 0]);
    let free = function(&["free"], 0x40, PUSH);
    let malloc = function(&["malloc"], 0x80, PUSH);
    let plan = decide(&[made_up(vec![delete, free, malloc])], &host());
    let probed: Vec<_> = plan.probes.iter().map(|p| p.function.as_str()).collect();
    assert_eq!(probed, ["free", "malloc"]);
    assert!(plan.not_probed[0].reason.contains("`free`"), "{:?}", plan.not_probed);
}

#[test]
fn functions_that_forward_in_a_circle_are_all_probed() {
    let one = function(&["free"], 0, &[0xe9, 0x3b, 0, 0, 0]);
    let two = function(&["cfree"], 0x40, &[0xe9, 0xbb, 0xff, 0xff, 0xff]);
    let plan = decide(&[made_up(vec![one, two])], &host());
    assert_eq!(plan.probes.len(), 2, "{plan:#?}");
}

#[test]
fn operators_of_a_runtime_library_are_left_to_malloc() {
    let new = || function(&["_Znwm"], 0, PUSH);
    let plan = decide(&[made_up(vec![new()])], &host());
    assert!(plan.probes.is_empty());
    assert!(plan.not_probed[0].reason.contains("goes through malloc"));
    // An object that also provides malloc has operators of its own.
    let own = vec![new(), function(&["malloc"], 32, PUSH), function(&["free"], 64, PUSH)];
    assert_eq!(decide(&[made_up(own)], &host()).probes.len(), 3);
}

#[test]
fn go_code_never_gets_a_probe() {
    let functions = || vec![function(&["malloc"], 16, PUSH), function(&["free"], 0x900, PUSH)];
    let mut object = made_up(functions());
    object.elf.go = Some(GoFacts { text: Some((0, 0x800)), ..GoFacts::default() });
    let plan = decide(&[object], &host());
    assert_eq!(plan.probes.len(), 1);
    assert_eq!(plan.probes[0].function, "free");
    let mut stripped = made_up(functions());
    stripped.elf.go = Some(GoFacts::default());
    let plan = decide(&[stripped], &host());
    assert!(plan.probes.is_empty());
    assert_eq!(plan.not_probed.iter().filter(|n| n.reason.contains("stripped")).count(), 2);
}

#[test]
fn what_cannot_be_probed_is_listed_by_name_and_reason() {
    let mut indirect = function(&["malloc"], 16, PUSH);
    indirect.indirect = true;
    let broken = function(&["free"], 32, &[0x06]);
    let confused = function(&["calloc", "realloc"], 48, PUSH);
    let unsupported = function(&["mi_strdup"], 64, PUSH);
    let plan = decide(&[made_up(vec![indirect, broken, confused, unsupported])], &host());
    assert!(plan.probes.is_empty());
    let reasons: Vec<_> = plan.not_probed.iter().map(|n| n.reason.as_str()).collect();
    for expected in ["IFUNC", "no valid x86-64", "different meaning", "size is not among"] {
        assert!(reasons.iter().any(|reason| reason.contains(expected)), "{expected}: {reasons:?}");
    }
}

#[test]
fn a_process_without_any_allocator_says_so_of_its_program() {
    let mut program = made_up(Vec::new());
    program.is_executable = true;
    let plan = decide(&[program], &host());
    assert!(plan.not_probed[0].reason.contains("static program without symbols"));
    assert_eq!(plan.not_probed[0].function, None);
}

#[test]
fn a_local_function_counts_only_in_an_allocator() {
    let local = |name: &str, at| FunctionSymbol { local: true, ..function(&[name], at, PUSH) };
    let plan = decide(&[made_up(vec![local("free", 0), local("brk", 16)])], &host());
    assert!(plan.probes.is_empty(), "{plan:?}");
    let plan = decide(&[made_up(vec![local("free", 0), local("malloc", 16)])], &host());
    assert_eq!(plan.probes.len(), 2);
    assert!(plan.probes.iter().any(|probe| probe.signature == Signature::Malloc));
}
