//! glibc's private structs on x86-64, by release: offsets as data, each with its source.
//!
//! A release chooses which layout is tried first, not which is believed: distributions carry
//! changes back (RHEL 7's 2.17 has fields of 2.23), so every layout is tried, and only what
//! satisfies glibc's invariants counts. A release newer than the newest row gets that row so.

/// `struct malloc_state`: an arena.
#[derive(Debug, PartialEq, Eq)]
pub struct StateLayout {
    /// As shown.
    pub releases: &'static str,
    /// The first release that has it.
    pub since: (u32, u32),
    /// `fastbinsY`
    pub fast: Option<usize>,
    /// `bins`. `top` stands two words before it, `binmap`, `next` and `next_free` behind it.
    pub bins: usize,
    pub attached_threads: Option<usize>,
    /// `max_system_mem` follows.
    pub system_mem: usize,
    pub size: usize,
}

/// Entries of `fastbinsY`.
pub const FAST_BINS: usize = 10;
/// Bins 1 to 127, two words each; index 0 does not exist.
pub const BINS: usize = 127;
/// From `bins` on.
pub const NEXT: usize = BINS * 16 + 16;
/// Longest state.
pub const MAX_STATE: usize = 0x898;

/// Newest first.
pub const STATES: [StateLayout; 4] = [
    // https://github.com/bminor/glibc/blob/04e750e75b73957cf1c791535a3f4319534a52fc/malloc/malloc.c#L1724
    StateLayout {
        releases: "2.43",
        since: (2, 43),
        fast: None,
        bins: 0x18,
        attached_threads: Some(0x828),
        system_mem: 0x830,
        size: 0x840,
    },
    // https://github.com/bminor/glibc/blob/c804cd1c00adde061ca51711f63068c103e94eef/malloc/malloc.c#L1824
    StateLayout {
        releases: "2.27 to 2.42",
        since: (2, 27),
        fast: Some(0x10),
        bins: 0x70,
        attached_threads: Some(0x880),
        system_mem: 0x888,
        size: 0x898,
    },
    // https://github.com/bminor/glibc/blob/ab30899d880f9741a409cbc0d7a28399bdac21bf/malloc/malloc.c#L1686
    StateLayout {
        releases: "2.23 to 2.26",
        since: (2, 23),
        fast: Some(0x8),
        bins: 0x68,
        attached_threads: Some(0x878),
        system_mem: 0x880,
        size: 0x890,
    },
    // https://github.com/bminor/glibc/blob/c758a6861537815c759cba2018a3b1abb1943842/malloc/malloc.c#L1688
    StateLayout {
        releases: "2.17 to 2.22",
        since: (2, 17),
        fast: Some(0x8),
        bins: 0x68,
        attached_threads: None,
        system_mem: 0x878,
        size: 0x888,
    },
];

const _: () = {
    let mut at = 0;
    while at < STATES.len() {
        assert!(STATES[at].size <= MAX_STATE && STATES[at].system_mem + 16 == STATES[at].size);
        assert!(STATES[at].bins + NEXT + 8 <= STATES[at].system_mem);
        at += 1;
    }
};

/// `struct malloc_par`: `mp_`, what is set for all arenas.
#[derive(Debug, PartialEq, Eq)]
pub struct ParametersLayout {
    pub since: (u32, u32),
    /// `n_mmaps`; `n_mmaps_max`, `max_n_mmaps` and `no_dyn_threshold` follow, 32 bits each.
    /// `trim_threshold`, `top_pad`, `mmap_threshold`, `arena_test`, `arena_max` are at 0.
    pub n_mmaps: usize,
    /// `max_mmapped_mem` follows.
    pub mmapped_mem: usize,
    pub sbrk_base: usize,
    /// `hp_pagesize`
    pub huge_page: Option<usize>,
    /// The number of blocks a thread cache keeps of a size: `tcache_count`.
    pub cache_count: Option<usize>,
    pub size: usize,
}

/// Newest first.
pub const PARAMETERS: [ParametersLayout; 5] = [
    // https://github.com/bminor/glibc/blob/04e750e75b73957cf1c791535a3f4319534a52fc/malloc/malloc.c#L1761
    ParametersLayout {
        since: (2, 43),
        n_mmaps: 0x44,
        mmapped_mem: 0x58,
        sbrk_base: 0x68,
        huge_page: Some(0x38),
        cache_count: Some(0x80),
        size: 0x90,
    },
    // https://github.com/bminor/glibc/blob/f94f6d8a3572840d3ba42ab9ace3ea522c99c0c2/malloc/malloc.c#L1874
    ParametersLayout {
        since: (2, 35),
        n_mmaps: 0x3c,
        mmapped_mem: 0x50,
        sbrk_base: 0x60,
        huge_page: Some(0x30),
        cache_count: Some(0x78),
        size: 0x88,
    },
    // https://github.com/bminor/glibc/blob/1c9a5c270d8b66f30dcfaf1cb2d6cf39d3e18369/malloc/malloc.c#L1718
    ParametersLayout {
        since: (2, 26),
        n_mmaps: 0x28,
        mmapped_mem: 0x38,
        sbrk_base: 0x48,
        huge_page: None,
        cache_count: Some(0x60),
        size: 0x70,
    },
    // https://github.com/bminor/glibc/blob/fdfc9260b61d3d72541f18104d24c7bcb0ce5ca2/malloc/malloc.c#L1719
    ParametersLayout {
        since: (2, 24),
        n_mmaps: 0x28,
        mmapped_mem: 0x38,
        sbrk_base: 0x48,
        huge_page: None,
        cache_count: None,
        size: 0x50,
    },
    // https://github.com/bminor/glibc/blob/ab30899d880f9741a409cbc0d7a28399bdac21bf/malloc/malloc.c#L1726
    ParametersLayout {
        since: (2, 17),
        n_mmaps: 0x28,
        mmapped_mem: 0x38,
        sbrk_base: 0x50,
        huge_page: None,
        cache_count: None,
        size: 0x58,
    },
];

/// `struct tcache_perthread_struct`: what a thread keeps for itself.
#[derive(Debug, PartialEq, Eq)]
pub struct CacheLayout {
    pub since: (u32, u32),
    pub until: (u32, u32),
    pub bins: usize,
    /// Bytes of one count.
    pub count: usize,
    /// Counts say how many more fit, not how many there are.
    pub counts_room: bool,
    /// The size of the chunk it lies in.
    pub chunk: u64,
}

impl CacheLayout {
    /// A thread gets its cache when it first frees, not when it first allocates.
    ///
    /// <https://github.com/bminor/glibc/blob/d2097651cc57834dbfcaa102ddfacae0d86cfb66/malloc/malloc.c#L3284>
    pub fn is_lazy(&self) -> bool {
        self.since >= (2, 42)
    }
}

/// Bins of one size each; those behind hold sizes up to a power of two.
pub const SMALL_CACHE_BINS: usize = 64;

/// Newest first.
pub const CACHES: [CacheLayout; 3] = [
    // https://github.com/bminor/glibc/blob/d2097651cc57834dbfcaa102ddfacae0d86cfb66/malloc/malloc.c#L3127
    CacheLayout {
        since: (2, 42),
        until: (u32::MAX, 0),
        bins: 76,
        count: 2,
        counts_room: true,
        chunk: 0x300,
    },
    // https://github.com/bminor/glibc/blob/9ea3686266dca3f004ba874745a4087a89682617/malloc/malloc.c#L2906
    CacheLayout {
        since: (2, 30),
        until: (2, 41),
        bins: 64,
        count: 2,
        counts_room: false,
        chunk: 0x290,
    },
    // https://github.com/bminor/glibc/blob/1c9a5c270d8b66f30dcfaf1cb2d6cf39d3e18369/malloc/malloc.c#L2937
    CacheLayout {
        since: (2, 26),
        until: (2, 29),
        bins: 64,
        count: 1,
        counts_room: false,
        chunk: 0x250,
    },
];

/// Sizes of `struct _heap_info`, which stands at the start of every heap of an arena other than
/// the main one. `ar_ptr`, `prev`, `size`, `mprotect_size` are its first words in all releases.
///
/// Since 2.35: <https://github.com/bminor/glibc/blob/f94f6d8a3572840d3ba42ab9ace3ea522c99c0c2/malloc/arena.c#L75>;
/// before: <https://github.com/bminor/glibc/blob/ae37d06c7d127817ba43850f0f898b793d42aea7/malloc/arena.c#L53>
pub const HEAP_HEADS: [u64; 2] = [0x30, 0x20];

/// What heaps are aligned to and at most as long as: `HEAP_MAX_SIZE`, and in releases 2.35 to
/// 2.41 with `glibc.malloc.hugetlb=2` four huge pages of 2 MiB or 1 GiB.
///
/// <https://github.com/bminor/glibc/blob/f94f6d8a3572840d3ba42ab9ace3ea522c99c0c2/malloc/arena.c#L58>
pub const HEAP_SIZES: [u64; 3] = [64 << 20, 8 << 20, 4 << 30];

/// The order in which to try rows for a release: its own first, then the others, newest first.
pub fn order<T>(
    rows: &[T],
    since: impl Fn(&T) -> (u32, u32),
    release: Option<(u32, u32)>,
) -> Vec<&T> {
    let own = release.and_then(|release| rows.iter().position(|row| since(row) <= release));
    let mut ordered: Vec<&T> = own.and_then(|own| rows.get(own)).into_iter().collect();
    ordered.extend(rows.iter().enumerate().filter(|(at, _)| Some(*at) != own).map(|(_, row)| row));
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_tries_its_own_layout_first_and_a_newer_one_the_newest() {
        let first = |release| order(&STATES, |row| row.since, release)[0].releases;
        assert_eq!(first(Some((2, 17))), "2.17 to 2.22");
        assert_eq!(first(Some((2, 26))), "2.23 to 2.26");
        assert_eq!(first(Some((2, 36))), "2.27 to 2.42");
        assert_eq!(first(Some((2, 50))), "2.43");
        assert_eq!(first(Some((2, 5))), "2.43");
        assert_eq!(first(None), "2.43");
        assert_eq!(order(&STATES, |row| row.since, Some((2, 26))).len(), STATES.len());
    }

    #[test]
    fn the_chunk_of_a_thread_cache_is_its_size_rounded_up() {
        for row in &CACHES {
            let bytes = row.bins as u64 * (row.count as u64 + 8);
            assert_eq!(row.chunk, (bytes + 8).next_multiple_of(16), "{row:?}");
        }
    }
}
