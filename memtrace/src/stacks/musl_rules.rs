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
//! A static program that was stripped has no such names either. There `__libc_start_main` is what
//! the entry point leads to, and `pthread_create` what calls `__clone`, which is assembly and looks
//! the same in every musl: it takes the address of its thread function shortly before.
//!
//! Only text that nothing else describes gets this rule.

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
    let mut begins = Vec::new();
    if starters.is_empty()
        && let Some(starter) = starter_behind_entry(elf, &is_undescribed)
    {
        starters.push(starter);
        begins.extend(taken_before_clone(elf, &is_undescribed));
    }
    for (start, size) in starters.into_iter().filter(|(start, _)| is_undescribed(*start)) {
        begins.extend(addresses_taken(elf, start, size));
    }
    let mut found: Vec<Covered> = Vec::new();
    for begin in begins {
        if found.len() < MAX_BEGINNINGS
            && found.iter().all(|other| other.start != begin)
            && elf.segments.is_executable(begin)
            && is_undescribed(begin)
            && let Some(end) = end_of_first_indirect_call(elf, begin)
        {
            found.push(Covered { start: begin, end, rule: Rule::END });
        }
    }
    found
}

/// The beginning of `__clone`: `xor %eax,%eax; mov $SYS_clone,%al; mov %rdi,%r11`.
const CLONE_BEGINS: [u8; 7] = [0x31, 0xc0, 0xb0, 0x38, 0x49, 0x89, 0xfb];
/// In the new thread: `xor %ebp,%ebp; pop %rdi; call *%r9`.
const CLONE_CALLS: [u8; 6] = [0x31, 0xed, 0x5f, 0x41, 0xff, 0xd1];
const MAX_CLONE_BYTES: usize = 96;
/// More text than any static program over musl has; Go's is longer, and its own musl part first.
const MAX_TEXT_BYTES: u64 = 64 << 20;
/// How far before a call of `__clone` its arguments are made, at most.
const MAX_ARGUMENTS_BYTES: usize = 96;

/// The addresses that are taken shortly before the calls of `__clone`.
fn taken_before_clone<S: ByteSource + ?Sized>(
    elf: &Elf<'_, S>,
    is_undescribed: impl Fn(u64) -> bool,
) -> Vec<u64> {
    let mut taken = Vec::new();
    for load in elf.segments.loads.iter().filter(|load| load.executable) {
        let Some(text) = elf.bytes_at(load.vaddr, load.file_size.min(MAX_TEXT_BYTES)) else {
            continue;
        };
        let Some(clone) = find_clone(&text) else { continue };
        if !is_undescribed(load.vaddr.wrapping_add(clone as u64)) {
            continue;
        }
        for call in calls_of(&text, clone).take(MAX_BEGINNINGS) {
            let before = call.saturating_sub(MAX_ARGUMENTS_BYTES)..call;
            taken.extend(addresses_in(&text, before).map(|at| load.vaddr.wrapping_add(at)));
        }
    }
    taken
}

/// Where `__clone` is in a text.
fn find_clone(text: &[u8]) -> Option<usize> {
    let begins = |at: &usize| text[*at..].starts_with(&CLONE_BEGINS);
    let is_whole = |at: &usize| {
        let end = text.len().min(at + MAX_CLONE_BYTES);
        text[*at..end].windows(CLONE_CALLS.len()).any(|code| code == CLONE_CALLS)
    };
    (0..text.len()).filter(begins).find(is_whole)
}

/// Where `call target` stands.
fn calls_of(text: &[u8], target: usize) -> impl Iterator<Item = usize> + '_ {
    const CALL: u8 = 0xe8;
    let goes_there = move |at: &usize| {
        let Some(offset) = text.get(at + 1..at + 5).and_then(|bytes| bytes.try_into().ok()) else {
            return false;
        };
        let next = *at as i64 + 5;
        next + i64::from(i32::from_le_bytes(offset)) == target as i64
    };
    let calls = text.iter().enumerate().filter(|(_, byte)| **byte == CALL).map(|(at, _)| at);
    calls.filter(goes_there)
}

/// The addresses, from the start of the text, of `lea offset(%rip), register` at any byte of a
/// range: what is no instruction leads to no function.
fn addresses_in(text: &[u8], range: std::ops::Range<usize>) -> impl Iterator<Item = u64> + '_ {
    range.filter_map(|at| {
        let [rex, 0x8d, modrm, offset @ ..] = text.get(at..at + 7)? else { return None };
        let is_wide = *rex == 0x48 || *rex == 0x4c;
        let offset = i32::from_le_bytes(offset.try_into().ok()?);
        (is_wide && modrm & 0xc7 == 5).then(|| (at as u64 + 7).wrapping_add_signed(offset.into()))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// `lea function(%rip), %rdi; nop; call __clone`, with 16 bytes before and `__clone` behind.
    fn text() -> Vec<u8> {
        let mut text = vec![0x90; 16];
        text.extend([0x48, 0x8d, 0x3d, 0xe9, 0xff, 0xff, 0xff, 0x90]);
        text.extend([0xe8, 3, 0, 0, 0, 0xc3, 0xc3, 0xc3]);
        text.extend(CLONE_BEGINS);
        text.extend([0x0f, 0x05, 0x85, 0xc0]);
        text.extend(CLONE_CALLS);
        text.push(0xf4);
        text
    }

    #[test]
    fn the_function_of_a_thread_is_taken_before_the_call_of_clone() {
        let text = text();
        assert_eq!(find_clone(&text), Some(32));
        let calls: Vec<usize> = calls_of(&text, 32).collect();
        assert_eq!(calls, [24]);
        let taken: Vec<u64> = addresses_in(&text, 0..24).collect();
        assert_eq!(taken, [0], "23 bytes before the next instruction, at 23");
    }

    #[test]
    fn half_a_clone_is_none_and_no_text_is_too_short() {
        let text = text();
        for end in 0..text.len() {
            let cut = &text[..end];
            assert!(find_clone(cut).is_none() || end == text.len() - 1, "{end}");
            assert_eq!(calls_of(cut, 32).count(), usize::from(end >= 29));
            assert!(addresses_in(cut, 0..end).count() <= 1);
        }
    }
}
