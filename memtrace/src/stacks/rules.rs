//! From one row of DWARF call frame information to one [`UnwindRow`] without its pc.
//!
//! Pure. What eight bytes cannot hold becomes [`CfaKind::None`] and is counted by reason: a walk
//! stops there and says so, it never guesses.

use gimli::{
    CfaRule, EndianSlice, Expression, LittleEndian, Operation, Register, RegisterRule,
    UnwindExpression, UnwindSection, UnwindTableRow, X86_64,
};
use memtrace_common::unwind::{CfaKind, GUESSED, MAX_OFFSET_BY_8, RBP_AT_RBP, UnwindRow};

pub(crate) type Bytes<'d> = EndianSlice<'d, LittleEndian>;

/// A row without its pc: the upper half of the packed form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule(u32);

impl Rule {
    pub(crate) const NONE: Self = Self::of(CfaKind::None);
    pub(crate) const END: Self = Self::of(CfaKind::End);
    pub(crate) const SIGNAL: Self = Self::of(CfaKind::Signal);
    pub(crate) const PLT: Self = Self::of(CfaKind::Plt);
    /// Offset and RBP slot are part of the kind.
    pub(crate) const FRAME_POINTER: Self = Self::of(CfaKind::FramePointer);

    /// Of generated code.
    pub(crate) const GUESS: Self = Self::new(CfaKind::FramePointer, 0, GUESSED);

    const fn of(kind: CfaKind) -> Self {
        Self::new(kind, 0, 0)
    }

    pub(crate) const fn new(kind: CfaKind, offset_by_8: i16, rbp: i16) -> Self {
        Self((UnwindRow { pc: 0, kind, offset_by_8, rbp }.pack() >> 32) as u32)
    }

    pub(crate) const fn at(self, pc: u32) -> u64 {
        (self.0 as u64) << 32 | pc as u64
    }

    pub(crate) const fn of_row(row: u64) -> Self {
        Self((row >> 32) as u32)
    }
}

/// Why a stretch of code got [`CfaKind::None`] although it has unwind information.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unsupported {
    /// CFA computed by an expression that is neither a PLT stub's nor a DRAP frame's.
    CfaExpression,
    /// CFA relative to a register other than RSP and RBP (DRAP prologues, hand-written assembly).
    CfaRegister,
    /// CFA offset negative, not a multiple of 8, or 64 KiB and more.
    CfaOffset,
    /// The caller's RBP is saved in a way that a row cannot say.
    RbpRule,
    /// The return address is not at `CFA - 8`.
    ReturnAddress,
    /// A signal frame that is not the kernel's `rt_sigframe`.
    SignalFrame,
}

impl Unsupported {
    pub const ALL: [Self; 6] = [
        Self::CfaExpression,
        Self::CfaRegister,
        Self::CfaOffset,
        Self::RbpRule,
        Self::ReturnAddress,
        Self::SignalFrame,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::CfaExpression => "CFA by expression",
            Self::CfaRegister => "CFA from another register",
            Self::CfaOffset => "CFA offset out of range",
            Self::RbpRule => "RBP saved oddly",
            Self::ReturnAddress => "return address saved oddly",
            Self::SignalFrame => "unknown signal frame",
        }
    }
}

/// What a CFI row means. A PLT rule whose stubs push at another byte than the table format knows
/// comes back as [`Meaning::PltPushingAt`], to be written out stub by stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    Rule(Rule),
    PltPushingAt(u8),
}

pub(crate) fn classify<'d, S: UnwindSection<Bytes<'d>>>(
    section: &S,
    encoding: gimli::Encoding,
    is_signal_frame: bool,
    row: &UnwindTableRow<usize>,
) -> Result<Meaning, Unsupported> {
    let operations = |expression: &UnwindExpression<usize>| {
        expression.get(section).ok().and_then(|e| decode(e, encoding))
    };
    if is_signal_frame {
        // glibc's __restore_rt: the interrupted RSP stands in the ucontext, at RSP + 160.
        let CfaRule::Expression(expression) = row.cfa() else {
            return Err(Unsupported::SignalFrame);
        };
        return match operations(expression).as_deref() {
            Some([Op::Register(X86_64::RSP, 160), Op::Deref]) => Ok(Meaning::Rule(Rule::SIGNAL)),
            _ => Err(Unsupported::SignalFrame),
        };
    }
    match row.register(X86_64::RA) {
        Some(RegisterRule::Offset(-8)) => {}
        Some(RegisterRule::Undefined) => return Ok(Meaning::Rule(Rule::END)),
        _ => return Err(Unsupported::ReturnAddress),
    }
    let rbp_rule = row.register(X86_64::RBP);
    let rbp = match &rbp_rule {
        None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => 0,
        Some(RegisterRule::Offset(offset)) => saved_at(*offset)?,
        Some(RegisterRule::Expression(expression)) => match operations(expression).as_deref() {
            Some([Op::Register(X86_64::RBP, 0)]) => RBP_AT_RBP,
            _ => return Err(Unsupported::RbpRule),
        },
        Some(_) => return Err(Unsupported::RbpRule),
    };
    let (kind, offset_by_8) = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            let kind = match *register {
                X86_64::RSP => CfaKind::Rsp,
                X86_64::RBP => CfaKind::Rbp,
                _ => return Err(Unsupported::CfaRegister),
            };
            (kind, unsigned_offset(*offset)?)
        }
        CfaRule::Expression(expression) => match operations(expression).as_deref() {
            Some([Op::Register(X86_64::RBP, offset), Op::Deref]) => {
                (CfaKind::DerefRbp, signed_offset(*offset)?)
            }
            Some(
                [
                    Op::Register(X86_64::RSP, 8),
                    Op::Register(X86_64::RA, 0),
                    Op::Constant(15),
                    Op::And,
                    Op::Constant(push_at @ 1..=15),
                    Op::GreaterOrEqual,
                    Op::Constant(3),
                    Op::ShiftLeft,
                    Op::Plus,
                ],
            ) if rbp == 0 => {
                return Ok(match push_at {
                    11 => Meaning::Rule(Rule::PLT),
                    other => Meaning::PltPushingAt(*other as u8),
                });
            }
            _ => return Err(Unsupported::CfaExpression),
        },
    };
    Ok(Meaning::Rule(Rule::new(kind, offset_by_8, rbp)))
}

fn saved_at(offset: i64) -> Result<i16, Unsupported> {
    match (offset % 8, i16::try_from(offset / 8)) {
        // The slot must not be the return address's, nor above it.
        (0, Ok(slot)) if slot <= -2 => Ok(slot),
        _ => Err(Unsupported::RbpRule),
    }
}

fn unsigned_offset(offset: i64) -> Result<i16, Unsupported> {
    match (offset % 8, i16::try_from(offset / 8)) {
        (0, Ok(by_8)) if (1..=MAX_OFFSET_BY_8).contains(&by_8) => Ok(by_8),
        _ => Err(Unsupported::CfaOffset),
    }
}

fn signed_offset(offset: i64) -> Result<i16, Unsupported> {
    match (offset % 8, i16::try_from(offset / 8)) {
        (0, Ok(by_8)) if (-0x1000..0x1000).contains(&by_8) => Ok(by_8),
        _ => Err(Unsupported::CfaOffset),
    }
}

/// The operations that occur in the expressions that a row can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Register(Register, i64),
    Constant(u64),
    Deref,
    And,
    GreaterOrEqual,
    ShiftLeft,
    Plus,
}

/// `None` when the expression is longer, or holds anything else.
fn decode(mut expression: Expression<Bytes<'_>>, encoding: gimli::Encoding) -> Option<Vec<Op>> {
    const LONGEST: usize = 9;
    let mut operations = Vec::with_capacity(LONGEST);
    while !expression.0.is_empty() {
        if operations.len() == LONGEST {
            return None;
        }
        operations.push(match Operation::parse(&mut expression.0, encoding).ok()? {
            Operation::RegisterOffset { register, offset, .. } => Op::Register(register, offset),
            Operation::UnsignedConstant { value } => Op::Constant(value),
            Operation::Deref { size: 8, space: false, .. } => Op::Deref,
            Operation::And => Op::And,
            Operation::Ge => Op::GreaterOrEqual,
            Operation::Shl => Op::ShiftLeft,
            Operation::Plus => Op::Plus,
            _ => return None,
        });
    }
    Some(operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_row_cannot_hold_is_refused_not_rounded() {
        assert_eq!(unsigned_offset(8), Ok(1));
        assert_eq!(unsigned_offset(0x1fff * 8), Ok(MAX_OFFSET_BY_8));
        for offset in [0, -8, 12, 0x2000 * 8, i64::MAX, i64::MIN] {
            assert_eq!(unsigned_offset(offset), Err(Unsupported::CfaOffset), "{offset}");
        }
        assert_eq!(signed_offset(-8), Ok(-1));
        assert_eq!(signed_offset(0x1000 * 8), Err(Unsupported::CfaOffset));
        assert_eq!(saved_at(-16), Ok(-2));
        for offset in [-8, 0, 8, -20, i64::from(i16::MIN) * 8 - 8] {
            assert_eq!(saved_at(offset), Err(Unsupported::RbpRule), "{offset}");
        }
    }
}
