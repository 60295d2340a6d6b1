//! Rows of code compiled for the test: realigned stacks, `.debug_frame` alone, Go's special
//! functions in an object that looks like Go's.

use std::process::Command;

use memtrace_common::unwind::{CfaKind, UnwindRow};

use super::*;

fn compile(file: &str, source: &str, flags: &[&str]) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join(file), source).expect("the source is written");
    let status = Command::new("gcc")
        .args(["-shared", "-fPIC", "-nostdlib", "-o", "out.so", file])
        .args(flags)
        .current_dir(directory.path())
        .status()
        .expect("gcc runs");
    assert!(status.success(), "gcc {flags:?} fails");
    std::fs::read(directory.path().join("out.so")).expect("it was built")
}

fn symbol(bytes: &[u8], name: &str) -> u64 {
    let elf = Elf::parse(bytes).expect("it is ELF");
    let mut found = None;
    elf.for_each_symbol(|symbol| {
        if symbol.name == name.as_bytes() {
            found = Some(symbol.vaddr);
        }
        found.is_none()
    });
    found.unwrap_or_else(|| panic!("no symbol `{name}`"))
}

/// The row in force at a virtual address.
fn row_at(table: &UnwindTable, vaddr: u64) -> UnwindRow {
    let pc = (vaddr - table.base_vaddr) as u32;
    let after = table.rows.partition_point(|row| *row as u32 <= pc);
    UnwindRow::unpack(table.rows[after.checked_sub(1).expect("there is a row before")])
}

fn shape(row: UnwindRow) -> (CfaKind, i16, i16) {
    (row.kind, row.offset_by_8, row.rbp)
}

const REALIGNED: &str = r#"
    void use(void *, void *, int);
    int realigned(int a, int b, int c, int d, int e, int f, int g, int n) {
        __attribute__((aligned(64))) char buffer[128];
        char *more = __builtin_alloca(n);
        use(buffer, more, a + b + c + d + e + f + g);
        return buffer[0] + more[0] + g;
    }
    int plain(int a) { char b[64]; use(b, 0, a); return b[a]; }
"#;

#[test]
fn a_function_that_realigns_its_stack_finds_its_cfa_through_rbp() {
    let bytes = compile("a.c", REALIGNED, &["-O2", "-fno-stack-protector"]);
    let table = build_table(&bytes).expect("it has a table");
    let start = symbol(&bytes, "realigned");
    let rows: Vec<_> = (start..start + 40).map(|vaddr| row_at(&table, vaddr)).collect();
    let through_rbp = rows.iter().find(|row| row.kind == CfaKind::DerefRbp);
    let row = through_rbp.expect("gcc keeps the argument pointer on the stack");
    assert!(row.offset_by_8 < 0 && row.rbp == memtrace_common::unwind::RBP_AT_RBP, "{row:?}");
    assert!(table.stats.unsupported[Unsupported::CfaRegister as usize] > 0, "the prologue by r10");
    let agreement = super::tests::compare_with_framehop(&bytes);
    assert!(agreement.by_gimli_only > 0, "{agreement:?}");
}

#[test]
fn debug_frame_alone_gives_the_same_rows() {
    let rows_of_plain = |flags: &[&str]| {
        let bytes = compile("a.c", REALIGNED, flags);
        let table = build_table(&bytes).expect("it has a table");
        let start = symbol(&bytes, "plain");
        let rows = (start..start + 24).map(|vaddr| shape(row_at(&table, vaddr)));
        (
            rows.collect::<Vec<_>>(),
            Elf::parse(&bytes[..]).expect("ELF").section(".eh_frame").is_some(),
        )
    };
    let (by_eh_frame, _) = rows_of_plain(&["-O2"]);
    for compression in ["-gz=none", "-gz=zlib"] {
        let flags = ["-O2", "-g", "-fno-asynchronous-unwind-tables", compression];
        let (by_debug_frame, has_eh_frame) = rows_of_plain(&flags);
        assert!(!has_eh_frame, "the object must have .debug_frame alone");
        assert!(by_eh_frame.iter().any(|row| row.0 == CfaKind::Rsp));
        assert_eq!(by_debug_frame, by_eh_frame, "{compression}");
    }
}

fn go_like(crosscall2: &str, note: &str) -> String {
    format!(
        r#"
        {note}
        .text
        .globl crosscall2, plain_go, goexit, with_cfi
        .p2align 6
        plain_go: push %rbp; mov %rsp, %rbp; call goexit; pop %rbp; ret
        .p2align 6
        .type crosscall2, @function
        crosscall2: {crosscall2}; call plain_go; ret
        .size crosscall2, . - crosscall2
        .p2align 6
        .type "runtime.goexit.abi0", @function
        .globl "runtime.goexit.abi0"
        "runtime.goexit.abi0": goexit: nop; call plain_go; ret
        .size "runtime.goexit.abi0", . - "runtime.goexit.abi0"
        .p2align 6
        .type "runtime.sigreturn__sigaction", @function
        .globl "runtime.sigreturn__sigaction"
        "runtime.sigreturn__sigaction": mov $15, %eax; syscall
        .size "runtime.sigreturn__sigaction", . - "runtime.sigreturn__sigaction"
        .p2align 6
        with_cfi: .cfi_startproc
        push %rax; .cfi_adjust_cfa_offset 8
        call plain_go; pop %rax; .cfi_adjust_cfa_offset -8; ret
        .cfi_endproc
        "#
    )
}

const GO_NOTE: &str =
    r#".section .note.go.buildid,"a",@note; .long 4, 4, 4; .asciz "Go\0"; .long 1"#;
const AUTOMATIC_FRAME: &str = "push %rbp; mov %rsp, %rbp; sub $64, %rsp";

#[test]
fn gos_text_without_unwind_information_steps_by_frame_pointer_but_for_its_special_functions() {
    let bytes = compile("go.s", &go_like(AUTOMATIC_FRAME, GO_NOTE), &[]);
    let table = build_table(&bytes).expect("it has a table");
    assert!(table.stats.is_go);
    let at =
        |name: &str, offset: u64| shape(row_at(&table, symbol(&bytes, name).wrapping_add(offset)));
    assert_eq!(at("plain_go", 5).0, CfaKind::FramePointer);
    assert_eq!(at("crosscall2", 0), (CfaKind::Rbp, 3, -2));
    assert_eq!(at("crosscall2", 12), (CfaKind::Rbp, 3, -2));
    assert_eq!(at("goexit", 2).0, CfaKind::End);
    assert_eq!(at("goexit", 32).0, CfaKind::FramePointer, "past its end");
    // Its first byte is a return address, and is looked up one byte earlier.
    assert_eq!(at("runtime.sigreturn__sigaction", 0u64.wrapping_sub(1)).0, CfaKind::Signal);
    assert_eq!(at("with_cfi", 1), (CfaKind::Rsp, 2, 0));
}

#[test]
fn crosscall2_without_a_frame_of_its_own_steps_as_all_go_text() {
    let bytes = compile("go.s", &go_like("push %rbx; sub $64, %rsp", GO_NOTE), &[]);
    let table = build_table(&bytes).expect("it has a table");
    let row = row_at(&table, symbol(&bytes, "crosscall2") + 8);
    assert_eq!(row.kind, CfaKind::FramePointer);
}

#[test]
fn text_without_unwind_information_stops_the_walk_where_it_is_not_gos() {
    let bytes = compile("go.s", &go_like(AUTOMATIC_FRAME, ""), &[]);
    let table = build_table(&bytes).expect("it has a table");
    assert!(!table.stats.is_go);
    for name in ["plain_go", "crosscall2", "goexit"] {
        assert_eq!(row_at(&table, symbol(&bytes, name) + 2).kind, CfaKind::None, "{name}");
    }
    assert_eq!(shape(row_at(&table, symbol(&bytes, "with_cfi") + 1)), (CfaKind::Rsp, 2, 0));
}

/// glibc's start code has its own description; musl's has none, and no symbols when it is stripped.
#[test]
fn musls_stacks_end_where_the_program_is_called_also_when_stripped() {
    const PROGRAM: &str = "int main(void) { return 0; }";
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("a.c"), PROGRAM).expect("the source is written");
    let run = |program: &str, arguments: &[&str]| {
        let status = Command::new(program).args(arguments).current_dir(directory.path()).status();
        assert!(status.is_ok_and(|status| status.success()), "{program} {arguments:?} fails");
    };
    let end_of = |table: &UnwindTable| {
        let ends = table.rows.iter().map(|row| UnwindRow::unpack(*row));
        ends.filter(|row| row.kind == CfaKind::End).map(|row| u64::from(row.pc)).collect::<Vec<_>>()
    };
    run("musl-gcc", &["-static", "-O2", "-o", "whole", "a.c"]);
    run("strip", &["-o", "stripped", "whole"]);
    let bytes = std::fs::read(directory.path().join("whole")).expect("it was built");
    let table = build_table(&bytes).expect("it has a table");
    let stage2 = symbol(&bytes, "libc_start_main_stage2");
    assert!(end_of(&table).contains(&(stage2 - table.base_vaddr)), "{:x?}", end_of(&table));
    let bytes = std::fs::read(directory.path().join("stripped")).expect("it was stripped");
    let stripped = build_table(&bytes).expect("it has a table");
    assert!(end_of(&stripped).contains(&(stage2 - table.base_vaddr)), "{:x?}", end_of(&stripped));
}

#[test]
fn musls_library_ends_the_stacks_of_main_and_of_threads() {
    let bytes = std::fs::read("/lib/ld-musl-x86_64.so.1").expect("musl-tools are installed");
    let table = build_table(&bytes).expect("it has a table");
    let rows = table.rows.iter().map(|row| UnwindRow::unpack(*row));
    // Of main, of POSIX threads, of C11 threads; and the library's own entry point.
    assert_eq!(rows.filter(|row| row.kind == CfaKind::End).count(), 4, "{:?}", table.stats);
}
