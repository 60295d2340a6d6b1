//! What Go programs map by system calls of their own is native, to the byte and with its name; what
//! the runtime maps is the runtime's.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memtrace_tests::go_books::toolchain;
use memtrace_tests::memtrace::Recording;
use memtrace_tests::program::Program;
use memtrace_tests::recorded::{Frame, Recorded};
use memtrace_tests::truth::assert_told;
use memtrace_tests::{compile, serial};
use nix::sys::signal::Signal;

const RELEASES: [&str; 3] = ["1.21.13", "1.24.11", "1.27.3"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Build {
    Cgo,
    Stripped,
    /// Without cgo: there is no allocator to probe.
    Static,
}

fn program(release: &str, build: Build) -> Result<PathBuf> {
    let go = toolchain(release)?;
    let _lock = serial::wait_for("compile")?;
    let directory = memtrace_tests::target_dir().join("programs/go-mappings");
    std::fs::create_dir_all(&directory)?;
    let output = directory.join(format!("mappings-{release}-{build:?}").to_lowercase());
    let source = memtrace_tests::workspace().join("tests/programs/go/mappings");
    if let Ok(built) = std::fs::metadata(&output).and_then(|metadata| metadata.modified())
        && built > compile::newest(&source)?
    {
        return Ok(output);
    }
    let mut command = Command::new(go);
    command.current_dir(source).args(["build", "-o"]).arg(&output);
    if build == Build::Stripped {
        command.arg("-ldflags=-s -w");
    }
    command.env("GOTOOLCHAIN", "local").env("GOPROXY", "off").env("GOFLAGS", "");
    command.env("CGO_ENABLED", if build == Build::Static { "0" } else { "1" });
    command.env("GOCACHE", memtrace_tests::target_dir().join("go-cache"));
    compile::run(command.arg("."))?;
    Ok(output)
}

fn trace(release: &str, build: Build) -> Result<()> {
    let mut program = Program::start(&program(release, build)?, &[] as &[&str], &[])?;
    let recording = Recording::attach(program.pid(), &[] as &[&str])?;
    program.go()?;
    let truth = program.truth(Duration::from_secs(60))?;
    recording.signal(Signal::SIGINT)?;
    let recorded = recording.finish()?.recorded()?;
    program.finish()?;
    let native = &recorded.last()?.native;
    assert_told(&truth, native)?;
    let names = |frames: &[Frame]| -> Vec<String> {
        frames.iter().filter_map(|frame| frame.function.clone()).collect()
    };
    let mut by_owner = std::collections::BTreeMap::<&str, u64>::new();
    for range in &native.ranges.stacks {
        *by_owner.entry(range.owner.as_str()).or_default() += range.bytes;
    }
    println!("go{release} {build:?}: {by_owner:?}");
    // Each of the program's own is named by who maps, and by the way there.
    let own: Vec<Vec<String>> = native
        .ranges
        .stacks
        .iter()
        .filter(|range| range.owner == "native")
        .map(|range| names(&range.frames))
        .collect();
    for (function, through) in
        [("main.mapByPackage", "syscall.mmap"), ("main.mapByNumber", "syscall.Syscall6")]
    {
        let found = own.iter().any(|names| {
            let at = |wanted: &str| names.iter().position(|name| name == wanted);
            matches!((at(through), at(function), at("main.main")),
                (Some(through), Some(function), Some(main)) if through < function && function < main)
        });
        ensure!(found, "no stack {through} < {function} < main.main in {own:#?}");
    }
    // The heap grew by 240 MiB meanwhile, which is none of these.
    let runtimes = by_owner.get("go_runtime").copied().unwrap_or(0);
    ensure!(runtimes >= 128 << 20, "the runtime's own: {by_owner:?}");
    check_probes(&recorded, build)
}

fn check_probes(recorded: &Recorded, build: Build) -> Result<()> {
    let attached = recorded.probes["attached"].as_array().context("probes")?;
    let (kernel, others): (Vec<_>, Vec<_>) =
        attached.iter().partition(|probe| probe["object"] == "[kernel]");
    ensure!(kernel.len() == 5, "{kernel:?}");
    ensure!(others.is_empty() == (build == Build::Static), "{others:?}");
    let ranged = |probe: &&&serde_json::Value| probe["function"] == "mmap";
    ensure!(!others.iter().any(|probe| ranged(&probe)), "mmap is probed in libc, too");
    Ok(())
}

#[test]
fn what_go_maps_itself_is_native_and_what_its_runtime_maps_is_not() -> Result<()> {
    let _turn = serial::turn()?;
    for release in RELEASES {
        for build in [Build::Cgo, Build::Stripped, Build::Static] {
            trace(release, build).with_context(|| format!("go{release} {build:?}"))?;
        }
    }
    Ok(())
}
