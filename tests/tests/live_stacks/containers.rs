//! Programs over musl in images made from scratch: a dynamic one, and a static one without symbols.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memtrace_tests::docker::{Container, Image};
use memtrace_tests::memtrace::Recording;
use memtrace_tests::recorded::Stack;
use memtrace_tests::{serial, wait};

use super::build;
use super::run::names;

const LEVELS_MAIN: &[&str] = &["levels_main.c", "levels.c"];
const LEVELS: [&str; 5] = ["malloc", "level_d", "level_c", "level_b", "leak_a"];

#[test]
fn stacks_of_a_dynamic_musl_program_in_a_container_are_whole_above_the_allocator() -> Result<()> {
    let program = build::program("musl-gcc", "levels-musl", LEVELS_MAIN, &[])?;
    let [main, thread] = in_container("musl-dynamic", &program)?;
    ensure!(names(&main)[..7] == [&LEVELS[..], &["from_main", "main"]].concat(), "{main}");
    ensure!(names(&thread)[..6] == [&LEVELS[..], &["thread_body"]].concat(), "{thread}");
    Ok(())
}

#[test]
fn stacks_of_a_stripped_static_musl_program_in_a_container_are_whole() -> Result<()> {
    let program = build::static_musl_stripped()?;
    in_container("musl-static", &program).map(drop)
}

/// The stacks of the main thread's leak and of the other thread's: both whole, to where musl calls
/// the program.
fn in_container(name: &str, program: &Path) -> Result<[Stack; 2]> {
    let _turn = serial::turn()?;
    let image = Image::of(name, &[program], &[])?;
    let command = format!("/{}", program.file_name().context("a name")?.to_string_lossy());
    let container =
        Container::run(name, &["--network", "none", "--interactive", &image.name, &command])?;
    wait::until("`ready`", Duration::from_secs(20), || Ok(container.logs()?.contains("ready")))?;
    let recording = Recording::start(&["--container", &container.name])?;
    let mut attached = Attached::to(&container)?;
    attached.0.stdin.take().context("docker's input")?.write_all(b"go\n")?;
    wait::until("the truth", Duration::from_secs(60), || {
        Ok(container.logs()?.lines().any(|line| line.starts_with('{')))
    })?;
    let recorded = recording.interrupt()?.recorded()?;
    let stacks = &recorded.last()?.native.stacks;
    let leak = |size: u64, frames: usize| -> Result<Stack> {
        let mut found = stacks.iter().filter(|stack| stack.bytes == size && stack.blocks == 1);
        let stack = found.next().with_context(|| format!("no stack leaked {size} bytes"))?;
        ensure!(stack.complete && stack.frames.len() == frames, "{stack}");
        Ok(stack.clone())
    };
    // The levels; from_main, main and who calls it; thread_body and who calls that.
    Ok([leak(1111, LEVELS.len() + 3)?, leak(2221, LEVELS.len() + 2)?])
}

/// `docker attach`, which would wait for the container's end.
struct Attached(Child);

impl Attached {
    fn to(container: &Container) -> Result<Self> {
        let mut attach = Command::new("docker");
        attach.args(["attach", "--sig-proxy=false", &container.name]);
        attach.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        attach.spawn().map(Self).context("run `docker attach`")
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
