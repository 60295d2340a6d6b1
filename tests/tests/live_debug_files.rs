//! A stripped program is recorded; its names come afterwards, from its debug file: out of a
//! directory, out of an archive's recording, from a server that was asked, and from none that was not.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use memtrace_tests::{memtrace, serial};
use serde_json::Value;

const SOURCE: &str = r#"#include <stdlib.h>
#include <unistd.h>
void *volatile kept;
static inline __attribute__((always_inline)) void *grab(size_t bytes) {
    return malloc(bytes);
}
static __attribute__((noinline)) void keep_one(size_t bytes) {
    kept = grab(bytes);
    __asm__ volatile("");
}
int main(void) {
    for (int i = 0; i < 100; i++) keep_one(1009);
    sleep(1);
    return 0;
}
"#;

fn run(program: &str, arguments: &[&str], directory: &Path) -> Result<()> {
    let status = Command::new(program).args(arguments).current_dir(directory).status()?;
    ensure!(status.success(), "`{program} {arguments:?}` ended with {status}");
    Ok(())
}

/// The program, stripped, and its debug file, both in `directory`; its build id.
fn build(directory: &Path, more: &str) -> Result<String> {
    fs::write(directory.join("keeper.c"), format!("{SOURCE}{more}"))?;
    run("gcc", &["-g", "-O2", "-Wl,--build-id=sha1", "-o", "keeper", "keeper.c"], directory)?;
    run("objcopy", &["--only-keep-debug", "keeper", "keeper.debug"], directory)?;
    let notes = Command::new("readelf").args(["-n", "keeper"]).current_dir(directory).output()?;
    let notes = String::from_utf8_lossy(&notes.stdout).into_owned();
    let id = notes.split_once("Build ID: ").context("it has a build id")?.1;
    let id = id.split_whitespace().next().context("it has a build id")?.to_owned();
    run("strip", &["keeper"], directory)?;
    Ok(id)
}

/// Where a debug file of this build id is looked for first.
fn filed(root: &Path, id: &str, file: &Path) -> Result<()> {
    let directory = root.join(".build-id").join(&id[..2]);
    fs::create_dir_all(&directory)?;
    fs::copy(file, directory.join(format!("{}.debug", &id[2..])))?;
    Ok(())
}

struct Told {
    report: Value,
    stderr: String,
}

fn told(output: &Output) -> Result<Told> {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{stderr}");
    Ok(Told { report: serde_json::from_slice(&output.stdout)?, stderr })
}

impl Told {
    /// Frames of the stack that holds the program's blocks, from the allocator outwards.
    fn frames(&self) -> Result<Vec<Value>> {
        let last = self.report["snapshots"].as_array().and_then(|all| all.last());
        let stacks = last.context("a snapshot")?["native"]["stacks"].as_array().cloned();
        let stack = stacks.into_iter().flatten().find(|it| it["bytes"] == 100 * 1009);
        stack.context("its blocks")?["frames"].as_array().cloned().context("frames")
    }

    fn is_unnamed(&self) -> Result<()> {
        let frames = self.frames()?;
        let function = |frame: &Value| frame["function"].as_str().unwrap_or_default().to_owned();
        ensure!(frames.iter().any(|it| function(it).starts_with("keeper+0x")), "{frames:#?}");
        ensure!(!frames.iter().any(|it| function(it) == "keep_one"), "{frames:#?}");
        Ok(())
    }

    fn is_named(&self) -> Result<()> {
        let frames = self.frames()?;
        let of = |function: &str| {
            let mut all = frames.iter();
            all.find(|it| it["function"] == function)
                .with_context(|| format!("{function}: {frames:#?}"))
        };
        let line = |frame: &Value| {
            let file = frame["file"].as_str().unwrap_or_default().to_owned();
            (file.ends_with("keeper.c"), frame["line"].as_u64(), frame["inlined"].as_bool())
        };
        ensure!(line(of("grab")?) == (true, Some(5), Some(true)), "{frames:#?}");
        ensure!(line(of("keep_one")?) == (true, Some(8), Some(false)), "{frames:#?}");
        ensure!(line(of("main")?) == (true, Some(12), Some(false)), "{frames:#?}");
        Ok(())
    }

    fn outcome(&self) -> Result<&Value> {
        let mut objects = self.report["named_again"].as_array().into_iter().flatten();
        let is_it = |it: &&Value| it["path"].as_str().is_some_and(|it| it.ends_with("/keeper"));
        objects.find(is_it).context("it is told of")
    }
}

/// One file for one build id; counts who asks.
fn serve(id: String, file: PathBuf) -> Result<(String, Arc<AtomicU32>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || -> Result<()> {
        for stream in listener.incoming() {
            let mut stream = stream?;
            count.fetch_add(1, Ordering::SeqCst);
            let mut lines = BufReader::new(stream.try_clone()?).lines();
            let first = lines.next().context("a request")??;
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let bytes = match first.contains(&format!("/buildid/{id}/debuginfo ")) {
                true => fs::read(&file)?,
                false => Vec::new(),
            };
            let status = if bytes.is_empty() { "404 Not Found" } else { "200 OK" };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                bytes.len()
            );
            // Who asks may have gone.
            _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes));
        }
        Ok(())
    });
    Ok((url, asked))
}

#[test]
fn a_stripped_program_is_named_afterwards_with_its_debug_file() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let here = directory.path();
    let path = |name: &str| here.join(name).display().to_string();
    let id = build(here, "")?;
    let recording = path("recording");
    {
        let _turn = serial::turn()?;
        let program = path("keeper");
        let ended = memtrace::run(&["record", "-o", &recording, "--", &program])?;
        ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    let report = |more: &[&str]| -> Result<Told> {
        let mut command = Command::new(memtrace::binary()?);
        command.args(["report", &recording, "--json", "-"]).args(more);
        told(&memtrace::run_command(command)?)
    };
    let plain = report(&[])?;
    plain.is_unnamed()?;
    ensure!(plain.report["named_again"].is_null(), "{}", plain.report["named_again"]);

    // Another build's file, where this one's is expected.
    let (wrong, other) = (here.join("wrong"), here.join("other"));
    fs::create_dir(&other)?;
    build(&other, "int another_build;\n")?;
    filed(&wrong, &id, &other.join("keeper.debug"))?;
    let refused = report(&["--debug-dir", &path("wrong")])?;
    refused.is_unnamed()?;
    ensure!(refused.outcome()?["outcome"] == "not_found", "{}", refused.stderr);
    ensure!(refused.stderr.contains("it has the build id"), "{}", refused.stderr);

    let right = here.join("right");
    filed(&right, &id, &here.join("keeper.debug"))?;
    let named = report(&["--debug-dir", &path("wrong"), "--debug-dir", &path("right")])?;
    named.is_named()?;
    let outcome = named.outcome()?;
    ensure!(outcome["outcome"] == "debug_information", "{outcome:#}");
    // `_start` is assembly without lines.
    ensure!(outcome["changed"] == outcome["addresses"], "{outcome:#}");
    ensure!(outcome["with_lines_before"] == 0, "{outcome:#}");
    ensure!(outcome["with_lines"].as_u64() >= Some(2), "{outcome:#}");
    // The figures are the same ones.
    for of in [&plain, &named] {
        let last = of.report["snapshots"].as_array().and_then(|all| all.last()).context("one")?;
        ensure!(last["native"]["outstanding"]["bytes"] == 100 * 1009, "{last:#}");
    }

    // From the archive, and into another one.
    let (bundle, renamed) = (path("bundle.tar.zst"), path("renamed.tar.zst"));
    let bundled = memtrace::run(&["bundle", &recording, "-o", &bundle])?;
    ensure!(bundled.status.success(), "{}", String::from_utf8_lossy(&bundled.stderr));
    let from = ["report", &bundle, "--debug-dir", &path("right"), "--json", "-"];
    told(&memtrace::run(&from)?)?.is_named()?;
    let again = ["bundle", &bundle, "--debug-dir", &path("right"), "-o", &renamed];
    let bundled = memtrace::run(&again)?;
    ensure!(bundled.status.success(), "{}", String::from_utf8_lossy(&bundled.stderr));
    told(&memtrace::run(&["report", &renamed, "--json", "-"])?)?.is_named()?;

    // From a server: only when it was named.
    let (url, asked) = serve(id, here.join("keeper.debug"))?;
    let with = |more: &[&str]| -> Result<Told> {
        let mut command = Command::new(memtrace::binary()?);
        command.args(["report", &recording, "--json", "-"]).args(more);
        command.env("DEBUGINFOD_URLS", &url);
        told(&memtrace::run_command(command)?)
    };
    with(&[])?.is_unnamed()?;
    with(&["--debug-dir", &path("wrong")])?.is_unnamed()?;
    ensure!(asked.load(Ordering::SeqCst) == 0, "a server was asked that was not named");
    with(&["--debuginfod", "env"])?.is_named()?;
    report(&["--debuginfod", &url])?.is_named()?;
    ensure!(asked.load(Ordering::SeqCst) > 0);
    Ok(())
}
