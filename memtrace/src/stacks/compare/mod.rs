//! Two walks of one stack, compared: memtrace's by its tables, framehop's by the object's own
//! unwind information. Pure.
//!
//! ```text
//! registers, copied memory ─► framehop ─────────────► opinion ─┐
//!            │                                                 ├─► verdict ─► summary
//!            └─► reference walk (the rows) ─► the walk in BPF ─┘
//! ```
//!
//! A stack is *identical* when both give the same frames. One of them may end earlier, with its
//! reason: then the other's frames go on from there. All else is a *contradiction*: another frame,
//! or an end of the stack that the other one passes. framehop speaks only where the object has
//! unwind information that it evaluates; gimli speaks where that is an expression which reads
//! memory; and in compiled Go the runtime's own table of frame sizes, where the walk goes by frame
//! pointers. Where nothing is described (Go's assembly, which changes stacks; generated code), both
//! would guess: the walk's own step is taken and counted as unchecked.

pub mod coverage;
mod evaluate;
pub mod memory;
pub mod opinion;
pub mod summary;

use memtrace_common::unwind::WalkEnd;

pub use memory::CopiedMemory;
pub use opinion::SecondOpinion;
pub use summary::{Summary, Truncation};

/// What framehop found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// From the leaf outwards.
    pub frames: Vec<u64>,
    pub end: OpinionEnd,
    /// Steps by gimli in place of framehop.
    pub evaluated_steps: u32,
    /// Steps by Go's own table of frame sizes.
    pub go_steps: u32,
    /// Steps that no unwind information describes, taken as the walk takes them.
    pub unchecked_steps: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpinionEnd {
    /// The object says that nothing called the last frame.
    Complete,
    Stopped(Stop),
    /// At a step without unwind information, the two disagree on RSP or RBP.
    RegistersDiffer,
}

impl OpinionEnd {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Complete => "the end of the stack",
            Self::Stopped(stop) => stop.label(),
            Self::RegistersDiffer => "other registers than the walk's",
        }
    }
}

/// Why framehop stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stop {
    /// More of the stack would be needed than was copied.
    CopyEnded,
    /// The stack goes on in memory that was not copied: an alternate or a goroutine's stack.
    OtherStack,
    /// No unwind information there, and the walk did not go on either.
    NoUnwindInformation,
    /// More frames than the walk keeps.
    TooDeep,
    /// framehop made no progress, or failed.
    Failed,
}

impl Stop {
    pub const ALL: [Self; 5] =
        [Self::CopyEnded, Self::OtherStack, Self::NoUnwindInformation, Self::TooDeep, Self::Failed];

    /// The stable name, as it stands in JSON.
    pub const fn key(self) -> &'static str {
        match self {
            Self::CopyEnded => "copy_ended",
            Self::OtherStack => "other_stack",
            Self::NoUnwindInformation => "no_unwind_information",
            Self::TooDeep => "too_deep",
            Self::Failed => "failed",
        }
    }

    pub const fn label(self) -> &'static str {
        match self {
            Self::CopyEnded => "the copy of the stack ended",
            Self::OtherStack => "the stack goes on in memory that was not copied",
            Self::NoUnwindInformation => "no unwind information",
            Self::TooDeep => "too deep",
            Self::Failed => "framehop failed",
        }
    }
}

/// How two walks of one stack stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same frames.
    Identical,
    /// framehop's frames are the first ones of the walk's.
    FramehopEndedEarly(Stop),
    /// The walk's frames are the first ones of framehop's, and the walk says why.
    WalkEndedEarly(WalkEnd),
    /// One of them is wrong.
    Contradiction(Contradiction),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// The first frame that is not the same in both; 0 is the leaf.
    pub frame: usize,
    pub kind: ContradictionKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContradictionKind {
    /// Another frame.
    Frame,
    /// The walk says that the stack ends there; framehop goes on.
    WalkEnds,
    /// The object says that the stack ends there; the walk goes on.
    FramehopEnds,
    /// The same frames, but another RSP or RBP before a step that nothing describes.
    Registers,
    /// The walk in the kernel and the same walk over the copied memory are not the same.
    Kernel,
}

impl ContradictionKind {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Frame => "another frame",
            Self::WalkEnds => "the walk ends the stack, framehop goes on",
            Self::FramehopEnds => "framehop ends the stack, the walk goes on",
            Self::Registers => "other registers before a step by frame pointer",
            Self::Kernel => "the walk in the kernel is not that over the copied memory",
        }
    }
}

/// Compares the walk with framehop's opinion.
pub fn compare(frames: &[u64], end: WalkEnd, opinion: &Opinion) -> Verdict {
    let same = common(frames, &opinion.frames);
    let contradiction = |kind| Verdict::Contradiction(Contradiction { frame: same, kind });
    if same < frames.len() && same < opinion.frames.len() {
        return contradiction(ContradictionKind::Frame);
    }
    if opinion.end == OpinionEnd::RegistersDiffer {
        return contradiction(ContradictionKind::Registers);
    }
    if same < opinion.frames.len() {
        return match end {
            WalkEnd::Complete => contradiction(ContradictionKind::WalkEnds),
            end => Verdict::WalkEndedEarly(end),
        };
    }
    let goes_on = same < frames.len();
    match opinion.end {
        OpinionEnd::Complete if goes_on => contradiction(ContradictionKind::FramehopEnds),
        // Nobody confirms the end.
        OpinionEnd::Stopped(stop) if goes_on || (end == WalkEnd::Complete && !is_silent(stop)) => {
            Verdict::FramehopEndedEarly(stop)
        }
        _ => Verdict::Identical,
    }
}

/// Where no unwind information is, framehop has nothing to say on the end either.
fn is_silent(stop: Stop) -> bool {
    stop == Stop::NoUnwindInformation
}

/// Compares the walk in the kernel with the same walk over the copied memory, which may lack what
/// the kernel could read. `None`: nothing speaks against it.
pub fn compare_with_reference(
    frames: &[u64],
    end: WalkEnd,
    reference: &[u64],
    reference_end: WalkEnd,
) -> Option<Contradiction> {
    let same = common(frames, reference);
    let may_end_early = reference_end == WalkEnd::Unreadable;
    let is_prefix = same == reference.len();
    let agrees = match may_end_early {
        true => is_prefix,
        false => is_prefix && same == frames.len() && end == reference_end,
    };
    (!agrees).then_some(Contradiction { frame: same, kind: ContradictionKind::Kernel })
}

/// How many frames from the leaf on are the same.
fn common(one: &[u64], other: &[u64]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests;
