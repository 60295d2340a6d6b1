//! The unwind row: how to step from one frame to its caller, in eight bytes.
//!
//! A table is a sorted run of rows, one per program-counter range of one object; a row holds from
//! its `pc` up to the next row's. The return address always stands at `CFA - 8` (x86-64).
//! The user side builds tables from `.eh_frame`; the kernel side only reads them.

/// How the canonical frame address (CFA) is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CfaKind {
    /// `CFA = RSP + 8·offset`
    Rsp = 0,
    /// `CFA = RBP + 8·offset`
    Rbp = 1,
    /// `CFA = *(RBP + 8·offset)`, offset signed (DRAP frames)
    DerefRbp = 2,
    /// A 16-byte PLT stub: `CFA = RSP + 8 + (pc & 15 >= 11) · 8`
    Plt = 3,
    /// A frame-pointer step: `CFA = RBP + 16`, caller's RBP at `CFA - 16` (Go text; generated code
    /// as a guess, see [`GUESSED`])
    FramePointer = 4,
    /// The end of the stack: `_start`, `clone`, `runtime.goexit`, `runtime.mstart` …
    End = 5,
    /// A signal frame: registers in the `ucontext` at RSP
    Signal = 6,
    /// No unwind information: the walk is truncated here
    None = 7,
}

impl CfaKind {
    pub const fn from_bits(bits: u16) -> Self {
        match bits & 7 {
            0 => Self::Rsp,
            1 => Self::Rbp,
            2 => Self::DerefRbp,
            3 => Self::Plt,
            4 => Self::FramePointer,
            5 => Self::End,
            6 => Self::Signal,
            _ => Self::None,
        }
    }
}

/// One row, packed as a little-endian `u64`: `pc:32 | cfa:16 | rbp:16`.
///
/// * `pc` — the object's virtual address minus the lowest `PT_LOAD` virtual address (4 GiB reach)
/// * `cfa` — bits 15..13 [`CfaKind`], bits 12..0 the offset divided by 8 (two's complement for
///   [`CfaKind::DerefRbp`], unsigned otherwise)
/// * `rbp` — 0: unchanged; `-n`: saved at `CFA - 8n`; [`RBP_AT_RBP`]: saved at `*(RBP)`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UnwindRow {
    pub pc: u32,
    pub kind: CfaKind,
    pub offset_by_8: i16,
    pub rbp: i16,
}

/// The offset of a [`CfaKind::FramePointer`] row in Go's `asmcgocall`, or more: there the frame
/// pointer must not be taken from RBP, as a callback may have moved the goroutine's stack since.
/// With the two words saved at `RSP + 8 · (offset − BY_STACK_DEPTH)`, `depth` and `g`: the frame
/// pointer is `*(g + 8) − depth`, and `depth` itself where `g` is 0 (on a system stack).
pub const BY_STACK_DEPTH: i16 = 1;
/// The RBP slot of a [`CfaKind::FramePointer`] row whose code need not keep frame pointers: a frame
/// pointer of 0 is then no end of the stack, and the step may not change to another stack.
pub const GUESSED: i16 = 1;
/// Offset of `stack.hi` in the runtime's `g`, of every version.
pub const G_STACK_HI: u64 = 8;
/// The caller's RBP is saved where RBP points (DRAP frames).
pub const RBP_AT_RBP: i16 = 0x7fff;
/// The largest unsigned offset, in units of 8 bytes.
pub const MAX_OFFSET_BY_8: i16 = 0x1fff;

impl UnwindRow {
    pub const fn pack(self) -> u64 {
        let cfa = ((self.kind as u16) << 13) | (self.offset_by_8 as u16 & 0x1fff);
        (self.pc as u64) | ((cfa as u64) << 32) | ((self.rbp as u16 as u64) << 48)
    }

    #[inline(always)]
    pub const fn unpack(bits: u64) -> Self {
        let cfa = (bits >> 32) as u16;
        let kind = CfaKind::from_bits(cfa >> 13);
        let raw = cfa & 0x1fff;
        let offset_by_8 = match kind {
            CfaKind::DerefRbp => ((raw << 3) as i16) >> 3,
            _ => raw as i16,
        };
        Self { pc: bits as u32, kind, offset_by_8, rbp: (bits >> 48) as u16 as i16 }
    }
}

/// Why a walk ended; kept with each stack, so a truncated stack says so wherever it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum WalkEnd {
    /// Reached the end of the stack.
    Complete = 0,
    /// More frames than [`MAX_FRAMES`].
    TooDeep = 1,
    /// A program counter in no known mapping (a library mapped since, JIT, or a broken stack).
    UnknownMapping = 2,
    /// The mapping has no unwind information at this address.
    NoUnwindRow = 3,
    /// The tracee's stack memory could not be read.
    Unreadable = 4,
    /// The stack pointer did not grow: broken frame.
    NoProgress = 5,
    /// The stack could not be stored: the store is full.
    StoreFull = 6,
    /// Another stack has the same hash.
    HashCollision = 7,
    /// The next frame's code stands where code may have been replaced since the tables were read.
    MappingsChanged = 8,
}

impl WalkEnd {
    pub const fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Complete,
            1 => Self::TooDeep,
            3 => Self::NoUnwindRow,
            4 => Self::Unreadable,
            5 => Self::NoProgress,
            6 => Self::StoreFull,
            7 => Self::HashCollision,
            8 => Self::MappingsChanged,
            _ => Self::UnknownMapping,
        }
    }
}

/// Most frames kept of one stack.
pub const MAX_FRAMES: usize = 127;
/// Frames that one program steps through where the kernel has no `bpf_loop`; the next ones are
/// stepped through by a tail call to itself.
pub const FRAMES_PER_PROGRAM: u32 = 5;
/// Most tail calls in a row: the kernel's `MAX_TAIL_CALL_CNT`, and one less on old kernels.
const MAX_TAIL_CALLS: usize = 32;
// To the first of them, from each to the next, and to the program that uses the stack.
const _: () = assert!(MAX_FRAMES.div_ceil(FRAMES_PER_PROGRAM as usize) < MAX_TAIL_CALLS);

/// Most executable mappings of one process that the walk knows.
pub const MAX_MAPPINGS: usize = 256;

/// One executable mapping of a process, as the walk sees it. Sorted by `start`, disjoint.
///
/// `row_pc = pc - bias`, looked up in `rows[first_row .. first_row + row_count]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UnwindMapping {
    pub start: u64,
    pub end: u64,
    /// The runtime address of row-pc 0: load bias plus the lowest `PT_LOAD` virtual address.
    pub bias: u64,
    pub first_row: u32,
    pub row_count: u32,
    /// How many others stood at these addresses before, at most [`OWNER_OF_MANY`].
    pub owner: u8,
    /// 1: may be unloaded, or otherwise go, while the process runs; 0: nobody expects that.
    pub may_go: u8,
    pub zero: [u8; 6],
}
const _: () = assert!(core::mem::size_of::<UnwindMapping>() == 40);

/// A frame is an address with its owner above it: which of those that stood there one after the
/// other. User addresses are below, with five levels of page tables, too.
pub const OWNER_SHIFT: u32 = 57;
/// That many, or more: no longer told apart.
pub const OWNER_OF_MANY: u8 = 126;
/// The address lay in no mapping that the walk knew.
pub const OWNER_UNKNOWN: u8 = 127;

/// A frame, of an address and its owner.
#[inline(always)]
pub const fn owned(address: u64, owner: u8) -> u64 {
    plain(address) | (owner as u64) << OWNER_SHIFT
}

/// The address of a frame, without its owner.
#[inline(always)]
pub const fn plain(frame: u64) -> u64 {
    frame & ((1 << OWNER_SHIFT) - 1)
}

/// The owner of a frame's address.
pub const fn owner_of(frame: u64) -> u8 {
    (frame >> OWNER_SHIFT) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_an_address_and_its_owner() {
        let address = (1 << 56) - 1;
        for owner in [0, 1, OWNER_OF_MANY, OWNER_UNKNOWN] {
            let frame = owned(address, owner);
            assert_eq!((plain(frame), owner_of(frame)), (address, owner));
        }
        assert_eq!(owned(address, 0), address, "what nobody stood before is its address");
        assert_eq!(owner_of(owned(u64::MAX, 3)), 3, "an address of no user has no owner in it");
    }

    #[test]
    fn a_row_survives_packing() {
        for row in [
            UnwindRow {
                pc: 0xffff_fff0,
                kind: CfaKind::Rsp,
                offset_by_8: MAX_OFFSET_BY_8,
                rbp: -2,
            },
            UnwindRow { pc: 1, kind: CfaKind::DerefRbp, offset_by_8: -1, rbp: RBP_AT_RBP },
            UnwindRow { pc: 0, kind: CfaKind::None, offset_by_8: 0, rbp: 0 },
        ] {
            assert_eq!(UnwindRow::unpack(row.pack()), row);
        }
    }
}
