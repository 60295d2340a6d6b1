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

#[test]
fn a_command_that_cannot_be_executed_is_named() -> Result<()> {
    for (command, words) in [
        ("/etc/passwd", ["`/etc/passwd`", "chmod +x"]),
        ("/tmp", ["`/tmp`", "directory"]),
        ("no-such-command-anywhere", ["`no-such-command-anywhere`", "PATH"]),
    ] {
        refused(&memtrace::run(&["record", "--", command])?, exit_code::TARGET, &words)?;
    }
    Ok(())
}

#[test]
fn standard_output_and_a_file_take_one_output_each() -> Result<()> {
    let pid = std::process::id().to_string();
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("twice").display().to_string();
    let output = memtrace::run(&["record", "--pid", &pid, "--json", "-", "--folded", "-"])?;
    refused(&output, exit_code::USAGE, &["standard output"])?;
    let output = memtrace::run(&["record", "--pid", &pid, "--json", "-", "-o", "-"])?;
    refused(&output, exit_code::USAGE, &["standard output"])?;
    let output = memtrace::run(&["record", "--pid", &pid, "--json", &file, "--folded", &file])?;
    refused(&output, exit_code::USAGE, &[&file, "twice"])?;
    ensure!(!Path::new(&file).exists(), "an output that got nothing was left behind");
    Ok(())
}

#[test]
fn a_run_that_fails_keeps_what_a_file_held_before() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("precious");
    fs::write(&file, "an hour of tracing")?;
    let file_name = file.display().to_string();
    for option in ["-o", "--json", "--pprof", "--folded"] {
        let output = memtrace::run(&["record", option, &file_name, "--container", "none-such"])?;
        refused(&output, exit_code::TARGET, &["none-such"])?;
        ensure!(fs::read(&file)? == b"an hour of tracing", "`{option}` lost what was there");
    }
    Ok(())
}

#[test]
fn one_output_that_fails_keeps_no_other_from_being_written() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let folded = directory.path().join("folded");
    let program = Program::start(&compile::program("busy", Kind::C)?, &["1"], &[])?;
    let output = memtrace::run(&[
        "record",
        "--pid",
        &program.pid().to_string(),
        "--duration",
        "1s",
        "--json",
        "/dev/full",
        "--folded",
        &folded.display().to_string(),
    ])?;
    refused(&output, exit_code::FAILED, &["/dev/full", "no space left"])?;
    ensure!(!output.stdout.is_empty(), "the text report is missing");
    ensure!(folded.exists(), "the folded stacks are missing");
    program.finish()
}

/// memtrace as it runs where a seccomp filter answers system call `number` with `errno`.
fn with_denied_call(number: libc::c_long, errno: i32) -> Result<Command> {
    use std::os::unix::process::CommandExt;
    let number = u32::try_from(number)?;
    let errno = u32::try_from(errno)?;
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let filter = [
        // The number of the call is the first field of `struct seccomp_data`.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: number,
        },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let mut command = Command::new(memtrace::binary()?);
    // SAFETY: the closure calls prctl only, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            let program =
                libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
            let filtered =
                libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program);
            if filtered == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    Ok(command)
}

#[test]
fn a_denied_bpf_is_told_apart_from_a_kernel_without_it() -> Result<()> {
    let _turn = serial::turn()?;
    let program = Program::start(&compile::program("malloc", Kind::C)?, &[""; 0], &[])?;
    let pid = program.pid().to_string();
    for (call, errno, code, words) in [
        (libc::SYS_bpf, libc::EPERM, exit_code::NOT_PERMITTED, ["bpf", "seccomp"]),
        (
            libc::SYS_bpf,
            libc::ENOSYS,
            exit_code::KERNEL_LACKS,
            ["bpf(2)", "without the system call"],
        ),
        (
            libc::SYS_perf_event_open,
            libc::EACCES,
            exit_code::NOT_PERMITTED,
            ["perf_event_open", "seccomp"],
        ),
    ] {
        let mut command = with_denied_call(call, errno)?;
        command.args(["record", "--duration", "1s", "--pid", &pid]);
        refused(&memtrace::run_command(command)?, code, &words)?;
    }
    program.finish()
}

#[test]
fn each_missing_capability_is_named() -> Result<()> {
    let _turn = serial::turn()?;
    let program = Program::start(&compile::program("malloc", Kind::C)?, &[""; 0], &[])?;
    for (without, named, unnamed) in [
        ("-sys_admin,-bpf,-perfmon", "CAP_BPF, CAP_PERFMON", "CAP_SYS_PTRACE"),
        ("-sys_admin,-perfmon", "CAP_PERFMON", "CAP_BPF"),
    ] {
        let mut command = Command::new("setpriv");
        command.arg(format!("--bounding-set={without}")).arg(memtrace::binary()?);
        command.args(["record", "--duration", "1s", "--pid", &program.pid().to_string()]);
        let output = memtrace::run_command(command)?;
        refused(&output, exit_code::NOT_PERMITTED, &[named, "as root"])?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(!error.contains(unnamed), "{unnamed} is not missing: {error}");
    }
    program.finish()
}

#[test]
fn a_torn_recording_is_read_up_to_its_last_complete_snapshot() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let whole = directory.path().join("whole.mtrace");
    let program = Program::start(&compile::program("busy", Kind::C)?, &["1"], &[])?;
    let arguments =
        ["--pid", &program.pid().to_string(), "--duration", "2s", "--interval", "500ms"];
    let mut command = Command::new(memtrace::binary()?);
    command.arg("record").args(arguments).arg("-o").arg(&whole);
    let output = memtrace::run_command(command)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program.finish()?;

    let bytes = fs::read(&whole)?;
    let torn = directory.path().join("torn.mtrace").display().to_string();
    let mut snapshots = Vec::new();
    for cut in (1..=24).map(|part| bytes.len() * part / 24) {
        let complete = cut == bytes.len();
        fs::write(&torn, &bytes[..cut])?;
        let output = memtrace::run(&["report", &torn, "--json", "-"])?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(!error.contains("panicked"), "{error}");
        ensure!(complete || error.contains(&torn), "a cut at byte {cut} was not told: {error}");
        if output.status.success() {
            let recorded: memtrace_tests::recorded::Recorded =
                serde_json::from_slice(&output.stdout)?;
            snapshots.push(recorded.snapshots.len());
        } else {
            ensure!(output.stdout.is_empty(), "a failed report wrote something");
            ensure!(snapshots.is_empty(), "a longer file gave less: cut at byte {cut}");
        }
    }
    ensure!(snapshots.is_sorted(), "a longer file gave fewer snapshots: {snapshots:?}");
    ensure!(snapshots.first() < snapshots.last(), "every cut gave the same: {snapshots:?}");

    // Noise instead of the second half.
    let mut noise = bytes.clone();
    for (at, byte) in noise.iter_mut().enumerate().skip(bytes.len() / 2) {
        *byte ^= (at % 251) as u8 | 1;
    }
    fs::write(&torn, &noise)?;
    let output = memtrace::run(&["report", &torn])?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(error.contains(&torn) && !error.contains("panicked"), "{error}");
    Ok(())
}

#[test]
fn a_report_does_not_overwrite_its_recording() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("kept.mtrace").display().to_string();
    let output =
        memtrace::run(&["record", "-o", &file, "--duration", "1s", "--", "/bin/sleep", "2"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let before = fs::read(&file)?;
    let output = memtrace::run(&["report", &file, "--json", &file])?;
    refused(&output, exit_code::USAGE, &[&file])?;
    ensure!(fs::read(&file)? == before, "the recording was overwritten");
    Ok(())
}

#[test]
fn a_closed_standard_error_ends_nothing() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let json = directory.path().join("json");
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let mut child = Command::new(memtrace::binary()?)
        .args(["record", "--verbose", "--duration", "1s", "--json"])
        .arg(&json)
        .args(["--", "/bin/sleep", "2"])
        .stdout(std::process::Stdio::null())
        .stderr(writer)
        .spawn()?;
    let status = memtrace_tests::wait::for_exit(&mut child, "memtrace", Duration::from_secs(60))?;
    ensure!(status.success(), "memtrace ended with {status}");
    let _: memtrace_tests::recorded::Recorded = serde_json::from_slice(&fs::read(&json)?)?;
    Ok(())
}

#[test]
fn an_interrupt_as_soon_as_it_traces_gives_a_report() -> Result<()> {
    let _turn = serial::turn()?;
    let program = Program::start(&compile::program("busy", Kind::C)?, &["1"], &[])?;
    for _ in 0..5 {
        Recording::attach(program.pid(), &[""; 0])?.interrupt()?.recorded()?;
    }
    program.finish()
}

/// A program whose every name is hostile: its file, its arguments, its comm, a function.
const HOSTILE: &str = r#"
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
void *evil(size_t size) __asm__("\"e\033]0;title\007\033[2Jvil\"");
__attribute__((noinline)) void *evil(size_t size) {
    char *block = malloc(size);
    __asm__ volatile("" : : "r"(block) : "memory");
    return block;
}
int main(void) {
    prctl(PR_SET_NAME, "\033[31m\r\nx\007");
    write(1, "ready\n", 6);
    for (;;) {
        evil(1013);
        usleep(20000);
    }
}
"#;

#[test]
fn hostile_names_reach_no_terminal_raw() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let source = directory.path().join("hostile.c");
    fs::write(&source, HOSTILE)?;
    let executable = directory.path().join("na\u{1b}[31m\nme\u{202e}of");
    let output =
        Command::new("cc").args(["-g", "-O1", "-o"]).arg(&executable).arg(&source).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let program = Program::start(&executable, &["\u{1b}]0;title\u{7}", "two\nlines"], &[])?;
    let file = directory.path().join("hostile.mtrace").display().to_string();
    let pid = program.pid().to_string();
    let recorded =
        memtrace::run(&["record", "--verbose", "--duration", "1s", "-o", &file, "--pid", &pid])?;
    ensure!(recorded.status.success(), "{}", String::from_utf8_lossy(&recorded.stderr));
    // Its symbols gone, it cannot be probed, and the error quotes its names.
    drop(program);
    let stripped = directory.path().join("st\u{1b}[2Jripped");
    let status = Command::new("cc")
        .args(["-static", "-s", "-o"])
        .arg(&stripped)
        .arg(&source)
        .stderr(std::process::Stdio::null())
        .status()?;
    ensure!(status.success(), "cc ended with {status}");
    let program = Program::start(&stripped, &[""; 0], &[])?;
    let refusal = memtrace::run(&["record", "--pid", &program.pid().to_string()])?;
    refused(&refusal, exit_code::NOTHING_TO_PROBE, &["ripped"])?;
    drop(program);

    let mut shown = vec![recorded.stdout, recorded.stderr, refusal.stderr];
    for format in ["--folded", "--json"] {
        shown.push(memtrace::run(&["report", &file, format, "-"])?.stdout);
    }
    let not_found = memtrace::run(&["record", "--container", "no\u{1b}[31m\u{7}ne"])?;
    refused(&not_found, exit_code::TARGET, &["ne"])?;
    let no_command = memtrace::run(&["record", "--", "no\u{1b}[31m\u{7}ne"])?;
    refused(&no_command, exit_code::TARGET, &["ne"])?;
    shown.extend([not_found.stderr, no_command.stderr]);
    ensure!(shown.iter().all(|text| !text.is_empty()), "something said nothing");
    ensure!(String::from_utf8_lossy(&shown[0]).contains("title"), "the hostile names are missing");
    for text in shown {
        let text = String::from_utf8_lossy(&text).into_owned();
        let raw = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        ensure!(!text.chars().any(raw), "raw control characters in: {}", text.escape_debug());
    }
    Ok(())
}

#[test]
fn memtrace_traces_memtrace() -> Result<()> {
    let _turn = serial::turn()?;
    let program = Program::start(&compile::program("busy", Kind::C)?, &["2"], &[])?;
    let inner = Recording::attach(program.pid(), &["--interval", "200ms"])?;
    let outer = Recording::attach(inner.pid(), &[""; 0])?;
    std::thread::sleep(Duration::from_secs(1));
    let outer = outer.interrupt()?.recorded()?;
    ensure!(
        outer.last()?.native.tallies.get("alloc_calls").is_some_and(|&calls| calls > 0),
        "no allocation of memtrace was seen: {:?}",
        outer.last()?.native.tallies
    );
    inner.interrupt()?.recorded()?;
    program.finish()
}

#[test]
fn a_process_that_executes_all_the_time_harms_nobody() -> Result<()> {
    let _turn = serial::turn()?;
    let mut shell = Command::new("sh")
        .args(["-c", "if [ $1 -gt 0 ]; then exec sh -c \"$0\" \"$0\" $(($1 - 1)); fi"])
        .args(["if [ $1 -gt 0 ]; then exec sh -c \"$0\" \"$0\" $(($1 - 1)); fi", "100000000"])
        .spawn()?;
    let pid = shell.id().to_string();
    for _ in 0..10 {
        let output = memtrace::run(&["record", "--duration", "1s", "--pid", &pid])?;
        let error = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        ensure!(!error.contains("panicked"), "memtrace panicked: {error}");
        let known =
            [Some(0), Some(exit_code::TARGET), Some(exit_code::NOTHING_TO_PROBE)].contains(&code);
        ensure!(known, "memtrace ended with {}: {error}", output.status);
        ensure!(shell.try_wait()?.is_none(), "the process was harmed: {error}");
    }
    shell.kill()?;
    shell.wait()?;
    Ok(())
}

#[test]
fn a_process_of_another_pid_namespace_is_traced_by_its_pid_here() -> Result<()> {
    let _turn = serial::turn()?;
    let executable = compile::program("malloc", Kind::C)?;
    let mut program = Program::start(
        Path::new("/usr/bin/unshare"),
        &["--pid".as_ref(), "--fork".as_ref(), "--mount-proc".as_ref(), executable.as_os_str()],
        &[],
    )?;
    let children = format!("/proc/{0}/task/{0}/children", program.pid());
    let inside = fs::read_to_string(&children)?.trim().parse()?;
    let recording = Recording::attach(inside, &[""; 0])?;
    program.go()?;
    let truth = program.truth(Duration::from_secs(30))?;
    let recorded = recording.interrupt()?.recorded()?;
    let differences = truth::differences(&truth, &recorded.last()?.native);
    ensure!(differences.is_empty(), "{differences:#?}");
    program.finish()
}
