//! Where Go's text is not a plain frame-pointer step. Pure.
//!
//! * Stacks end in functions that the runtime itself marks as top frames, and in those below.
//! * `crosscall2` from Go 1.24 on saves the C caller's registers in a frame of its own *inside*
//!   the frame that the assembler makes for it: `[rbp]` is that frame, `[rbp+8]` the C caller's
//!   RBP, `[rbp+16]` the return address, so `CFA = RBP + 24`, RBP at `CFA - 16`. Up to Go 1.23 it
//!   has no automatic frame and the frame-pointer step is right. The first four bytes tell which.
//! * `asmcgocall` leaves the goroutine's frame pointer in RBP, which C keeps; but a callback may
//!   move the goroutine's stack meanwhile. So it saves how deep that stack was, and finds its way
//!   back by that, as the walk does.
//! * The functions that make the system call have no frame: the return address is at RSP. A walk
//!   starts there where system calls are traced.

use memtrace_common::unwind::{BY_STACK_DEPTH, CfaKind};

use super::elf::{ByteSource, Elf};
use super::go_object::find_go_functions;
use super::layout::Covered;
use super::rules::Rule;

/// `push %rbp; mov %rsp,%rbp`
const AUTOMATIC_FRAME: [u8; 4] = [0x55, 0x48, 0x89, 0xe5];
const CROSSCALL2_RULE: Rule = Rule::new(CfaKind::Rbp, 3, -2);

const FRAMELESS_RULE: Rule = Rule::new(CfaKind::Rsp, 1, 0);

/// They make system calls: of the runtime, and of all others up to Go 1.22, 1.25 and later.
const SYSTEM_CALLS: [&[u8]; 5] = [
    b"runtime.sysMmap",
    b"runtime.sysMunmap",
    b"runtime/internal/syscall.Syscall6",
    b"internal/runtime/syscall.Syscall6",
    b"internal/runtime/syscall/linux.Syscall6",
];

/// Nothing above these belongs to the stack, whether or not they are marked as top frames.
const ENDS: [&[u8]; 8] = [
    b"runtime.goexit",
    b"runtime.mcall",
    b"runtime.mstart",
    b"runtime.rt0_go",
    b"_rt0_amd64",
    b"_rt0_amd64_linux",
    b"_rt0_amd64_lib",
    b"_rt0_amd64_linux_lib",
];
/// Where the kernel returns to from a handler that the runtime installed without libc.
const SIGNAL_RETURN: &[u8] = b"runtime.sigreturn__sigaction";

/// The rules of single functions, by Go's own table or, without it, by symbols.
pub(crate) fn overlays<S: ByteSource + ?Sized>(elf: &Elf<'_, S>) -> Vec<Covered> {
    let mut found = Vec::new();
    let mut has_crosscall2 = false;
    if let Some(table) = find_go_functions(elf) {
        for function in table.functions() {
            let name = table.name_bytes(&function);
            let rule = rule_of(name, function.is_top_frame);
            has_crosscall2 |= plain(name) == b"crosscall2";
            found.extend(rule_over(elf, rule, function.start, function.end));
        }
    }
    let by_table = !found.is_empty();
    elf.for_each_symbol(|symbol| {
        let is_crosscall2 = plain(symbol.name) == b"crosscall2";
        if (by_table && !is_crosscall2) || (is_crosscall2 && has_crosscall2) {
            return true;
        }
        /// As long as the longest of these functions, where a symbol has no size.
        const UNKNOWN_SIZE: u64 = 64;
        let size = if symbol.size == 0 { UNKNOWN_SIZE } else { symbol.size.min(4096) };
        let end = symbol.vaddr.saturating_add(size);
        found.extend(rule_over(elf, rule_of(symbol.name, false), symbol.vaddr, end));
        has_crosscall2 |= is_crosscall2;
        found.len() < MAX_OVERLAYS
    });
    found.truncate(MAX_OVERLAYS);
    found
}

/// A hostile table may call every function `runtime.goexit`; each overlay moves all later rows.
const MAX_OVERLAYS: usize = 256;

enum Special {
    Ends,
    Signal,
    Crosscall2,
    Asmcgocall,
    SystemCall,
}

fn rule_of(name: &[u8], is_top_frame: bool) -> Option<Special> {
    match plain(name) {
        b"crosscall2" => Some(Special::Crosscall2),
        b"runtime.asmcgocall" => Some(Special::Asmcgocall),
        SIGNAL_RETURN => Some(Special::Signal),
        name if SYSTEM_CALLS.contains(&name) => Some(Special::SystemCall),
        name if is_top_frame || ENDS.contains(&name) => Some(Special::Ends),
        _ => None,
    }
}

/// Symbol names carry the calling convention of assembly functions.
fn plain(name: &[u8]) -> &[u8] {
    name.strip_suffix(b".abi0").unwrap_or(name)
}

fn rule_over<S: ByteSource + ?Sized>(
    elf: &Elf<'_, S>,
    special: Option<Special>,
    start: u64,
    end: u64,
) -> Option<Covered> {
    match special? {
        Special::Ends => Some(Covered { start, end, rule: Rule::END }),
        // The return address is its first byte, and is looked up one byte earlier.
        Special::Signal => {
            Some(Covered { start: start.saturating_sub(1), end, rule: Rule::SIGNAL })
        }
        Special::SystemCall => {
            let code = elf.bytes_at(start, end.checked_sub(start)?.min(512))?;
            let holds = |bytes: &[u8]| code.windows(bytes.len()).any(|at| at == bytes);
            // A wrapper of the same name makes a frame, and no system call.
            (holds(b"\x0f\x05") && !holds(&AUTOMATIC_FRAME)).then_some(Covered {
                start,
                end,
                rule: FRAMELESS_RULE,
            })
        }
        Special::Crosscall2 => with_frame(elf, Covered { start, end, rule: CROSSCALL2_RULE }),
        Special::Asmcgocall => {
            let offset = BY_STACK_DEPTH + depth_slot(elf, start, end)?;
            let rule = Rule::new(CfaKind::FramePointer, offset, 0);
            with_frame(elf, Covered { start, end, rule })
        }
    }
}

/// Where the function makes a frame at its first instruction.
fn with_frame<S: ByteSource + ?Sized>(elf: &Elf<'_, S>, covered: Covered) -> Option<Covered> {
    let bytes = elf.bytes_at(covered.start, AUTOMATIC_FRAME.len() as u64)?;
    (*bytes == AUTOMATIC_FRAME).then_some(covered)
}

/// Where `asmcgocall` saves the depth of the goroutine's stack, in words from RSP: with g in the
/// next one. Found in its code; another code has the step by frame pointer of all Go text.
fn depth_slot<S: ByteSource + ?Sized>(elf: &Elf<'_, S>, start: u64, end: u64) -> Option<i16> {
    let code = elf.bytes_at(start, end.checked_sub(start)?.min(512))?;
    let holds = |instruction: &[u8]| code.windows(instruction.len()).any(|at| at == instruction);
    // `mov %rdi,8(%rsp)` … `mov %rdi,(%rsp)`
    let recent = holds(b"\x48\x89\x7c\x24\x08") && holds(b"\x48\x89\x3c\x24");
    // `mov %rdi,48(%rsp)` … `mov %rdi,40(%rsp)`
    let older = holds(b"\x48\x89\x7c\x24\x30") && holds(b"\x48\x89\x7c\x24\x28");
    match (recent, older) {
        (true, false) => Some(0),
        (false, true) => Some(5),
        _ => None,
    }
}
