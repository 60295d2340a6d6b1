//! framehop over copied memory: the second opinion on a walk.
//!
//! framehop keeps its own registers from frame to frame and is asked only where the object
//! describes the code in a way that it evaluates. Elsewhere gimli steps, in compiled Go the runtime's
//! own table of frame sizes, or the walk, after both agreed on RSP and RBP.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{FrameAddress, Module, Unwinder};
use memtrace_common::unwind::{MAX_FRAMES, WalkEnd};

use super::coverage::{Speaker, UnwindInformation};
use super::evaluate::Evaluated;
use super::{CopiedMemory, Opinion, OpinionEnd, Stop};
use crate::stacks::elf::{Elf, FileSource};
use crate::stacks::space::FileIdentity;
use crate::stacks::walk::{Registers, Step, UnwindSpace, step};
use crate::tracee::MappedFile;
use memtrace_common::unwind::{CfaKind, UnwindRow};

/// The objects of one process, as framehop knows them.
#[derive(Default)]
pub struct SecondOpinion {
    unwinder: UnwinderX86_64<Arc<[u8]>>,
    cache: CacheX86_64,
    read: HashMap<FileIdentity, Option<Arc<UnwindInformation>>>,
    speakers: HashMap<u64, Speaker>,
    /// Sorted by start, disjoint.
    places: Vec<Place>,
}

struct Place {
    start: u64,
    end: u64,
    load_bias: u64,
    information: Arc<UnwindInformation>,
}

/// One walk, with the registers at each frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceWalk {
    pub registers: Vec<Registers>,
    /// The frames that were interrupted by a signal: their pc is no return address.
    interrupted: Vec<usize>,
    pub end: WalkEnd,
}

impl ReferenceWalk {
    /// Walks from a function's entry by the rows, over copied memory.
    pub fn of(space: UnwindSpace<'_>, entry: Registers, memory: CopiedMemory<'_>) -> Self {
        let mut registers = vec![entry];
        let mut interrupted = Vec::new();
        let mut at = entry;
        let mut row = Ok(UnwindRow { pc: 0, kind: CfaKind::Rsp, offset_by_8: 1, rbp: 0 });
        loop {
            let stepped = match row {
                Ok(row) => step(row, at, |address| memory.read(address)),
                Err(end) => Step::End(end),
            };
            let look_up_at;
            (at, look_up_at) = match stepped {
                Step::Caller(caller) => (caller, caller.pc.wrapping_sub(1)),
                Step::Interrupted(at) => {
                    interrupted.push(registers.len());
                    (at, at.pc)
                }
                Step::End(end) => return Self { registers, interrupted, end },
            };
            if registers.len() == MAX_FRAMES {
                return Self { registers, interrupted, end: WalkEnd::TooDeep };
            }
            registers.push(at);
            row = space.row_at(look_up_at);
        }
    }

    pub fn frames(&self) -> Vec<u64> {
        self.registers.iter().map(|registers| registers.pc).collect()
    }
}

impl SecondOpinion {
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on these files are mapped, as they say. Each file is read once.
    pub fn set_files(&mut self, files: &[MappedFile]) {
        self.places.clear();
        self.speakers.clear();
        for file in files {
            let Some(information) = self.information_of(file) else { continue };
            for mapping in &file.mappings {
                // framehop knows no object that lies below its own addresses.
                if let Some(load_bias) = information.segments.load_bias(mapping)
                    && load_bias <= mapping.start
                {
                    self.places.push(Place {
                        start: mapping.start,
                        end: mapping.end,
                        load_bias,
                        information: Arc::clone(&information),
                    });
                }
            }
        }
        self.places.sort_by_key(|place| place.start);
        self.places.dedup_by(|later, earlier| later.start < earlier.end);
        self.unwinder = UnwinderX86_64::new();
        self.cache = CacheX86_64::new();
        for place in &self.places {
            let range = place.start..place.end;
            let info = place.information.section_info();
            self.unwinder.add_module(Module::new(String::new(), range, place.load_bias, info));
        }
    }

    fn information_of(&mut self, file: &MappedFile) -> Option<Arc<UnwindInformation>> {
        let identity = FileIdentity::of(file).ok()?;
        let read = self.read.entry(identity).or_insert_with(|| {
            let source = FileSource::new(&file.file).ok()?;
            Elf::parse(&source).ok().map(|elf| Arc::new(UnwindInformation::of(elf)))
        });
        read.clone()
    }

    /// The place that holds an address, and who can step from there.
    fn speaker(&mut self, address: u64) -> (Option<usize>, Speaker) {
        let after = self.places.partition_point(|place| place.start <= address);
        let index = after.checked_sub(1).filter(|at| address < self.places[*at].end);
        let Some(place) = index.map(|at| &self.places[at]) else {
            return (None, Speaker::Nobody);
        };
        let speaker = *self
            .speakers
            .entry(address)
            .or_insert_with(|| place.information.speaker(address.wrapping_sub(place.load_bias)));
        (index, speaker)
    }

    /// What framehop finds from a function's entry on. `walk`: the same stack by the rows.
    pub fn ask(&mut self, walk: &ReferenceWalk, memory: CopiedMemory<'_>) -> Opinion {
        let mut opinion = Opinion {
            frames: Vec::new(),
            end: OpinionEnd::Stopped(Stop::Failed),
            evaluated_steps: 0,
            go_steps: 0,
            unchecked_steps: 0,
        };
        let Some(entry) = walk.registers.first() else { return opinion };
        opinion.frames.push(entry.pc);
        // Objects of the tracee are hostile, and framehop computes with what they say.
        let asked =
            catch_unwind(AssertUnwindSafe(|| self.follow(walk, *entry, memory, &mut opinion)));
        match asked {
            Ok(end) => opinion.end = end,
            Err(_) => self.cache = CacheX86_64::new(),
        }
        opinion
    }

    fn follow(
        &mut self,
        walk: &ReferenceWalk,
        entry: Registers,
        memory: CopiedMemory<'_>,
        opinion: &mut Opinion,
    ) -> OpinionEnd {
        let mut registers = UnwindRegsX86_64::new(entry.pc, entry.sp, entry.bp);
        let mut address = FrameAddress::from_instruction_pointer(entry.pc);
        loop {
            // One more than the walk keeps shows that it goes on.
            if opinion.frames.len() > MAX_FRAMES {
                return OpinionEnd::Stopped(Stop::TooDeep);
            }
            let index = opinion.frames.len() - 1;
            let look_up_at = address.address_for_lookup();
            let at = Registers { pc: registers.ip(), sp: registers.sp(), bp: registers.bp() };
            let (place, mut speaker) = self.speaker(look_up_at);
            // Go's table is of calls: in the middle of a prologue RBP may not be saved yet.
            if speaker == Speaker::Go && walk.interrupted.contains(&index) {
                speaker = Speaker::Nobody;
            }
            let stepped = match (place, speaker) {
                (_, Speaker::Framehop) => {
                    self.ask_framehop(address, &mut registers, memory).map(|()| registers)
                }
                (Some(place), Speaker::Expression) => self.ask_gimli(place, look_up_at, at, memory),
                (Some(place), Speaker::Go) => self.ask_go(place, look_up_at, at, memory),
                _ => follow_walk(walk, index, at),
            };
            registers = match stepped {
                Ok(registers) => registers,
                Err(end) => return end,
            };
            opinion.evaluated_steps += u32::from(speaker == Speaker::Expression);
            opinion.go_steps += u32::from(speaker == Speaker::Go);
            opinion.unchecked_steps += u32::from(speaker == Speaker::Nobody);
            let pc = registers.ip();
            let is_interrupted = walk.interrupted.contains(&(index + 1));
            address = match FrameAddress::from_return_address(pc) {
                _ if is_interrupted => FrameAddress::from_instruction_pointer(pc),
                Some(address) => address,
                None => return OpinionEnd::Complete,
            };
            opinion.frames.push(pc);
        }
    }

    fn ask_framehop(
        &mut self,
        address: FrameAddress,
        registers: &mut UnwindRegsX86_64,
        memory: CopiedMemory<'_>,
    ) -> Result<(), OpinionEnd> {
        let mut read = |address| memory.read(address).ok_or(());
        match self.unwinder.unwind_frame(address, registers, &mut self.cache, &mut read) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(OpinionEnd::Complete),
            Err(framehop::Error::CouldNotReadStack(at)) => Err(not_copied(memory, at)),
            Err(_) => Err(OpinionEnd::Stopped(Stop::Failed)),
        }
    }

    fn ask_gimli(
        &self,
        place: usize,
        look_up_at: u64,
        at: Registers,
        memory: CopiedMemory<'_>,
    ) -> Result<UnwindRegsX86_64, OpinionEnd> {
        let place = &self.places[place];
        let vaddr = look_up_at.wrapping_sub(place.load_bias);
        let mut read = |address| memory.read(address);
        opined(place.information.evaluate(vaddr, at, &mut read), memory)
    }

    fn ask_go(
        &self,
        place: usize,
        look_up_at: u64,
        at: Registers,
        memory: CopiedMemory<'_>,
    ) -> Result<UnwindRegsX86_64, OpinionEnd> {
        let place = &self.places[place];
        let vaddr = look_up_at.wrapping_sub(place.load_bias);
        let mut read = |address| memory.read(address);
        opined(place.information.go_step(vaddr, at, &mut read), memory)
    }
}

fn opined(evaluated: Evaluated, memory: CopiedMemory<'_>) -> Result<UnwindRegsX86_64, OpinionEnd> {
    match evaluated {
        Evaluated::Caller(caller) => Ok(told(caller)),
        Evaluated::End => Err(OpinionEnd::Complete),
        Evaluated::CannotRead(at) => Err(not_copied(memory, at)),
        Evaluated::Failed => Err(OpinionEnd::Stopped(Stop::NoUnwindInformation)),
    }
}

fn told(at: Registers) -> UnwindRegsX86_64 {
    UnwindRegsX86_64::new(at.pc, at.sp, at.bp)
}

fn not_copied(memory: CopiedMemory<'_>, address: u64) -> OpinionEnd {
    OpinionEnd::Stopped(match memory.is_near(address) {
        true => Stop::CopyEnded,
        false => Stop::OtherStack,
    })
}

/// The walk's own step, where both stand at the same frame.
fn follow_walk(
    walk: &ReferenceWalk,
    index: usize,
    at: Registers,
) -> Result<UnwindRegsX86_64, OpinionEnd> {
    let silent = OpinionEnd::Stopped(Stop::NoUnwindInformation);
    let here = walk.registers.get(index).filter(|here| here.pc == at.pc).ok_or(silent)?;
    if *here != at {
        return Err(OpinionEnd::RegistersDiffer);
    }
    walk.registers.get(index + 1).map(|next| told(*next)).ok_or(match walk.end {
        // The walk's step by frame pointer leads to memory that only the kernel could read.
        WalkEnd::Unreadable => OpinionEnd::Stopped(Stop::OtherStack),
        _ => silent,
    })
}
