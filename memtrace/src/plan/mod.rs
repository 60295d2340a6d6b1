//! WHICH probes: from facts to a [`ProbePlan`]. Pure: nothing here reads a file or names aya.
//!
//! Invariant: every allocator entry point found is either probed or listed with a reason.

use std::path::PathBuf;

pub mod catalogue;
pub mod decide;
pub mod host;
pub mod site;

pub use decide::decide;

/// What a probed function does; the cookie tells the kernel side.
///
/// The number is the contract with `memtrace-ebpf` and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Signature {
    /// `T *f(size_t size, …)`: malloc, valloc, pvalloc, operator new, mallocx, mi_malloc
    Malloc = 1,
    /// `f(size_t n, size_t size)`: calloc
    Calloc = 2,
    /// `f(void *old, size_t size, …)`: realloc, rallocx
    Realloc = 3,
    /// `f(void *old, size_t n, size_t size)`: reallocarray
    ReallocArray = 4,
    /// `int f(void **out, size_t alignment, size_t size)`: posix_memalign
    PosixMemalign = 5,
    /// `f(size_t alignment, size_t size)`: aligned_alloc, memalign
    AlignedAlloc = 6,
    /// `void f(void *block, …)`: free, cfree, operator delete, sdallocx
    Free = 7,
    /// `f(addr, length, prot, flags, fd, offset)`
    Mmap = 8,
    /// `f(addr, length)`
    Munmap = 9,
    /// `f(old, old_length, new_length, flags, new)`
    Mremap = 10,
    /// `int brk(addr)`
    Brk = 11,
    /// `void *sbrk(intptr_t increment)`
    Sbrk = 12,
    /// `f(addr, length, prot)`
    Mprotect = 13,
    /// `size_t f(void *block, size_t size, size_t extra, int flags)`: xallocx, resizes in place
    Xallocx = 14,
    /// `T *f(heap, size_t n, size_t size, …)`: mi_heap_calloc, mi_heap_mallocn
    HeapCalloc = 15,
    /// `T *f(heap, void *old, size_t size, …)`: mi_heap_realloc
    HeapRealloc = 16,
    /// `T *f(heap, void *old, size_t n, size_t size)`: mi_heap_reallocn, mi_heap_recalloc
    HeapReallocArray = 17,
}

impl Signature {
    /// How many integer arguments (RDI, RSI, RDX, RCX, R8, R9) the hook reads at the entry.
    pub const fn arguments(self) -> usize {
        match self {
            Self::Malloc | Self::Free | Self::Brk | Self::Sbrk => 1,
            Self::Calloc | Self::Realloc | Self::AlignedAlloc | Self::Munmap => 2,
            Self::ReallocArray | Self::PosixMemalign | Self::Mprotect => 3,
            Self::HeapCalloc | Self::HeapRealloc => 3,
            Self::Xallocx | Self::HeapReallocArray => 4,
            Self::Mremap => 5,
            Self::Mmap => 6,
        }
    }

    /// Whether the effect is known only when the function returns.
    pub const fn needs_return(self) -> bool {
        !matches!(self, Self::Free)
    }

    /// Whether the function takes a block from an allocator of blocks (not of ranges).
    pub const fn is_simple(self) -> bool {
        !matches!(
            self,
            Self::Mmap | Self::Munmap | Self::Mremap | Self::Brk | Self::Sbrk | Self::Mprotect
        )
    }
}

/// One function to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedProbe {
    pub signature: Signature,
    /// What to open for attaching, e.g. `/proc/PID/map_files/START-END`: never canonicalized.
    pub attach_path: PathBuf,
    /// The object's path as the tracee sees it.
    pub object: String,
    pub allocator: String,
    pub function: String,
    pub function_file_offset: u64,
    /// File offset = `function_file_offset + entry_site`.
    pub entry_site: u64,
    pub entry_instruction: String,
    pub entry_is_emulated: bool,
    /// `Some` where the function needs a return probe (all but the `Free` kind); proved to stand
    /// where RSP still points at the return address.
    pub return_site: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProbePlan {
    pub probes: Vec<PlannedProbe>,
    pub not_probed: Vec<crate::snapshot::NotProbed>,
}
