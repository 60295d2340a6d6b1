//! Where musl's stacks end. Pure.
//!
//! musl is built without unwind information, so a walk cannot go on in its code. It need not where
//! a stack begins: above the function that calls `main`, and the one that calls what was given to
//! `pthread_create`, there is nothing of the program. Neither has a name in a stripped library, but
//! both are taken the address of, in `__libc_start_main` and in `pthread_create`, and what they call
//! first through a register or memory is the program's function:
//!
//! ```text
//! __libc_start_main: … lea begin(%rip), %rax … jmp *%rax
//! begin:             … call *%rbx             ← the stack ends here
//! ```
//!
//! Only text that nothing else describes gets this rule. Not covered: `pthread_create` in a static
//! program that was stripped.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};

use super::elf::{ByteSource, Elf};
use super::layout::Covered;
use super::rules::Rule;

const STARTERS: [&[u8]; 2] = [b"__libc_start_main", b"pthread_create"];
/// Longer than both starters are.
const MAX_STARTER_BYTES: u64 = 4096;
/// How far into a function the program's own is called at the latest.
const MAX_BEGIN_BYTES: u64 = 256;
/// `_start` and `_start_c` are shorter.
const MAX_ENTRY_BYTES: u64 = 96;
/// A hostile object may take the address of anything; each rule moves all later rows.
const MAX_BEGINNINGS: usize = 16;

/// `is_undescribed`: whether nothing tells how to step from a virtual address.
pub(crate) fn stack_ends<S: ByteSource + ?Sized>(
    elf: &Elf<'_, S>,
    is_undescribed: impl Fn(u64) -> bool,
) -> Vec<Covered> {
    let mut starters: Vec<(u64, u64)> = Vec::new();
    elf.for_each_symbol(|symbol| {
        if STARTERS.contains(&symbol.name) && !starters.iter().any(|s| s.0 == symbol.vaddr) {
            starters.push((symbol.vaddr, symbol.size.min(MAX_STARTER_BYTES)));
        }
        starters.len() < MAX_BEGINNINGS
    });
    if starters.is_empty() {
        starters.extend(starter_behind_entry(elf, &is_undescribed));
    }
    let mut found = Vec::new();
    for (start, size) in starters.into_iter().filter(|(start, _)| is_undescribed(*start)) {
        for begin in addresses_taken(elf, start, size) {
            if found.len() < MAX_BEGINNINGS
                && elf.segments.is_executable(begin)
                && is_undescribed(begin)
                && let Some(end) = end_of_first_indirect_call(elf, begin)
            {
                found.push(Covered { start: begin, end, rule: Rule::END });
            }
        }
    }
    found
}

/// Without symbols: `_start` calls `_start_c`, which calls or jumps to `__libc_start_main`.
fn starter_behind_entry<S: ByteSource + ?Sized>(
    elf: &Elf<'_, S>,
    is_undescribed: impl Fn(u64) -> bool,
) -> Option<(u64, u64)> {
    let goes_to = |from: u64| {
        let code = Code::at(elf, from, MAX_ENTRY_BYTES)?;
        let instructions = code.instructions();
        let mut branches = instructions.filter(|instruction| {
            let flow = instruction.flow_control();
            matches!(flow, FlowControl::Call | FlowControl::UnconditionalBranch)
        });
        branches.next().map(|branch| branch.near_branch_target())
    };
    // The entry point's own rule reaches into `_start_c`.
    let start_c = goes_to(elf.entry)?;
    let start_main = goes_to(start_c).filter(|at| is_undescribed(*at))?;
    // Its length is not known: it ends with a jump through a register.
    let code = Code::at(elf, start_main, MAX_BEGIN_BYTES)?;
    let end = code
        .instructions()
        .find(|instruction| instruction.flow_control() == FlowControl::IndirectBranch)?;
    Some((start_main, end.next_ip() - start_main))
}

/// The virtual addresses that the code at `start` takes, `lea address(%rip), register`.
fn addresses_taken<S: ByteSource + ?Sized>(elf: &Elf<'_, S>, start: u64, size: u64) -> Vec<u64> {
    let Some(code) = Code::at(elf, start, size) else { return Vec::new() };
    let instructions = code.instructions().filter(|instruction| {
        instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand()
    });
    instructions.map(|instruction| instruction.ip_rel_memory_address()).collect()
}

/// Where the first call through a register or through memory that a register points to ends.
fn end_of_first_indirect_call<S: ByteSource + ?Sized>(elf: &Elf<'_, S>, begin: u64) -> Option<u64> {
    let code = Code::at(elf, begin, MAX_BEGIN_BYTES)?;
    let is_it = |instruction: &Instruction| {
        instruction.flow_control() == FlowControl::IndirectCall
            && (instruction.op0_kind() == OpKind::Register
                || !instruction.is_ip_rel_memory_operand())
    };
    code.instructions().find(is_it).map(|call| call.next_ip())
}

struct Code<'s> {
    bytes: std::borrow::Cow<'s, [u8]>,
    start: u64,
}

impl<'s> Code<'s> {
    /// Up to `size` bytes, as many as the segment has.
    fn at<S: ByteSource + ?Sized>(elf: &Elf<'s, S>, start: u64, size: u64) -> Option<Self> {
        let left = elf.segments.loads.iter().find_map(|load| {
            let inside = start.checked_sub(load.vaddr)?;
            load.file_size.checked_sub(inside).filter(|left| load.executable && *left > 0)
        })?;
        Some(Self { bytes: elf.bytes_at(start, size.min(left))?, start })
    }

    /// In the order of their addresses, up to the first that is none.
    fn instructions(&self) -> impl Iterator<Item = Instruction> + '_ {
        let decoder = Decoder::with_ip(64, &self.bytes, self.start, DecoderOptions::NONE);
        decoder.into_iter().take_while(|instruction| !instruction.is_invalid())
    }
}
