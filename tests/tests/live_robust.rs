//! What may happen to a recording of hours: the disk fills up, the program is stopped, it starts
//! again. Each is told, and nothing is lost silently.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memtrace_tests::cgroup::Group;
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::wait::{self, Lines};
use memtrace_tests::{memtrace, serial};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A process of this test, gone with it.
struct Process {
    child: Child,
    lines: Lines,
}

impl Process {
    /// `stream`: which of its outputs is read.
    fn start(mut command: Command, reads_errors: bool) -> Result<Self> {
        command.stdin(Stdio::piped());
        match reads_errors {
            true => command.stdout(Stdio::null()).stderr(Stdio::piped()),
            false => command.stdout(Stdio::piped()),
        };
        let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
        let lines = match (child.stderr.take(), child.stdout.take()) {
            (Some(errors), _) => Lines::of(errors),
            (None, Some(output)) => Lines::of(output),
            (None, None) => Lines::of(std::io::empty()),
        };
        Ok(Self { child, lines })
    }

    /// A scenario of `over_time`, let go.
    fn scenario(name: &str, seconds: u64, files: &Path) -> Result<Self> {
        use std::io::Write;
        // Its clock runs from here: what builds memtrace first must not run against it.
        memtrace::binary()?;
        let mut command = Command::new(compile::program("over_time", Kind::C)?);
        command.args([name, &seconds.to_string(), "11"]).arg(files);
        let mut program = Self::start(command, false)?;
        program
            .lines
            .find("`ready`", wait::patience(Duration::from_secs(30)), |it| it == "ready")?;
        let input = program.child.stdin.as_mut().context("its input")?;
        input.write_all(b"go\n").context("tell it to go")?;
        Ok(program)
    }

    fn recorder(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(memtrace::binary()?);
        command.arg("record").args(arguments);
        let mut recorder = Self::start(command, true)?;
        recorder.says("the `tracing` line", "tracing ")?;
        Ok(recorder)
    }

    fn says(&mut self, what: &str, begin: &str) -> Result<String> {
        let limit = wait::patience(Duration::from_secs(60));
        self.lines.find(what, limit, |line| line.contains(begin))
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal).context("send a signal")
    }

    fn truth(&mut self) -> Result<Value> {
        serde_json::from_str(&self.says("the truth", "{")?).context("read the truth")
    }

    fn ends(&mut self) -> Result<std::process::ExitStatus> {
        wait::for_exit(&mut self.child, "it", wait::patience(Duration::from_secs(90)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn told(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| format!("read `{}`", path.display()))?;
    serde_json::from_slice(&bytes).context("read the JSON")
}

fn report(path: &str) -> Result<(Value, Output)> {
    let output = memtrace::run(&["report", path, "--json", "-"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok((serde_json::from_slice(&output.stdout)?, output))
}

fn snapshots(report: &Value) -> &[Value] {
    report["snapshots"].as_array().map_or(&[], Vec::as_slice)
}

fn leaked(snapshot: &Value) -> u64 {
    let stacks = snapshot["native"]["stacks"].as_array().into_iter().flatten();
    let is_it = |stack: &&Value| stack["frames"].to_string().contains("leak_slowly");
    stacks.filter(is_it).filter_map(|stack| stack["bytes"].as_u64()).sum()
}

/// A file system of its own, of so many bytes.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, bytes: u64) -> Result<Self> {
        fs::create_dir(at)?;
        let size = format!("size={bytes}");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .context("mount a tmpfs")?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_ends_the_file_with_every_complete_snapshot_and_the_report_has_all() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let small = Small::mount(&directory.path().join("small"), 48 << 10)?;
    let file = small.0.join("recording").display().to_string();
    let json = directory.path().join("report.json");
    let mut program = Process::scenario("slow-leak", 3_600, directory.path())?;
    let mut recorder = Process::recorder(&[
        "--pid",
        &program.pid(),
        "--interval",
        "100ms",
        "-o",
        &file,
        "--json",
        &json.display().to_string(),
    ])?;
    let line = recorder.says("that the disk is full", "ends early")?;
    ensure!(line.contains("No space left") && line.contains("the tracing goes on"), "{line}");
    std::thread::sleep(Duration::from_millis(700));
    recorder.signal(Signal::SIGINT)?;
    // The file is not whole, which is a failure, told by the exit code.
    let status = recorder.ends()?;
    ensure!(status.code() == Some(1), "memtrace ended with {status}");
    program.signal(Signal::SIGKILL)?;
    program.ends()?;
    let all = told(&json)?;
    let (cut, output) = report(&file)?;
    let (all, cut) = (snapshots(&all), (snapshots(&cut), cut["torn"].as_str()));
    ensure!(!cut.0.is_empty() && cut.0.len() + 3 < all.len(), "{} of {}", cut.0.len(), all.len());
    ensure!(cut.1.is_some_and(|torn| torn.contains("complete snapshot")), "{:?}", cut.1);
    ensure!(String::from_utf8_lossy(&output.stderr).contains("cut at byte"));
    for (kept, whole) in cut.0.iter().zip(all) {
        ensure!(kept["native"]["outstanding"] == whole["native"]["outstanding"], "{kept:#}");
    }
    Ok(())
}

#[test]
fn a_program_that_is_stopped_is_told_and_nothing_of_it_is_lost() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let json = directory.path().join("report.json");
    let mut program = Process::scenario("slow-leak", 20, directory.path())?;
    let mut recorder = Process::recorder(&[
        "--pid",
        &program.pid(),
        "--interval",
        "250ms",
        "-o",
        "/dev/null",
        "--json",
        &json.display().to_string(),
    ])?;
    std::thread::sleep(Duration::from_secs(3));
    program.signal(Signal::SIGSTOP)?;
    std::thread::sleep(Duration::from_secs(4));
    program.signal(Signal::SIGCONT)?;
    program.truth()?;
    recorder.signal(Signal::SIGINT)?;
    ensure!(recorder.ends()?.success());
    let report = told(&json)?;
    let doubts = report["verdict"]["doubts"].to_string();
    ensure!(
        doubts.contains("called no allocator at all"),
        "{doubts} {} in {} snapshots",
        report["verdict"]["window"],
        snapshots(&report).len()
    );
    let all = snapshots(&report);
    // It goes on where it was: what leaked never falls, and rises after the stop.
    let leaked: Vec<u64> = all.iter().map(leaked).collect();
    ensure!(leaked.is_sorted(), "{leaked:?}");
    let still = leaked.chunk_by(|one, next| one == next).map(<[u64]>::len).max();
    ensure!(still >= Some(6), "it was not seen to stand still: {leaked:?}");
    let last = all.last().context("a snapshot")?;
    let losses = last["native"]["losses"].as_object().context("losses")?;
    ensure!(losses.values().all(|count| count == 0), "{losses:?}");
    Ok(())
}

#[test]
fn a_program_that_starts_again_goes_on_in_the_recording_that_follows() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let json = directory.path().join("report.json");
    let group = Group::create("again")?;
    let path = group.0.display().to_string();
    let mut first = Process::scenario("slow-leak", 3_600, directory.path())?;
    group.take(first.child.id())?;
    let mut recorder = Process::recorder(&[
        "--cgroup",
        &path,
        "--follow",
        "--interval",
        "250ms",
        "-o",
        "/dev/null",
        "--json",
        &json.display().to_string(),
    ])?;
    std::thread::sleep(Duration::from_secs(3));
    first.signal(Signal::SIGKILL)?;
    first.ends()?;
    std::thread::sleep(Duration::from_secs(2));
    let second = Process::scenario("slow-leak", 3_600, directory.path())?;
    group.take(second.child.id())?;
    // Traced within a second, and the old one closed within another; not on a machine full of work.
    std::thread::sleep(Duration::from_secs(12));
    recorder.signal(Signal::SIGINT)?;
    ensure!(recorder.ends()?.success());
    let report = told(&json)?;
    let processes = report["processes"].as_array().context("processes")?;
    ensure!(processes.len() == 2, "{processes:#?}");
    let (old, new) = (&processes[0], &processes[1]);
    ensure!(old["pid"] == first.child.id() && new["pid"] == second.child.id(), "{processes:#?}");
    ensure!(old["closed"]["how"] == "exited", "{old:#}");
    // What the one held at its end, and what the other one holds.
    let held = old["closed"]["stacks"].to_string();
    ensure!(held.contains("leak_slowly"), "{held}");
    ensure!(new["totals"]["allocated"]["blocks"].as_u64() > Some(0), "{new:#}");
    ensure!(new["unseen_ns"].as_u64() > Some(0), "{new:#}");
    Ok(())
}

#[test]
fn without_following_the_recording_ends_with_its_reason() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("recording").display().to_string();
    let group = Group::create("ends")?;
    let path = group.0.display().to_string();
    let mut program = Process::scenario("slow-leak", 3_600, directory.path())?;
    group.take(program.child.id())?;
    let mut recorder = Process::recorder(&["--cgroup", &path, "--interval", "250ms", "-o", &file])?;
    std::thread::sleep(Duration::from_secs(2));
    program.signal(Signal::SIGKILL)?;
    program.ends()?;
    ensure!(recorder.ends()?.success());
    let (report, _) = report(&file)?;
    let last = snapshots(&report).last().context("a snapshot")?;
    let ended = last["ended"].as_str().context("why it ended")?;
    ensure!(ended.contains("exited") || ended.contains("ended"), "{ended}");
    ensure!(leaked(last) > 0, "what it held at its end is gone");
    ensure!(report["torn"].is_null(), "{}", report["torn"]);
    Ok(())
}

#[test]
fn phases_that_were_named_beforehand_are_marked_at_their_times() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("recording").display().to_string();
    let program = Process::scenario("slow-leak", 3_600, directory.path())?;
    let mut recorder = Process::recorder(&[
        "--pid",
        &program.pid(),
        "--interval",
        "1s",
        "--mark",
        "warm-up",
        "--mark",
        "load@2500ms",
        "-d",
        "4s",
        "-o",
        &file,
    ])?;
    ensure!(recorder.ends()?.success());
    let (report, _) = report(&file)?;
    let all = snapshots(&report);
    ensure!(all[0]["mark"] == "warm-up" && all[1]["mark"].is_null(), "{:#}", all[1]["mark"]);
    // The one at the start is not taken twice.
    ensure!(all[1]["elapsed_ns"].as_u64() > Some(500_000_000), "{}", all[1]["elapsed_ns"]);
    let load = all.iter().find(|at| at["mark"] == "load").context("the load")?;
    ensure!(load["elapsed_ns"].as_u64() >= Some(2_400_000_000), "{}", load["elapsed_ns"]);
    let diff =
        memtrace::run(&["diff", &format!("{file}@mark:warm-up"), &format!("{file}@mark:load")])?;
    let text = String::from_utf8_lossy(&diff.stdout).into_owned();
    ensure!(diff.status.success() && text.contains("leak_slowly"), "{text}");
    Ok(())
}
