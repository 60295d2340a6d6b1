//! Walks one stack of a stopped process from given registers, and names its frames.
//!
//! ```text
//! walk_process PID PC SP BP [entry]      numbers in hexadecimal
//! ```
//!
//! For comparing the walk with a debugger: stop a process there, take its registers, run this.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use memtrace::snapshot::ObjectMapping;
use memtrace::stacks::symbolize::Options;
use memtrace::stacks::walk::{Registers, Start, UnwindSpace, walk};
use memtrace::stacks::{Root, Symbolizer, TableStore};
use memtrace::tracee::MappedFile;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [pid, pc, sp, bp, rest @ ..] = &args[..] else {
        bail!("usage: walk_process PID PC SP BP [entry]");
    };
    let number = |text: &String| u64::from_str_radix(text.trim_start_matches("0x"), 16);
    let registers = Registers { pc: number(pc)?, sp: number(sp)?, bp: number(bp)? };
    let start =
        if rest.iter().any(|word| word == "entry") { Start::AtEntry } else { Start::Anywhere };
    let files = mapped_files(pid)?;
    let mut store = TableStore::new();
    store.add(&files);
    let space = store.space_of(&files, &[]);
    for failure in store.failures() {
        eprintln!("{}: {}", failure.path, failure.reason);
    }
    let memory = File::open(format!("/proc/{pid}/mem")).context("failed to open its memory")?;
    let read = |address| {
        let mut word = [0; 8];
        memory.read_exact_at(&mut word, address).ok()?;
        Some(u64::from_le_bytes(word))
    };
    let space = UnwindSpace { mappings: &space.mappings, rows: store.rows() };
    let (frames, end) = walk(space, start, registers, read);
    println!("{end:?}, {} frames, {:?}", frames.len(), store.stats());

    let started = std::time::Instant::now();
    let root = Root::of_process(pid.parse()?).ok();
    let mut symbolizer = Symbolizer::new(Options { root, ..Options::default() });
    symbolizer.add_objects(&files);
    let names = symbolizer.name_stacks([&frames[..]]);
    let elapsed = started.elapsed();
    for frame in &frames {
        let Some(found) = names.iter().find(|names| names.address == *frame) else { continue };
        for name in &found.names {
            let mark = if name.inlined { " (inlined)" } else { "" };
            let file = name.file.as_deref().unwrap_or("?");
            println!("{frame:#x} {}{mark} {file}:{}", name.function, name.line.unwrap_or(0));
        }
    }
    println!("named in {elapsed:?}, {:?}, {}", symbolizer.stats(), resident()?);
    symbolizer.release();
    println!("released: {}", resident()?);
    Ok(())
}

fn resident() -> Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let lines =
        status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"));
    Ok(lines.map(|line| line.replace('\t', " ")).collect::<Vec<_>>().join(", "))
}

fn mapped_files(pid: &str) -> Result<Vec<MappedFile>> {
    let maps =
        std::fs::read_to_string(format!("/proc/{pid}/maps")).context("failed to read maps")?;
    let mut files: BTreeMap<String, MappedFile> = BTreeMap::new();
    for line in maps.lines() {
        let fields: Vec<&str> = line.splitn(6, ' ').collect();
        let [range, flags, offset, _, inode, path] = fields[..] else { continue };
        let path = path.trim_start();
        if !path.starts_with('/') || !flags.contains('x') {
            continue;
        }
        let (start, end) = range.split_once('-').context("a line of maps without a range")?;
        let mapping = ObjectMapping {
            start: u64::from_str_radix(start, 16)?,
            end: u64::from_str_radix(end, 16)?,
            file_offset: u64::from_str_radix(offset, 16)?,
        };
        let open_path =
            PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end));
        if !files.contains_key(path) {
            let file = Arc::new(File::open(&open_path).context("failed to open a mapped file")?);
            files.insert(
                path.to_owned(),
                MappedFile {
                    path: path.to_owned(),
                    open_path,
                    file,
                    deleted: false,
                    device: (0, 0),
                    inode: inode.parse()?,
                    mappings: Vec::new(),
                },
            );
        }
        if let Some(file) = files.get_mut(path) {
            file.mappings.push(mapping);
        }
    }
    Ok(files.into_values().collect())
}
