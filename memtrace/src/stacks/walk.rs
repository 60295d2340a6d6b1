//! The walk, as the kernel side does it, over a closure that reads memory. Pure.
//!
//! The reference for the walk in BPF, and what tests and the self-check compare it with: same
//! rows, same rules, same reasons to end. It allocates nothing but the answer.
//!
//! * A return address is looked up as the address before it; the first pc, and a pc that a signal
//!   interrupted, as they are.
//! * At the entry of a function no row is needed: `CFA = RSP + 8`, RBP unchanged.
//! * A stack ends (complete) in an [`CfaKind::End`] row, at a return address of 0, and at a
//!   frame-pointer step from RBP = 0, which is how goroutine and thread stacks are born. Generated
//!   code need not keep a frame pointer: there 0 says nothing, and the walk ends without a row.
//! * Within C the stack pointer must grow from frame to frame. A frame-pointer step of Go may go
//!   anywhere: Go changes stacks on the way to C and back. [`MAX_FRAMES`] bounds both.

use memtrace_common::unwind::{
    BY_STACK_DEPTH, CfaKind, G_STACK_HI, GUESSED, MAX_FRAMES, RBP_AT_RBP, UnwindMapping, UnwindRow,
    WalkEnd,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    pub pc: u64,
    pub sp: u64,
    pub bp: u64,
}

/// Where the walk starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the first instruction of a function: the return address is at RSP.
    AtEntry,
    /// Anywhere in a function.
    Anywhere,
}

/// One process's mappings with the rows that they refer to.
#[derive(Clone, Copy, Debug)]
pub struct UnwindSpace<'a> {
    /// Sorted by start, disjoint.
    pub mappings: &'a [UnwindMapping],
    pub rows: &'a [u64],
}

impl UnwindSpace<'_> {
    /// The row in force at an address.
    pub fn row_at(&self, address: u64) -> Result<UnwindRow, WalkEnd> {
        let after = self.mappings.partition_point(|mapping| mapping.start <= address);
        let mapping = after
            .checked_sub(1)
            .map(|index| self.mappings[index])
            .filter(|mapping| address < mapping.end)
            .ok_or(WalkEnd::UnknownMapping)?;
        let first = mapping.first_row as usize;
        let rows = self
            .rows
            .get(first..first.saturating_add(mapping.row_count as usize))
            .ok_or(WalkEnd::NoUnwindRow)?;
        let pc =
            u32::try_from(address.wrapping_sub(mapping.bias)).map_err(|_| WalkEnd::NoUnwindRow)?;
        let after = rows.partition_point(|row| *row as u32 <= pc);
        let row = after.checked_sub(1).ok_or(WalkEnd::NoUnwindRow)?;
        Ok(UnwindRow::unpack(rows[row]))
    }
}

/// One step from a frame to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Caller(Registers),
    /// The caller was interrupted at `pc` by a signal: that pc is no return address.
    Interrupted(Registers),
    End(WalkEnd),
}

/// Steps by `row`, which is in force at `registers.pc`.
pub fn step(
    row: UnwindRow,
    registers: Registers,
    mut read: impl FnMut(u64) -> Option<u64>,
) -> Step {
    match try_step(row, registers, &mut read) {
        Ok(step) => step,
        Err(end) => Step::End(end),
    }
}

fn try_step(
    row: UnwindRow,
    Registers { pc, sp, bp }: Registers,
    read: &mut dyn FnMut(u64) -> Option<u64>,
) -> Result<Step, WalkEnd> {
    let mut read = |address: u64| read(address).ok_or(WalkEnd::Unreadable);
    let offset = i64::from(row.offset_by_8) as u64;
    let bp = if row.kind == CfaKind::FramePointer && row.offset_by_8 >= BY_STACK_DEPTH {
        let saved_at = sp.wrapping_add((offset - BY_STACK_DEPTH as u64) * 8);
        match (read(saved_at)?, read(saved_at.wrapping_add(8))?) {
            (saved, 0) => saved,
            (depth, g) => read(g.wrapping_add(G_STACK_HI))?.wrapping_sub(depth),
        }
    } else {
        bp
    };
    let is_guess = row.kind == CfaKind::FramePointer && row.rbp == GUESSED;
    let nothing_above = if is_guess { WalkEnd::NoUnwindRow } else { WalkEnd::Complete };
    let cfa = match row.kind {
        CfaKind::Rsp => sp.wrapping_add(offset.wrapping_mul(8)),
        CfaKind::Rbp => bp.wrapping_add(offset.wrapping_mul(8)),
        CfaKind::DerefRbp => read(bp.wrapping_add(offset.wrapping_mul(8)))?,
        CfaKind::Plt => sp.wrapping_add(8 + u64::from(pc & 15 >= 11) * 8),
        CfaKind::FramePointer if bp == 0 => return Ok(Step::End(nothing_above)),
        CfaKind::FramePointer => bp.wrapping_add(16),
        CfaKind::Signal => {
            // struct ucontext at RSP: RBP, RSP and RIP in its sigcontext.
            return Ok(Step::Interrupted(Registers {
                bp: read(sp.wrapping_add(120))?,
                sp: read(sp.wrapping_add(160))?,
                pc: read(sp.wrapping_add(168))?,
            }));
        }
        CfaKind::End => return Ok(Step::End(WalkEnd::Complete)),
        CfaKind::None => return Ok(Step::End(WalkEnd::NoUnwindRow)),
    };
    let may_change_stacks = row.kind == CfaKind::FramePointer && !is_guess;
    if cfa == sp || (cfa < sp && !may_change_stacks) {
        return Err(WalkEnd::NoProgress);
    }
    let return_address = read(cfa.wrapping_sub(8))?;
    let caller_bp = match (row.kind, row.rbp) {
        (CfaKind::FramePointer, _) => read(bp)?,
        (_, 0) => bp,
        (_, RBP_AT_RBP) => read(bp)?,
        (_, slot) => read(cfa.wrapping_add((i64::from(slot) * 8) as u64))?,
    };
    if return_address == 0 {
        return Ok(Step::End(nothing_above));
    }
    Ok(Step::Caller(Registers { pc: return_address, sp: cfa, bp: caller_bp }))
}

/// Walks a whole stack: frames from the leaf outwards, and why it ended.
pub fn walk(
    space: UnwindSpace<'_>,
    start: Start,
    registers: Registers,
    mut read: impl FnMut(u64) -> Option<u64>,
) -> (Vec<u64>, WalkEnd) {
    let mut frames = vec![registers.pc];
    let mut registers = registers;
    let mut row = match start {
        Start::AtEntry => Ok(UnwindRow { pc: 0, kind: CfaKind::Rsp, offset_by_8: 1, rbp: 0 }),
        Start::Anywhere => space.row_at(registers.pc),
    };
    loop {
        let step = match row {
            Ok(row) => step(row, registers, &mut read),
            Err(end) => Step::End(end),
        };
        let look_up_at;
        (registers, look_up_at) = match step {
            Step::Caller(caller) => (caller, caller.pc.wrapping_sub(1)),
            Step::Interrupted(interrupted) => (interrupted, interrupted.pc),
            Step::End(end) => return (frames, end),
        };
        if frames.len() == MAX_FRAMES {
            return (frames, WalkEnd::TooDeep);
        }
        frames.push(registers.pc);
        row = space.row_at(look_up_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: CfaKind, offset_by_8: i16, rbp: i16) -> UnwindRow {
        UnwindRow { pc: 0, kind, offset_by_8, rbp }
    }

    /// Memory where the word at an address is a function of the address.
    fn read(address: u64) -> Option<u64> {
        (0x1000..0x3000).contains(&address).then_some(address + 0x10_0000)
    }

    const AT: Registers = Registers { pc: 0x400, sp: 0x1000, bp: 0x2000 };

    #[test]
    fn each_kind_of_row_steps_by_its_formula() {
        let caller = |pc, sp, bp| Step::Caller(Registers { pc, sp, bp });
        let cases = [
            (row(CfaKind::Rsp, 2, 0), AT, caller(0x10_1008, 0x1010, 0x2000)),
            (row(CfaKind::Rsp, 4, -3), AT, caller(0x10_1018, 0x1020, 0x10_1008)),
            (row(CfaKind::Rbp, 2, -2), AT, caller(0x10_2008, 0x2010, 0x10_2000)),
            (row(CfaKind::Rbp, 3, -2), AT, caller(0x10_2010, 0x2018, 0x10_2008)),
            (row(CfaKind::FramePointer, 0, 0), AT, caller(0x10_2008, 0x2010, 0x10_2000)),
            (row(CfaKind::Plt, 0, 0), AT, caller(0x10_1000, 0x1008, 0x2000)),
            (
                row(CfaKind::Plt, 0, 0),
                Registers { pc: 0x40b, ..AT },
                caller(0x10_1008, 0x1010, 0x2000),
            ),
            (
                row(CfaKind::Signal, 0, 0),
                AT,
                Step::Interrupted(Registers { pc: 0x10_10a8, sp: 0x10_10a0, bp: 0x10_1078 }),
            ),
            (row(CfaKind::End, 0, 0), AT, Step::End(WalkEnd::Complete)),
            (row(CfaKind::None, 0, 0), AT, Step::End(WalkEnd::NoUnwindRow)),
            (
                row(CfaKind::FramePointer, 0, 0),
                Registers { bp: 0, ..AT },
                Step::End(WalkEnd::Complete),
            ),
            (
                row(CfaKind::Rbp, 2, -2),
                Registers { bp: 0x500, ..AT },
                Step::End(WalkEnd::NoProgress),
            ),
            (
                row(CfaKind::Rbp, 2, -2),
                Registers { bp: 0x5000, ..AT },
                Step::End(WalkEnd::Unreadable),
            ),
        ];
        for (row, registers, expected) in cases {
            assert_eq!(step(row, registers, read), expected, "{row:?} at {registers:x?}");
        }
    }

    #[test]
    fn a_drap_frame_finds_its_cfa_and_rbp_through_rbp() {
        let memory = |address| match address {
            0x1ff8 => Some(0x2100),
            0x2000 => Some(0xb9),
            0x20f8 => Some(0xca11),
            _ => None,
        };
        let step = step(row(CfaKind::DerefRbp, -1, RBP_AT_RBP), AT, memory);
        assert_eq!(step, Step::Caller(Registers { pc: 0xca11, sp: 0x2100, bp: 0xb9 }));
    }

    #[test]
    fn asmcgocall_finds_a_goroutines_stack_that_moved_by_its_depth() {
        let memory = |g: u64| {
            move |address| match address {
                0x1000 => Some(0x180),
                0x1008 => Some(g),
                // The g, and the frame at 0x180 from the end of its stack.
                0x5008 => Some(0xc100),
                0xbf80 => Some(0xb9),
                0xbf88 => Some(0xca11),
                // RBP's, where the stack was before; and the frame on a system stack.
                0x180 | 0x2000 => Some(0x01d),
                0x188 | 0x2008 => Some(0x1_ca11),
                _ => None,
            }
        };
        let row = row(CfaKind::FramePointer, BY_STACK_DEPTH, 0);
        let moved = Registers { pc: 0xca11, sp: 0xbf90, bp: 0xb9 };
        assert_eq!(step(row, AT, memory(0x5000)), Step::Caller(moved));
        let on_system_stack = Registers { pc: 0x1_ca11, sp: 0x190, bp: 0x01d };
        assert_eq!(step(row, AT, memory(0)), Step::Caller(on_system_stack));
    }

    #[test]
    fn a_frame_pointer_step_may_change_to_a_lower_stack() {
        let memory = |address| (address < 0x100).then_some(7);
        let here = Registers { bp: 0x40, ..AT };
        let step = step(row(CfaKind::FramePointer, 0, 0), here, memory);
        assert_eq!(step, Step::Caller(Registers { pc: 7, sp: 0x50, bp: 7 }));
    }

    #[test]
    fn generated_code_without_frame_pointers_is_no_end_of_the_stack() {
        let guess = row(CfaKind::FramePointer, 0, GUESSED);
        let no_row = Step::End(WalkEnd::NoUnwindRow);
        assert_eq!(step(guess, Registers { bp: 0, ..AT }, read), no_row);
        let zeros = |address| (0x1000..0x3000).contains(&address).then_some(0);
        assert_eq!(step(guess, AT, zeros), no_row, "a return address of 0 is none");
        let lower = Registers { bp: 0x500, ..AT };
        assert_eq!(step(guess, lower, |_| Some(7)), Step::End(WalkEnd::NoProgress));
        let caller = Registers { pc: 0x10_2008, sp: 0x2010, bp: 0x10_2000 };
        assert_eq!(step(guess, AT, read), Step::Caller(caller), "where it keeps one");
    }

    #[test]
    fn a_walk_without_end_is_cut_at_the_most_frames_kept() {
        let mapping = UnwindMapping { end: 1 << 40, row_count: 1, ..UnwindMapping::default() };
        let rows = [row(CfaKind::Rsp, 1, 0).pack()];
        let space = UnwindSpace { mappings: &[mapping], rows: &rows };
        let (frames, end) = walk(space, Start::AtEntry, AT, |_| Some(0x400));
        assert_eq!((frames.len(), end), (MAX_FRAMES, WalkEnd::TooDeep));
    }

    #[test]
    fn a_walk_says_why_it_ended() {
        let mapping = |start, first_row, row_count| UnwindMapping {
            start,
            end: start + 0x1000,
            bias: start,
            first_row,
            row_count,
            ..UnwindMapping::default()
        };
        let rows = [row(CfaKind::Rsp, 1, 0).pack(), row(CfaKind::None, 0, 0).pack()];
        let mappings = [mapping(0x1000, 0, 1), mapping(0x4000, 1, 1), mapping(0x6000, 5, 9)];
        let space = UnwindSpace { mappings: &mappings, rows: &rows };
        let walk_to = |caller: u64| {
            let at = Registers { pc: 0x1500, sp: 0x10, bp: 0 };
            walk(space, Start::AtEntry, at, move |address| (address == 0x10).then_some(caller))
        };
        assert_eq!(walk_to(0), (vec![0x1500], WalkEnd::Complete));
        assert_eq!(walk_to(0x1600), (vec![0x1500, 0x1600], WalkEnd::Unreadable));
        assert_eq!(walk_to(0x4001), (vec![0x1500, 0x4001], WalkEnd::NoUnwindRow));
        assert_eq!(walk_to(0x4000), (vec![0x1500, 0x4000], WalkEnd::UnknownMapping));
        assert_eq!(walk_to(0x6001), (vec![0x1500, 0x6001], WalkEnd::NoUnwindRow));
    }
}
