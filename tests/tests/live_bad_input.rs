//! Bad input: each has its clear error and its exit code, and none of them hangs or panics.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::docker::{Container, Image};
use memtrace_tests::memtrace::{self, Recording, exit_code};
use memtrace_tests::program::Program;
use memtrace_tests::{serial, truth};

/// The run failed with this code, and its error says each of `words`.
fn refused(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(!error.contains("panicked"), "memtrace panicked: {error}");
    ensure!(
        output.status.code() == Some(code),
        "memtrace ended with {} and not with {code}: {error}",
        output.status
    );
    for word in words {
        ensure!(
            error.to_lowercase().contains(&word.to_lowercase()),
            "the error does not say `{word}`: {error}"
        );
    }
    Ok(())
}

#[test]
fn no_target_is_a_usage_error() -> Result<()> {
    refused(&memtrace::run(&["record"])?, exit_code::USAGE, &["--pid", "--container"])
}

#[test]
fn two_targets_are_a_usage_error() -> Result<()> {
    let output = memtrace::run(&["record", "--pid", "1", "--container", "web"])?;
    refused(&output, exit_code::USAGE, &["--pid", "--container"])
}

#[test]
fn a_pid_that_is_no_number_is_a_usage_error() -> Result<()> {
    refused(&memtrace::run(&["record", "--pid", "web"])?, exit_code::USAGE, &["web"])
}

#[test]
fn no_such_process_is_named() -> Result<()> {
    let limit: u32 = fs::read_to_string("/proc/sys/kernel/pid_max")?.trim().parse()?;
    let free = (2..limit)
        .rev()
        .find(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        .context("find a pid that is not in use")?
        .to_string();
    let output = memtrace::run(&["record", "--pid", &free])?;
    refused(&output, exit_code::TARGET, &[&free])
}

#[test]
fn a_kernel_thread_is_named_as_such() -> Result<()> {
    let thread = kernel_thread()?.context("find a kernel thread")?.to_string();
    let output = memtrace::run(&["record", "--pid", &thread])?;
    refused(&output, exit_code::TARGET, &["kernel thread", &thread])
}

/// The first process whose flags (`/proc/PID/stat`, field 9) say PF_KTHREAD.
fn kernel_thread() -> Result<Option<u32>> {
    const PF_KTHREAD: u64 = 0x0020_0000;
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let Some((_, after_name)) = stat.rsplit_once(')') else { continue };
        let flags = after_name.split_whitespace().nth(6).and_then(|flags| flags.parse().ok());
        if flags.is_some_and(|flags: u64| flags & PF_KTHREAD != 0) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

#[test]
fn without_privileges_the_missing_capability_is_named() -> Result<()> {
    let _turn = serial::turn()?;
    let program = Program::start(&compile::program("malloc", Kind::C)?, &[""; 0], &[])?;
    // Where another user can execute it.
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let copy = directory.path().join("memtrace");
    fs::copy(memtrace::binary()?, &copy)?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]);
    command.arg(&copy).args(["record", "--pid", &program.pid().to_string(), "--duration", "1s"]);
    command.current_dir("/");
    refused(&memtrace::run_command(command)?, exit_code::NOT_PERMITTED, &["CAP_"])?;
    program.finish()
}

#[test]
fn a_process_without_allocator_symbols_has_nothing_to_probe() -> Result<()> {
    let _turn = serial::turn()?;
    let whole = compile::program("malloc", Kind::CStaticGlibc)?;
    let directory = tempfile::tempdir()?;
    let stripped = directory.path().join("stripped");
    let status = Command::new("strip").arg("-s").arg("-o").arg(&stripped).arg(whole).status()?;
    ensure!(status.success(), "strip ended with {status}");
    let program = Program::start(&stripped, &[""; 0], &[])?;
    let output = memtrace::run(&["record", "--pid", &program.pid().to_string()])?;
    refused(&output, exit_code::NOTHING_TO_PROBE, &["stripped", "symbol"])?;
    program.finish()
}

#[test]
fn a_command_that_does_not_exist_is_named() -> Result<()> {
    let output = memtrace::run(&["record", "--", "/nowhere/at-all"])?;
    refused(&output, exit_code::TARGET, &["/nowhere/at-all"])
}

#[test]
fn a_command_that_ends_at_once_is_reported() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let json = directory.path().join("at-once.json");
    let output = memtrace::run(&[
        "record".as_ref(),
        "-o".as_ref(),
        "/dev/null".as_ref(),
        "--json".as_ref(),
        json.as_os_str(),
        "--".as_ref(),
        "/bin/ls".as_ref(),
        "/".as_ref(),
    ])?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "memtrace ended with {}: {error}", output.status);
    let recorded: memtrace_tests::recorded::Recorded = serde_json::from_slice(&fs::read(&json)?)?;
    let native = &recorded.last()?.native;
    ensure!(
        native.tallies.get("alloc_calls").is_some_and(|&calls| calls > 0),
        "no allocation of `ls` was seen: {:?}",
        native.tallies
    );
    Ok(())
}

#[test]
fn a_process_that_is_killed_in_mid_run_is_reported_until_then() -> Result<()> {
    let _turn = serial::turn()?;
    let mut program = Program::start(&compile::program("malloc", Kind::C)?, &[""; 0], &[])?;
    let recording = Recording::attach(program.pid(), &[""; 0])?;
    program.go()?;
    let truth = program.truth(Duration::from_secs(30))?;
    drop(program);
    let recorded = recording.finish()?.recorded()?;
    let differences = truth::differences(&truth, &recorded.last()?.native);
    ensure!(differences.is_empty(), "what was seen until the end differs: {differences:#?}");
    Ok(())
}

#[test]
fn a_reused_pid_is_another_process() -> Result<()> {
    // Others take pids too.
    let _alone = serial::alone()?;
    let executable = compile::program("malloc", Kind::C)?;
    let mut first = Program::start(&executable, &[""; 0], &[])?;
    let pid = first.pid();
    let recording = Recording::attach(pid, &[""; 0])?;
    first.go()?;
    let truth = first.truth(Duration::from_secs(30))?;
    drop(first);
    let mut second = None;
    for _ in 0..500 {
        // The next process gets the number behind this one.
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())
            .context("choose the next pid by ns_last_pid")?;
        let candidate = Program::start(&executable, &[""; 0], &[])?;
        if candidate.pid() == pid {
            second = Some(candidate);
            break;
        }
    }
    let mut second = second.context("get the same pid again")?;
    second.go()?;
    second.truth(Duration::from_secs(30))?;
    let recorded = recording.finish()?.recorded()?;
    let differences = truth::differences(&truth, &recorded.last()?.native);
    ensure!(differences.is_empty(), "the second process was counted: {differences:#?}");
    second.finish()
}

#[test]
fn a_container_that_does_not_exist_is_named() -> Result<()> {
    let output = memtrace::run(&["record", "--container", "no-such-container"])?;
    refused(&output, exit_code::TARGET, &["no-such-container"])
}

#[test]
fn an_id_prefix_of_several_containers_lists_them() -> Result<()> {
    // Its prefix must mean its own containers.
    let _alone = serial::alone()?;
    let busy = compile::program("busy", Kind::CStaticMusl)?;
    let image = Image::of("several", &[&busy], &[])?;
    let mut containers: Vec<(String, Container)> = Vec::new();
    let twin = loop {
        let number = containers.len();
        // At the latest the 17th has its first digit in common with another one.
        ensure!(number <= 16, "17 ids with 17 different first hexadecimal digits");
        let container = Container::run(
            &format!("several-{number}"),
            &["--network", "none", "--interactive", &image.name, "/busy.musl-static", "0"],
        )?;
        let id = container.id()?;
        let twin = containers.iter().position(|(other, _)| other[..1] == id[..1]);
        containers.push((id, container));
        if let Some(twin) = twin {
            break twin;
        }
    };
    let (first, second) = (&containers[twin].0, &containers[containers.len() - 1].0);
    let prefix = &first[..1];
    let output = memtrace::run(&["record", "--container", prefix])?;
    refused(&output, exit_code::TARGET, &[&first[..12], &second[..12]])
}

#[test]
fn an_unwritable_output_is_refused_before_the_tracing() -> Result<()> {
    let _turn = serial::turn()?;
    let program = Program::start(&compile::program("malloc", Kind::C)?, &[""; 0], &[])?;
    let pid = program.pid().to_string();
    for option in ["-o", "--json", "--pprof", "--folded"] {
        let start = Instant::now();
        let output = memtrace::run(&[
            "record",
            "--pid",
            &pid,
            "--duration",
            "20s",
            option,
            "/nowhere/at-all/out",
        ])?;
        refused(&output, exit_code::FAILED, &["/nowhere/at-all/out"])?;
        ensure!(
            start.elapsed() < Duration::from_secs(15),
            "`{option}` was refused only after the tracing"
        );
    }
    program.finish()
}

#[test]
fn a_reader_that_goes_away_is_no_panic() -> Result<()> {
    let _turn = serial::turn()?;
    let program = Program::start(&compile::program("malloc", Kind::C)?, &[""; 0], &[])?;
    let mut command = Command::new("sh");
    command.arg("-c").arg(
        "\"$0\" record --pid \"$1\" --duration 1s -o /dev/null --json - | head -c 1 >/dev/null",
    );
    command.arg(memtrace::binary()?).arg(program.pid().to_string());
    let output = memtrace::run_command(command)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(!error.contains("panicked"), "memtrace panicked: {error}");
    program.finish()
}

#[test]
fn a_recording_that_is_none_is_refused() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("garbage.mtrace");
    for content in [&b""[..], b"garbage", &[0xff; 4096]] {
        fs::write(&file, content)?;
        let output = memtrace::run(&["report".as_ref(), file.as_os_str()])?;
        refused(&output, exit_code::FAILED, &["garbage.mtrace"])?;
    }
    let output = memtrace::run(&["report", "/nowhere/at-all.mtrace"])?;
    refused(&output, exit_code::FAILED, &["/nowhere/at-all.mtrace"])
}

/// What a server that means ill may answer to `GET /debug/pprof/heap`.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Garbage,
    NotFound,
    Endless,
    Silence,
    HugeLength,
    /// A gigabyte of zeros in a few kilobytes.
    Bomb,
}

impl Answer {
    fn serve(self, stream: &mut (impl Read + Write)) -> std::io::Result<()> {
        let mut request = [0; 4096];
        _ = stream.read(&mut request)?;
        match self {
            Self::Garbage => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ngarbage")
            }
            Self::NotFound => {
                stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            }
            Self::Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
                loop {
                    stream.write_all(&[0x1f; 65536])?;
                }
            }
            Self::Silence => {
                std::thread::sleep(Duration::from_secs(120));
                Ok(())
            }
            Self::HugeLength => stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\nx"),
            Self::Bomb => {
                let mut packed =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                for _ in 0..1024 {
                    packed.write_all(&[0; 1 << 20])?;
                }
                let packed = packed.finish()?;
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", packed.len())?;
                stream.write_all(&packed)
            }
        }
    }
}

#[test]
fn a_broken_or_hostile_pprof_answer_costs_only_the_go_figures() -> Result<()> {
    let _turn = serial::turn()?;
    let executable = compile::program("malloc", Kind::C)?;
    for answer in [
        Answer::Garbage,
        Answer::NotFound,
        Answer::Endless,
        Answer::Silence,
        Answer::HugeLength,
        Answer::Bomb,
    ] {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/debug/pprof/heap", listener.local_addr()?);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // The reader may hang up at any time: that is the point.
                std::thread::spawn(move || answer.serve(&mut stream));
            }
        });
        let mut program = Program::start(&executable, &[""; 0], &[])?;
        let recording = Recording::attach(program.pid(), &["--go-profile", &url])?;
        program.go()?;
        let truth = program.truth(Duration::from_secs(30))?;
        let recorded = recording.interrupt()?.recorded().with_context(|| format!("{answer:?}"))?;
        let last = recorded.last()?;
        let differences = truth::differences(&truth, &last.native);
        ensure!(differences.is_empty(), "{answer:?}: {differences:#?}");
        ensure!(last.go.get("inuse_bytes").is_none(), "{answer:?} gave Go figures: {}", last.go);
        program.finish()?;
    }
    Ok(())
}
