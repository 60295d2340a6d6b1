//! The process in a few figures: what is resident, who holds it, and what is left unexplained.
//!
//! Law: `rss = go + native blocks + native ranges + files + unexplained`, unexplained with its
//! sign. What is not known is not counted, and the reason stands in its place.

use crate::snapshot::{GoBooks, Known, RangeOwner, Snapshot};

/// Figures of one process at one snapshot, bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Measured.
    pub rss: Known<u64>,
    /// Measured: resident pages of files and shared memory.
    pub files: Known<u64>,
    /// Sampled: `inuse_space` of the Go heap profile.
    pub go_inuse: Known<u64>,
    /// Derived: `Sys − HeapReleased`.
    pub go_retained: Known<u64>,
    /// Which of the Go figures is subtracted from the resident memory.
    pub go_counted: GoCounted,
    /// Measured: bytes requested and not freed.
    pub native_blocks: u64,
    /// Measured: mapped by native code itself and not `PROT_NONE`; not all need be resident.
    pub native_ranges: u64,
    /// Measured, and not subtracted: what threads did not touch is not resident.
    pub thread_stacks: u64,
    /// Measured, and not subtracted: `PROT_NONE` is never resident.
    pub reserved: u64,
    /// Derived: `rss − go − native − files`; negative where what is mapped is not resident.
    pub unexplained: Known<i128>,
}

/// Which figure stands for Go in the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoCounted {
    /// `Sys − HeapReleased`: all that the Go runtime holds.
    Retained,
    /// The heap profile alone: the runtime's idle heap and metadata stay unexplained.
    InUse,
    /// Nothing is known of Go, or the process is not a Go program.
    Nothing,
}

impl Summary {
    pub(crate) fn new(snapshot: &Snapshot, native_blocks: u64) -> Self {
        let from_process =
            |figure: &dyn Fn(&crate::snapshot::ProcessMemory) -> u64| snapshot.process.map(figure);
        let rss = from_process(&|process| process.rss);
        let files = from_process(&|process| process.rss_file.saturating_add(process.rss_shmem));
        let go_inuse = match &snapshot.go {
            Known::Value(GoBooks { no_profile: Some(reason), .. }) => {
                Known::unknown(reason.clone())
            }
            known => known.map(|go| go.inuse_bytes),
        };
        let go_retained = snapshot.go.and_then(|go| match &go.memory {
            Some(memory) => Known::Value(memory.sys.saturating_sub(memory.heap_released)),
            None => Known::unknown(
                "the profile carries no runtime.MemStats: ask for /debug/pprof/heap?debug=1",
            ),
        });
        let (go_counted, go) = match (&go_retained, &go_inuse) {
            (Known::Value(retained), _) => (GoCounted::Retained, *retained),
            (_, Known::Value(inuse)) => (GoCounted::InUse, *inuse),
            _ => (GoCounted::Nothing, 0),
        };

        let ranges = |wanted: RangeOwner, reserved: bool| {
            let of_owner = |range: &&crate::snapshot::Range| {
                range.owner == wanted && range.reserved == reserved
            };
            let lengths = snapshot.native.ranges.iter().filter(of_owner);
            lengths.fold(0u64, |sum, range| sum.saturating_add(range.length_bytes))
        };
        let native_ranges = ranges(RangeOwner::Native, false);
        let unexplained = match (&rss, &files) {
            (Known::Value(rss), Known::Value(files)) => Known::Value(
                i128::from(*rss)
                    - i128::from(go)
                    - i128::from(native_blocks)
                    - i128::from(native_ranges)
                    - i128::from(*files),
            ),
            (Known::Unknown { reason }, _) | (_, Known::Unknown { reason }) => {
                Known::unknown(reason.clone())
            }
        };
        Self {
            rss,
            files,
            go_inuse,
            go_retained,
            go_counted,
            native_blocks,
            native_ranges,
            thread_stacks: ranges(RangeOwner::ThreadStack, false),
            reserved: ranges(RangeOwner::Native, true)
                .saturating_add(ranges(RangeOwner::ThreadStack, true)),
            unexplained,
        }
    }
}
