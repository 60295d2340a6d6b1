//! The ring: mmap events in the order of their effect, and notices.
//!
//! `munmap` and `mremap` take effect when they are entered, `mmap` and its kin when they return:
//! an address that one thread unmaps and another maps again is then seen in the right order. The
//! events arrive at return, so young ones are held back for a moment.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use memtrace_common::calls::Signature;
use memtrace_common::rows::{
    NOTICE_EXEC, NOTICE_EXIT, NOTICE_FORK, NOTICE_MAPPINGS_CHANGED, NOTICE_UNKNOWN_MAPPING,
    NoticeRecord, RANGE_ALLOCATOR_INTERNAL, RECORD_NOTICE, RECORD_RANGE, RangeRecord,
};

use super::Kernel;

/// A call in flight for longer than this may come out of order.
const GRACE_NS: u64 = 50_000_000;

/// A range call that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeEvent {
    pub signature: Signature,
    pub tgid: u32,
    pub tid: u32,
    /// [`super::ImageNumber`]
    pub image: u32,
    /// `CLOCK_MONOTONIC`
    pub entry_ns: u64,
    pub return_ns: u64,
    /// Of the outermost allocator call where `allocator_internal`.
    pub stack: u64,
    /// Made inside an allocator call.
    pub allocator_internal: bool,
    /// As passed by the caller; those that the function does not have are meaningless.
    pub args: [u64; 6],
    /// RAX.
    pub result: u64,
}

impl RangeEvent {
    /// When it took effect: what it unmaps may be mapped again before it returns.
    pub fn effective_ns(&self) -> u64 {
        match self.signature {
            Signature::Munmap | Signature::Mremap => self.entry_ns,
            _ => self.return_ns,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The process runs another image since then (`CLOCK_MONOTONIC`), and is no longer traced.
    Exec { tgid: u32, time_ns: u64 },
    /// A member of the family started a process.
    Fork { tgid: u32, parent: u32, time_ns: u64 },
    /// The leader of the thread group ended; other threads may go on.
    Exit { tgid: u32 },
    /// A walk met a pc outside the mappings set: read them again. Once per page and
    /// [`Kernel::set_process`].
    UnknownMapping { tgid: u32, pc: u64 },
    /// Code came, or may have gone: read the mappings again, from [`Kernel::note_changes`] on. Until
    /// they are set, walks end before code that may have been replaced.
    MappingsChanged { tgid: u32 },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// In the order of their effect.
    pub ranges: Vec<RangeEvent>,
    pub notices: Vec<Notice>,
}

/// Events that are too young to be told.
#[derive(Debug, Default)]
pub(super) struct Held {
    events: Vec<RangeEvent>,
}

impl Held {
    /// Takes out what took effect up to `horizon_ns`, in order.
    fn release(&mut self, horizon_ns: u64) -> Vec<RangeEvent> {
        self.events.sort_by_key(RangeEvent::effective_ns);
        let ready = self.events.partition_point(|event| event.effective_ns() <= horizon_ns);
        self.events.drain(..ready).collect()
    }
}

impl Kernel {
    /// What has happened, but for the last 50 ms of range events. Call it often: the ring holds
    /// [`super::KernelConfig::ring_bytes`].
    pub fn drain_ring(&mut self) -> Drained {
        self.drain_up_to(monotonic_ns().saturating_sub(GRACE_NS))
    }

    /// Everything: after [`Kernel::disarm`], or for a snapshot of the moment.
    pub fn drain_ring_fully(&mut self) -> Drained {
        self.drain_up_to(u64::MAX)
    }

    fn drain_up_to(&mut self, horizon_ns: u64) -> Drained {
        let mut notices = Vec::new();
        while let Some(record) = self.ring.next() {
            match parse(&record) {
                Some(Record::Range(event)) => {
                    if !self.delivered_stacks.contains(&event.stack) {
                        self.wanted_stacks.insert(event.stack, event.image);
                    }
                    self.held.events.push(event);
                }
                Some(Record::Notice(notice)) => notices.push(notice),
                None => log::debug!("a ring record of {} bytes is unknown", record.len()),
            }
        }
        Drained { ranges: self.held.release(horizon_ns), notices }
    }

    /// A descriptor of the ring: it becomes readable with each notice.
    pub fn ring_descriptor(&self) -> std::io::Result<OwnedFd> {
        // SAFETY: the ring's descriptor is open for as long as `self` is.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }.try_clone_to_owned()
    }
}

pub(super) enum Record {
    Range(RangeEvent),
    Notice(Notice),
}

pub(super) fn parse(bytes: &[u8]) -> Option<Record> {
    let kind = u32::from_ne_bytes(bytes.first_chunk().copied()?);
    match kind {
        RECORD_RANGE if bytes.len() >= size_of::<RangeRecord>() => {
            // SAFETY: long enough, and any bytes are a valid row of integers.
            let row: RangeRecord = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
            Some(Record::Range(RangeEvent {
                signature: Signature::from_u8(u8::try_from(row.signature).ok()?)?,
                tgid: row.tgid,
                tid: row.tid,
                image: row.image,
                entry_ns: row.entry_ns,
                return_ns: row.return_ns,
                stack: row.stack,
                allocator_internal: row.flags & RANGE_ALLOCATOR_INTERNAL != 0,
                args: row.args,
                result: row.result,
            }))
        }
        RECORD_NOTICE if bytes.len() >= size_of::<NoticeRecord>() => {
            // SAFETY: as above.
            let row: NoticeRecord = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
            let tgid = row.tgid;
            match row.notice {
                NOTICE_EXEC => Some(Record::Notice(Notice::Exec { tgid, time_ns: row.time_ns })),
                NOTICE_FORK => {
                    let parent = u32::try_from(row.address).ok()?;
                    Some(Record::Notice(Notice::Fork { tgid, parent, time_ns: row.time_ns }))
                }
                NOTICE_EXIT => Some(Record::Notice(Notice::Exit { tgid })),
                NOTICE_MAPPINGS_CHANGED => Some(Record::Notice(Notice::MappingsChanged { tgid })),
                NOTICE_UNKNOWN_MAPPING => {
                    Some(Record::Notice(Notice::UnknownMapping { tgid, pc: row.address }))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// The clock of the kernel side's times.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid structure; this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(signature: Signature, entry_ns: u64, return_ns: u64) -> RangeEvent {
        RangeEvent {
            signature,
            tgid: 1,
            tid: 1,
            image: 1,
            entry_ns,
            return_ns,
            stack: 16,
            allocator_internal: false,
            args: [0; 6],
            result: 0,
        }
    }

    #[test]
    fn an_unmapped_address_that_is_mapped_again_comes_in_the_order_of_the_effects() {
        // Thread 1 unmaps (10..40); thread 2 maps the same address (20..30) and returns first.
        let map = event(Signature::Mmap, 20, 30);
        let unmap = event(Signature::Munmap, 10, 40);
        let mut held = Held { events: vec![map, unmap] };
        assert_eq!(held.release(100), [unmap, map]);
    }

    #[test]
    fn young_events_wait() {
        let old = event(Signature::Mmap, 5, 30);
        let young = event(Signature::Mmap, 6, 31);
        let mut held = Held { events: vec![young, old] };
        assert_eq!(held.release(30), [old]);
        assert_eq!(held.release(30), []);
        assert_eq!(held.release(31), [young]);
    }

    #[test]
    fn a_torn_or_unknown_record_is_none() {
        assert!(parse(&[]).is_none());
        assert!(parse(&RECORD_RANGE.to_ne_bytes()).is_none());
        assert!(parse(&[0; 200]).is_none());
    }
}
