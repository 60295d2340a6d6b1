//! One step by gimli's evaluation of a row: for the expressions that framehop does not evaluate.

use gimli::{
    CfaRule, Encoding, EvaluationResult, Location, Operation, RegisterRule, UnwindExpression,
    UnwindSection, UnwindTableRow, Value, X86_64,
};

use crate::stacks::rules::Bytes;
use crate::stacks::walk::Registers;

/// What a step by evaluation gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evaluated {
    Caller(Registers),
    /// Nothing called the function.
    End,
    /// The word at this address is needed and was not copied.
    CannotRead(u64),
    /// The expression needs more than RSP, RBP and memory.
    Failed,
}

/// Most operations of one expression.
const MAX_OPERATIONS: u32 = 256;

/// Whether the CFA, the return address or RSP come from an expression that reads memory, or from a
/// rule that framehop does not know.
pub(super) fn needs_memory<'d, S: UnwindSection<Bytes<'d>>>(
    section: &S,
    encoding: Encoding,
    row: &UnwindTableRow<usize>,
) -> bool {
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, .. } => {
            !matches!(*register, X86_64::RSP | X86_64::RBP)
        }
        CfaRule::Expression(expression) => reads_memory(section, encoding, expression),
    };
    let is_plain = |rule: Option<RegisterRule<usize>>| {
        matches!(rule, None | Some(RegisterRule::Undefined | RegisterRule::Offset(_)))
    };
    // framehop takes the CFA for the caller's RSP.
    let rsp = !matches!(
        row.register(X86_64::RSP),
        None | Some(RegisterRule::Undefined | RegisterRule::ValOffset(0))
    );
    cfa || rsp || !is_plain(row.register(X86_64::RA))
}

fn reads_memory<'d, S: UnwindSection<Bytes<'d>>>(
    section: &S,
    encoding: Encoding,
    expression: &UnwindExpression<usize>,
) -> bool {
    let Ok(expression) = expression.get(section) else { return true };
    let mut operations = expression.operations(encoding);
    for _ in 0..MAX_OPERATIONS {
        match operations.next() {
            Ok(None) => return false,
            Ok(Some(Operation::Deref { .. })) | Err(_) => return true,
            Ok(Some(_)) => {}
        }
    }
    true
}

enum Failure {
    CannotRead(u64),
    Failed,
}

/// Steps from `at` by its row.
pub(super) fn evaluate<'d, S: UnwindSection<Bytes<'d>>>(
    section: &S,
    encoding: Encoding,
    row: &UnwindTableRow<usize>,
    at: Registers,
    read: &mut dyn FnMut(u64) -> Option<u64>,
) -> Evaluated {
    match try_evaluate(section, encoding, row, at, read) {
        Ok(evaluated) => evaluated,
        Err(Failure::CannotRead(address)) => Evaluated::CannotRead(address),
        Err(Failure::Failed) => Evaluated::Failed,
    }
}

fn try_evaluate<'d, S: UnwindSection<Bytes<'d>>>(
    section: &S,
    encoding: Encoding,
    row: &UnwindTableRow<usize>,
    at: Registers,
    read: &mut dyn FnMut(u64) -> Option<u64>,
) -> Result<Evaluated, Failure> {
    let mut read = |address: u64| read(address).ok_or(Failure::CannotRead(address));
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            value_of(*register, at)?.wrapping_add_signed(*offset)
        }
        CfaRule::Expression(expression) => {
            result_of(section, encoding, expression, None, at, &mut read)?
        }
    };
    let mut restore = |register: gimli::Register, unchanged: u64| match row.register(register) {
        None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => Ok(unchanged),
        Some(RegisterRule::Offset(offset)) => read(cfa.wrapping_add_signed(offset)),
        Some(RegisterRule::ValOffset(offset)) => Ok(cfa.wrapping_add_signed(offset)),
        Some(RegisterRule::Expression(expression)) => {
            let address = result_of(section, encoding, &expression, Some(cfa), at, &mut read)?;
            read(address)
        }
        Some(RegisterRule::ValExpression(expression)) => {
            result_of(section, encoding, &expression, Some(cfa), at, &mut read)
        }
        Some(_) => Err(Failure::Failed),
    };
    if let None | Some(RegisterRule::Undefined) = row.register(X86_64::RA) {
        return Ok(Evaluated::End);
    }
    let pc = restore(X86_64::RA, 0)?;
    let sp = restore(X86_64::RSP, cfa)?;
    let bp = restore(X86_64::RBP, at.bp)?;
    Ok(match pc {
        0 => Evaluated::End,
        pc => Evaluated::Caller(Registers { pc, sp, bp }),
    })
}

fn value_of(register: gimli::Register, at: Registers) -> Result<u64, Failure> {
    match register {
        X86_64::RSP => Ok(at.sp),
        X86_64::RBP => Ok(at.bp),
        X86_64::RA => Ok(at.pc),
        _ => Err(Failure::Failed),
    }
}

fn result_of<'d, S: UnwindSection<Bytes<'d>>>(
    section: &S,
    encoding: Encoding,
    expression: &UnwindExpression<usize>,
    cfa: Option<u64>,
    at: Registers,
    read: &mut dyn FnMut(u64) -> Result<u64, Failure>,
) -> Result<u64, Failure> {
    let gimli_failed = |_: gimli::Error| Failure::Failed;
    let mut evaluation = expression.get(section).map_err(gimli_failed)?.evaluation(encoding);
    evaluation.set_max_iterations(MAX_OPERATIONS);
    if let Some(cfa) = cfa {
        evaluation.set_initial_value(cfa);
    }
    let mut state = evaluation.evaluate().map_err(gimli_failed)?;
    loop {
        state = match state {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                let value = Value::Generic(value_of(register, at)?);
                evaluation.resume_with_register(value).map_err(gimli_failed)?
            }
            EvaluationResult::RequiresMemory { address, size: 8, space: None, .. } => {
                let value = Value::Generic(read(address)?);
                evaluation.resume_with_memory(value).map_err(gimli_failed)?
            }
            _ => return Err(Failure::Failed),
        };
    }
    match evaluation.as_result().last().map(|piece| &piece.location) {
        Some(Location::Address { address }) => Ok(*address),
        _ => Err(Failure::Failed),
    }
}
