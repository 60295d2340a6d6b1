//! On real files of the machine, on programs built here, and on damaged ones.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::tracee::root::Root;

const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";

fn allocators(name: &str) -> bool {
    matches!(name, "malloc" | "free" | "calloc" | "cfree" | "memalign" | "aligned_alloc" | "strlen")
}

fn read_path(path: &Path) -> ElfFacts {
    read(&File::open(path).unwrap(), &allocators, &DebugFiles::default()).unwrap()
}

/// What a tool of the system prints: the independent truth.
fn printed_by(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool).args(arguments).output();
    String::from_utf8(output.expect("binutils is needed for this test").stdout).unwrap()
}

#[test]
fn the_c_library_is_read_as_readelf_reads_it() {
    let facts = read_path(Path::new(LIBC));
    let notes = printed_by("readelf", &["-n", LIBC]);
    let id = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).unwrap();
    assert_eq!(facts.build_id.as_deref(), Some(id));
    assert_eq!(facts.soname.as_deref(), Some("libc.so.6"));
    assert_eq!(facts.needed, ["ld-linux-x86-64.so.2"]);
    assert!(facts.position_independent && facts.go.is_none());

    let symbols = printed_by("nm", &["-D", "--defined-only", LIBC]);
    for function in &facts.functions {
        for name in &function.names {
            let line = symbols.lines().find(|line| {
                line.split_whitespace().nth(2).is_some_and(|n| n.split('@').next() == Some(name))
            });
            let address = line.unwrap().split_whitespace().next().unwrap();
            assert_eq!(u64::from_str_radix(address, 16), Ok(function.address), "{name}");
        }
    }
    let malloc = facts.functions.iter().find(|f| f.names.contains(&"malloc".to_owned())).unwrap();
    assert!(malloc.size > 100 && malloc.code.len() as u64 == malloc.size && !malloc.local);
    let file = fs::read(LIBC).unwrap();
    let at = malloc.file_offset as usize;
    assert_eq!(malloc.code, file[at..at + malloc.code.len()]);
}

#[test]
fn one_function_is_listed_once_with_all_its_names() {
    let facts = read_path(Path::new(LIBC));
    let of = |name: &str| {
        let all: Vec<_> =
            facts.functions.iter().filter(|f| f.names.iter().any(|n| n == name)).collect();
        assert_eq!(all.len(), 1, "{name}");
        all[0]
    };
    assert_eq!(of("memalign"), of("aligned_alloc"));
    assert_eq!(of("free").names, ["cfree", "free"], "a versioned name loses its version");
    let addresses: Vec<_> = facts.functions.iter().map(|f| f.address).collect();
    assert!(addresses.is_sorted());
}

#[test]
fn a_function_chosen_at_start_is_marked_as_such() {
    let facts = read_path(Path::new(LIBC));
    let strlen = facts.functions.iter().find(|f| f.names.contains(&"strlen".to_owned())).unwrap();
    assert!(strlen.indirect);
}

struct Program {
    directory: tempfile::TempDir,
}

impl Program {
    fn build(compiler: &str, flags: &[&str], source: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("p.c"), source).unwrap();
        let built = Command::new(compiler)
            .args(["-o", "p", "p.c"])
            .args(flags)
            .current_dir(directory.path())
            .status();
        assert!(built.expect("a C compiler is needed for this test").success());
        Self { directory }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("p")
    }

    fn run(&self, tool: &str, arguments: &[&str]) {
        let status = Command::new(tool).args(arguments).current_dir(self.directory.path()).status();
        assert!(status.unwrap().success(), "{tool} {arguments:?}");
    }
}

const KEEPS_A_BLOCK: &str = "#include <stdlib.h>\nvoid *volatile kept;\nint main(void) { kept = malloc(3); free(kept); return 0; }\n";

#[test]
fn a_static_program_gives_its_allocator_by_its_symbols() {
    for (compiler, flags) in [
        ("cc", ["-static", "-O1"]),
        ("cc", ["-static-pie", "-O1"]),
        ("musl-gcc", ["-static", "-O1"]),
    ] {
        let program = Program::build(compiler, &flags, KEEPS_A_BLOCK);
        let facts = read_path(&program.path());
        assert!(facts.has_full_symbols && facts.interpreter.is_none(), "{compiler} {flags:?}");
        for name in ["malloc", "free"] {
            assert!(facts.functions.iter().any(|f| f.names.iter().any(|n| n == name)), "{name}");
        }
        program.run("strip", &["p"]);
        let facts = read_path(&program.path());
        assert!(facts.functions.is_empty() && !facts.has_full_symbols);
    }
}

#[test]
fn the_symbols_of_a_stripped_program_come_from_its_debug_file() {
    let program = Program::build("cc", &["-static", "-O1"], KEEPS_A_BLOCK);
    let whole = read_path(&program.path());
    program.run("objcopy", &["--only-keep-debug", "p", "p.debug"]);
    program.run("strip", &["p"]);
    program.run("objcopy", &["--add-gnu-debuglink=p.debug", "p"]);
    let root = Root::of_self().unwrap();
    let directory = program.directory.path().to_str().unwrap().to_owned();
    let find = || {
        let debug = DebugFiles { tracee: Some(&root), host: None, directory: &directory };
        read(&File::open(program.path()).unwrap(), &allocators, &debug).unwrap()
    };
    let facts = find();
    assert!(facts.debug_file.as_ref().unwrap().ends_with("p.debug (tracee)"));
    let plain = |functions: &[FunctionSymbol]| -> Vec<_> {
        functions.iter().map(|f| (f.names.clone(), f.file_offset, f.code.clone())).collect()
    };
    assert_eq!(plain(&facts.functions), plain(&whole.functions));

    // The same name with other content proves nothing.
    let mut file =
        fs::OpenOptions::new().append(true).open(program.directory.path().join("p.debug")).unwrap();
    file.write_all(b"!").unwrap();
    assert_eq!(find().debug_file, None);
}

#[test]
fn the_stubs_of_imported_functions_are_known_by_name() {
    let program = Program::build("cc", &["-O1", "-no-pie", "-fcf-protection=none"], KEEPS_A_BLOCK);
    let facts = read_path(&program.path());
    let mut names: Vec<_> = facts.plt.values().cloned().collect();
    names.sort();
    names.dedup();
    assert_eq!(names, ["free", "malloc"]);
    let listing = printed_by("objdump", &["-d", program.path().to_str().unwrap()]);
    for (address, name) in &facts.plt {
        let label = format!("{address:016x} <{name}@plt>:");
        assert!(listing.contains(&label), "{label} not in the disassembly");
    }
}

#[test]
fn what_is_no_x86_64_elf_file_is_refused_by_name() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"#!/bin/sh\n").unwrap();
    let error = read(&file, &allocators, &DebugFiles::default()).unwrap_err();
    assert!(matches!(error, ElfError::NotElf(_)), "{error}");
    let mut bytes = fs::read(LIBC).unwrap()[..4096].to_vec();
    bytes[18] = 183; // EM_AARCH64
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let error = read(&file, &allocators, &DebugFiles::default()).unwrap_err();
    assert!(error.to_string().contains("183"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Bytes of the header, the tables and the sections of a small real program overwritten.
    #[test]
    fn a_damaged_file_never_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 1..24),
        in_tables in any::<bool>(),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = fs::read("/bin/true").unwrap();
        let (length, headers) = (bytes.len(), 64 * 40);
        for (place, value) in damage {
            // Half of the cases hit the program headers or the section headers at the end.
            let at = if in_tables {
                let at = place.index(2 * headers);
                if at < headers { at } else { length - 2 * headers + at }
            } else {
                place.index(length)
            };
            let end = (at + 8).min(length);
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(length));
        }
        let magic = bytes.len().min(4);
        bytes[..magic].copy_from_slice(&b"\x7fELF"[..magic]);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let _ = read(&file, &|_| true, &DebugFiles::default());
    }
}
