//! The Go runtime's books, read from the memory of real programs, equal to what the programs say
//! of themselves.
//!
//! The ordinary tests take three releases in three builds. All releases in all builds:
//! `MEMTRACE_GO_MATRIX=full cargo test -p memtrace-tests --test live_go_memory -- --nocapture`
//! (`--nocapture` prints both sides side by side).

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use memtrace::go::memory::locate::Way;
use memtrace::go::memory::{FoundBy, LAYOUTS, MemoryError, MemoryReader, Options};
use memtrace::go::profile::{Limits, parse};
use memtrace::go::profile_proto::Profile;
use memtrace::snapshot::{GoBooks, GoMemory, GoProfile, GoStack};
use memtrace::tracee::MappedFile;
use memtrace::tracee::mappings::Mappings;
use memtrace::tracee::process::Process;
use memtrace_tests::go_books::{Books, Build, RELEASES, build, toolchain};
use memtrace_tests::serial;

const SHORT_RELEASES: [&str; 3] = ["1.21.13", "1.24.11", "1.27.3"];
const SHORT_BUILDS: [Build; 3] = [Build::Plain, Build::Stripped, Build::Pie];
const NEWEST: &str = "1.27.3";

/// What is tested: (release, build).
fn matrix() -> Vec<(&'static str, Build)> {
    let full = std::env::var("MEMTRACE_GO_MATRIX").is_ok_and(|value| value == "full");
    let releases = if full { &RELEASES[..] } else { &SHORT_RELEASES[..] };
    let builds = if full { &Build::ALL[..] } else { &SHORT_BUILDS[..] };
    releases.iter().flat_map(|release| builds.iter().map(|build| (*release, *build))).collect()
}

fn files_of(pid: u32) -> Result<Vec<MappedFile>> {
    let process = Process::open(pid)?;
    let mut mappings = Mappings::default();
    mappings.rescan(&process)?;
    Ok(mappings.files)
}

/// One reader and what it needs.
struct Outside {
    reader: MemoryReader,
    files: Vec<MappedFile>,
}

impl Outside {
    fn of(books: &Books, options: Options) -> Result<Self> {
        let reader = MemoryReader::open(books.pid(), options)?;
        Ok(Self { reader, files: files_of(books.pid())? })
    }

    fn read(&mut self) -> Result<GoBooks, MemoryError> {
        self.reader.read(&self.files)
    }

    fn found_by(&self) -> Result<FoundBy> {
        self.reader.found_by().context("nothing was found")
    }
}

fn figures(memory: &GoMemory) -> BTreeMap<String, u64> {
    let all = [
        ("sys", Some(memory.sys)),
        ("heap_alloc", Some(memory.heap_alloc)),
        ("heap_sys", Some(memory.heap_sys)),
        ("heap_idle", Some(memory.heap_idle)),
        ("heap_inuse", Some(memory.heap_inuse)),
        ("heap_released", Some(memory.heap_released)),
        ("stack_inuse", Some(memory.stack_inuse)),
        ("stack_sys", Some(memory.stack_sys)),
        ("mspan_inuse", memory.mspan_inuse),
        ("mspan_sys", Some(memory.mspan_sys)),
        ("mcache_inuse", memory.mcache_inuse),
        ("mcache_sys", Some(memory.mcache_sys)),
        ("buck_hash_sys", Some(memory.buck_hash_sys)),
        ("gc_sys", Some(memory.gc_sys)),
        ("other_sys", Some(memory.other_sys)),
        ("next_gc", Some(memory.next_gc)),
        ("num_gc", Some(memory.num_gc)),
        ("num_forced_gc", memory.num_forced_gc),
        ("last_gc_unix_ns", memory.last_gc_unix_ns),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// Reads from outside between two tellings of the program that say the same.
fn compare_statistics(books: &mut Books, outside: &mut Outside) -> Result<GoMemory> {
    for _ in 0..20 {
        let before = books.stats()?;
        let read = outside.read()?;
        let after = books.stats()?;
        // The scavenger may give memory back meanwhile.
        if before != after {
            continue;
        }
        let memory = read.memory.context("no statistics")?;
        let ours = figures(&memory);
        let mut theirs = before;
        theirs.remove("mallocs");
        for (name, value) in &theirs {
            println!("    {name:16} {value:>20} {:>20}", ours.get(name).copied().unwrap_or(0));
        }
        ensure!(ours == theirs, "theirs {theirs:#?}\nours {ours:#?}");
        return Ok(memory);
    }
    bail!("the program's statistics never stood still")
}

/// As `runtime/pprof` writes it, less the stacks that count nothing yet.
fn of_program(bytes: &[u8]) -> Result<GoBooks> {
    let mut books = parse(bytes, "theirs", &Limits::default())?;
    books.stacks.retain(|stack| {
        stack.alloc_bytes | stack.alloc_objects | stack.inuse_bytes | stack.inuse_objects != 0
    });
    Ok(books)
}

fn differences(theirs: &[GoStack], ours: &[GoStack]) -> String {
    let only = |these: &[GoStack], those: &[GoStack]| -> String {
        let line = |stack: &GoStack| {
            let frames = stack.frames.iter().map(|frame| {
                let inlined = if frame.inlined { " inlined" } else { "" };
                format!("{}:{:?}{inlined}", frame.function, frame.line)
            });
            let frames = frames.take(8).collect::<Vec<_>>().join(" < ");
            format!("\n  {} B, {} B {frames}", stack.inuse_bytes, stack.alloc_bytes)
        };
        these.iter().filter(|stack| !those.contains(stack)).take(4).map(line).collect()
    };
    format!("only theirs {}\nonly ours {}", only(theirs, ours), only(ours, theirs))
}

/// The published profile, from outside and as the program writes it.
fn compare_profile(books: &mut Books, outside: &mut Outside) -> Result<GoBooks> {
    for _ in 0..20 {
        let ours = outside.read()?;
        let (bytes, collections) = books.profile()?;
        if ours.memory.map(|memory| memory.num_gc) != Some(collections) {
            continue;
        }
        if let Some(reason) = &ours.no_profile {
            bail!("no profile: {reason}");
        }
        let theirs = of_program(&bytes)?;
        let total =
            |of: &GoBooks| [of.inuse_bytes, of.inuse_objects, of.alloc_bytes, of.alloc_objects];
        println!("    profile          {:?} {:?}", total(&theirs), total(&ours));
        println!("    stacks           {:>20} {:>20}", theirs.stacks.len(), ours.stacks.len());
        ensure!(theirs.sample_rate_bytes == ours.sample_rate_bytes);
        ensure!(total(&theirs) == total(&ours), differences(&theirs.stacks, &ours.stacks));
        ensure!(theirs.stacks == ours.stacks, differences(&theirs.stacks, &ours.stacks));
        return Ok(ours);
    }
    bail!("a collection came between every two readings")
}

fn ways_alone(build: Build) -> &'static [Way] {
    match build {
        Build::Plain | Build::Pie => &[Way::Symbols, Way::Code, Way::Search],
        _ => &[Way::Code, Way::Search],
    }
}

/// Statistics, profile and places of one build.
fn check_build(release: &str, build: Build) -> Result<()> {
    println!("go{release} {build:?}: theirs, ours");
    let environment = [("GOGC", "150"), ("GOMEMLIMIT", "8GiB")];
    let mut books = Books::start(release, build, &environment)?;
    let mut outside = Outside::of(&books, Options::default())?;
    let memory = compare_statistics(&mut books, &mut outside)?;
    ensure!((memory.gogc_percent, memory.memory_limit) == (Some(150), Some(8 << 30)));
    let profile = compare_profile(&mut books, &mut outside)?;
    ensure!(profile.stacks.len() >= 10 && profile.inuse_bytes > 50 << 20, "too small to mean much");
    ensure!(profile.cgo == Some(build.uses_cgo()), "cgo: {:?}", profile.cgo);
    let found = outside.found_by()?;
    println!("    found by {found:?}");
    ensure!(found.version == format!("go{release}") && !found.on_trial);
    // Each way alone finds the same, or what it cannot find is said.
    for way in ways_alone(build) {
        let options = Options { ways: vec![*way], ..Options::default() };
        let mut alone = Outside::of(&books, options)?;
        let memory = compare_statistics(&mut books, &mut alone)?;
        ensure!(memory.num_gc > 0);
        match way {
            Way::Search => {
                let reason = alone.read()?.no_profile.context("a search finds no rate")?;
                ensure!(reason.contains("profile's cycle not found"), "{reason}");
            }
            _ => _ = compare_profile(&mut books, &mut alone)?,
        }
    }
    check_arenas(&books, &mut outside)
}

/// All that the arenas have mapped is what the statistics say of them.
fn check_arenas(books: &Books, outside: &mut Outside) -> Result<()> {
    let read = outside.read()?;
    let memory = read.memory.context("no statistics")?;
    let process = Process::open(books.pid())?;
    let (lines, _) = memtrace::tracee::mappings::read_maps(&process)?;
    let mapped: u64 = lines
        .iter()
        .filter(|line| line.writable)
        .map(|line| {
            let inside = |arena: &memtrace::snapshot::GoArena| {
                let end = line.end.min(arena.start + arena.length_bytes);
                end.saturating_sub(line.start.max(arena.start))
            };
            read.arenas.iter().map(inside).sum::<u64>()
        })
        .sum();
    // Work buffers are in the arenas, too, and part of GCSys.
    let told = memory.heap_sys + memory.stack_inuse;
    println!("    arenas           {mapped:>20} {told:>20}");
    ensure!((told..=told + (1 << 20)).contains(&mapped), "arenas {mapped}, statistics {told}");
    Ok(())
}

#[test]
fn statistics_and_published_profile_equal_the_programs_own() -> Result<()> {
    let _turn = serial::turn()?;
    for (release, build) in matrix() {
        check_build(release, build).with_context(|| format!("go{release} {build:?}"))?;
    }
    Ok(())
}

#[test]
fn the_profile_of_a_program_that_churns_is_equal_whenever_no_collection_came_between() -> Result<()>
{
    let _turn = serial::turn()?;
    for (release, build) in matrix() {
        if build != Build::Stripped {
            continue;
        }
        let mut books = Books::start(release, build, &[])?;
        let mut outside = Outside::of(&books, Options::default())?;
        books.tell("churn")?;
        let mut equal = 0;
        let end = Instant::now() + Duration::from_secs(30);
        let mut readings = 0;
        let mut ages = BTreeMap::new();
        while equal < 5 && Instant::now() < end {
            let before = books.stats()?["num_gc"];
            let ours = outside.read()?;
            let (bytes, collections) = books.profile()?;
            readings += 1;
            ensure!(ours.memory.is_some());
            if before != collections || ours.no_profile.is_some() {
                continue;
            }
            let theirs = of_program(&bytes)?;
            ensure!(theirs.stacks == ours.stacks, differences(&theirs.stacks, &ours.stacks));
            *ages.entry(ours.collections_old).or_insert(0) += 1;
            equal += 1;
        }
        println!("go{release}: {equal} equal of {readings} readings; collections old: {ages:?}");
        ensure!(equal > 0, "go{release}: a collection came between all {readings} readings");
        books.tell("calm")?;
        compare_profile(&mut books, &mut outside)?;
    }
    Ok(())
}

#[test]
fn before_the_first_collection_the_profile_is_everything_so_far() -> Result<()> {
    let _turn = serial::turn()?;
    for release in SHORT_RELEASES {
        let environment = [("BOOKS_NO_GC", "1"), ("GOGC", "off")];
        let mut books = Books::start(release, Build::Stripped, &environment)?;
        let mut outside = Outside::of(&books, Options::default())?;
        let memory = compare_statistics(&mut books, &mut outside)?;
        ensure!((memory.num_gc, memory.gogc_percent) == (0, Some(-1)), "{memory:?}");
        let profile = compare_profile(&mut books, &mut outside)?;
        ensure!(profile.collections_old == Some(0) && profile.inuse_bytes > 10 << 20);
    }
    Ok(())
}

#[test]
fn the_current_profile_is_what_two_more_collections_publish() -> Result<()> {
    let _turn = serial::turn()?;
    let allocated = |books: &GoBooks| -> BTreeMap<String, u64> {
        let of_program = books.stacks.iter().filter(|stack| {
            stack.frames.first().is_some_and(|frame| frame.function.starts_with("main.by"))
        });
        let mut sums = BTreeMap::new();
        for stack in of_program {
            *sums.entry(stack.frames[0].function.clone()).or_default() += stack.alloc_objects;
        }
        sums
    };
    for release in SHORT_RELEASES {
        let environment = [("BOOKS_RATE", "1"), ("GOGC", "off")];
        let mut books = Books::start(release, Build::Stripped, &environment)?;
        let options = Options { profile: GoProfile::Current, ..Options::default() };
        let current = Outside::of(&books, options)?.read()?;
        let mut outside = Outside::of(&books, Options::default())?;
        let published = outside.read()?;
        // The program asked for the last collection, which publishes at once.
        ensure!(published.collections_old == Some(0), "{:?}", published.collections_old);
        ensure!(current.profile == GoProfile::Current && published.profile == GoProfile::Published);
        ensure!(allocated(&published) != allocated(&current), "go{release}: nothing was new");
        books.tell("collect")?;
        books.tell("collect")?;
        let later = compare_profile(&mut books, &mut outside)?;
        ensure!(later.collections_old == Some(0));
        ensure!(allocated(&later) == allocated(&current));
    }
    Ok(())
}

/// What a reading of 5,000 buckets may cost, also the first one, which finds and names everything.
const LONGEST: Duration = Duration::from_millis(50);

/// CPU time of this thread, user and system: of `process_vm_readv` as well.
fn thread_time() -> Result<Duration> {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
    let sum = micros(usage.user_time()) + micros(usage.system_time());
    Ok(Duration::from_micros(u64::try_from(sum)?))
}

#[test]
fn a_reading_of_5000_buckets_is_fast_and_leaves_the_program_alone() -> Result<()> {
    let _turn = serial::alone()?;
    for release in SHORT_RELEASES {
        let environment = [("BOOKS_RATE", "1"), ("BOOKS_STACKS", "2600"), ("GOGC", "off")];
        let mut books = Books::start(release, Build::Stripped, &environment)?;
        let mut outside = Outside::of(&books, Options::default())?;
        let before = books.stats()?;
        // CPU time: what else the machine does is not what a reading costs. The first reading is
        // repeated by readers of their own.
        let mut first: Vec<Duration> = Vec::new();
        let mut stacks = 0;
        for _ in 0..5 {
            let mut fresh = Outside::of(&books, Options::default())?;
            let start = thread_time()?;
            let profile = fresh.read()?;
            first.push(thread_time()?.saturating_sub(start));
            ensure!(profile.no_profile.is_none() && profile.stacks.len() >= 5000);
            stacks = profile.stacks.len();
        }
        outside.read()?;
        let mut later: Vec<Duration> = Vec::new();
        for _ in 0..20 {
            let start = thread_time()?;
            outside.read()?;
            later.push(thread_time()?.saturating_sub(start));
        }
        let after = books.stats()?;
        ensure!(before == after, "before {before:#?} after {after:#?}");
        first.sort();
        later.sort();
        println!(
            "go{release}: {stacks} stacks, first reading (finds and names everything) {:?}, later \
             {:?} (CPU time, medians); quickest {:?} and {:?}",
            first[2], later[10], first[0], later[0]
        );
        ensure!(later[10] < LONGEST, "{later:?}");
        ensure!(first[2] < LONGEST, "{first:?}");
    }
    Ok(())
}

#[test]
fn with_the_layout_of_another_release_there_is_a_reason_and_no_figure() -> Result<()> {
    let _turn = serial::turn()?;
    for release in SHORT_RELEASES {
        let books = Books::start(release, Build::Plain, &[])?;
        let minor: u32 = release.split('.').nth(1).context("a minor")?.parse()?;
        let right = LAYOUTS.iter().find(|layout| layout.minor == minor).context("no layout")?;
        for wrong in LAYOUTS {
            let options = Options { layout: Some(*wrong), ..Options::default() };
            let result = Outside::of(&books, options)?.read();
            let same_statistics = (wrong.statistics, wrong.controller, wrong.heap, wrong.module)
                == (right.statistics, right.controller, right.heap, right.module);
            match result {
                Ok(read) if same_statistics => {
                    ensure!(read.no_profile.is_some() == (wrong.record != right.record));
                }
                Ok(read) => {
                    // Offsets that are the same in both give the same figures.
                    let mut known = Outside::of(&books, Options::default())?;
                    let figures = known.read()?.memory;
                    ensure!(
                        read.memory == figures,
                        "go{release} with the layout of 1.{}: {:?}, not {figures:?}",
                        wrong.minor,
                        read.memory
                    );
                }
                Err(reason) => {
                    ensure!(!same_statistics, "{reason}");
                    println!("go{release} as 1.{}: {reason}", wrong.minor);
                }
            }
        }
    }
    Ok(())
}

/// A copy of the program that says it was built by a release yet to come.
fn of_the_future(release: &str, built: Build, directory: &std::path::Path) -> Result<PathBuf> {
    let program = build(release, built)?;
    let mut bytes = std::fs::read(&program)?;
    let minor = release.split('.').nth(1).context("a minor")?;
    let (now, then) = (format!("go{release}"), format!("go{release}").replacen(minor, "99", 1));
    let places: Vec<usize> = memchr::memmem::find_iter(&bytes, now.as_bytes()).collect();
    ensure!(!places.is_empty(), "`{}` does not say {now}", program.display());
    for at in places {
        bytes[at..at + then.len()].copy_from_slice(then.as_bytes());
    }
    let copy = directory.join(format!("books-{release}-{built:?}"));
    std::fs::write(&copy, bytes)?;
    std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(copy)
}

#[test]
fn a_release_that_is_not_known_yet_is_read_with_the_newest_layout_on_trial() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    for built in [Build::Plain, Build::Stripped, Build::Pie] {
        let program = of_the_future(NEWEST, built, directory.path())?;
        let mut books = Books::start_built(&program, built, &[])?;
        let mut outside = Outside::of(&books, Options::default())?;
        compare_statistics(&mut books, &mut outside)?;
        let read = compare_profile(&mut books, &mut outside)?;
        let found = outside.found_by()?;
        ensure!(found.on_trial && found.version == "go1.99.3", "{found:?}");
        ensure!(read.source.ends_with("go1.99.3, read as go1.27.3 on trial)"), "{}", read.source);
    }
    Ok(())
}

#[test]
fn a_release_whose_layout_is_another_one_gives_a_reason_and_no_figure() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    for release in &RELEASES[..RELEASES.len() - 1] {
        let full = std::env::var("MEMTRACE_GO_MATRIX").is_ok_and(|value| value == "full");
        if !full && !SHORT_RELEASES.contains(release) {
            continue;
        }
        let program = of_the_future(release, Build::Stripped, directory.path())?;
        let books = Books::start_built(&program, Build::Stripped, &[])?;
        match Outside::of(&books, Options::default())?.read() {
            Err(reason) => {
                println!("go{release} as go1.99: {reason}");
                ensure!(matches!(reason, MemoryError::Statistics(_)), "{reason}");
            }
            // The statistics' layout may be that of the newest; a profile's record is not.
            Ok(read) => {
                let reason = read.no_profile.context("a profile with the wrong record")?;
                println!("go{release} as go1.99: statistics, but {reason}");
                let mut known = Books::start(release, Build::Stripped, &[])?;
                let mut outside = Outside::of(&known, Options::default())?;
                compare_statistics(&mut known, &mut outside)?;
            }
        }
    }
    Ok(())
}

/// The memory of a program, to be damaged: addresses by its own symbols.
struct Damage {
    memory: std::fs::File,
    symbols: BTreeMap<String, u64>,
}

impl Damage {
    fn to(books: &Books, release: &str) -> Result<Self> {
        let program = build(release, Build::Plain)?;
        let listed = std::process::Command::new(toolchain(release)?)
            .args(["tool", "nm"])
            .arg(program)
            .output()?;
        let mut symbols = BTreeMap::new();
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [address, _, name] = words[..]
                && name.starts_with("runtime.")
            {
                symbols.insert(name.to_owned(), u64::from_str_radix(address, 16)?);
            }
        }
        let memory = std::fs::File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{}/mem", books.pid()))?;
        Ok(Self { memory, symbols })
    }

    fn at(&self, name: &str) -> Result<u64> {
        self.symbols.get(name).copied().with_context(|| format!("no symbol `{name}`"))
    }

    fn word(&self, address: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, address)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// What a new reader says while this word is another one.
    fn read_with(
        &self,
        books: &Books,
        address: u64,
        value: u64,
    ) -> Result<Result<GoBooks, MemoryError>> {
        let right = self.word(address)?;
        self.memory.write_all_at(&value.to_le_bytes(), address)?;
        let read = Outside::of(books, Options::default())?.read();
        self.memory.write_all_at(&right.to_le_bytes(), address)?;
        Ok(read)
    }
}

#[test]
fn a_damaged_image_gives_a_reason_and_no_figure() -> Result<()> {
    const ALL_NEXT: u64 = 8;
    const NOWHERE: u64 = 0xdead_0000;
    let _turn = serial::turn()?;
    for release in SHORT_RELEASES {
        let mut books = Books::start(release, Build::Plain, &[("GOGC", "off")])?;
        let damage = Damage::to(&books, release)?;
        let list = damage.at("runtime.mbuckets")?;
        let first = damage.word(list)?;
        let second = damage.word(first + ALL_NEXT)?;
        let third = damage.word(second + ALL_NEXT)?;
        let controller = damage.at("runtime.gcController")?;
        let profiles = [
            ("a list that leads nowhere", list, NOWHERE),
            ("a list that leads to something else", list, controller),
            ("a bucket that leads nowhere", second + ALL_NEXT, NOWHERE),
            ("a bucket that leads to the kernel", second + ALL_NEXT, 0xffff_ffff_8000_0000),
            ("a circle of one", first + ALL_NEXT, first),
            ("a circle of three", third + ALL_NEXT, first),
            ("a stack that is too deep", first + 40, 5000),
            ("an object as large as the address space", first + 32, 1 << 47),
        ];
        for (what, place, value) in profiles {
            let read = damage.read_with(&books, place, value)?;
            let read = read.with_context(|| format!("{what}: the statistics are whole"))?;
            let reason = read.no_profile.with_context(|| format!("{what}: there is a profile"))?;
            println!("go{release}, {what}: {reason}");
            ensure!(read.stacks.is_empty() && read.inuse_bytes == 0 && read.alloc_bytes == 0);
        }
        let layout = LAYOUTS
            .iter()
            .find(|layout| release.starts_with(&format!("1.{}.", layout.minor)))
            .context("a layout")?;
        let (heap, statistics) = (damage.at("runtime.mheap_")?, damage.at("runtime.memstats")?);
        let at = |base: u64, offset: usize| base + offset as u64;
        let statistics = [
            ("heapInUse", at(controller, layout.controller.heap_in_use), 1 << 20),
            ("mappedReady", at(controller, layout.controller.mapped_ready), 1 << 20),
            ("gcPercentHeapGoal", at(controller, layout.controller.gc_percent_heap_goal), 1 << 20),
            ("last_gc_unix", at(statistics, layout.statistics.last_gc_unix), 1_000_000),
            ("mspan_sys", at(statistics, layout.statistics.mspan_sys), 1 << 46),
            ("pagesInUse", at(heap, layout.heap.pages_in_use), 1),
            ("the list of arenas", at(heap, layout.heap.arenas), NOWHERE),
            ("the number of arenas", at(heap, layout.heap.arenas + 8), 1 << 40),
        ];
        for (what, place, value) in statistics {
            match damage.read_with(&books, place, value)? {
                Ok(read) => bail!("{what} is damaged, and there are figures: {:?}", read.memory),
                Err(reason) => println!("go{release}, {what}: {reason}"),
            }
        }
        // Nothing of this harmed the program.
        let mut outside = Outside::of(&books, Options::default())?;
        compare_statistics(&mut books, &mut outside)?;
    }
    Ok(())
}

#[test]
fn of_two_runtimes_in_one_process_the_larger_is_told_and_the_other_named() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    for (release, other) in [(NEWEST, NEWEST), (NEWEST, "1.21.13")] {
        let second = directory.path().join(format!("second-{other}.so"));
        std::fs::copy(build(other, Build::Shared)?, &second)?;
        let second = second.to_string_lossy();
        let mut books = Books::start(release, Build::Shared, &[("BOOKS_SECOND", &second)])?;
        let mut outside = Outside::of(&books, Options::default())?;
        compare_statistics(&mut books, &mut outside)?;
        let read = compare_profile(&mut books, &mut outside)?;
        ensure!(
            matches!(&read.tried[..], [why] if why.starts_with(&format!("`{second}` brings another"))),
            "{:?}",
            read.tried
        );
    }
    Ok(())
}

/// `inuse_space` of every sample of a merged profile.
fn merged_total(profile: &[u8]) -> Result<i64> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(profile).read_to_end(&mut bytes)?;
    let profile = <Profile as prost::Message>::decode(&bytes[..])?;
    let name = |at: i64| profile.string_table.get(at as usize).map(String::as_str);
    let column =
        profile.sample_type.iter().position(|kind| name(kind.r#type) == Some("inuse_space"));
    let column = column.context("no inuse_space")?;
    Ok(profile.sample.iter().map(|sample| sample.value[column]).sum())
}

#[test]
fn a_recording_says_whose_books_and_how_old_and_its_merged_profile_adds_up() -> Result<()> {
    let _turn = serial::turn()?;
    let mut books = Books::start(NEWEST, Build::Stripped, &[])?;
    let directory = tempfile::tempdir()?;
    let (json, pprof) = (directory.path().join("json"), directory.path().join("heap.pb.gz"));
    let pid = books.pid().to_string();
    let output = memtrace_tests::memtrace::run(&[
        "record".as_ref(),
        "--pid".as_ref(),
        pid.as_ref(),
        "--duration".as_ref(),
        "1s".as_ref(),
        "--json".as_ref(),
        json.as_os_str(),
        "--pprof".as_ref(),
        pprof.as_os_str(),
        "--merge-go".as_ref(),
    ])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json)?)?;
    let snapshot = report["snapshots"].as_array().and_then(|all| all.last()).context("empty")?;
    let go = &snapshot["go"];
    let source = format!("memory of PID {pid} (");
    ensure!(go["source"].as_str().is_some_and(|text| text.starts_with(&source)), "{go}");
    ensure!(go["profile"] == "published" && go["collections_old"].is_u64(), "{go}");
    ensure!(go["sample_rate_bytes"] == 524_288 && go["tried"] == serde_json::json!([]), "{go}");
    ensure!(
        go["memory"]["num_gc"].is_u64() && go["arenas"].as_array().is_some_and(|a| !a.is_empty())
    );
    let (bytes, collections) = books.profile()?;
    if go["memory"]["num_gc"] == collections {
        let theirs = of_program(&bytes)?;
        ensure!(
            go["inuse_bytes"] == theirs.inuse_bytes,
            "{} {}",
            go["inuse_bytes"],
            theirs.inuse_bytes
        );
    }
    // The merged profile: native and Go, as the report counts them, and as Go's own tool does.
    let native = snapshot["native"]["outstanding"]["bytes"].as_u64().context("native bytes")?;
    let expected = native + go["inuse_bytes"].as_u64().context("Go bytes")?;
    ensure!(merged_total(&std::fs::read(&pprof)?)? as u64 == expected);
    let mut tool = std::process::Command::new(toolchain(NEWEST)?);
    tool.args(["tool", "pprof", "-top", "-unit=B", "-sample_index=inuse_space"]).arg(&pprof);
    let shown = tool.env("HOME", directory.path()).output()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    ensure!(shown.contains(&format!("of {expected}B total")), "not {expected}: {shown}");
    println!("go tool pprof: of {expected}B total; report {native} native + {}", go["inuse_bytes"]);
    Ok(())
}

#[test]
fn a_program_that_is_not_go_is_told_apart() -> Result<()> {
    let _turn = serial::turn()?;
    let pid = std::process::id();
    let mut reader = MemoryReader::open(pid, Options::default())?;
    let error = reader.read(&files_of(pid)?).err().context("this test is no Go program")?;
    ensure!(matches!(error, MemoryError::NotGo), "{error}");
    Ok(())
}
