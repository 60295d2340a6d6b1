//! The pairing rules: which calls have an effect on the books, and which effect.
//!
//! Pure decisions over plain values; memory is read through a closure, so that a test passes an
//! array. The kernel side calls them at every hook. x86-64, System V.
//!
//! **One user call, one effect.** The outermost allocator call of a thread owns the effect. There
//! is no depth counter that a `longjmp` could leave wrong: a return probe's stack pointer is the
//! entry's plus eight, so a return belongs to the call that stands there, or to a nested one. A
//! call in progress has its return address replaced by the kernel's return trampoline; a call
//! whose slot no longer holds it never returned and is dropped, counted.

/// What a probed function does. The number is the contract between plan and kernel side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Signature {
    /// `T *f(size_t size, …)`
    Malloc = 1,
    /// `f(size_t n, size_t size)`
    Calloc = 2,
    /// `f(void *old, size_t size, …)`
    Realloc = 3,
    /// `f(void *old, size_t n, size_t size)`
    ReallocArray = 4,
    /// `int f(void **out, size_t alignment, size_t size)`
    PosixMemalign = 5,
    /// `f(size_t alignment, size_t size)`
    AlignedAlloc = 6,
    /// `void f(void *block, …)`
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
    /// `size_t f(void *block, size_t size, size_t extra, int flags)`: resizes in place
    Xallocx = 14,
    /// `T *f(heap, size_t n, size_t size, …)`: mi_heap_calloc, mi_heap_mallocn
    HeapCalloc = 15,
    /// `T *f(heap, void *old, size_t size, …)`: mi_heap_realloc
    HeapRealloc = 16,
    /// `T *f(heap, void *old, size_t n, size_t size)`: mi_heap_reallocn, mi_heap_recalloc
    HeapReallocArray = 17,
    /// `unsigned long brk(addr)`, the system call: the break as it is then
    BrkCall = 18,
}

impl Signature {
    pub const fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Malloc,
            2 => Self::Calloc,
            3 => Self::Realloc,
            4 => Self::ReallocArray,
            5 => Self::PosixMemalign,
            6 => Self::AlignedAlloc,
            7 => Self::Free,
            8 => Self::Mmap,
            9 => Self::Munmap,
            10 => Self::Mremap,
            11 => Self::Brk,
            12 => Self::Sbrk,
            13 => Self::Mprotect,
            14 => Self::Xallocx,
            15 => Self::HeapCalloc,
            16 => Self::HeapRealloc,
            17 => Self::HeapReallocArray,
            18 => Self::BrkCall,
            _ => return None,
        })
    }

    /// Works on ranges of pages, not on blocks.
    pub const fn is_range(self) -> bool {
        (self as u8 >= Self::Mmap as u8 && self as u8 <= Self::Mprotect as u8)
            || self as u8 == Self::BrkCall as u8
    }

    /// Takes blocks from an allocator of blocks, or gives them back.
    pub const fn is_simple(self) -> bool {
        !self.is_range()
    }

    /// How many integer arguments (RDI, RSI, RDX, RCX, R8, R9) the hook reads at the entry.
    pub const fn arguments(self) -> usize {
        match self {
            Self::Malloc | Self::Free | Self::Brk | Self::Sbrk | Self::BrkCall => 1,
            Self::Calloc | Self::Realloc | Self::AlignedAlloc | Self::Munmap => 2,
            Self::ReallocArray | Self::PosixMemalign | Self::Mprotect | Self::Xallocx => 3,
            Self::HeapCalloc | Self::HeapRealloc => 3,
            Self::HeapReallocArray => 4,
            Self::Mremap => 5,
            Self::Mmap => 6,
        }
    }

    /// Has an effect only once it has returned.
    pub const fn needs_return(self) -> bool {
        !matches!(self, Self::Free)
    }
}

/// The system calls that map memory: number on x86-64, name, what it does.
pub const SYSTEM_CALLS: [(u64, &str, Signature); 5] = [
    (9, "mmap", Signature::Mmap),
    (10, "mprotect", Signature::Mprotect),
    (11, "munmap", Signature::Munmap),
    (12, "brk", Signature::BrkCall),
    (25, "mremap", Signature::Mremap),
];

/// The place of a system call in [`SYSTEM_CALLS`], by its number.
#[inline(always)]
pub const fn system_call(number: u64) -> Option<(u16, Signature)> {
    Some(match number {
        9 => (0, Signature::Mmap),
        10 => (1, Signature::Mprotect),
        11 => (2, Signature::Munmap),
        12 => (3, Signature::BrkCall),
        25 => (4, Signature::Mremap),
        _ => return None,
    })
}

/// Most probed functions of one attach: the per-CPU hit counters have this many slots.
pub const MAX_PROBES: usize = 512;

/// The attach cookie: whose probe it is, which, and what it does. Never 0.
///
/// ```text
/// tgid:32 << 32 | signature:8 << 16 | index:16
/// ```
///
/// The kernel filters a probe's hits by memory, which processes may share (`vfork`): with two of
/// them traced, each hit would count twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Cookie(pub u64);

impl Cookie {
    pub const fn new(index: u16, signature: Signature) -> Self {
        Self(((signature as u64) << 16) | index as u64)
    }

    /// The same, of one process only.
    pub const fn of_process(self, tgid: u32) -> Self {
        Self(((tgid as u64) << 32) | (self.0 & 0xffff_ffff))
    }

    /// Whether a hit of that process is meant. 0 stands for any.
    #[inline(always)]
    pub const fn is_of(self, tgid: u32) -> bool {
        let own = (self.0 >> 32) as u32;
        own == tgid || own == 0
    }

    pub const fn index(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    pub const fn signature(self) -> Option<Signature> {
        Signature::from_u8((self.0 >> 16) as u8)
    }
}

/// Where a call in progress stands: its stack pointer at entry (where the return address lies) and
/// the return address that was there before the kernel replaced it. All zero: no call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Frame {
    pub sp: u64,
    pub return_address: u64,
    pub cookie: u64,
}

/// How a recorded call stands to an event of the same thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No call is recorded.
    Idle,
    /// The recorded call is in progress: what happens now is part of it.
    InProgress,
    /// The recorded call never returned (`longjmp`, a missed return probe): drop it, count it.
    Stale,
}

/// At an entry with stack pointer `sp`: is the recorded call still in progress?
///
/// `read` gives the eight bytes at an address of the tracee. The return address of a call in
/// progress is replaced by the return trampoline, which starts a page of its own; a tail call
/// (`operator new` that jumps to `malloc`) arrives at the very stack pointer of the outer call and
/// finds it there as well.
#[inline(always)]
pub fn standing(frame: &Frame, sp: u64, read: impl FnOnce(u64) -> Option<u64>) -> Standing {
    if frame.sp == 0 {
        return Standing::Idle;
    }
    if sp > frame.sp {
        return Standing::Stale;
    }
    match read(frame.sp) {
        Some(value) if is_trampoline(value) => Standing::InProgress,
        _ => Standing::Stale,
    }
}

/// The kernel's return trampoline is the first instruction of the `[uprobes]` page.
#[inline(always)]
pub const fn is_trampoline(value: u64) -> bool {
    value != 0 && value & 0xfff == 0
}

/// What a return means for the recorded call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// The recorded call returns: its effect happens now.
    Outermost,
    /// A call inside the recorded one returns: no effect.
    Nested,
    /// No entry was seen.
    WithoutEntry,
    /// A call further out returns while one is recorded: the recorded one never returned.
    BeyondStale,
}

/// `sp` is the stack pointer at the return probe: the return address is popped.
#[inline(always)]
pub fn returning(frame: &Frame, sp: u64, cookie: Cookie) -> Return {
    let outermost_sp = frame.sp.wrapping_add(8);
    if frame.sp == 0 {
        Return::WithoutEntry
    } else if sp > outermost_sp {
        Return::BeyondStale
    } else if sp == outermost_sp && cookie.0 == frame.cookie {
        Return::Outermost
    } else {
        Return::Nested
    }
}

/// What a call asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Request {
    /// Bytes asked for; `u64::MAX` where `n · size` overflows (such a call can only fail).
    pub size: u64,
    /// The block to resize; 0: none.
    pub old: u64,
    /// Where `posix_memalign` stores its result; 0 otherwise.
    pub out: u64,
}

/// Reads the arguments of an allocating call.
#[inline(always)]
pub fn request(signature: Signature, args: [u64; 4]) -> Request {
    let (size, old, out) = match signature {
        Signature::Malloc => (args[0], 0, 0),
        Signature::Calloc => (product(args[0], args[1]), 0, 0),
        Signature::Realloc | Signature::Xallocx => (args[1], args[0], 0),
        Signature::ReallocArray => (product(args[1], args[2]), args[0], 0),
        Signature::PosixMemalign => (args[2], 0, args[0]),
        Signature::AlignedAlloc => (args[1], 0, 0),
        Signature::HeapCalloc => (product(args[1], args[2]), 0, 0),
        Signature::HeapRealloc => (args[2], args[1], 0),
        Signature::HeapReallocArray => (product(args[2], args[3]), args[1], 0),
        _ => (0, 0, 0),
    };
    Request { size, old, out }
}

/// `n · size`, saturating; by halves, as BPF has no 128-bit product.
#[inline(always)]
fn product(n: u64, size: u64) -> u64 {
    let (big, small) = if n > size { (n, size) } else { (size, n) };
    let upper = (big >> 32) * (small & 0xffff_ffff);
    if small >> 32 != 0 || upper >> 32 != 0 {
        return u64::MAX;
    }
    let lower = (big & 0xffff_ffff) * small;
    let sum = lower.wrapping_add(upper << 32);
    if sum < lower { u64::MAX } else { sum }
}

/// What a returned call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: an old block stays where it was.
    Failed,
    /// There is a block at `address`; the old block, if any, is gone.
    Allocated { address: u64 },
    /// The old block is gone and there is no new one: `realloc(p, 0)` that returned NULL.
    Released,
    /// It succeeded, but where the block lies cannot be read.
    Unreadable,
}

/// Decides the effect of a call by what it returned (`result`: RAX).
#[inline(always)]
pub fn outcome(
    signature: Signature,
    request: &Request,
    result: u64,
    read: impl FnOnce(u64) -> Option<u64>,
) -> Outcome {
    match signature {
        Signature::PosixMemalign => {
            // An `int`: the upper half of RAX is undefined.
            if result as u32 != 0 {
                return Outcome::Failed;
            }
            match read(request.out) {
                Some(0) => Outcome::Failed,
                Some(address) => Outcome::Allocated { address },
                None => Outcome::Unreadable,
            }
        }
        // Returns the size it reached: less than asked for means unchanged.
        Signature::Xallocx => {
            if result >= request.size && request.old != 0 {
                Outcome::Allocated { address: request.old }
            } else {
                Outcome::Failed
            }
        }
        _ => {
            if result != 0 {
                Outcome::Allocated { address: result }
            } else if request.old != 0 && request.size == 0 {
                Outcome::Released
            } else {
                Outcome::Failed
            }
        }
    }
}

/// Whether a range call succeeded: failing ones change nothing.
#[inline(always)]
pub fn range_succeeded(signature: Signature, result: u64) -> bool {
    match signature {
        // -1 from libc, -errno from a raw wrapper.
        // `brk` has no error: it tells the break, moved or not.
        Signature::Mmap | Signature::Mremap | Signature::Sbrk | Signature::BrkCall => {
            result < u64::MAX - 4094
        }
        Signature::Munmap | Signature::Mprotect | Signature::Brk => result as u32 == 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
