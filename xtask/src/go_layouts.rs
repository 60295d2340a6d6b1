//! `cargo xtask go-layouts`: generates the rows of `memtrace/src/go/memory/layout_data.rs` from
//! the debug information of a program built by each Go release.
//!
//! What a row holds is said once, in `STRUCTS`. A field that a release lacks is an error unless it
//! is one of those that come and go.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use gimli::{AttributeValue, EndianSlice, LittleEndian};
use object::{Object, ObjectSection};

use crate::{go, paths, shell};

#[derive(clap::Args)]
pub struct Options {
    /// Only checks that the committed rows are what the releases give
    #[arg(long)]
    check: bool,
}

/// One release of each minor version; the newest patch that PyPI has.
pub const RELEASES: [&str; 7] =
    ["1.21.13", "1.22.10", "1.23.9", "1.24.11", "1.25.5", "1.26.6", "1.27.3"];

/// Links everything whose layout is asked for.
const PROGRAM: &str = r#"package main

import (
	"os"
	"runtime"
	"runtime/pprof"
)

func main() {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	pprof.WriteHeapProfile(os.Stdout)
	println(stats.Sys)
}
"#;

/// What a field of a row is: a member of a struct by its path, the size of the struct, or a member
/// that not every release has.
enum Field {
    At(&'static str),
    OneOf(&'static [&'static str]),
    SizeOf(&'static str),
    Maybe(&'static str),
}
use Field::{At, Maybe, OneOf, SizeOf};

/// (name in the row, its type, the runtime's struct, fields). A path that starts with a struct's
/// name (`runtime.…`) is looked up in that struct instead.
type Struct = (&'static str, &'static str, &'static str, &'static [(&'static str, Field)]);

const STRUCTS: &[Struct] = &[
    (
        "bucket",
        "Bucket",
        "runtime.bucket",
        &[
            ("allnext", At("allnext")),
            ("typ", At("typ")),
            ("hash", At("hash")),
            ("size", At("size")),
            ("nstk", At("nstk")),
            ("bytes", SizeOf("runtime.bucket")),
        ],
    ),
    (
        "record",
        "Record",
        "runtime.memRecord",
        &[
            ("active", At("active")),
            ("future", At("future")),
            ("bytes", SizeOf("runtime.memRecord")),
            ("cycle_allocs", At("runtime.memRecordCycle/allocs")),
            ("cycle_frees", At("runtime.memRecordCycle/frees")),
            ("cycle_alloc_bytes", Maybe("runtime.memRecordCycle/alloc_bytes")),
            ("cycle_free_bytes", Maybe("runtime.memRecordCycle/free_bytes")),
            ("cycle_bytes", SizeOf("runtime.memRecordCycle")),
        ],
    ),
    (
        "statistics",
        "Statistics",
        "runtime.mstats",
        &[
            ("deltas", At("heapStats.stats")),
            ("delta_bytes", SizeOf("runtime.heapStatsDelta")),
            ("committed", At("runtime.heapStatsDelta/committed")),
            ("released", At("runtime.heapStatsDelta/released")),
            ("in_heap", At("runtime.heapStatsDelta/inHeap")),
            ("in_stacks", At("runtime.heapStatsDelta/inStacks")),
            ("in_work_bufs", At("runtime.heapStatsDelta/inWorkBufs")),
            ("in_ptr_scalar_bits", Maybe("runtime.heapStatsDelta/inPtrScalarBits")),
            ("stacks_sys", At("stacks_sys")),
            ("mspan_sys", At("mspan_sys")),
            ("mcache_sys", At("mcache_sys")),
            ("buckhash_sys", At("buckhash_sys")),
            ("gc_misc_sys", At("gcMiscSys")),
            ("other_sys", At("other_sys")),
            ("last_gc_unix", At("last_gc_unix")),
            ("numgc", At("numgc")),
            ("numforcedgc", At("numforcedgc")),
        ],
    ),
    (
        "controller",
        "Controller",
        "runtime.gcControllerState",
        &[
            ("gc_percent", At("gcPercent")),
            ("memory_limit", At("memoryLimit")),
            ("gc_percent_heap_goal", At("gcPercentHeapGoal")),
            ("sweep_dist_min_trigger", At("sweepDistMinTrigger")),
            ("triggered", At("triggered")),
            ("heap_marked", At("heapMarked")),
            ("heap_in_use", At("heapInUse")),
            ("heap_released", At("heapReleased")),
            ("heap_free", At("heapFree")),
            ("total_alloc", At("totalAlloc")),
            ("total_free", At("totalFree")),
            ("mapped_ready", At("mappedReady")),
        ],
    ),
    (
        "heap",
        "Heap",
        "runtime.mheap",
        &[
            ("pages_in_use", At("pagesInUse")),
            ("arenas", OneOf(&["heapArenas", "allArenas"])),
            ("span_alloc_in_use", At("spanalloc.inuse")),
            ("cache_alloc_in_use", At("cachealloc.inuse")),
            ("span_alloc_stat", At("spanalloc.stat")),
            ("cache_alloc_stat", At("cachealloc.stat")),
        ],
    ),
    (
        "module",
        "Module",
        "runtime.moduledata",
        &[
            ("text", At("text")),
            ("etext", At("etext")),
            ("noptrdata", At("noptrdata")),
            ("enoptrdata", At("enoptrdata")),
            ("data", At("data")),
            ("edata", At("edata")),
            ("bss", At("bss")),
            ("ebss", At("ebss")),
            ("noptrbss", At("noptrbss")),
            ("enoptrbss", At("enoptrbss")),
            ("gofunc", At("gofunc")),
        ],
    ),
];

pub fn run(options: &Options) -> Result<()> {
    let directory = paths::target().join("go-layouts");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("create `{}`", directory.display()))?;
    std::fs::write(directory.join("main.go"), PROGRAM).context("write the program")?;
    let mut rows = String::new();
    for release in RELEASES {
        let program = build(&directory, release)?;
        let types = Types::read(&program)
            .with_context(|| format!("read the debug information of `{}`", program.display()))?;
        rows.push_str(&row(release, &types).with_context(|| format!("Go {release}"))?);
    }
    let text = format!(
        "//! Offsets within the Go runtime's structs, one row per minor release, linux/amd64.\n\
         //! Generated by `cargo xtask go-layouts` from debug information; do not edit.\n\n\
         use super::layout::{{Bucket, Controller, Heap, Layout, Module, Record, Statistics}};\n\n\
         #[rustfmt::skip]\n\
         pub const LAYOUTS: &[Layout] = &[\n{rows}];\n"
    );
    let data = paths::workspace().join("memtrace/src/go/memory/layout_data.rs");
    if options.check {
        let committed =
            std::fs::read_to_string(&data).with_context(|| format!("read `{}`", data.display()))?;
        if committed != text {
            bail!(
                "`{}` is not what the releases give: run `cargo xtask go-layouts`",
                data.display()
            );
        }
        shell::step("the committed layouts are what the releases give");
        return Ok(());
    }
    std::fs::write(&data, text).with_context(|| format!("write `{}`", data.display()))?;
    shell::step(&format!("wrote {} rows to `{}`", RELEASES.len(), data.display()));
    Ok(())
}

fn build(directory: &Path, release: &str) -> Result<PathBuf> {
    let output = directory.join(format!("program-{release}"));
    let mut command = Command::new(go::toolchain(release)?);
    command.current_dir(directory).args(["build", "-ldflags=-compressdwarf=false", "-o"]);
    command.arg(&output).arg("main.go");
    command.env("GOTOOLCHAIN", "local").env("GOPROXY", "off").env("CGO_ENABLED", "0");
    command.env("GOOS", "linux").env("GOARCH", "amd64").env("GOFLAGS", "");
    command.env("GOCACHE", paths::target().join("go-cache"));
    shell::run(&mut command)?;
    Ok(output)
}

fn row(release: &str, types: &Types) -> Result<String> {
    let minor = release.split('.').nth(1).context("a release like 1.24.11")?;
    let mut text =
        format!("    Layout {{\n        minor: {minor},\n        release: \"go{release}\",\n");
    for (name, rust_type, of, fields) in STRUCTS {
        writeln!(text, "        {name}: {rust_type} {{")?;
        for (field, what) in *fields {
            let value = match what {
                At(path) => types.offset(of, path)?.to_string(),
                OneOf(paths) => paths
                    .iter()
                    .find_map(|path| types.offset(of, path).ok())
                    .with_context(|| format!("{of} has none of {paths:?}"))?
                    .to_string(),
                SizeOf(of) => types.of(of)?.bytes.to_string(),
                Maybe(path) => match types.offset(of, path) {
                    Ok(offset) => format!("Some({offset})"),
                    Err(_) => "None".to_owned(),
                },
            };
            writeln!(text, "            {field}: {value},")?;
        }
        text.push_str("        },\n");
    }
    text.push_str("    },\n");
    Ok(text)
}

/// A struct of the program: its size, and name, offset and type of its members.
#[derive(Default)]
struct StructType {
    bytes: u64,
    members: Vec<(String, u64, usize)>,
}

/// Structs by name and, as members refer to them, by their place in `.debug_info`.
struct Types {
    by_name: HashMap<String, usize>,
    structs: HashMap<usize, StructType>,
    aliases: HashMap<usize, usize>,
}

type Slice<'d> = EndianSlice<'d, LittleEndian>;

impl Types {
    fn read(program: &Path) -> Result<Self> {
        let bytes = std::fs::read(program)?;
        let file = object::File::parse(&*bytes)?;
        let load = |id: gimli::SectionId| -> Result<Cow<'_, [u8]>, gimli::Error> {
            Ok(file
                .section_by_name(id.name())
                .and_then(|section| section.uncompressed_data().ok())
                .unwrap_or_default())
        };
        let sections = gimli::DwarfSections::load(load)?;
        let dwarf = sections.borrow(|section| EndianSlice::new(section, LittleEndian));
        let mut types =
            Self { by_name: HashMap::new(), structs: HashMap::new(), aliases: HashMap::new() };
        let mut units = dwarf.units();
        while let Some(header) = units.next()? {
            let unit = dwarf.unit(header)?;
            types.read_unit(&dwarf, &unit)?;
        }
        Ok(types)
    }

    fn read_unit(
        &mut self,
        dwarf: &gimli::Dwarf<Slice<'_>>,
        unit: &gimli::Unit<Slice<'_>>,
    ) -> Result<()> {
        let mut entries = unit.entries();
        let mut within = None;
        while let Some(entry) = entries.next_dfs()? {
            let Some(gimli::DebugInfoOffset(place)) =
                entry.offset().to_debug_info_offset(&unit.header)
            else {
                continue;
            };
            let name = || -> Result<Option<String>> {
                let Some(name) = entry.attr_value(gimli::DW_AT_name) else { return Ok(None) };
                Ok(Some(dwarf.attr_string(unit, name)?.to_string_lossy().into_owned()))
            };
            let refers_to = || match entry.attr_value(gimli::DW_AT_type) {
                Some(AttributeValue::DebugInfoRef(at)) => Some(at.0),
                Some(AttributeValue::UnitRef(at)) => {
                    at.to_debug_info_offset(&unit.header).map(|at| at.0)
                }
                _ => None,
            };
            let number = |at| entry.attr_value(at).and_then(|value| value.udata_value());
            match entry.tag() {
                gimli::DW_TAG_structure_type => {
                    within = Some(place);
                    let bytes = number(gimli::DW_AT_byte_size).unwrap_or(0);
                    self.structs.insert(place, StructType { bytes, members: Vec::new() });
                    if let Some(name) = name()? {
                        self.by_name.insert(name, place);
                    }
                }
                gimli::DW_TAG_typedef => {
                    if let Some(target) = refers_to() {
                        self.aliases.insert(place, target);
                    }
                }
                gimli::DW_TAG_member => {
                    let of = within.and_then(|place| self.structs.get_mut(&place));
                    if let (Some(of), Some(name)) = (of, name()?) {
                        let offset = number(gimli::DW_AT_data_member_location).unwrap_or(0);
                        of.members.push((name, offset, refers_to().unwrap_or(0)));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn of(&self, name: &str) -> Result<&StructType> {
        let found = self.by_name.get(name).and_then(|place| self.structs.get(place));
        found.with_context(|| format!("the program has no struct `{name}`"))
    }

    /// The offset of `a.b` within `of`, or of `b` within the struct `S` for `S/b`.
    fn offset(&self, of: &str, path: &str) -> Result<u64> {
        let (of, path) = path.split_once('/').unwrap_or((of, path));
        let mut within = self.of(of)?;
        let mut sum = 0;
        let mut steps = path.split('.').peekable();
        while let Some(step) = steps.next() {
            let member = within.members.iter().find(|(name, _, _)| name == step);
            let (_, offset, refers_to) =
                member.with_context(|| format!("`{of}` has no `{path}`"))?;
            sum += offset;
            if steps.peek().is_some() {
                let mut place = *refers_to;
                while let Some(target) = self.aliases.get(&place) {
                    place = *target;
                }
                within = self
                    .structs
                    .get(&place)
                    .with_context(|| format!("`{step}` of `{of}` is no struct"))?;
            }
        }
        Ok(sum)
    }
}
