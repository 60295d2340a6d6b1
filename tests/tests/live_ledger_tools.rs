//! What other tools show of the same processes: podman's and procps' own output; and what a recording
//! adds to the ledger: what is outstanding, by stack, and malloc's books.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::ledger::{Explained, PAGE, about, docker_figure, find};
use memtrace_tests::memtrace::Recording;
use memtrace_tests::podman::{Podman, podman};
use memtrace_tests::program::Program;
use memtrace_tests::serial;
use serde_json::Value;

#[test]
fn podman_stats_and_its_conmon_are_told() -> Result<()> {
    let _turn = serial::turn()?;
    let root = tempfile::tempdir()?;
    std::fs::create_dir(root.path().join("bin"))?;
    std::fs::copy("/bin/busybox", root.path().join("bin/busybox"))?;
    // A file of 24 MiB in the cache: what is charged and what is used differ.
    let work =
        "dd if=/dev/zero of=/file bs=65536 count=384 2>/dev/null; exec /bin/busybox sleep 600";
    let container = Podman::run("stats", root.path(), &["/bin/busybox", "sh", "-c", work])?;
    std::thread::sleep(Duration::from_secs(2));
    let explained = || Explained::of(&["--container", &container.name]);
    let before = explained()?;
    before.laws_hold()?;
    let stats = podman(&["stats", "--no-stream", "--format", "{{.MemUsage}}", &container.name])?;
    let (shown, rounding) = docker_figure(&stats)?;
    let (before, after) = (before.tool("podman")? as f64, explained()?.tool("podman")? as f64);
    println!("podman stats {stats}; explain {before} and {after}");
    ensure!(shown > 20e6 || explained()?.is_v2(), "the file is not in podman's figure: {stats}");
    ensure!(
        (before.min(after) - rounding..=before.max(after) + rounding).contains(&shown),
        "podman stats shows {shown} B (±{rounding}), explain said {before} before and {after} after"
    );

    let explained = explained()?;
    let overhead = explained.0["overhead"].as_array().context("overhead")?;
    let conmon = overhead.iter().find(|it| it["comm"] == "conmon").context("no conmon")?;
    ensure!(conmon["pss"].as_i64() > Some(100_000), "{conmon:#}");
    let id = podman(&["inspect", "--format", "{{.Id}}", &container.name])?;
    let charged_to = conmon["cgroup"].as_str().context("where it is charged")?;
    ensure!(!charged_to.contains(&id), "conmon is charged to the container: {conmon:#}");
    Ok(())
}

fn planted() -> Result<Program> {
    let program = compile::program("planted", Kind::Go)?;
    Program::start(&program, &[] as &[&str], &[])
}

fn truth_of(program: &mut Program) -> Result<Value> {
    program.go()?;
    let line = program.line("the truth", Duration::from_secs(60), |line| line.starts_with('{'))?;
    serde_json::from_str(&line).with_context(|| line.clone())
}

#[test]
fn ps_and_top_show_what_explain_says_they_do() -> Result<()> {
    let _turn = serial::turn()?;
    let mut program = planted()?;
    truth_of(&mut program)?;
    let pid = program.pid().to_string();
    let told = Explained::of(&["--pid", &pid])?.tool("rss")?;
    let ps = Command::new("ps").args(["-o", "rss=", "-p", &pid]).output()?;
    let ps: i64 = String::from_utf8(ps.stdout)?.trim().parse()?;
    let mut top = Command::new("top");
    top.args(["-b", "-n", "1", "-E", "k", "-e", "k", "-p", &pid]);
    let top = run_in_english(&mut top)?;
    let line = top.lines().find(|line| line.trim_start().starts_with(&pid)).context("top")?;
    let top: i64 = line.split_whitespace().nth(5).context("RES")?.parse()?;
    println!("ps {ps} KiB, top {top} KiB, explain {told} B");
    // Counters of the kernel are added up a batch of 64 pages for each processor late; the Go
    // runtime's background gives memory back.
    let cpus = std::thread::available_parallelism()?.get() as i64;
    for shown in [ps, top] {
        ensure!((shown * 1024 - told).abs() <= cpus * 64 * PAGE, "{shown} KiB, told {told} B");
    }
    Ok(())
}

fn run_in_english(command: &mut Command) -> Result<String> {
    let output = command.env("LC_ALL", "C").env("TERM", "dumb").output().context("run top")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn both_sides_of_cgo_are_found_as_planted() -> Result<()> {
    let _turn = serial::turn()?;
    let mut program = planted()?;
    let truth = truth_of(&mut program)?;
    let planted = |key: &str| truth[key].as_i64().with_context(|| format!("no `{key}`"));
    // The runtime's background work may touch a page between two reads that have to agree.
    let pid = program.pid().to_string();
    let explain = || Explained::of(&["--pid", &pid]);
    let mut explained = explain()?;
    for _ in 0..4 {
        if explained.laws_hold().is_ok() {
            break;
        }
        explained = explain()?;
    }
    explained.laws_hold()?;
    let row = |key: &str| explained.row("resident", key);
    let go = planted("go")?;
    let live = explained.tool("pprof")?;
    ensure!((go - go / 10..=go + go / 10).contains(&live), "pprof {live}, held {go}");
    // Chunks are up to 24 bytes larger than their blocks; libc and the runtime hold some themselves.
    let in_use = planted("before")? + planted("after")? + planted("top")?;
    about("in use", row("c_in_use")?, in_use, 10_000 * 24 + 300_000)?;
    let freed = planted("freed")?;
    about("freed, kept by malloc", row("c_free")?, freed, 3_000 * 24 + 100_000)?;
    let stacks = planted("stacks")?;
    let bytes = stacks * planted("stack_bytes")?;
    // The runtime's own threads have stacks, too.
    about("thread stacks", row("thread_stacks")?, bytes, 16 * 16 * PAGE)?;
    let mapped = planted("mapped")?;
    let native = row("native_anonymous")?;
    match find(&explained.0["processes"][0]["resident"], "go_runtime") {
        Some(_) => about("native mappings", native, mapped, 2 << 20),
        // Without names Go's tables are among them: the bounds that are told hold the truth.
        None => {
            let surely = row("native_at_least")?;
            println!("native {mapped}, told {surely} to {native}");
            ensure!(surely <= mapped + (1 << 20) && mapped <= native, "{surely}, {native}");
            ensure!(native - surely <= 24 << 20, "the bounds {surely} to {native} say nothing");
            Ok(())
        }
    }
}

#[test]
fn a_recording_s_ledger_has_what_is_outstanding_by_stack() -> Result<()> {
    let _turn = serial::turn()?;
    let mut program = planted()?;
    let recording = Recording::attach(program.pid(), &["--interval", "500ms"])?;
    let truth = truth_of(&mut program)?;
    let planted = |key: &str| truth[key].as_i64().with_context(|| format!("no `{key}`"));
    std::thread::sleep(Duration::from_millis(1200));
    let recorded = recording.interrupt()?.recorded()?;
    let last = recorded.last()?;
    let tree = &last.memory["processes"][0]["resident"];
    let bytes = |key: &str| -> Result<i64> {
        let row = find(tree, key).with_context(|| format!("no `{key}` in {tree:#}"))?;
        row["bytes"].as_i64().with_context(|| format!("{row:#}"))
    };
    // The probes' own figure, and who holds it.
    let outstanding = bytes("c_outstanding")?;
    ensure!(outstanding == last.native.outstanding.bytes as i64, "{outstanding}");
    let (after, top) = (planted("after")?, planted("top")?);
    about("outstanding", outstanding, after + top, 200_000)?;
    let row = find(tree, "c_outstanding").context("outstanding")?;
    let by = row["rows"].as_array().context("stacks")?;
    let planter = by
        .iter()
        .find(|row| row["label"].as_str().is_some_and(|label| label.contains("plant_after")));
    let planter = planter.with_context(|| format!("`plant_after` is not named: {by:#?}"))?;
    ensure!(planter["bytes"].as_i64() == Some(after), "{planter:#}");
    // 1,500 bytes take a chunk of 1,520: 12 more than the header's 8.
    let rounding = bytes("c_rounding")?;
    about("rounding", rounding, planted("after_blocks")? * 12, 40_000)?;
    // Malloc's books of the last snapshot.
    about("freed, kept by malloc", bytes("c_free")?, planted("freed")?, 3_000 * 24 + 100_000)?;
    let before = planted("before")?;
    let rest = bytes("c_before")?;
    // The tops of the arenas are malloc's, and not touched.
    let tops = bytes("c_top")?;
    println!("before the attach {before}, told {rest} with tops of {tops}");
    let range = before - tops - 100_000..=before + 6_000 * 24 + 700_000;
    ensure!(range.contains(&rest), "{rest}, planted {before}, tops {tops}");
    let books = last.own["heap_read_ns"].as_u64().context("the cost of malloc's books")?;
    let whole = last.own["container_read_ns"].as_u64().context("the cost of the ledger")?;
    println!("ledger {} µs a snapshot, of it malloc's books {} µs", whole / 1000, books / 1000);
    ensure!(books <= whole);
    let checks = last.memory["checks"].as_array().context("checks")?;
    let broken: Vec<&Value> = checks.iter().filter(|check| check["holds"] == false).collect();
    ensure!(broken.is_empty(), "{broken:#?}");
    Ok(())
}
