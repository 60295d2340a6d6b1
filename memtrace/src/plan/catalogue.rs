//! Every allocator entry point memtrace knows by name, and what each of them does.
//!
//! Nothing here looks at an object: a name alone says the signature and whose convention it is.
//! Whether an object really is that allocator is found by evidence in `tracee::allocators`.

use super::Signature;

/// Whose naming convention an entry point follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Convention {
    /// The C library's functions, which any allocator may provide in its place.
    C,
    /// `operator new` and `operator delete`: libstdc++'s and libc++abi's go through malloc.
    CxxOperator,
    /// jemalloc's own, and the C functions with a jemalloc prefix.
    Jemalloc,
    /// `tc_…` and Google's internal names.
    Tcmalloc,
    /// `mi_…`
    Mimalloc,
    /// mmap and its kin.
    Ranged,
}

/// A known function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPoint {
    pub signature: Signature,
    pub convention: Convention,
    /// `je_`, `_rjem_`, … where the name carries one.
    pub prefix: &'static str,
}

use Signature::*;

/// Names of the C library, with which prefixed builds form theirs.
const C: &[(&str, Signature)] = &[
    ("malloc", Malloc),
    ("calloc", Calloc),
    ("realloc", Realloc),
    ("reallocarray", ReallocArray),
    ("posix_memalign", PosixMemalign),
    ("aligned_alloc", AlignedAlloc),
    ("memalign", AlignedAlloc),
    ("valloc", Malloc),
    ("pvalloc", Malloc),
    ("free", Free),
    ("cfree", Free),
    ("free_sized", Free),
    ("free_aligned_sized", Free),
    // BSD names that mimalloc exports. `reallocf` also frees the old block when it fails.
    ("reallocf", Realloc),
    ("vfree", Free),
];

/// `__libc_malloc` and the like: mostly aliases of the above, alone where an allocator forwards.
const LIBC_INTERNAL: &[(&str, Signature)] = &[
    ("__libc_malloc", Malloc),
    ("__libc_calloc", Calloc),
    ("__libc_realloc", Realloc),
    ("__libc_reallocarray", ReallocArray),
    ("__libc_memalign", AlignedAlloc),
    ("__libc_valloc", Malloc),
    ("__libc_pvalloc", Malloc),
    ("__libc_free", Free),
    ("__libc_cfree", Free),
    ("__posix_memalign", PosixMemalign),
    ("_aligned_malloc", Malloc),
];

const RANGED: &[(&str, Signature)] = &[
    ("mmap", Mmap),
    ("mmap64", Mmap),
    ("__mmap", Mmap),
    ("__mmap64", Mmap),
    ("munmap", Munmap),
    ("__munmap", Munmap),
    ("mremap", Mremap),
    ("__mremap", Mremap),
    ("brk", Brk),
    ("__brk", Brk),
    ("sbrk", Sbrk),
    ("__sbrk", Sbrk),
    ("mprotect", Mprotect),
    ("__mprotect", Mprotect),
];

const CXX: &[(&str, Signature)] = &[
    // operator new / new[]: (size), nothrow, aligned, aligned nothrow
    ("_Znwm", Malloc),
    ("_Znam", Malloc),
    ("_ZnwmRKSt9nothrow_t", Malloc),
    ("_ZnamRKSt9nothrow_t", Malloc),
    ("_ZnwmSt11align_val_t", Malloc),
    ("_ZnamSt11align_val_t", Malloc),
    ("_ZnwmSt11align_val_tRKSt9nothrow_t", Malloc),
    ("_ZnamSt11align_val_tRKSt9nothrow_t", Malloc),
    // operator delete / delete[]: (block), sized, nothrow, aligned, …
    ("_ZdlPv", Free),
    ("_ZdaPv", Free),
    ("_ZdlPvm", Free),
    ("_ZdaPvm", Free),
    ("_ZdlPvRKSt9nothrow_t", Free),
    ("_ZdaPvRKSt9nothrow_t", Free),
    ("_ZdlPvSt11align_val_t", Free),
    ("_ZdaPvSt11align_val_t", Free),
    ("_ZdlPvmSt11align_val_t", Free),
    ("_ZdaPvmSt11align_val_t", Free),
    ("_ZdlPvSt11align_val_tRKSt9nothrow_t", Free),
    ("_ZdaPvSt11align_val_tRKSt9nothrow_t", Free),
    // tcmalloc's and LLVM's `__size_returning_new`: the block is the first of the two results
    ("__size_returning_new", Malloc),
    ("__size_returning_new_aligned", Malloc),
];

const JEMALLOC: &[(&str, Signature)] = &[
    ("mallocx", Malloc),
    ("rallocx", Realloc),
    ("xallocx", Xallocx),
    ("dallocx", Free),
    ("sdallocx", Free),
];

const TCMALLOC: &[(&str, Signature)] = &[
    ("tc_malloc", Malloc),
    ("tc_malloc_skip_new_handler", Malloc),
    ("tc_calloc", Calloc),
    ("tc_realloc", Realloc),
    ("tc_memalign", AlignedAlloc),
    ("tc_posix_memalign", PosixMemalign),
    ("tc_valloc", Malloc),
    ("tc_pvalloc", Malloc),
    ("tc_free", Free),
    ("tc_cfree", Free),
    ("tc_free_sized", Free),
    ("tc_new", Malloc),
    ("tc_new_nothrow", Malloc),
    ("tc_new_aligned", Malloc),
    ("tc_new_aligned_nothrow", Malloc),
    ("tc_newarray", Malloc),
    ("tc_newarray_nothrow", Malloc),
    ("tc_newarray_aligned", Malloc),
    ("tc_newarray_aligned_nothrow", Malloc),
    ("tc_delete", Free),
    ("tc_delete_sized", Free),
    ("tc_delete_nothrow", Free),
    ("tc_delete_aligned", Free),
    ("tc_delete_sized_aligned", Free),
    ("tc_delete_aligned_nothrow", Free),
    ("tc_deletearray", Free),
    ("tc_deletearray_sized", Free),
    ("tc_deletearray_nothrow", Free),
    ("tc_deletearray_aligned", Free),
    ("tc_deletearray_sized_aligned", Free),
    ("tc_deletearray_aligned_nothrow", Free),
    ("TCMallocInternalMalloc", Malloc),
    ("TCMallocInternalCalloc", Calloc),
    ("TCMallocInternalRealloc", Realloc),
    ("TCMallocInternalReallocArray", ReallocArray),
    ("TCMallocInternalMemalign", AlignedAlloc),
    ("TCMallocInternalAlignedAlloc", AlignedAlloc),
    ("TCMallocInternalPosixMemalign", PosixMemalign),
    ("TCMallocInternalValloc", Malloc),
    ("TCMallocInternalPvalloc", Malloc),
    ("TCMallocInternalFree", Free),
    ("TCMallocInternalCfree", Free),
    ("TCMallocInternalFreeSized", Free),
    ("TCMallocInternalFreeAlignedSized", Free),
    ("TCMallocInternalSdallocx", Free),
    ("tcmalloc_size_returning_operator_new", Malloc),
    ("tcmalloc_size_returning_operator_new_nothrow", Malloc),
    ("tcmalloc_size_returning_operator_new_aligned", Malloc),
    ("tcmalloc_size_returning_operator_new_aligned_nothrow", Malloc),
];

const MIMALLOC: &[(&str, Signature)] = &[
    ("mi_malloc", Malloc),
    ("mi_malloc_small", Malloc),
    ("mi_zalloc", Malloc),
    ("mi_zalloc_small", Malloc),
    ("mi_malloc_aligned", Malloc),
    ("mi_malloc_aligned_at", Malloc),
    ("mi_zalloc_aligned", Malloc),
    ("mi_zalloc_aligned_at", Malloc),
    ("mi_valloc", Malloc),
    ("mi_pvalloc", Malloc),
    ("mi_new", Malloc),
    ("mi_new_nothrow", Malloc),
    ("mi_new_aligned", Malloc),
    ("mi_new_aligned_nothrow", Malloc),
    ("mi_calloc", Calloc),
    ("mi_mallocn", Calloc),
    ("mi_calloc_aligned", Calloc),
    ("mi_calloc_aligned_at", Calloc),
    ("mi_new_n", Calloc),
    ("mi_memalign", AlignedAlloc),
    ("mi_aligned_alloc", AlignedAlloc),
    ("mi_posix_memalign", PosixMemalign),
    ("mi_realloc", Realloc),
    ("mi_rezalloc", Realloc),
    ("mi_reallocf", Realloc),
    ("mi_realloc_aligned", Realloc),
    ("mi_realloc_aligned_at", Realloc),
    ("mi_rezalloc_aligned", Realloc),
    ("mi_rezalloc_aligned_at", Realloc),
    ("mi_new_realloc", Realloc),
    ("mi_reallocn", ReallocArray),
    ("mi_reallocarray", ReallocArray),
    ("mi_recalloc", ReallocArray),
    ("mi_recalloc_aligned", ReallocArray),
    ("mi_recalloc_aligned_at", ReallocArray),
    ("mi_aligned_recalloc", ReallocArray),
    ("mi_aligned_offset_recalloc", ReallocArray),
    ("mi_new_reallocn", ReallocArray),
    ("mi_free", Free),
    ("mi_cfree", Free),
    ("mi_free_size", Free),
    ("mi_free_aligned", Free),
    ("mi_free_size_aligned", Free),
    // The heap comes first, so the size is the second argument, as it is of aligned_alloc.
    ("mi_heap_malloc", AlignedAlloc),
    ("mi_heap_malloc_small", AlignedAlloc),
    ("mi_heap_zalloc", AlignedAlloc),
    ("mi_heap_malloc_aligned", AlignedAlloc),
    ("mi_heap_malloc_aligned_at", AlignedAlloc),
    ("mi_heap_zalloc_aligned", AlignedAlloc),
    ("mi_heap_zalloc_aligned_at", AlignedAlloc),
    ("mi_heap_alloc_new", AlignedAlloc),
    ("mi_heap_calloc", HeapCalloc),
    ("mi_heap_mallocn", HeapCalloc),
    ("mi_heap_calloc_aligned", HeapCalloc),
    ("mi_heap_calloc_aligned_at", HeapCalloc),
    ("mi_heap_alloc_new_n", HeapCalloc),
    ("mi_heap_realloc", HeapRealloc),
    ("mi_heap_rezalloc", HeapRealloc),
    ("mi_heap_reallocf", HeapRealloc),
    ("mi_heap_realloc_aligned", HeapRealloc),
    ("mi_heap_realloc_aligned_at", HeapRealloc),
    ("mi_heap_rezalloc_aligned", HeapRealloc),
    ("mi_heap_rezalloc_aligned_at", HeapRealloc),
    ("mi_heap_reallocn", HeapReallocArray),
    ("mi_heap_recalloc", HeapReallocArray),
    ("mi_heap_recalloc_aligned", HeapReallocArray),
    ("mi_heap_recalloc_aligned_at", HeapReallocArray),
];

/// Functions that hand out or take back memory in a way no [`Signature`] describes. They are
/// listed in the report wherever they are found.
const NOT_SUPPORTED: &[(&str, &str)] = &[
    ("reallocarr", "the block is passed by reference: what it allocates is not counted"),
    ("mi_reallocarr", "the block is passed by reference: what it allocates is not counted"),
    ("mi_strdup", "its size is not among its arguments: what it allocates is not counted"),
    ("mi_strndup", "its size is not among its arguments: what it allocates is not counted"),
    ("mi_realpath", "its size is not among its arguments: what it allocates is not counted"),
    ("mi_heap_strdup", "its size is not among its arguments: what it allocates is not counted"),
    ("mi_heap_strndup", "its size is not among its arguments: what it allocates is not counted"),
    ("mi_heap_realpath", "its size is not among its arguments: what it allocates is not counted"),
    ("mi_heap_destroy", "frees a heap as a whole: its blocks stay in the books as outstanding"),
];

/// Prefixes that builds of jemalloc put before the C functions and its own.
const JEMALLOC_PREFIXES: &[&str] = &["je_", "_rjem_", "jem_", "jemalloc_"];

const TABLES: &[(Convention, &[(&str, Signature)])] = &[
    (Convention::C, C),
    (Convention::C, LIBC_INTERNAL),
    (Convention::CxxOperator, CXX),
    (Convention::Jemalloc, JEMALLOC),
    (Convention::Tcmalloc, TCMALLOC),
    (Convention::Mimalloc, MIMALLOC),
    (Convention::Ranged, RANGED),
];

fn in_table(table: &[(&str, Signature)], name: &str) -> Option<Signature> {
    table.iter().find(|(known, _)| *known == name).map(|(_, signature)| *signature)
}

/// What a function of that name does; `None` for names that are no allocator's.
pub fn lookup(name: &str) -> Option<EntryPoint> {
    for (convention, table) in TABLES {
        if let Some(signature) = in_table(table, name) {
            return Some(EntryPoint { signature, convention: *convention, prefix: "" });
        }
    }
    for prefix in JEMALLOC_PREFIXES {
        if let Some(rest) = name.strip_prefix(prefix)
            && let Some(signature) = in_table(C, rest).or_else(|| in_table(JEMALLOC, rest))
        {
            return Some(EntryPoint { signature, convention: Convention::Jemalloc, prefix });
        }
    }
    None
}

/// Why a function of that name cannot be probed, where it is an allocator's all the same.
pub fn not_supported(name: &str) -> Option<&'static str> {
    NOT_SUPPORTED.iter().find(|(known, _)| *known == name).map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_name_stands_in_the_catalogue_twice() {
        let mut seen = HashSet::new();
        let names = TABLES.iter().flat_map(|(_, table)| table.iter().map(|(name, _)| *name));
        for name in names.chain(NOT_SUPPORTED.iter().map(|(name, _)| *name)) {
            assert!(seen.insert(name), "{name} is listed twice");
        }
    }

    #[test]
    fn each_function_of_the_c_standard_has_its_signature() {
        for (name, signature) in [
            ("malloc", Malloc),
            ("calloc", Calloc),
            ("realloc", Realloc),
            ("aligned_alloc", AlignedAlloc),
            ("posix_memalign", PosixMemalign),
            ("free", Free),
            ("free_sized", Free),
            ("mremap", Mremap),
            ("_ZdlPvmSt11align_val_t", Free),
            ("_ZnamSt11align_val_tRKSt9nothrow_t", Malloc),
        ] {
            assert_eq!(lookup(name).map(|e| e.signature), Some(signature), "{name}");
        }
    }

    #[test]
    fn a_jemalloc_prefix_is_seen_through() {
        let found = lookup("_rjem_posix_memalign").unwrap();
        assert_eq!(found.signature, PosixMemalign);
        assert_eq!(found.convention, Convention::Jemalloc);
        assert_eq!(found.prefix, "_rjem_");
        assert_eq!(lookup("je_sdallocx").unwrap().signature, Free);
        assert_eq!(lookup("mallocx").unwrap().prefix, "");
    }

    #[test]
    fn names_that_only_look_alike_are_not_allocators() {
        for name in
            ["malloc_stats", "mallopt", "je_arena_malloc_hard", "freeaddrinfo", "je_je_free", ""]
        {
            assert_eq!(lookup(name), None, "{name}");
        }
        assert!(not_supported("mi_strdup").is_some());
        assert!(not_supported("strdup").is_none());
    }
}
