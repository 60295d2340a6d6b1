//! Every way in which a call can be seen without being recorded has a name and a counter here.
//!
//! Law: `calls seen = recorded + Σ losses`. A failing probe leaves through `count(Loss)` only.

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $label:literal, $hint:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $name { $($(#[$vdoc])* $variant),* }

        impl $name {
            /// Every variant, in the order of its number: `ALL[v as usize] == v`.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// How many there are: the capacity of the map that counts them.
            pub const COUNT: usize = Self::ALL.len();

            /// The stable name, as it stands in JSON.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),* }
            }

            /// One sentence that a user can act on.
            pub const fn hint(self) -> &'static str {
                match self { $(Self::$variant => $hint),* }
            }
        }
    };
}

counters! {
    /// Why a call, a block or a stack that was seen is not (fully) in the books. All zero in a
    /// run without losses.
    Loss {
        BlockMapFull = "block_map_full", "more live blocks than --max-blocks: raise it; bytes of the blocks beyond are missing from outstanding";
        StackStoreFull = "stack_store_full", "more distinct stacks than --max-stacks: raise it; the bytes are kept under [stack store full]";
        StackHashCollision = "stack_hash_collision", "two different stacks share a 64-bit hash; the bytes are kept under [stack collision]";
        TotalsFull = "totals_full", "the per-stack totals are full: raise --max-stacks";
        ThreadStateFull = "thread_state_full", "more threads in flight than --max-threads: raise it; their calls are missing";
        StaleCallDropped = "stale_call_dropped", "an allocator call never returned (longjmp, signal, thread killed): nothing was recorded for it";
        ReturnWithoutEntry = "return_without_entry", "an allocator call returned whose entry was not seen";
        ArgumentUnreadable = "argument_unreadable", "an argument or result could not be read from the tracee's memory";
        StackUnreadable = "stack_unreadable", "the tracee's stack could not be read: the bytes are kept under a truncated stack";
        BlockReplaced = "block_replaced", "an address was allocated again without its free being seen: the older block was closed";
        RangeEventDropped = "range_event_dropped", "the ring of mmap events was full: raise --ring-bytes; range figures are a lower bound";
        NoticeDropped = "notice_dropped", "the ring was full: a notice (new mapping, fork, exec, exit) was lost";
        ReturnProbeMissed = "return_probe_missed", "the kernel skipped return probes (nesting limit): those calls are missing";
        ProgramMissed = "program_missed", "the kernel skipped a program because it was already running on this CPU";
        WalkInterrupted = "walk_interrupted", "the kernel did not run the next program of a stack walk: that call is missing";
        FamilyFull = "family_full", "more processes of the target at once than are followed: the one that was started and its children are not traced";
    }
}

counters! {
    /// Facts about the calls that are no loss: they complete the books.
    Tally {
        AllocCalls = "alloc_calls", "outermost allocator calls that returned a block";
        FreeCalls = "free_calls", "outermost deallocator calls with a pointer";
        FreeNull = "free_null", "deallocator calls with NULL";
        FreeUnknown = "free_unknown", "frees of blocks allocated before the attach (or lost)";
        AllocFailed = "alloc_failed", "allocator calls that failed";
        ReallocCalls = "realloc_calls", "outermost realloc calls that returned a block";
        NestedCalls = "nested_calls", "allocator calls inside another allocator call: part of the outer one";
        RangeCalls = "range_calls", "mmap, munmap, mremap, brk, sbrk calls that succeeded";
        ForeignHits = "foreign_hits", "probe hits of processes that are not traced";
        UnarmedHits = "unarmed_hits", "probe hits before all probes were armed";
        WalkComplete = "walk_complete", "stacks walked to their end";
        WalkTruncated = "walk_truncated", "stacks whose walk ended early; the reason is kept with the stack";
        EndedInCall = "ended_in_call", "allocator calls still running when their thread or program ended: nothing was recorded for them";
        UnbookedBytes = "unbooked_bytes", "bytes of the blocks that block_map_full kept out of the books";
        FreeInherited = "free_inherited", "frees of blocks that a process inherited from the one that forked it: copies of its parent's";
        Forks = "forks", "processes that the traced target started";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_stands_at_its_own_number() {
        for (i, loss) in Loss::ALL.iter().enumerate() {
            assert_eq!(*loss as usize, i);
        }
        for (i, tally) in Tally::ALL.iter().enumerate() {
            assert_eq!(*tally as usize, i);
        }
    }

    #[test]
    fn labels_are_unique() {
        for (i, a) in Loss::ALL.iter().enumerate() {
            for b in &Loss::ALL[i + 1..] {
                assert_ne!(a.label(), b.label());
            }
        }
    }
}
