//! WHERE in a function a probe stands. Pure: bytes and what the kernel emulates in, a site out.
//!
//! A uprobe costs one trap on an instruction that the kernel emulates and a second one on any
//! other. So from the entry the straight line is walked to the first emulated instruction, as long
//! as every instruction passed leaves alone what the hook reads, and nobody jumps in between.
//!
//! **Safety:** a return probe overwrites the word at RSP. A function that needs one gets its entry
//! and return probe on one site, to which RSP provably still points at the return address.
//! (Apart they would cost two traps at least, so one site is also the cheapest.)
//!
//! Limit: targets of jump tables inside the function are not known; compilers never place one
//! between the entry and the first branch.

use iced_x86::{
    Code, Decoder, DecoderOptions, EncodingKind, FlowControl, Formatter, Instruction,
    InstructionInfoFactory, Mnemonic, NasmFormatter, OpAccess, OpKind, Register,
};

use super::Signature;
use super::host::Emulation;

/// Most instructions passed on the way to a site: jemalloc's `free` looks up the block's arena in
/// nine before its first branch.
const MAX_PASSED: u32 = 16;
/// Longest code looked at for jumps back, bytes.
const MAX_CODE: usize = 64 * 1024;
/// Most instructions of a function that does nothing but forward to another.
const MAX_FORWARD: u32 = 16;

/// The integer arguments of the System V ABI, in order.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// A chosen site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Bytes from the function's first byte.
    pub offset: u64,
    /// The instruction there, disassembled.
    pub instruction: String,
    /// One trap (true) or a trap and a single step (false).
    pub emulated: bool,
}

/// Why a function has no site.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SiteError {
    #[error("no code at the symbol's address")]
    NoCode,
    #[error("its first bytes are no valid x86-64 instruction")]
    Undecodable,
    #[error(
        "the kernel accepts no probe on its first instruction, `{instruction}`, and none of those behind it can take its place"
    )]
    Refused { instruction: String },
}

/// Where a straight line that does nothing else jumps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Code at this virtual address of the same object.
    Direct(u64),
    /// The address in this slot (of the global offset table) of the same object.
    Slot(u64),
}

/// Chooses the site for the entry probe of a function, and of its return probe where it has one.
///
/// `code` starts at the function's first byte, which has the virtual address `address`.
pub fn choose(
    code: &[u8],
    address: u64,
    signature: Signature,
    emulation: Emulation,
) -> Result<Site, SiteError> {
    if code.is_empty() {
        return Err(SiteError::NoCode);
    }
    let code = &code[..code.len().min(MAX_CODE)];
    let first_target = first_inner_target(code, address);
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    let mut fallback: Option<Site> = None;
    let mut first_instruction = None;
    let mut return_address_on_top = true;

    for _ in 0..=MAX_PASSED {
        if !decoder.can_decode() {
            break;
        }
        let at = decoder.position();
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            break;
        }
        if at as u64 >= first_target {
            break;
        }
        let bytes = &code[at..at + instruction.len()];
        first_instruction.get_or_insert(instruction);
        let allowed = return_address_on_top || !signature.needs_return();
        if allowed && !is_refused(&instruction, bytes) {
            if is_emulated(&instruction, bytes, emulation) {
                return Ok(site(at, &instruction, true));
            }
            fallback.get_or_insert_with(|| site(at, &instruction, false));
        }
        if !can_be_passed(&instruction, &mut info, signature.arguments()) {
            break;
        }
        return_address_on_top &= leaves_stack_alone(&instruction, &mut info);
        if signature.needs_return() && !return_address_on_top {
            break;
        }
    }
    match (fallback, first_instruction) {
        (Some(site), _) => Ok(site),
        (None, Some(first)) => Err(SiteError::Refused { instruction: disassemble(&first) }),
        (None, None) => Err(SiteError::Undecodable),
    }
}

/// Whether the function only forwards: straight on to a jump out of it, RSP untouched and, where
/// it is given a block, the first argument too. Whoever probes the target sees each of its calls.
pub fn forward(code: &[u8], address: u64, signature: Signature) -> Option<Forward> {
    let takes_no_block =
        matches!(signature, Signature::Malloc | Signature::Calloc | Signature::AlignedAlloc);
    let kept = if takes_no_block { &[][..] } else { &ARGUMENTS[..1] };
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    for _ in 0..MAX_FORWARD {
        if !decoder.can_decode() {
            return None;
        }
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return None;
        }
        match instruction.flow_control() {
            FlowControl::UnconditionalBranch => {
                let target = instruction.near_branch_target();
                let inside = (address..address.saturating_add(code.len() as u64)).contains(&target);
                return (!inside).then_some(Forward::Direct(target));
            }
            FlowControl::IndirectBranch if instruction.is_ip_rel_memory_operand() => {
                return Some(Forward::Slot(instruction.ip_rel_memory_address()));
            }
            FlowControl::Next => {}
            _ => return None,
        }
        if !leaves_stack_alone(&instruction, &mut info) || writes_any(&instruction, &mut info, kept)
        {
            return None;
        }
    }
    None
}

/// The lowest offset above 0 that a branch anywhere in the function leads to.
fn first_inner_target(code: &[u8], address: u64) -> u64 {
    let mut lowest = u64::MAX;
    let decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    for instruction in decoder {
        let branches = matches!(
            instruction.flow_control(),
            FlowControl::ConditionalBranch
                | FlowControl::UnconditionalBranch
                | FlowControl::Call
                | FlowControl::XbeginXabortXend
        );
        if !branches || !has_near_target(&instruction) {
            continue;
        }
        let offset = instruction.near_branch_target().wrapping_sub(address);
        if offset > 0 && offset < code.len() as u64 {
            lowest = lowest.min(offset);
        }
    }
    lowest
}

fn has_near_target(instruction: &Instruction) -> bool {
    matches!(
        instruction.op0_kind(),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
    )
}

/// `arch/x86/kernel/uprobes.c`: `branch_setup_xol_ops` and `push_setup_xol_ops`.
fn is_emulated(instruction: &Instruction, bytes: &[u8], emulation: Emulation) -> bool {
    match instruction.code() {
        Code::Call_rel32_64 | Code::Jmp_rel8_64 | Code::Jmp_rel32_64 | Code::Nopd => true,
        // one byte, or REX.B alone before it
        Code::Push_r64 => emulation.push && (bytes.len() == 1 || bytes[0] == 0x41),
        _ if instruction.is_jcc_short_or_near() => true,
        _ => emulation.nop5 && bytes == [0x0f, 0x1f, 0x44, 0x00, 0x00],
    }
}

/// Instructions on which the kernel accepts no uprobe: `is_prefix_bad` and the tables of good
/// opcodes there. Conservative: newer kernels accept nops with such prefixes.
fn is_refused(instruction: &Instruction, bytes: &[u8]) -> bool {
    let mut operand_size = false;
    for byte in bytes {
        match byte {
            0x26 | 0x2e | 0x36 | 0x3e | 0xf0 => return true,
            0x66 => operand_size = true,
            0x64 | 0x65 | 0x67 | 0xf2 | 0xf3 => {}
            _ => break,
        }
    }
    if operand_size && (has_near_target(instruction) || instruction.code() == Code::Nopw) {
        return true;
    }
    matches!(instruction.encoding(), EncodingKind::EVEX | EncodingKind::XOP | EncodingKind::MVEX)
        || instruction.is_privileged()
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Syscall
                | Mnemonic::Sysenter
                | Mnemonic::Int
                | Mnemonic::Int1
                | Mnemonic::Int3
                | Mnemonic::Ud0
                | Mnemonic::Ud1
                | Mnemonic::Ud2
                | Mnemonic::Iretq
                | Mnemonic::Lar
                | Mnemonic::Lsl
                | Mnemonic::Hlt
        )
}

/// Whether a probe may stand behind this instruction instead of before it.
fn can_be_passed(
    instruction: &Instruction,
    info: &mut InstructionInfoFactory,
    arguments: usize,
) -> bool {
    instruction.flow_control() == FlowControl::Next
        && !matches!(instruction.mnemonic(), Mnemonic::Syscall | Mnemonic::Sysenter | Mnemonic::Hlt)
        && !writes_any(instruction, info, &ARGUMENTS[..arguments.min(ARGUMENTS.len())])
}

fn is_write(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

fn writes_any(
    instruction: &Instruction,
    info: &mut InstructionInfoFactory,
    registers: &[Register],
) -> bool {
    info.info(instruction)
        .used_registers()
        .iter()
        .any(|used| is_write(used.access()) && registers.contains(&used.register().full_register()))
}

/// RSP keeps its value, and the word it points at is not written through RSP or RBP.
fn leaves_stack_alone(instruction: &Instruction, info: &mut InstructionInfoFactory) -> bool {
    if writes_any(instruction, info, &[Register::RSP]) {
        return false;
    }
    let frame = [Register::RSP, Register::RBP];
    !info.info(instruction).used_memory().iter().any(|memory| {
        is_write(memory.access())
            && (frame.contains(&memory.base().full_register())
                || frame.contains(&memory.index().full_register()))
    })
}

fn site(offset: usize, instruction: &Instruction, emulated: bool) -> Site {
    Site { offset: offset as u64, instruction: disassemble(instruction), emulated }
}

fn disassemble(instruction: &Instruction) -> String {
    let mut text = String::new();
    let mut formatter = NasmFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_branch_leading_zeros(false);
    options.set_show_branch_size(false);
    formatter.format(instruction, &mut text);
    text
}

#[cfg(test)]
#[path = "site_tests.rs"]
mod tests;
