//! Go's own line table against DWARF, at 10,000 addresses of a program per release: functions,
//! files, lines and inlined calls agree wherever DWARF has an answer.

use std::collections::BTreeMap;
use std::fs::File;

use anyhow::{Context, Result, ensure};
use blazesym::symbolize::source::{Elf as ElfSource, Source};
use blazesym::symbolize::{Input, Symbolized, Symbolizer};
use memtrace::stacks::elf::{Elf, FileSource};
use memtrace::stacks::go_object::find_go_table;
use memtrace::stacks::pclntab::{GoFrame, PclnTable};
use memtrace_tests::go_books::{Build, RELEASES, build};

const ADDRESSES: usize = 10_000;
const SHORT_RELEASES: [&str; 3] = ["1.21.13", "1.24.11", "1.27.3"];

/// A frame as both tell it; a file by its last component.
type Frame = (String, Option<String>, Option<u32>);

fn base(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

fn of_table(frames: &[GoFrame]) -> Vec<Frame> {
    let frame =
        |frame: &GoFrame| (frame.function.clone(), frame.file.as_deref().map(base), frame.line);
    frames.iter().map(frame).collect()
}

/// Innermost first; `None` where DWARF names no function or no line.
fn of_dwarf(found: &Symbolized<'_>) -> Option<Vec<Frame>> {
    let Symbolized::Sym(symbol) = found else { return None };
    let place = |info: Option<&blazesym::symbolize::CodeInfo<'_>>| {
        let info = info?;
        Some((base(&info.file.to_string_lossy()), info.line?))
    };
    let mut frames = Vec::new();
    for call in symbol.inlined.iter().rev() {
        let (file, line) = place(call.code_info.as_ref())?;
        frames.push((call.name.to_string(), Some(file), Some(line)));
    }
    let (file, line) = place(symbol.code_info.as_deref())?;
    frames.push((symbol.name.to_string(), Some(file), Some(line)));
    Some(frames)
}

/// Addresses all over the text, each the start of an instruction or within one: both tables cover
/// every byte.
fn addresses(table: &PclnTable<'_>) -> Vec<u64> {
    let text = table.text_range();
    // A generator of its own, so that every run looks at the same ones.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.start + (state >> 20) % (text.end - text.start)
    };
    (0..ADDRESSES).map(|_| next()).collect()
}

fn compare(release: &str) -> Result<()> {
    let path = build(release, Build::Plain)?;
    let file = File::open(&path)?;
    let source = FileSource::new(&file)?;
    let elf = Elf::parse(&source)?;
    let table = find_go_table(&elf).context("no Go table")?;
    let addresses = addresses(&table);
    let symbolizer = Symbolizer::builder().enable_demangling(false).build();
    let dwarf = symbolizer
        .symbolize(&Source::Elf(ElfSource::new(&path)), Input::VirtOffset(&addresses))
        .context("DWARF was not read")?;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut examples = Vec::new();
    let mut inlined = 0;
    for (address, found) in addresses.iter().zip(&dwarf) {
        let ours = of_table(&table.frames(*address));
        let verdict = match (&ours[..], of_dwarf(found)) {
            ([], None) => "neither knows it",
            ([], Some(_)) => "only DWARF knows it",
            (_, None) => "only the table knows it",
            (ours, Some(theirs)) => {
                let names = |frames: &[Frame]| -> Vec<String> {
                    frames.iter().map(|frame| frame.0.clone()).collect()
                };
                inlined += usize::from(theirs.len() > 1);
                let verdict = if *ours == theirs[..] {
                    "equal"
                } else if names(ours) == names(&theirs) {
                    "other line"
                } else {
                    "other functions"
                };
                if verdict != "equal" && examples.len() < 12 {
                    examples.push(format!("{address:#x} {verdict}: {ours:?}, DWARF {theirs:?}"));
                }
                verdict
            }
        };
        *counts.entry(verdict).or_default() += 1;
    }
    println!("go{release}: {counts:?}, {inlined} with inlined calls");
    for example in &examples {
        println!("  {example}");
    }
    let count = |verdict: &str| counts.get(verdict).copied().unwrap_or(0);
    ensure!(count("equal") > ADDRESSES / 2 && inlined > ADDRESSES / 20, "too few to mean much");
    ensure!(count("other functions") + count("other line") + count("only DWARF knows it") == 0);
    Ok(())
}

#[test]
fn names_lines_and_inlined_calls_agree_wherever_dwarf_has_an_answer() -> Result<()> {
    let full = std::env::var("MEMTRACE_GO_MATRIX").is_ok_and(|value| value == "full");
    let releases = if full { &RELEASES[..] } else { &SHORT_RELEASES[..] };
    let failed: Vec<String> = releases
        .iter()
        .filter_map(|release| compare(release).err().map(|error| format!("go{release}: {error:#}")))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}
