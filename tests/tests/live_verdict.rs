//! What memtrace says over time of ten programs with a known answer; marks, `diff` and `check` on a
//! real recording; and a recorder that is killed.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use memtrace_tests::cgroup::Group;
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::wait::{self, Lines};
use memtrace_tests::{memtrace, serial};
use serde_json::Value;

/// What a run in CI takes; the long form takes longer, with more seeds.
const SHORT: u64 = 10;
const LONG: u64 = 25;
const SEEDS: [u64; 3] = [1, 20_261_123, 0xdead_beef];

/// A program of `over_time`, waiting for its line.
struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines,
}

impl Program {
    fn start(kind: Kind, scenario: &str, seconds: u64, seed: u64, files: &Path) -> Result<Self> {
        let mut command = Command::new(compile::program("over_time", kind)?);
        command.args([scenario, &seconds.to_string(), &seed.to_string()]).arg(files);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let mut lines = Lines::of(child.stdout.take().context("its output")?);
        lines.find("`ready`", Duration::from_secs(30), |line| line == "ready")?;
        Ok(Self { child, stdin, lines })
    }

    fn go(&mut self) -> Result<()> {
        self.stdin.as_mut().context("its input")?.write_all(b"go\n").context("tell it to go")
    }

    fn truth(&mut self, seconds: u64) -> Result<Value> {
        let limit = wait::patience(Duration::from_secs(seconds * 3 + 60));
        let line = self.lines.find("the truth", limit, |line| line.starts_with('{'))?;
        serde_json::from_str(&line).with_context(|| format!("read the truth `{line}`"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

struct Seen {
    verdict: Value,
    last: Value,
    truth: Value,
}

/// Traces one scenario from before its first tick to after its last one.
fn record(kind: Kind, scenario: &str, seconds: u64, seed: u64) -> Result<Seen> {
    let files = tempfile::tempdir()?;
    let mut program = Program::start(kind, scenario, seconds, seed, files.path())?;
    let group = Group::create(&format!("{scenario}-{seed}"))?;
    group.take(program.child.id())?;
    let json = files.path().join("report.json");
    let mut recorder = Recorder::start(program.child.id(), &["--interval", "400ms"], |command| {
        command.arg("--json").arg(&json).args(["-o", "/dev/null"]);
    })?;
    program.go()?;
    let truth = program.truth(seconds)?;
    recorder.interrupt()?;
    let report: Value = serde_json::from_slice(&fs::read(&json)?).context("read the JSON")?;
    let last = report["snapshots"].as_array().and_then(|all| all.last()).cloned();
    drop(program);
    Ok(Seen { verdict: report["verdict"].clone(), last: last.context("a snapshot")?, truth })
}

impl Seen {
    fn kinds(&self) -> Vec<&str> {
        let findings = self.verdict["findings"].as_array();
        findings.into_iter().flatten().filter_map(|it| it["kind"].as_str()).collect()
    }

    fn is_first(&self, kind: &str) -> Result<()> {
        ensure!(
            self.kinds().first() == Some(&kind),
            "expected {kind} first, found {:?}: {:#}",
            self.kinds(),
            self.verdict["findings"]
        );
        Ok(())
    }

    fn accuses_no_c(&self) -> Result<()> {
        let accused = ["leak_candidate", "heap_retention", "native_mappings_growth"];
        ensure!(
            !self.kinds().iter().any(|kind| accused.contains(kind)),
            "{:#}",
            self.verdict["findings"]
        );
        Ok(())
    }

    fn behaviour_of(&self, function: &str) -> Option<&str> {
        let sites = self.verdict["sites"].as_array()?;
        sites.iter().find(|site| site["frame"]["function"] == function)?["behaviour"].as_str()
    }

    /// Bytes of the call in the last snapshot, which are all that it has left.
    fn outstanding_of(&self, function: &str) -> u64 {
        let stacks = self.last["native"]["stacks"].as_array();
        let has = |stack: &&Value| {
            let frames = stack["frames"].as_array();
            frames.is_some_and(|all| all.iter().any(|frame| frame["function"] == function))
        };
        stacks.into_iter().flatten().filter(has).filter_map(|it| it["bytes"].as_u64()).sum()
    }
}

/// A `memtrace record` past its `tracing` line.
struct Recorder {
    child: Child,
    stderr: Lines,
}

impl Recorder {
    fn start(pid: u32, more: &[&str], outputs: impl FnOnce(&mut Command)) -> Result<Self> {
        let mut command = Command::new(memtrace::binary()?);
        command.args(["record", "--pid", &pid.to_string()]).args(more);
        outputs(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start memtrace")?;
        let mut stderr = Lines::of(child.stderr.take().context("its messages")?);
        let limit = wait::patience(Duration::from_secs(90));
        stderr.find("the `tracing` line", limit, |line| line.starts_with("tracing "))?;
        Ok(Self { child, stderr })
    }

    fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, signal).context("send memtrace a signal")
    }

    fn interrupt(&mut self) -> Result<()> {
        self.signal(nix::sys::signal::Signal::SIGINT)?;
        self.ends_well()
    }

    fn ends_well(&mut self) -> Result<()> {
        let limit = wait::patience(Duration::from_secs(120));
        let status = wait::for_exit(&mut self.child, "memtrace", limit)?;
        ensure!(status.success(), "memtrace ended with {status}: {:#?}", self.stderr.seen());
        Ok(())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Each scenario with what must be said of it.
fn judge(scenario: &str, seconds: u64, seed: u64) -> Result<()> {
    let kind = match scenario {
        "go-heap" | "goroutines" | "two-callers" => Kind::Go,
        _ => Kind::C,
    };
    let seen = record(kind, scenario, seconds, seed)?;
    let checked = right(scenario, &seen);
    checked.with_context(|| format!("scenario {scenario}, {seconds} s, seed {seed}"))
}

fn right(scenario: &str, seen: &Seen) -> Result<()> {
    match scenario {
        "healthy" => ensure!(seen.kinds().is_empty(), "{:#}", seen.verdict["findings"]),
        "slow-leak" => {
            ensure!(seen.kinds() == ["leak_candidate"], "{:#}", seen.verdict["findings"]);
            let site = &seen.verdict["findings"][0]["site"];
            ensure!(site["frame"]["function"] == "leak_slowly", "{site:#}");
            ensure!(site["frame"]["line"].as_u64() > Some(0), "{site:#}");
            ensure!(site["freed_blocks"] == 0, "{site:#}");
            let truth = seen.truth["leaked_bytes"].as_u64();
            ensure!(Some(seen.outstanding_of("leak_slowly")) == truth, "{truth:?}");
            within_a_twentieth(site, truth)?;
            let churn = seen.behaviour_of("serve").or(seen.behaviour_of("churn"));
            ensure!(matches!(churn, Some("churn" | "plateau")), "{churn:?}");
        }
        "cache" => {
            ensure!(seen.kinds().is_empty(), "{:#}", seen.verdict["findings"]);
            let behaviour = seen.behaviour_of("remember");
            ensure!(behaviour == Some("plateau"), "{behaviour:?}");
        }
        "burst" => {
            ensure!(seen.kinds() == ["heap_retention"], "{:#}", seen.verdict["findings"]);
            let finding = &seen.verdict["findings"][0];
            // 16 threads × 2,500 blocks × 2,900 bytes.
            let (kept, freed) = (finding["bytes"].as_u64().unwrap_or(0), 16 * 2_500 * 2_900);
            ensure!((freed * 8 / 10..freed * 12 / 10).contains(&kept), "{kept} of {freed}");
            let remedy = finding["remedy"].as_str().unwrap_or_default();
            ensure!(remedy.contains("MALLOC_ARENA_MAX"), "{remedy}");
        }
        "page-cache" => {
            seen.is_first("page_cache_growth")?;
            seen.accuses_no_c()?;
        }
        "tmpfs" => {
            seen.is_first("tmpfs_growth")?;
            seen.accuses_no_c()?;
        }
        "threads" => {
            seen.is_first("thread_growth")?;
            seen.accuses_no_c()?;
        }
        "go-heap" => {
            seen.is_first("go_heap_growth")?;
            seen.accuses_no_c()?;
        }
        "goroutines" => {
            seen.is_first("goroutine_growth")?;
            seen.accuses_no_c()?;
        }
        "two-callers" => {
            ensure!(
                seen.kinds() == ["leak_candidate", "leak_candidate"],
                "{:#}",
                seen.verdict["findings"]
            );
            for (caller, bytes) in
                [("main.importFeed", "feed_bytes"), ("main.importImage", "image_bytes")]
            {
                let findings = seen.verdict["findings"].as_array().into_iter().flatten();
                let mut sites = findings.map(|it| &it["site"]);
                let site = sites
                    .find(|site| site["go_caller"]["function"] == caller)
                    .with_context(|| format!("{caller} is not named"))?;
                ensure!(site["frame"]["function"] == "copy_of", "{site:#}");
                let truth = seen.truth[bytes].as_u64();
                ensure!(Some(seen.outstanding_of(caller)) == truth, "{caller}: {truth:?}");
                within_a_twentieth(site, truth)?;
            }
        }
        other => anyhow::bail!("no scenario `{other}`"),
    }
    Ok(())
}

/// What was left at the end of the load is the program's own count, to 5 %.
fn within_a_twentieth(site: &Value, truth: Option<u64>) -> Result<()> {
    let (seen, truth) =
        (site["outstanding_bytes"].as_u64().unwrap_or(0), truth.context("a truth")?);
    ensure!(seen.abs_diff(truth) * 20 <= truth, "{seen} of {truth}");
    Ok(())
}

macro_rules! scenarios {
    ($($name:ident = $scenario:literal;)*) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                let _turn = serial::turn()?;
                judge($scenario, SHORT, SEEDS[0])
            }
        )*

        #[test]
        #[ignore = "twenty minutes: every scenario, three seeds, a longer load"]
        fn every_verdict_is_right_for_every_seed() -> Result<()> {
            let mut wrong = Vec::new();
            for scenario in [$($scenario),*] {
                for seed in SEEDS {
                    let _turn = serial::turn()?;
                    if let Err(error) = judge(scenario, LONG, seed) {
                        wrong.push(format!("{error:#}"));
                    }
                }
            }
            ensure!(wrong.is_empty(), "{wrong:#?}");
            Ok(())
        }
    };
}

scenarios! {
    a_healthy_program_has_no_finding = "healthy";
    a_slow_leak_under_heavy_churn_is_named_with_its_line = "slow-leak";
    a_cache_that_levels_off_is_no_finding = "cache";
    a_burst_in_sixteen_threads_leaves_retention = "burst";
    page_cache_that_grows_is_not_cs = "page-cache";
    tmpfs_that_grows_is_not_cs = "tmpfs";
    threads_that_become_more_are_told = "threads";
    a_go_heap_that_grows_is_gos = "go-heap";
    goroutines_that_become_more_are_gos = "goroutines";
    a_leak_in_c_is_told_by_each_of_its_go_callers = "two-callers";
}

fn run(arguments: &[&str]) -> Result<Output> {
    memtrace::run(arguments)
}

fn text(output: &Output) -> String {
    format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn marks_name_phases_and_diff_and_check_judge_between_them() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (control, file) = (path("control"), path("recording"));
    let mut program = Program::start(Kind::Go, "two-callers", 6, 7, directory.path())?;
    let arguments = ["--interval", "300ms", "--control", &control, "-o", &file];
    let mut recorder = Recorder::start(program.child.id(), &arguments, |_| {})?;

    let marked = run(&["mark", "--control", &control, "load"])?;
    ensure!(marked.status.success(), "{}", text(&marked));
    program.go()?;
    let truth = program.truth(6)?;
    let marked = run(&["mark", "--control", &control, "idle"])?;
    ensure!(marked.status.success(), "{}", text(&marked));
    recorder.signal(nix::sys::signal::Signal::SIGUSR1)?;
    wait::until("the signal's mark", Duration::from_secs(20), || {
        let report = run(&["report", &file])?;
        Ok(text(&report).contains("signal-1"))
    })?;
    // One line over the socket ends it.
    let mut stream = std::os::unix::net::UnixStream::connect(&control)?;
    stream.write_all(b"stop\n")?;
    recorder.ends_well()?;
    ensure!(!Path::new(&control).exists(), "the socket is still there");

    let leaked = truth["leaked_bytes"].as_i64().context("leaked_bytes")?;
    let (load, idle) = (format!("{file}@mark:load"), format!("{file}@mark:idle"));
    let json = path("diff.json");
    let blocks = truth["leaked_blocks"].to_string();
    let diff = run(&["diff", &load, &idle, "--requests", &blocks, "--json", &json])?;
    ensure!(diff.status.success(), "{}", text(&diff));
    ensure!(text(&diff).contains("importFeed"), "{}", text(&diff));
    let diff: Value = serde_json::from_slice(&fs::read(&json)?)?;
    ensure!(diff["total"]["bytes"] == leaked, "{} of {leaked}", diff["total"]);
    let per_request = diff["total"]["bytes_per_request"].as_f64().unwrap_or(0.0);
    let expected = leaked as f64 / truth["leaked_blocks"].as_f64().unwrap_or(1.0);
    ensure!((per_request - expected).abs() < 1e-6, "{per_request} of {expected}");
    let after = run(&["diff", &idle, &format!("{file}@last"), "--json", "-"])?;
    let after: Value = serde_json::from_slice(&after.stdout)?;
    ensure!(after["total"]["bytes"] == 0, "{}", after["total"]);

    pprof_shows_the_difference(&idle, &load, &path("diff.pb.gz"), -leaked)?;

    let check = |more: &[&str]| run(&[&["check", file.as_str()], more].concat());
    let failed = check(&["--no-leak-candidates", "--junit", &path("junit.xml")])?;
    ensure!(failed.status.code() == Some(8), "{}", text(&failed));
    ensure!(text(&failed).contains("importFeed"), "{}", text(&failed));
    let junit = fs::read_to_string(path("junit.xml"))?;
    ensure!(junit.contains("failures=\"1\"") && junit.contains("copy_of"), "{junit}");
    let failed = check(&["--max-native-growth", "1MiB/h", "--max-outstanding", "1GiB"])?;
    ensure!(failed.status.code() == Some(8), "{}", text(&failed));
    ensure!(text(&failed).contains("ok    max-outstanding"), "{}", text(&failed));

    fs::write(path("known"), "# accepted\nleak:^copy_of$\n")?;
    let known = path("known");
    let passed = check(&[
        "--no-leak-candidates",
        "--max-native-growth",
        "1MiB/h",
        "--suppressions",
        &known,
    ])?;
    ensure!(passed.status.success(), "{}", text(&passed));
    ensure!(text(&passed).contains("suppressed by leak:^copy_of$"), "{}", text(&passed));
    let passed = check(&["--baseline", &file])?;
    ensure!(passed.status.success(), "{}", text(&passed));
    bundled_without_whose_it_is(&file, directory.path(), leaked)
}

/// The archive tells the same figures, and not where the program lies nor what it is called.
fn bundled_without_whose_it_is(file: &str, directory: &Path, leaked: i64) -> Result<()> {
    let archive = directory.join("bundle.tar.zst");
    let output = archive.display().to_string();
    let bundled = run(&["bundle", file, "--redact", "-o", &output])?;
    ensure!(bundled.status.success(), "{}", text(&bundled));
    let raw = zstd::decode_all(fs::File::open(&archive)?)?;
    tar::Archive::new(&raw[..]).unpack(directory)?;
    let inside = directory.join("memtrace");
    let names = ["README.txt", "about.json", "profile.pb.gz", "recording.mtrace", "report.json"];
    for name in names.iter().chain(&["report.txt"]) {
        ensure!(inside.join(name).exists(), "`{name}` is not in the bundle");
    }
    // Told again from the recording in it.
    let again =
        run(&["report", &inside.join("recording.mtrace").display().to_string(), "--json", "-"])?;
    ensure!(again.status.success(), "{}", text(&again));
    let told = fs::read(inside.join("report.json"))?;
    for json in [&again.stdout, &told] {
        let report: Value = serde_json::from_slice(json)?;
        let last = report["snapshots"].as_array().and_then(|all| all.last()).context("one")?;
        ensure!(last["native"]["outstanding"]["bytes"].as_i64() >= Some(leaked), "{leaked}");
        let shown = String::from_utf8_lossy(json);
        for secret in ["over_time", "programs/go"] {
            ensure!(!shown.contains(secret), "`{secret}` is in the bundle");
        }
        ensure!(shown.contains("main.importFeed"), "functions are gone");
    }
    Ok(())
}

#[test]
fn a_recorder_that_was_stopped_says_so_and_loses_nothing() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let json = directory.path().join("report.json");
    let mut program = Program::start(Kind::C, "slow-leak", 9, 11, directory.path())?;
    let mut recorder = Recorder::start(program.child.id(), &["--interval", "250ms"], |command| {
        command.arg("--json").arg(&json).args(["-o", "/dev/null"]);
    })?;
    program.go()?;
    std::thread::sleep(Duration::from_millis(2_500));
    recorder.signal(nix::sys::signal::Signal::SIGSTOP)?;
    std::thread::sleep(Duration::from_secs(3));
    recorder.signal(nix::sys::signal::Signal::SIGCONT)?;
    let truth = program.truth(9)?;
    recorder.interrupt()?;
    let report: Value = serde_json::from_slice(&fs::read(&json)?)?;
    let snapshots = report["snapshots"].as_array().context("snapshots")?;
    let seen = Seen {
        verdict: report["verdict"].clone(),
        last: snapshots.last().context("a snapshot")?.clone(),
        truth: truth.clone(),
    };
    let told = truth["leaked_bytes"].as_u64();
    ensure!(Some(seen.outstanding_of("leak_slowly")) == told, "bytes were lost");
    seen.is_first("leak_candidate")?;
    let doubts = seen.verdict["doubts"].to_string();
    ensure!(doubts.contains("was stopped"), "{doubts}");
    Ok(())
}

/// `go tool pprof` reads it, and its total is what it should be.
fn pprof_shows_the_difference(old: &str, new: &str, file: &str, bytes: i64) -> Result<()> {
    let diff = run(&["diff", old, new, "--pprof", file])?;
    ensure!(diff.status.success(), "{}", text(&diff));
    let go = memtrace_tests::target_dir().join("tools/bin/go");
    let mut pprof = Command::new(go);
    pprof.args(["tool", "pprof", "-unit=B", "-sample_index=inuse_space", "-traces", file]);
    let output = pprof.env("GOTOOLCHAIN", "local").output().context("run go tool pprof")?;
    ensure!(output.status.success(), "{}", text(&output));
    let traces = String::from_utf8_lossy(&output.stdout).into_owned();
    let values = traces.lines().filter_map(|line| {
        let (value, _) = line.trim_start().split_once("B ")?;
        value.parse::<i64>().ok()
    });
    let sum: i64 = values.sum();
    ensure!(sum == bytes, "{sum} of {bytes}:\n{traces}");
    Ok(())
}

/// Kills a recorder after a while; what its file then says.
fn killed_after(pid: u32, file: &Path, while_: Duration) -> Result<()> {
    let path = file.display().to_string();
    let recorder = Recorder::start(pid, &["--interval", "100ms", "-o", &path], |_| {})?;
    std::thread::sleep(while_);
    drop(recorder);
    let report = run(&["report", &path, "--json", "-"])?;
    let told = text(&report);
    if !report.status.success() {
        // Before its first snapshot there is nothing to tell, and that is told.
        ensure!(told.contains("no complete snapshot") && while_ < Duration::from_secs(1), "{told}");
        return Ok(());
    }
    let report: Value = serde_json::from_slice(&report.stdout)?;
    ensure!(report["torn"].as_str().is_some_and(|torn| torn.contains("cut at byte")), "{told}");
    let snapshots = report["snapshots"].as_array().context("snapshots")?;
    for (at, snapshot) in snapshots.iter().enumerate() {
        ensure!(snapshot["sequence"] == at, "a snapshot is missing before {at}");
        let stacks = snapshot["native"]["stacks"].as_array().into_iter().flatten();
        let sum: u64 = stacks.filter_map(|stack| stack["bytes"].as_u64()).sum();
        ensure!(snapshot["native"]["outstanding"]["bytes"] == sum, "snapshot {at} is torn");
    }
    Ok(())
}

fn kills(times: u64) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut program = Program::start(Kind::C, "slow-leak", 3_600, 3, directory.path())?;
    program.go()?;
    for kill in 0..times {
        let _turn = serial::turn()?;
        // Between 50 ms and 1.5 s, another one each time.
        let after = Duration::from_millis(50 + kill * 7919 % 1_450);
        let file = directory.path().join(format!("killed-{kill}"));
        killed_after(program.child.id(), &file, after)
            .with_context(|| format!("killed after {after:?}"))?;
    }
    Ok(())
}

#[test]
fn a_killed_recorder_leaves_every_complete_snapshot() -> Result<()> {
    kills(4)
}

#[test]
#[ignore = "ten minutes: 100 kills"]
fn a_recorder_killed_a_hundred_times_leaves_every_complete_snapshot() -> Result<()> {
    kills(100)
}

#[test]
fn many_snapshots_take_little_room_and_no_more_memory() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("recording");
    let mut program = Program::start(Kind::Go, "two-callers", 40, 5, directory.path())?;
    let path = file.display().to_string();
    let arguments = ["--interval", "100ms", "-o", &path];
    let mut recorder = Recorder::start(program.child.id(), &arguments, |_| {})?;
    program.go()?;
    let resident = |pid: u32| -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        Ok(line.context("VmRSS")?.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    };
    std::thread::sleep(Duration::from_secs(8));
    let (early, early_size) = (resident(recorder.child.id())?, fs::metadata(&file)?.len());
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(24));
    let (late, late_size) = (resident(recorder.child.id())?, fs::metadata(&file)?.len());
    let taken = began.elapsed().as_secs();
    recorder.interrupt()?;
    let report = run(&["report", &path, "--json", "-"])?;
    let report: Value = serde_json::from_slice(&report.stdout)?;
    let snapshots = report["snapshots"].as_array().map_or(0, Vec::len) as u64;
    ensure!(snapshots >= 50, "only {snapshots} snapshots in {taken} s");
    let each = (late_size - early_size) / (snapshots * 24 / 32).max(1);
    // An hour at 10 s is 360 of them, and 20 MB.
    ensure!(each < (20 << 20) / 360, "{each} bytes a snapshot");
    ensure!(late < early + (6 << 20), "from {early} to {late} bytes in {taken} s");
    eprintln!(
        "{snapshots} snapshots, {each} bytes each; memtrace {early} to {late} bytes resident"
    );
    Ok(())
}
