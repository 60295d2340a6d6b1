//! `memtrace selftest` on real workloads: no walk contradicts framehop, and nearly all are complete.
//!
//! The short form belongs to all tests. The long one, fifty thousand stacks and more over all
//! workloads together, takes some minutes:
//!
//! ```text
//! cargo test --package memtrace-tests --test live_selftest -- --ignored --nocapture
//! ```

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::memtrace::{self, exit_code};
use memtrace_tests::program::Program;
use memtrace_tests::{serial, wait, workspace};
use serde::Deserialize;

/// Of each workload, in the short form.
const SHORT: u64 = 2_000;
/// Of each workload, in the long one.
const LONG: u64 = 15_000;
/// The least share of complete walks.
const COMPLETE: f64 = 0.995;

/// What the tests look at of the JSON.
#[derive(Debug, Deserialize)]
struct Answer {
    stacks_compared: u64,
    threads: u64,
    identical: u64,
    contradictions: u64,
    walks_complete: u64,
    walks_truncated: serde_json::Value,
    walk_ended_early: serde_json::Map<String, serde_json::Value>,
    framehop_ended_early: serde_json::Map<String, serde_json::Value>,
    steps_checked: u64,
    steps_unchecked: u64,
    frames_mean: f64,
    frames_most: u64,
    calls: u64,
    calls_paced: u64,
    calls_dropped: u64,
    samples_outdated: u64,
}

/// What a workload must show, so that agreement is agreement on something.
struct Expected {
    threads: u64,
    mean_frames: f64,
    /// The least share of stacks that both walks agree on to their end.
    identical: f64,
    /// Steps that framehop or gimli confirmed, for each stack.
    checked_steps: u64,
}

/// Lets memtrace check a running process, and checks its answer.
fn check(name: &str, pid: u32, stacks: u64, expected: &Expected) -> Result<Answer> {
    let pid = pid.to_string();
    let stacks_text = stacks.to_string();
    let arguments = ["selftest", "--pid", &pid, "--stacks", &stacks_text, "--json"];
    let output = memtrace::run(&[&arguments[..], &["--duration", "40s"]].concat())?;
    let (text, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let told = || format!("{name}: {}\n{text}\n{errors}", output.status);
    let answer: Answer = serde_json::from_slice(&output.stdout).with_context(told)?;
    println!("{name}: {}", summary(&answer));
    ensure!(output.status.success(), "{}", told());
    ensure!(answer.contradictions == 0, "{}", told());
    ensure!(answer.stacks_compared == stacks, "too few stacks: {}", told());
    ensure!(share(answer.walks_complete, stacks) >= COMPLETE, "walks end early: {}", told());
    let early = answer.walk_ended_early.values().chain(answer.framehop_ended_early.values());
    let early: u64 = early.filter_map(serde_json::Value::as_u64).sum();
    ensure!(answer.identical + early == stacks, "stacks without a verdict: {}", told());
    ensure!(
        share(answer.identical, stacks) >= expected.identical,
        "little was compared: {}",
        told()
    );
    ensure!(answer.threads >= expected.threads, "too few threads: {}", told());
    ensure!(answer.frames_mean >= expected.mean_frames, "too shallow: {}", told());
    ensure!(answer.steps_checked >= expected.checked_steps * stacks, "unchecked: {}", told());
    // A call that is neither sampled nor passed over was still in the ring, or at work.
    let accounted = answer.stacks_compared
        + answer.samples_outdated
        + answer.calls_paced
        + answer.calls_dropped;
    ensure!(answer.calls >= accounted && answer.calls - accounted < 1000, "{}", told());
    Ok(answer)
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

fn summary(answer: &Answer) -> String {
    format!(
        "{} compared of {} threads, {} identical, {} contradictions, {} complete, truncated {}, \
         {:.1} frames (most {}), {} steps checked, {} not, framehop early {:?}",
        answer.stacks_compared,
        answer.threads,
        answer.identical,
        answer.contradictions,
        answer.walks_complete,
        answer.walks_truncated,
        answer.frames_mean,
        answer.frames_most,
        answer.steps_checked,
        answer.steps_unchecked,
        answer.framehop_ended_early,
    )
}

fn c_threads(stacks: u64) -> Result<u64> {
    let program = Program::start(&compile::program("deep_threads", Kind::C)?, &[] as &[&str], &[])?;
    let expected = Expected { threads: 8, mean_frames: 10.0, identical: 0.995, checked_steps: 9 };
    let answer = check("C, 8 threads", program.pid(), stacks, &expected)?;
    ensure!(answer.frames_most >= 70, "no deep stack: {}", summary(&answer));
    program.finish()?;
    Ok(answer.stacks_compared)
}

fn python(stacks: u64) -> Result<u64> {
    let script = workspace().join("tests/programs/python/churn.py");
    let python = Path::new("/usr/bin/python3");
    ensure!(python.exists(), "`/usr/bin/python3` does not exist: install python3");
    let program = Program::start(python, &[&script], &[])?;
    let expected = Expected { threads: 3, mean_frames: 12.0, identical: 0.995, checked_steps: 11 };
    let answer = check("Python", program.pid(), stacks, &expected)?;
    program.finish()?;
    Ok(answer.stacks_compared)
}

fn go(stacks: u64) -> Result<u64> {
    let program = Program::start(&compile::program("crossings", Kind::Go)?, &[] as &[&str], &[])?;
    let expected = Expected { threads: 2, mean_frames: 12.0, identical: 0.995, checked_steps: 9 };
    let answer = check("Go and C", program.pid(), stacks, &expected)?;
    program.finish()?;
    Ok(answer.stacks_compared)
}

fn redis(stacks: u64) -> Result<u64> {
    let directory = tempfile::tempdir().context("create a directory for redis")?;
    let socket = directory.path().join("redis.sock");
    let server = Killed::start(
        Command::new(find("redis-server")?)
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--dir"])
            .arg(directory.path())
            .arg("--unixsocket")
            .arg(&socket),
    )?;
    wait::until("redis to listen", Duration::from_secs(20), || Ok(socket.exists()))?;
    let _load = Killed::start(
        Command::new(find("redis-benchmark")?)
            .arg("-s")
            .arg(&socket)
            .args(["-q", "-c", "10", "-n", "1000000000", "-r", "10000"])
            // Without an end: the first of these outlives the test.
            .args(["-P", "4", "eval", SCRIPT, "1", "key:__rand_int__"]),
    )?;
    let expected = Expected { threads: 1, mean_frames: 8.0, identical: 0.995, checked_steps: 7 };
    let answer = check("redis", server.0.id(), stacks, &expected)?;
    Ok(answer.stacks_compared)
}

/// Lists, sorted sets, hashes and strings of one key after another.
const SCRIPT: &str = "local k = KEYS[1] \
    redis.call('set', k, string.rep('x', #k * 9)) \
    redis.call('append', k, 'more') \
    redis.call('rpush', k..'l', k, k, k) \
    redis.call('zadd', k..'z', #k, k) \
    redis.call('hset', k..'h', k, k, 'f', 'v') \
    redis.call('lrange', k..'l', 0, 20) \
    redis.call('del', k..'l') \
    return redis.call('hgetall', k..'h')";

fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("find `{program}`: `cargo xtask setup` installs it"))
}

/// A child that says nothing, and is killed when dropped.
struct Killed(Child);

impl Killed {
    fn start(command: &mut Command) -> Result<Self> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        command.spawn().map(Self).with_context(|| format!("start {command:?}"))
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[test]
fn walks_of_eight_c_threads_agree_with_framehop() -> Result<()> {
    let _turn = serial::turn()?;
    c_threads(SHORT).map(drop)
}

#[test]
fn walks_of_python_over_c_libraries_agree_with_framehop() -> Result<()> {
    let _turn = serial::turn()?;
    python(SHORT).map(drop)
}

#[test]
fn walks_of_redis_under_load_agree_with_framehop() -> Result<()> {
    let _turn = serial::turn()?;
    redis(SHORT).map(drop)
}

#[test]
fn walks_between_go_and_c_agree_with_framehop() -> Result<()> {
    let _turn = serial::turn()?;
    go(SHORT).map(drop)
}

#[test]
#[ignore = "the long form: some minutes"]
fn fifty_thousand_stacks_agree_with_framehop() -> Result<()> {
    let _turn = serial::alone()?;
    let compared = c_threads(LONG)? + python(LONG)? + redis(LONG)? + go(LONG)?;
    println!("{compared} stacks compared");
    ensure!(compared >= 50_000);
    Ok(())
}

#[test]
fn a_process_that_allocates_nothing_is_no_agreement() -> Result<()> {
    let _turn = serial::turn()?;
    let program = Program::start(&compile::program("malloc", Kind::C)?, &[] as &[&str], &[])?;
    let pid = program.pid().to_string();
    let output = memtrace::run(&["selftest", "--pid", &pid, "--duration", "1s"])?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(exit_code::FAILED), "{}\n{errors}", output.status);
    ensure!(errors.contains("no stack was compared"), "{errors}");
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains("Nothing was compared"), "{text}");
    if text.contains("agrees") {
        bail!("nothing was compared, and it says that the walk agrees:\n{text}");
    }
    Ok(())
}
