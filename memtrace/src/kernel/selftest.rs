//! The kernel edge of the self-check: its probes, the samples that they send, what was passed over.

use memtrace_common::selftest::{
    HITS_DROPPED, HITS_PACED, PAGE, RECORD_SELFTEST, STACK_PAGES, SelftestRecord, TOP_PAGES,
};
use memtrace_common::unwind::{MAX_FRAMES, WalkEnd, plain};

use super::attach::living_thread;
use super::load::SELFTEST;
use super::ring::{Record, parse};
use super::{AttachOutcome, AttachReport, Kernel, KernelError, Notice};
use crate::plan::{PlannedProbe, ProbePlan, Signature};

/// One sampled call: how it was walked, and the memory that it was walked in.
#[derive(Clone, Debug)]
pub struct Sample<'r> {
    pub tgid: u32,
    pub tid: u32,
    /// The number of the [`Kernel::set_process`] whose mappings the walk used.
    pub generation: u32,
    pub pc: u64,
    pub sp: u64,
    pub bp: u64,
    pub frames: Vec<u64>,
    pub end: WalkEnd,
    /// Copied memory: of the stack, and around the place where the walk ended. Address and bytes;
    /// either may be empty, and they may overlap.
    pub memory: [(u64, &'r [u8]); 2],
    /// The address of a word that a goroutine's stack was found by, and the word.
    pub word: [u64; 2],
}

/// Calls at the probes of the self-check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SelftestCounters {
    /// Of the traced process.
    pub calls: u64,
    /// Passed over to keep the pace.
    pub paced: u64,
    /// Passed over because the ring was full.
    pub dropped: u64,
}

impl Kernel {
    /// Attaches the self-check where a recording with this plan takes the stacks of blocks. The
    /// kernel side must have been loaded with [`super::KernelConfig::selftest_interval_ns`].
    pub fn attach_selftest(
        &mut self,
        pid: u32,
        plan: &ProbePlan,
    ) -> Result<AttachReport, KernelError> {
        let Some(scope) = living_thread(pid) else {
            let reason = format!("process {pid} has no living thread: it has ended");
            let failed = AttachOutcome::Failed { reason, denied: false };
            let probes = vec![failed; plan.probes.len()];
            return Ok(AttachReport { probes, ..AttachReport::default() });
        };
        let mut report = AttachReport::default();
        for probe in &plan.probes {
            if !takes_stack(probe) {
                let reason = "a self-check samples allocating functions only".to_owned();
                report.probes.push(AttachOutcome::Failed { reason, denied: false });
                continue;
            }
            let index = self.places.add();
            report.numbers.push(index);
            // The last slots count what is passed over.
            let outcome = match index < HITS_DROPPED {
                true => self.attach_at(pid, scope, probe, index, SELFTEST, probe.entry_site),
                false => Err(format!("more than {HITS_DROPPED} probes").into()),
            };
            report.probes.push(match outcome {
                Ok(link) => {
                    self.entries.push(link);
                    AttachOutcome::Attached
                }
                Err(refusal) => refusal.into(),
            });
        }
        Ok(report)
    }

    /// Hands over what the ring holds, at most `limit` samples; the notices among them. What a
    /// sample borrows is the ring's own memory.
    pub fn drain_selftest(
        &mut self,
        limit: usize,
        mut each: impl FnMut(Sample<'_>),
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut samples = 0;
        while samples < limit
            && let Some(record) = self.ring.next()
        {
            if let Some(sample) = sample(&record) {
                samples += 1;
                each(sample);
            } else if let Some(Record::Notice(notice)) = parse(&record) {
                notices.push(notice);
            }
        }
        notices
    }

    /// The number of the latest [`Kernel::set_process`].
    pub fn mappings_generation(&self) -> u32 {
        self.generation
    }

    pub fn selftest_counters(&self) -> Result<SelftestCounters, KernelError> {
        let counters = self.read_counters()?;
        let hits = &counters[counters.len() - memtrace_common::calls::MAX_PROBES..];
        Ok(SelftestCounters {
            calls: hits[..HITS_DROPPED].iter().sum(),
            paced: hits[HITS_PACED],
            dropped: hits[HITS_DROPPED],
        })
    }
}

/// Whether a recording takes the stack of a block there.
pub(super) fn takes_stack(probe: &PlannedProbe) -> bool {
    probe.signature.is_simple() && probe.signature != Signature::Free
}

/// `None`: another record.
fn sample(bytes: &[u8]) -> Option<Sample<'_>> {
    let kind = u32::from_ne_bytes(bytes.first_chunk().copied()?);
    let aligned = bytes.as_ptr().cast::<SelftestRecord>().is_aligned();
    if kind != RECORD_SELFTEST || bytes.len() < size_of::<SelftestRecord>() || !aligned {
        return None;
    }
    // SAFETY: long enough, aligned, and any bytes are a valid row of integers.
    let row: &SelftestRecord = unsafe { &*bytes.as_ptr().cast() };
    let stack_pages = usize::from(row.stack_pages).min(STACK_PAGES);
    let top_pages = usize::from(row.top_pages).min(TOP_PAGES);
    let page = PAGE as u64;
    // From RSP on: what lies below is dead.
    let below = ((row.sp & (page - 1)) as usize).min(stack_pages * PAGE);
    let top = row.top_page.wrapping_add(page).wrapping_sub((top_pages * PAGE) as u64);
    Some(Sample {
        tgid: row.tgid,
        tid: row.tid,
        generation: row.generation,
        pc: row.pc,
        sp: row.sp,
        bp: row.bp,
        frames: row.frames[..usize::from(row.count).min(MAX_FRAMES)]
            .iter()
            .map(|frame| plain(*frame))
            .collect(),
        end: WalkEnd::from_u8(row.end),
        word: row.switch,
        memory: [
            (row.sp, &row.stack[below..stack_pages * PAGE]),
            (top, &row.top[(TOP_PAGES - top_pages) * PAGE..]),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record in memory as aligned as the ring's.
    fn record(fill: impl FnOnce(&mut SelftestRecord)) -> Vec<u64> {
        let mut words = vec![0_u64; size_of::<SelftestRecord>() / 8];
        // SAFETY: long enough, aligned for words, and all zero is a valid row of integers.
        let row = unsafe { &mut *words.as_mut_ptr().cast::<SelftestRecord>() };
        row.record = RECORD_SELFTEST;
        fill(row);
        words
    }

    fn bytes(words: &[u64]) -> &[u8] {
        // SAFETY: the same memory, by the byte.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 8) }
    }

    #[test]
    fn copied_pages_lie_at_their_addresses() {
        let words = record(|row| {
            row.sp = 0x7000_0f08;
            row.stack_pages = 2;
            row.stack[0xf08] = 1;
            row.stack[2 * PAGE - 1] = 2;
            row.top_page = 0xc000_3000;
            row.top_pages = 3;
            row.top[5 * PAGE] = 3;
            row.count = 200;
            row.end = WalkEnd::Complete as u8;
        });
        let sample = sample(bytes(&words)).expect("it is a record of the self-check");
        let [(stack_at, stack), (top_at, top)] = sample.memory;
        assert_eq!((stack_at, stack.len()), (0x7000_0f08, 2 * PAGE - 0xf08));
        assert_eq!((stack[0], stack[stack.len() - 1]), (1, 2));
        assert_eq!((top_at, top.len(), top[0]), (0xc000_1000, 3 * PAGE, 3));
        assert_eq!(sample.frames.len(), MAX_FRAMES, "a count beyond the array is cut");
    }

    #[test]
    fn a_stack_of_which_nothing_could_be_copied_is_empty() {
        let words = record(|row| row.sp = 0x7000_0f08);
        let sample = sample(bytes(&words)).expect("it is a record of the self-check");
        assert!(sample.memory.iter().all(|(_, bytes)| bytes.is_empty()));
    }

    #[test]
    fn other_records_and_torn_ones_are_none() {
        assert!(sample(&[]).is_none());
        let words = record(|_| {});
        assert!(sample(&bytes(&words)[..4096]).is_none());
        let words = record(|row| row.record = 1);
        assert!(sample(bytes(&words)).is_none());
    }
}
