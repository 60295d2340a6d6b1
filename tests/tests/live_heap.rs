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
use memtrace::tracee::heap::{self, Arena, Depth, FoundBy, HeapCensus};
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

    fn read(&self, depth: Depth) -> Result<HeapCensus> {
        known(heap::read(&self.process()?, depth))
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

#[test]
fn a_heap_at_rest_is_told_to_the_byte_as_glibc_tells_it() -> Result<()> {
    for arguments in [
        &["single"][..],
        &["held", "10"],
        &["retained"],
        &["heaps"],
        &["fragmented", "20000"],
        &["gaps", "3000"],
        &["mapped", "20"],
        &["caches", "5"],
        &["foreign"],
    ] {
        let (heap, told) = Heap::start(arguments)?;
        for depth in [Depth::Books, Depth::Chunks] {
            let census = heap.read(depth).with_context(|| format!("{arguments:?}"))?;
            eprintln!(
                "{arguments:?} {depth:?}: {} arenas, {} bytes, free {:?}; {:?}",
                census.totals.arenas,
                census.totals.system_bytes,
                census.totals.free_bytes.value(),
                census.reading
            );
            assert_eq!(census.found_by, FoundBy::Structure, "is the C library not stripped?");
            assert_same(&census, &told);
            let walked = census.arenas.iter().all(|arena| arena.chunks.value().is_some());
            let is_walkable = depth == Depth::Chunks && arguments != ["foreign"];
            assert_eq!(walked, is_walkable, "{arguments:?} {:?}", census.arenas[0].chunks);
        }
    }
    Ok(())
}
