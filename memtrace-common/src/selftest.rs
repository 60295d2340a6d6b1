//! The record of the self-check: one stack as it was walked, and a copy of the memory it stood in.
//!
//! Memory is copied by pages, as a copy fails whole where one of its pages cannot be read: that of
//! the stack upwards from the page of RSP, that around the place where the walk ended downwards
//! from there. The second one matters where the walk went on to another stack (a goroutine's).

use crate::calls::MAX_PROBES;
use crate::unwind::MAX_FRAMES;

/// The first word of its ring record; continues those of [`crate::rows`].
pub const RECORD_SELFTEST: u32 = 3;

/// Bytes of the unit that is copied.
pub const PAGE: usize = 4096;
/// Pages from that of RSP upwards: at least 64 KiB of stack.
pub const STACK_PAGES: usize = 17;
/// Pages from that where the walk ended downwards: at least 28 KiB.
pub const TOP_PAGES: usize = 8;

/// The slots of [`crate::rows::CountersRow::hits`] that count calls passed over, for their pace
/// and for want of room in the ring. Probes have the slots below.
pub const HITS_PACED: usize = MAX_PROBES - 1;
pub const HITS_DROPPED: usize = MAX_PROBES - 2;

/// One sampled call, in the ring.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SelftestRecord {
    /// [`RECORD_SELFTEST`]
    pub record: u32,
    pub tgid: u32,
    pub tid: u32,
    /// Of the mappings that the walk used.
    pub generation: u32,
    pub pc: u64,
    pub sp: u64,
    pub bp: u64,
    /// How many of `frames` are valid.
    pub count: u16,
    /// [`crate::unwind::WalkEnd`]
    pub end: u8,
    /// How many of `stack`'s pages are valid, from the first one; the first begins at RSP's page.
    pub stack_pages: u8,
    /// How many of `top`'s pages are valid, up to the last one.
    pub top_pages: u8,
    pub zero: [u8; 3],
    /// The address of the last page of `top`.
    pub top_page: u64,
    /// [`crate::rows::WalkRow::switch`]
    pub switch: [u64; 2],
    pub frames: [u64; MAX_FRAMES],
    pub stack: [u8; STACK_PAGES * PAGE],
    pub top: [u8; TOP_PAGES * PAGE],
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(offset_of!(SelftestRecord, frames) == 72);
    assert!(size_of::<SelftestRecord>() == 72 + 8 * MAX_FRAMES + (STACK_PAGES + TOP_PAGES) * PAGE);
    assert!(STACK_PAGES <= u8::MAX as usize);
    assert!(TOP_PAGES <= u8::MAX as usize);
};
