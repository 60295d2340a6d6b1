//! The C heap read from outside, against what glibc in the process says of itself.
//!
//! The program stands still after telling `malloc_info` and `mallinfo2`, so figures must be equal
//! to the byte. The C library here is stripped: its arena is found without symbols.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use memtrace::snapshot::Known;
use memtrace::tracee::heap::{
    self, Arena, Depth, FoundBy, HeapCensus, LibcFacts, MemoryReader, ProcessMemory, ReadError,
    Regions,
};
use memtrace::tracee::mappings::{Mappings, read_maps};
use memtrace::tracee::process::Process;
use memtrace_tests::{serial, target_dir, workspace};

/// What glibc told.
#[derive(Debug, Default)]
struct Told {
    /// The figures of the JSON line.
    figures: BTreeMap<String, u64>,
    /// From malloc_info, in the order of the ring: (system, rest chunks, rest bytes, fast chunks,
    /// fast bytes, heaps where told).
    arenas: Vec<ToldArena>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct ToldArena {
    system: u64,
    peak: u64,
    rest: (u64, u64),
    fast: (u64, u64),
    heaps: Option<u64>,
}

impl Told {
    fn get(&self, name: &str) -> u64 {
        self.figures.get(name).copied().unwrap_or_else(|| panic!("`{name}` was not told"))
    }
}

/// The program `heap`, standing still.
struct Heap {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    _turn: serial::Turn,
}

impl Heap {
    fn start(arguments: &[&str]) -> Result<(Self, Told)> {
        let mut heap = Self::spawn(Command::new(program()?).args(arguments))?;
        let told = heap.told()?;
        Ok((heap, told))
    }

    fn spawn(command: &mut Command) -> Result<Self> {
        let turn = serial::turn()?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        Ok(Self { child, stdin, lines, _turn: turn })
    }

    fn process(&self) -> Result<Process> {
        Process::open(self.child.id()).context("open the process")
    }

    /// As a user has it: with symbols where there are some.
    fn read(&self, depth: Depth) -> Result<HeapCensus> {
        known(heap::read(&self.process()?, depth))
    }

    /// What a reading needs, without symbols: most C libraries are stripped of them.
    fn stripped(&self) -> Result<Parts> {
        let process = self.process()?;
        let (lines, _) = read_maps(&process)?;
        let files = Mappings::of(&process)?;
        let mut libc = LibcFacts::find(&process, &files, &lines).map_err(anyhow::Error::msg)?;
        (libc.glibc.main_arena, libc.glibc.parameters) = (None, None);
        let memory = ProcessMemory::open(&process)?;
        Ok(Parts { memory, regions: Regions::writable(&lines), libc })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input")?;
        writeln!(stdin, "{line}").context("write to it")
    }

    fn line(&mut self) -> Result<String> {
        self.lines.next().context("it ended")?.context("read its output")
    }

    /// Waits until it has told.
    fn told(&mut self) -> Result<Told> {
        let mut told = Told::default();
        let mut arena = None;
        loop {
            let line = self.line()?;
            let number = |name: &str| attribute(&line, name);
            if line == "ready" {
                return Ok(told);
            } else if line.starts_with('{') {
                let value: BTreeMap<String, i64> = serde_json::from_str(&line)?;
                let figures = value.into_iter().map(|(name, n)| (name, n.try_into().unwrap_or(0)));
                told.figures.extend(figures);
            } else if line.starts_with("<heap nr=") {
                arena = Some(ToldArena::default());
            } else if line.starts_with("</heap>") {
                told.arenas.extend(arena.take());
            } else if let Some(arena) = &mut arena {
                if line.starts_with("<system type=\"current\"") {
                    arena.system = number("size")?;
                } else if line.starts_with("<system type=\"max\"") {
                    arena.peak = number("size")?;
                } else if line.starts_with("<total type=\"rest\"") {
                    arena.rest = (number("count")?, number("size")?);
                } else if line.starts_with("<total type=\"fast\"") {
                    arena.fast = (number("count")?, number("size")?);
                } else if line.starts_with("<aspace type=\"subheaps\"") {
                    arena.heaps = Some(number("size")?);
                }
            }
        }
    }
}

struct Parts {
    memory: ProcessMemory,
    regions: Regions,
    libc: LibcFacts,
}

impl Parts {
    fn read(&self, depth: Depth) -> Result<HeapCensus> {
        known(heap::census(&self.memory, &self.regions, &self.libc, depth))
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn attribute(line: &str, name: &str) -> Result<u64> {
    let value = line.split_once(&format!(" {name}=\"")).and_then(|(_, rest)| rest.split_once('"'));
    let (value, _) = value.with_context(|| format!("no `{name}` in `{line}`"))?;
    value.parse().with_context(|| format!("read `{line}`"))
}

fn known<T>(known: Known<T>) -> Result<T> {
    match known {
        Known::Value(value) => Ok(value),
        Known::Unknown { reason } => bail!("unknown: {reason}"),
    }
}

/// `programs/heap/heap.c`, compiled when it is newer than what there is.
fn program() -> Result<PathBuf> {
    let source = workspace().join("tests/programs/heap/heap.c");
    let directory = target_dir().join("programs/heap");
    let _lock = serial::wait_for("compile")?;
    std::fs::create_dir_all(&directory)?;
    let output = directory.join("heap");
    let modified = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified());
    if modified(&output).is_ok_and(|built| modified(&source).is_ok_and(|source| source < built)) {
        return Ok(output);
    }
    let status = Command::new("cc")
        .args(["-std=gnu11", "-g", "-O2", "-Wall", "-pthread", "-o"])
        .args([&output, &source])
        .status()
        .context("run `cc`: `cargo xtask setup` installs it")?;
    ensure!(status.success(), "`{}` does not compile", source.display());
    Ok(output)
}

/// Everything that glibc tells of a heap that stands still, to the byte.
fn assert_same(census: &HeapCensus, told: &Told) {
    let totals = &census.totals;
    assert_eq!(totals.arenas, told.arenas.len() as u64);
    assert_eq!(totals.system_bytes, told.get("arena"));
    assert_eq!(totals.free_bytes, Known::Value(told.get("fordblks")));
    assert_eq!(totals.in_use_bytes, Known::Value(told.get("uordblks")));
    assert_eq!(totals.drift_bytes, 0);
    assert_eq!(census.reading.moving_arenas, 0);
    let mapped = census.mapped.value().unwrap_or_else(|| panic!("{:?}", census.mapped.reason()));
    assert_eq!((mapped.chunks, mapped.bytes), (told.get("hblks"), told.get("hblkhd")));
    let main = free(&census.arenas[0]);
    assert_eq!(main.top_bytes, told.get("keepcost"));
    let sum =
        |part: fn(&heap::Free) -> u64| census.arenas.iter().map(|a| part(free(a))).sum::<u64>();
    assert_eq!(sum(|free| free.fast_chunks), told.get("smblks"));
    assert_eq!(sum(|free| free.fast_bytes), told.get("fsmblks"));
    // Each top counts as a block.
    assert_eq!(sum(|free| free.binned_chunks) + totals.arenas, told.get("ordblks"));
    for (arena, told) in census.arenas.iter().zip(&told.arenas) {
        assert_eq!((arena.system_bytes, arena.peak_system_bytes), (told.system, told.peak));
        if let Some(heaps) = told.heaps {
            assert_eq!(arena.heaps, heaps);
        }
        let free = free(arena);
        let classes: u64 = free.by_size.iter().map(|class| class.bytes).sum();
        assert_eq!(classes + free.top_bytes, free.bytes);
        if let Known::Value(chunks) = &arena.chunks {
            assert_eq!(
                chunks.in_use_bytes + chunks.book_bytes - free.fast_bytes,
                arena.system_bytes - free.bytes
            );
        }
    }
}

fn free(arena: &Arena) -> &heap::Free {
    arena.free.value().unwrap_or_else(|| panic!("{:?}", arena.free.reason()))
}

/// The scenarios in which the heap stands still.
const AT_REST: [&[&str]; 9] = [
    &["single"],
    &["held", "10"],
    &["retained"],
    &["heaps"],
    &["fragmented", "20000"],
    &["gaps", "3000"],
    &["mapped", "20"],
    &["caches", "5"],
    &["foreign"],
];

fn assert_at_rest(heap: &Heap, told: &Told, arguments: &[&str]) -> Result<()> {
    let stripped = heap.stripped()?;
    for depth in [Depth::Books, Depth::Chunks] {
        let cpu = cpu_time()?;
        let census = stripped.read(depth).with_context(|| format!("{arguments:?}"))?;
        let cpu = cpu_time()? - cpu;
        eprintln!(
            "{arguments:?} {depth:?}: {cpu:?} of processor time, {} arenas, {} bytes, free {:?}; {:?}",
            census.totals.arenas,
            census.totals.system_bytes,
            census.totals.free_bytes.value(),
            census.reading
        );
        assert_eq!(census.found_by, FoundBy::Structure);
        assert_same(&census, told);
        let walked = census.arenas.iter().all(|arena| arena.chunks.value().is_some());
        let is_walkable = depth == Depth::Chunks && arguments != ["foreign"];
        assert_eq!(walked, is_walkable, "{arguments:?} {:?}", census.arenas[0].chunks);
        assert_same(&heap.read(depth)?, told);
    }
    Ok(())
}

#[test]
fn a_heap_at_rest_is_told_to_the_byte_as_glibc_tells_it() -> Result<()> {
    for arguments in AT_REST {
        let (heap, told) = Heap::start(arguments)?;
        assert_at_rest(&heap, &told, arguments)?;
    }
    Ok(())
}

#[test]
fn tunables_that_change_the_shape_of_the_heap_are_no_obstacle() -> Result<()> {
    for (tunables, is_one_piece) in [
        // Heaps of 8 MiB, and a main arena that does not use the break.
        ("glibc.malloc.hugetlb=2", false),
        ("glibc.malloc.hugetlb=1", true),
        ("glibc.malloc.tcache_count=0:glibc.malloc.arena_max=2", true),
        ("glibc.malloc.mxfast=0:glibc.malloc.top_pad=1000000", true),
    ] {
        for scenario in ["single", "retained", "heaps"] {
            let mut command = Command::new(program()?);
            let mut heap = Heap::spawn(command.arg(scenario).env("GLIBC_TUNABLES", tunables))?;
            let told = heap.told()?;
            for depth in [Depth::Books, Depth::Chunks] {
                let mut parts = heap.stripped()?;
                let census = parts.read(depth).with_context(|| format!("{tunables} {scenario}"))?;
                if tunables.contains("top_pad") {
                    // The settings are found by the break's start, or by being the usual ones.
                    assert_eq!(census.settings.value().map(|s| s.top_pad_bytes), Some(1_000_000));
                }
                assert_same(&census, &told);
                let walked = census.arenas[0].chunks.value().is_some();
                assert_eq!(walked, is_one_piece && depth == Depth::Chunks, "{tunables}");
                // No release: every layout is tried.
                parts.libc.glibc.release = None;
                let census = parts.read(depth).context("without a release")?;
                assert_eq!(census.totals.free_bytes, Known::Value(told.get("fordblks")));
            }
        }
    }
    Ok(())
}

#[test]
fn settings_and_retention_are_told() -> Result<()> {
    let (heap, told) = Heap::start(&["retained"])?;
    let census = heap.stripped()?.read(Depth::Chunks)?;
    let settings = known(census.settings)?;
    assert_eq!(settings.trim_threshold_bytes, 128 << 10);
    assert_eq!(settings.mmap_threshold_bytes, 128 << 10);
    assert_eq!(settings.mapped_chunks_max, 65536);
    assert!(settings.thresholds_adapt && settings.arena_max == 0);
    // Eight threads got twenty MiB each and kept one block in a hundred.
    assert_eq!(census.arenas.len(), 9);
    let planted = (told.get("planted_blocks"), told.get("planted_bytes"));
    let mut walked = 0;
    for arena in census.arenas.iter().filter(|arena| !arena.main) {
        assert_eq!(arena.attached_threads, Known::Value(1));
        let in_use = known(arena.in_use_bytes.clone())?;
        assert!(arena.system_bytes > 20_000_000 && in_use < 512 << 10, "{arena:?}");
        let chunks = known(arena.chunks.clone())?;
        assert!(chunks.in_use >= planted.0 / 8);
        walked += chunks.in_use_bytes;
    }
    assert!(walked >= planted.1 && walked < planted.1 + (8 << 10) * 8, "{walked}");
    Ok(())
}

#[test]
fn blocks_more_in_the_program_are_chunks_more_in_the_walk() -> Result<()> {
    let in_use = |number: &str| -> Result<(u64, u64)> {
        let (heap, _) = Heap::start(&["held", number])?;
        let chunks = known(heap.stripped()?.read(Depth::Chunks)?.arenas[0].chunks.clone())?;
        Ok((chunks.in_use, chunks.in_use_bytes))
    };
    let (few, many) = (in_use("100")?, in_use("1337")?);
    // malloc(5000) takes a chunk of 5008 bytes.
    assert_eq!((many.0 - few.0, many.1 - few.1), (1237, 1237 * 5008));
    Ok(())
}

#[test]
fn blocks_kept_by_thread_caches_are_counted_in_them() -> Result<()> {
    for depth in [Depth::Books, Depth::Chunks] {
        let caches = |number: &str| -> Result<heap::ThreadCaches> {
            let (heap, _) = Heap::start(&["caches", number])?;
            known(heap.stripped()?.read(depth)?.thread_caches)
        };
        let (none, some) = (caches("0")?, caches("6")?);
        // The main thread and four more, six blocks of 608 bytes each.
        assert_eq!((none.caches, some.caches), (5, 5));
        assert_eq!((some.chunks - none.chunks, some.bytes - none.bytes), (24, 24 * 608));
    }
    Ok(())
}

#[test]
fn what_malloc_trim_gives_back_was_foretold() -> Result<()> {
    for arguments in [&["gaps", "3000"][..], &["fragmented", "20000"], &["retained"]] {
        let (mut heap, before) = Heap::start(arguments)?;
        let census = heap.stripped()?.read(Depth::Books)?;
        heap.say("trim")?;
        let after = heap.told()?;
        let given_back = (before.get("anonymous_kib") - after.get("anonymous_kib")) * 1024;
        let foretold = known(census.totals.trimmable_resident_bytes)?;
        eprintln!("{arguments:?}: foretold {foretold}, given back {given_back}");
        assert!(foretold > 100 << 10, "nothing to trim is no test");
        // Telling it touches a few pages more.
        assert!(foretold.abs_diff(given_back) <= 64 << 10, "{foretold} {given_back}");
        let left = known(heap.stripped()?.read(Depth::Books)?.totals.trimmable_resident_bytes)?;
        assert!(left <= 64 << 10, "{left} bytes were not given back");
    }
    Ok(())
}

#[test]
fn a_hundred_arenas_are_read_in_less_than_50_ms() -> Result<()> {
    let (heap, told) = Heap::start(&["arenas", "100"])?;
    let process = heap.process()?;
    let parts = heap.stripped()?;
    let (mut fastest, mut least) = (Duration::MAX, Duration::MAX);
    let mut alone = Duration::MAX;
    for _ in 0..10 {
        let (start, cpu) = (Instant::now(), cpu_time()?);
        let census = known(heap::read(&process, Depth::Books))?;
        fastest = fastest.min(start.elapsed());
        least = least.min(cpu_time()? - cpu);
        assert_same(&census, &told);
        assert_eq!(census.totals.arenas, 100);
        let cpu = cpu_time()?;
        parts.read(Depth::Books)?;
        alone = alone.min(cpu_time()? - cpu);
    }
    eprintln!(
        "100 arenas: {fastest:?}, {least:?} of processor time, {alone:?} of it for the census"
    );
    // Of processor time: others may be using the machine.
    assert!(least < Duration::from_millis(50), "{least:?}");
    Ok(())
}

/// Processor time of this thread.
fn cpu_time() -> Result<Duration> {
    // getrusage counts in ticks.
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which outlives it.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    ensure!(result == 0, "no clock of this thread's processor time");
    Ok(Duration::new(now.tv_sec.try_into()?, now.tv_nsec.try_into()?))
}

#[test]
fn a_churning_heap_is_told_within_what_it_says_or_refused() -> Result<()> {
    let mut accepted = 0;
    // Readings that wait between bursts, and a process that never rests.
    for pace in ["20", "0"] {
        let mut heap = Heap::spawn(Command::new(program()?).args(["churn", pace]))?;
        while heap.line()? != "churning" {}
        let mut told = Vec::new();
        let mut refused = Vec::new();
        for _ in 0..40 {
            match heap.read(Depth::Books) {
                Ok(census) => match census.totals.in_use_bytes {
                    Known::Value(in_use) => {
                        let moving = census.reading.moving_arenas;
                        told.push((in_use, census.totals.drift_bytes, moving));
                    }
                    Known::Unknown { reason } => refused.push(reason),
                },
                Err(error) => refused.push(error.to_string()),
            }
        }
        heap.say("stop")?;
        let truth = heap.told()?;
        let overhead = truth.get("uordblks") - truth.get("live");
        let (least, most) = (truth.get("least") + overhead, truth.get("most") + overhead);
        eprintln!(
            "pace {pace}: truth {least}..{most}, told {told:?}, refused {} ({:?})",
            refused.len(),
            refused.first()
        );
        assert!(told.len() + refused.len() == 40 && refused.iter().all(|why| why.len() > 10));
        accepted += told.len();
        for (in_use, drift, _) in told {
            // Each of the four threads has up to 7 blocks of each of 64 sizes in its cache.
            let bound = drift + MOVING_BOUND;
            assert!(in_use + bound >= least && in_use <= most + bound, "{in_use} {drift}");
        }
    }
    assert!(accepted > 0, "to refuse everything is no reading");
    Ok(())
}

/// Four thread caches, full or empty: 7 × (32 + 48 + … + 1040) bytes each.
const MOVING_BOUND: u64 = 4 * 7 * (32 + 1040) * 64 / 2;

#[test]
fn a_damaged_image_is_refused_or_told_but_never_hangs() -> Result<()> {
    let (heap, told) = Heap::start(&["arenas", "6"])?;
    let process = heap.process()?;
    let parts = heap.stripped()?;
    let image = Image::capture(&process)?;
    let whole = known(heap::census(&image, &parts.regions, &parts.libc, Depth::Chunks))?;
    assert_same(&whole, &told);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let pointers = image.pointers();
    let (mut refused, mut accepted, mut longest) = (0, 0, Duration::ZERO);
    for round in 0..300 {
        let mut damaged = image.clone();
        for _ in 0..=(next() % 4) {
            // Words that are no zeros: states, bins, links, sizes.
            let at = pointers[(next() % pointers.len() as u64) as usize];
            let word = match next() % 5 {
                0 => next(),
                1 => 0,
                2 => pointers[(next() % pointers.len() as u64) as usize],
                3 => damaged.word(at) ^ (1 << (next() % 64)),
                _ => damaged.word(pointers[(next() % pointers.len() as u64) as usize]),
            };
            damaged.set(at, word);
        }
        let depth = if round % 2 == 0 { Depth::Books } else { Depth::Chunks };
        let start = Instant::now();
        match heap::census(&damaged, &parts.regions, &parts.libc, depth) {
            Known::Value(census) if census.arenas.iter().all(|a| a.free.value().is_some()) => {
                accepted += 1;
                for arena in &census.arenas {
                    assert!(free(arena).bytes <= arena.system_bytes);
                }
            }
            _ => refused += 1,
        }
        longest = longest.max(start.elapsed());
    }
    eprintln!("{accepted} accepted, {refused} refused, the longest took {longest:?}");
    assert!(refused > 0 && longest < Duration::from_secs(3));
    Ok(())
}

/// The writable memory of a process at one time.
#[derive(Clone)]
struct Image(Vec<(u64, Vec<u8>)>);

impl Image {
    fn capture(process: &Process) -> Result<Self> {
        let memory = ProcessMemory::open(process)?;
        let (lines, _) = read_maps(process)?;
        let mut pieces = Vec::new();
        for line in lines.iter().filter(|l| l.readable && l.writable && !l.shared) {
            ensure!(line.end - line.start < 64 << 20, "too large for a test");
            let mut bytes = vec![0; usize::try_from(line.end - line.start)?];
            memory.read(line.start, &mut bytes)?;
            pieces.push((line.start, bytes));
        }
        Ok(Self(pieces))
    }

    /// Addresses of words that are not zero.
    fn pointers(&self) -> Vec<u64> {
        let words = self.0.iter().flat_map(|(start, bytes)| {
            let words = bytes.chunks_exact(8).enumerate();
            words
                .filter(|(_, word)| **word != [0; 8] && **word != [0x5a; 8])
                .map(move |(at, _)| start + at as u64 * 8)
        });
        words.collect()
    }

    fn word(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes).map_or(0, |()| u64::from_le_bytes(bytes))
    }

    fn set(&mut self, address: u64, word: u64) {
        let piece = self.0.iter_mut().find_map(|(start, bytes)| {
            let at = usize::try_from(address.checked_sub(*start)?).ok()?;
            bytes.get_mut(at..at + 8)
        });
        if let Some(bytes) = piece {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
}

impl MemoryReader for Image {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        // Neighbours may be joined by the caller, so that a piece can cross them.
        for (offset, byte) in buffer.iter_mut().enumerate() {
            let address = address.wrapping_add(offset as u64);
            let index = self.0.partition_point(|(start, _)| *start <= address);
            let found = index.checked_sub(1).and_then(|index| {
                let (start, bytes) = &self.0[index];
                bytes.get(usize::try_from(address - start).ok()?)
            });
            *byte = *found.ok_or(ReadError::NotMapped { address })?;
        }
        Ok(())
    }
}

#[test]
fn other_allocators_are_named_and_not_read() -> Result<()> {
    let jemalloc = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";
    let mut preloaded = Command::new("sleep");
    preloaded.arg("60").env("LD_PRELOAD", jemalloc);
    let musl = memtrace_tests::compile::program("malloc", memtrace_tests::compile::Kind::CMusl)?;
    let mut musl = Command::new(musl);
    for (command, word) in [(&mut preloaded, "jemalloc"), (&mut musl, "musl")] {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        // exec and the loader take a moment.
        let mut reason = String::new();
        memtrace_tests::wait::until(word, Duration::from_secs(20), || {
            let found = Process::open(child.id()).map(|process| heap::read(&process, Depth::Books));
            if let Ok(found) = found {
                reason = found.reason().unwrap_or("read").to_owned();
            }
            Ok(reason.contains(word))
        })
        .with_context(|| reason.clone())?;
        eprintln!("{word}: {reason}");
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

/// Other releases of glibc: a directory for each, named as the release is, with an unpacked
/// `libc6` package (`dpkg-deb -x`), and a program `heap` linked for the oldest.
#[test]
#[ignore = "needs unpacked C libraries in the directory that MEMTRACE_GLIBCS names: see docs/glibc-heap.md"]
fn other_releases_of_glibc_are_told_to_the_byte() -> Result<()> {
    let directory = PathBuf::from(std::env::var_os("MEMTRACE_GLIBCS").context("MEMTRACE_GLIBCS")?);
    let mut seen = 0;
    for entry in std::fs::read_dir(&directory)? {
        let root = entry?.path();
        let release = root.file_name().context("a name")?.to_string_lossy().into_owned();
        if !root.is_dir() {
            continue;
        }
        let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
        let libraries =
            libraries.iter().map(|l| root.join(l)).find(|l| l.join("libc.so.6").exists());
        let libraries =
            libraries.with_context(|| format!("no libc.so.6 in `{}`", root.display()))?;
        for arguments in AT_REST {
            let mut heap = Heap::spawn(
                Command::new(libraries.join("ld-linux-x86-64.so.2"))
                    .arg("--library-path")
                    .arg(&libraries)
                    .arg(directory.join("heap"))
                    .args(arguments),
            )?;
            let told = heap.told()?;
            assert_at_rest(&heap, &told, arguments).with_context(|| release.clone())?;
            let census = heap.stripped()?.read(Depth::Chunks)?;
            assert_eq!(census.version, Known::Value(release.clone()));
            eprintln!("{release} {arguments:?}: caches {:?}", census.thread_caches);
        }
        seen += 1;
    }
    ensure!(seen > 0, "no C library in `{}`", directory.display());
    Ok(())
}
