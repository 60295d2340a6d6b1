//! Live: real programs, compiled here, started and held by `memtrace::tracee::spawn`.
//!
//! Needs `cc`, `musl-gcc` and root (perf uprobes).

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use memtrace::tracee::spawn::{SpawnError, Spawned, StopPoint};
use object::{Object, ObjectSegment, ObjectSymbol};
use tempfile::TempDir;

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// Writes a line to OUT from a constructor, and one from main; exits with argv[1].
const PROGRAM: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
__attribute__((weak)) int from_library(void) { return 0; }
static void say(const char *path, const char *line) {
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    write(fd, line, strlen(line));
    close(fd);
}
__attribute__((constructor)) static void early(void) {
    free(malloc(111));
    say(OUT, "constructor\n");
}
int main(int argc, char **argv) {
    free(malloc(222));
    say(OUT, "main\n");
    return argc > 1 ? atoi(argv[1]) + from_library() : 0;
}
"#;

/// A constructor that allocates and leaves a file behind, whose name is compiled in.
const LIBRARY: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
int constructed_allocations;
__attribute__((noinline)) void *early_alloc(int size) {
    constructed_allocations++;
    return malloc(size);
}
__attribute__((constructor)) static void early(void) {
    for (int i = 0; i < 7; i++) { void *volatile block = early_alloc(100 + i); free(block); }
    close(open(MARK, O_WRONLY | O_CREAT, 0644));
}
int from_library(void) { return 1; }
"#;

struct Bench {
    root: TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench { root: tempfile::tempdir().expect("temporary directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn compile(&self, compiler: &str, name: &str, source: &str, flags: &[&str]) -> PathBuf {
        let (c, out) = (self.path(&format!("{name}.c")), self.path(name));
        fs::write(&c, source).expect("write source");
        let output = Command::new(compiler)
            .arg(format!("-DOUT=\"{}\"", self.path("out").display()))
            .args(["-O1", "-w", "-fno-builtin", "-o"])
            .args([&out, &c])
            .args(flags)
            .output()
            .unwrap_or_else(|error| panic!("failed to run `{compiler}`: {error}"));
        assert!(output.status.success(), "{compiler} {name}: {output:?}");
        out
    }

    fn library(&self, compiler: &str) -> (PathBuf, PathBuf) {
        let mark = self.path("mark");
        let define = format!("-DMARK=\"{}\"", mark.display());
        let library =
            self.compile(compiler, "libearly.so", LIBRARY, &["-shared", "-fPIC", &define]);
        (library, mark)
    }

    fn script(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("write script");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        path
    }
}

fn words(words: &[&dyn AsRef<std::ffi::OsStr>]) -> Vec<OsString> {
    words.iter().map(|word| word.as_ref().into()).collect()
}

fn maps(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps")
}

/// `t` under ptrace, `T` stopped, `Z` zombie; `None` when there is no such process.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

fn tracer(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|l| l.strip_prefix("TracerPid:"));
    line.expect("TracerPid").trim().parse().expect("number")
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(Instant::now() < end, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Address of a symbol in a running process; the file offset of the same in its file.
fn locate(pid: u32, file: &Path, name: &str) -> (u64, u64) {
    let data = fs::read(file).expect("read object");
    let elf = object::File::parse(&*data).expect("parse object");
    let symbol = elf
        .dynamic_symbols()
        .find(|symbol| symbol.name() == Ok(name) && symbol.is_definition())
        .unwrap_or_else(|| panic!("no `{name}` in {}", file.display()));
    let real = fs::canonicalize(file).expect("canonicalize");
    let maps = maps(pid);
    let base = maps
        .lines()
        .find(|line| line.ends_with(real.to_str().expect("UTF-8")))
        .and_then(|line| line.split('-').next())
        .unwrap_or_else(|| panic!("{} is not mapped:\n{maps}", real.display()));
    let base = u64::from_str_radix(base, 16).expect("hex");
    let segment = elf
        .segments()
        .find(|s| (s.address()..s.address() + s.size()).contains(&symbol.address()))
        .expect("segment");
    let offset = symbol.address() - segment.address() + segment.file_range().0;
    (base + symbol.address(), offset)
}

fn read_int(pid: u32, address: u64) -> i32 {
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).expect("open mem");
    memory.seek(SeekFrom::Start(address)).expect("seek");
    let mut bytes = [0; 4];
    memory.read_exact(&mut bytes).expect("read mem");
    i32::from_ne_bytes(bytes)
}

/// A counting uprobe in one process, as the kernel's perf makes it.
fn count_hits(pid: u32, file: &Path, offset: u64) -> fs::File {
    let kind = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type").expect("uprobes");
    let path = std::ffi::CString::new(file.to_str().expect("UTF-8")).expect("no NUL");
    // struct perf_event_attr, PERF_ATTR_SIZE_VER5
    let mut attr = [0u8; 112];
    attr[0..4].copy_from_slice(&kind.trim().parse::<u32>().expect("number").to_ne_bytes());
    attr[4..8].copy_from_slice(&112u32.to_ne_bytes());
    attr[56..64].copy_from_slice(&(path.as_ptr() as u64).to_ne_bytes());
    attr[64..72].copy_from_slice(&offset.to_ne_bytes());
    // SAFETY: `attr` and the path it points to outlive the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attr.as_ptr(),
            pid as libc::pid_t,
            -1,
            -1,
            8, // PERF_FLAG_FD_CLOEXEC
        )
    };
    assert!(fd >= 0, "perf_event_open: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and no one else's.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }.into()
}

fn hits(mut probe: &fs::File) -> u64 {
    let mut count = [0; 8];
    probe.read_exact(&mut count).expect("read counter");
    u64::from_ne_bytes(count)
}

/// Starts, checks that nothing ran at the stop, resumes, checks that all of it ran.
#[track_caller]
fn start_and_follow(program: &Path, bench: &Bench, stop: StopPoint, mapped: Option<&str>) {
    let out = bench.path("out");
    let mut spawned = Spawned::start(&words(&[&program, &"5"])).expect("start");
    let pid = spawned.pid();
    assert_eq!(spawned.stop_point(), stop);
    assert_eq!(state(pid), Some('t'));
    assert!(!out.exists(), "it ran before it was resumed");
    if let Some(library) = mapped {
        let maps = maps(pid);
        assert!(maps.contains(library), "no {library} in:\n{maps}");
    }
    assert!(spawned.try_wait().expect("try_wait").is_none());
    spawned.resume().expect("resume");
    let status = spawned.wait().expect("wait");
    assert_eq!(status.code(), Some(5));
    assert_eq!(fs::read_to_string(&out).expect("output"), "constructor\nmain\n");
    assert_eq!(state(pid), None, "a zombie remains");
    assert_eq!(spawned.wait().expect("again"), status);
}

#[test]
fn a_dynamic_glibc_program_is_held_with_its_libraries_mapped_and_nothing_run() {
    let bench = Bench::new();
    for (name, flags) in [("pie", &["-pie"][..]), ("no-pie", &["-no-pie"])] {
        let program = bench.compile("cc", name, PROGRAM, flags);
        start_and_follow(&program, &bench, StopPoint::LoaderDone, Some("libc.so.6"));
        fs::remove_file(bench.path("out")).expect("remove");
    }
}

#[test]
fn a_dynamic_musl_program_is_held_with_its_libc_mapped_and_nothing_run() {
    let bench = Bench::new();
    let program = bench.compile("musl-gcc", "musl", PROGRAM, &[]);
    assert!(
        fs::read(&program).expect("read").windows(7).any(|w| w == b"ld-musl"),
        "the program is not dynamic"
    );
    start_and_follow(&program, &bench, StopPoint::LoaderDone, Some("libc.so"));
}

#[test]
fn static_programs_are_held_at_their_entry() {
    let bench = Bench::new();
    for (compiler, name, flag) in [
        ("cc", "glibc-static", "-static"),
        ("cc", "glibc-static-pie", "-static-pie"),
        ("musl-gcc", "musl-static", "-static"),
    ] {
        let program = bench.compile(compiler, name, PROGRAM, &[flag]);
        start_and_follow(&program, &bench, StopPoint::StaticEntry, None);
        fs::remove_file(bench.path("out")).expect("remove");
    }
}

#[test]
fn a_program_started_through_its_loader_is_held_when_the_loader_is_done() {
    let bench = Bench::new();
    for (compiler, loader) in [("cc", LOADER), ("musl-gcc", "/lib/ld-musl-x86_64.so.1")] {
        let program = bench.compile(compiler, compiler, PROGRAM, &[]);
        let out = bench.path("out");
        let argv = words(&[&loader, &program, &"3"]);
        let mut spawned = Spawned::start(&argv).expect("start");
        assert_eq!(spawned.stop_point(), StopPoint::LoaderDone);
        let maps = maps(spawned.pid());
        assert!(maps.contains(program.to_str().expect("UTF-8")), "{maps}");
        assert!(!out.exists());
        spawned.resume().expect("resume");
        assert_eq!(spawned.wait().expect("wait").code(), Some(3));
        fs::remove_file(&out).expect("its output");
    }
}

#[test]
fn a_loader_without_rendezvous_is_followed_to_the_entry_point() {
    let bench = Bench::new();
    // A copy of the loader that calls its rendezvous by another name.
    let mut loader = fs::read(LOADER).expect("loader");
    let at =
        loader.windows(16).position(|window| window == b"_dl_debug_state\0").expect("the name");
    loader[at] = b'X';
    let copy = bench.path("ld.so");
    fs::write(&copy, loader).expect("write");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("chmod");
    let flag = format!("-Wl,--dynamic-linker={}", copy.display());
    let program = bench.compile("cc", "program", PROGRAM, &[&flag]);
    start_and_follow(&program, &bench, StopPoint::EntryAfterConstructors, Some("libc.so.6"));
}

#[test]
fn constructors_of_linked_libraries_run_after_resume_only() {
    for compiler in ["cc", "musl-gcc"] {
        let bench = Bench::new();
        let (library, mark) = bench.library(compiler);
        let rpath = format!("-Wl,-rpath,{}", bench.root.path().display());
        let source = PROGRAM.replace(
            "__attribute__((weak)) int from_library(void) { return 0; }",
            "int from_library(void);",
        );
        let flags = [library.to_str().expect("UTF-8"), &rpath];
        let program = bench.compile(compiler, "linked", &source, &flags);
        let mut spawned = Spawned::start(&words(&[&program, &"5"])).expect("start");
        let (counter, _) = locate(spawned.pid(), &library, "constructed_allocations");
        assert_eq!(read_int(spawned.pid(), counter), 0, "{compiler}");
        assert!(!mark.exists(), "{compiler}: the constructor ran too early");
        spawned.resume().expect("resume");
        assert_eq!(spawned.wait().expect("wait").code(), Some(6), "{compiler}");
        assert!(mark.exists(), "{compiler}");
    }
}

#[test]
fn constructors_of_preloaded_libraries_run_after_resume_only() {
    let bench = Bench::new();
    let (library, mark) = bench.library("cc");
    let program = bench.compile("cc", "program", PROGRAM, &[]);
    // Not by LD_PRELOAD: the tests' threads share one environment.
    let argv = words(&[&LOADER, &"--preload", &library, &program, &"4"]);
    let mut spawned = Spawned::start(&argv).expect("start");
    let (counter, _) = locate(spawned.pid(), &library, "constructed_allocations");
    assert_eq!(read_int(spawned.pid(), counter), 0);
    assert!(!mark.exists(), "the constructor ran too early");
    spawned.resume().expect("resume");
    assert_eq!(spawned.wait().expect("wait").code(), Some(4));
    assert!(mark.exists());
}

#[test]
fn reports_of_an_audit_librarys_own_name_space_are_passed_over() {
    const AUDIT: &str = "unsigned la_version(unsigned version) { return version; }";
    let bench = Bench::new();
    let library = bench.compile("cc", "libaudit.so", AUDIT, &["-shared", "-fPIC"]);
    let (linked, mark) = bench.library("cc");
    let flags = ["-Wl,--no-as-needed", linked.to_str().expect("UTF-8")];
    let program = bench.compile("cc", "audited", PROGRAM, &flags);
    // The environment belongs to a process: another one starts the program.
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "starter_of_an_audited_program", "--ignored"])
        .env("LD_AUDIT", &library)
        .env("SPAWN_TEST_PROGRAM", &program)
        .env("SPAWN_TEST_MARK", &mark)
        .output()
        .expect("start the starter");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "the other half of reports_of_an_audit_librarys_own_name_space_are_passed_over"]
fn starter_of_an_audited_program() {
    let [program, mark] = ["SPAWN_TEST_PROGRAM", "SPAWN_TEST_MARK"]
        .map(|key| PathBuf::from(std::env::var_os(key).expect("run by the other half")));
    let mut spawned = Spawned::start(&words(&[&program, &"2"])).expect("start");
    assert_eq!(spawned.stop_point(), StopPoint::LoaderDone);
    let maps = maps(spawned.pid());
    assert!(maps.contains("libaudit.so"), "{maps}");
    assert!(maps.contains("libearly.so"), "held too early:\n{maps}");
    assert!(!mark.exists(), "held too late");
    spawned.resume().expect("resume");
    assert_eq!(spawned.wait().expect("wait").code(), Some(2));
    assert!(mark.exists());
}

#[test]
fn probes_armed_at_the_stop_see_every_call_of_a_constructor() {
    let bench = Bench::new();
    let (library, mark) = bench.library("cc");
    let rpath = format!("-Wl,-rpath,{}", bench.root.path().display());
    let source = PROGRAM.replace(
        "__attribute__((weak)) int from_library(void) { return 0; }",
        "int from_library(void);",
    );
    let flags = [library.to_str().expect("UTF-8"), &rpath];
    let program = bench.compile("cc", "probed", &source, &flags);
    let mut spawned = Spawned::start(&words(&[&program, &"0"])).expect("start");
    let (_, offset) = locate(spawned.pid(), &library, "early_alloc");
    let probe = count_hits(spawned.pid(), &library, offset);
    assert_eq!(hits(&probe), 0);
    spawned.resume().expect("resume");
    assert_eq!(spawned.wait().expect("wait").code(), Some(1));
    assert!(mark.exists());
    assert_eq!(hits(&probe), 7);
}

#[test]
fn the_loader_calls_libc_malloc_not_once_before_the_stop() {
    // Interposes the allocator: glibc's loader calls this one after its own relocation.
    const COUNTER: &str = r#"
#include <stddef.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
int calls;
void *malloc(size_t n) { calls++; return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { calls++; return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { calls++; return __libc_realloc(p, n); }
"#;
    let bench = Bench::new();
    let library = bench.compile("cc", "libcount.so", COUNTER, &["-shared", "-fPIC"]);
    // Sixteen libraries with thread-local storage give the loader something to allocate.
    let mut flags = vec!["-Wl,--no-as-needed".into(), library.display().to_string()];
    flags.push(format!("-Wl,-rpath,{}", bench.root.path().display()));
    for index in 0..16 {
        let source = format!("__thread int tls{index}[500] = {{1}};");
        let name = format!("libtls{index}.so");
        let path = bench.compile("cc", &name, &source, &["-shared", "-fPIC"]);
        flags.push(path.display().to_string());
    }
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let program = bench.compile("cc", "counted", PROGRAM, &flags);
    let mut spawned = Spawned::start(&words(&[&program, &"0"])).expect("start");
    assert!(maps(spawned.pid()).contains("libtls15.so"));
    let (calls, _) = locate(spawned.pid(), &library, "calls");
    assert_eq!(read_int(spawned.pid(), calls), 0);
    // The counter counts: the program's own two calls, at least, hit the probe on it.
    let (_, offset) = locate(spawned.pid(), &library, "malloc");
    let probe = count_hits(spawned.pid(), &library, offset);
    spawned.resume().expect("resume");
    assert_eq!(spawned.wait().expect("wait").code(), Some(0));
    assert!(hits(&probe) >= 2, "{}", hits(&probe));
}

#[test]
fn after_resume_nothing_of_ptrace_is_left() {
    let bench = Bench::new();
    let program = bench.compile("cc", "sleeper", "int main() { pause(); }", &[]);
    let mut spawned = Spawned::start(&words(&[&program])).expect("start");
    let pid = spawned.pid();
    // SAFETY: touches no memory. The tracer is this thread.
    assert_eq!(tracer(pid), unsafe { libc::gettid() }.unsigned_abs());
    // The text of the loader is what its file says, breakpoint removed.
    let loader = Path::new(LOADER);
    let (address, offset) = locate(pid, loader, "_dl_debug_state");
    let file = fs::read(loader).expect("loader");
    let text = &file[offset as usize..offset as usize + 4];
    assert_eq!(&read_int(pid, address).to_ne_bytes(), text);
    assert_ne!(text[0], 0xcc);
    spawned.resume().expect("resume");
    spawned.resume().expect("a second resume does nothing");
    assert_eq!(tracer(pid), 0);
    eventually("it sleeps", || state(pid) == Some('S'));
    drop(spawned);
    assert_eq!(state(pid), Some('S'), "dropped after resume, it lives on");
    // SAFETY: our own unreaped child; no memory is touched.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
    // SAFETY: a null status is allowed.
    let reaped = unsafe { libc::waitpid(pid as i32, std::ptr::null_mut(), 0) };
    assert_eq!(reaped, pid as i32);
}

#[test]
fn dropped_before_resume_it_is_killed_and_reaped() {
    let bench = Bench::new();
    let program = bench.compile("cc", "program", PROGRAM, &[]);
    let out = bench.path("out");
    let spawned = Spawned::start(&words(&[&program])).expect("start");
    let pid = spawned.pid();
    drop(spawned);
    assert_eq!(state(pid), None);
    assert!(!out.exists());
}

#[test]
fn a_program_that_ends_at_once_gives_its_status() {
    for (program, code) in [("true", 0), ("false", 1)] {
        let mut spawned = Spawned::start(&words(&[&program])).expect("start");
        assert!(matches!(
            spawned.wait(),
            Err(SpawnError::NotResumed { pid }) if pid == spawned.pid()
        ));
        spawned.resume().expect("resume");
        assert_eq!(spawned.wait().expect("wait").code(), Some(code));
    }
}

#[test]
fn a_program_ended_by_a_signal_gives_that_signal_real_time_ones_too() {
    let bench = Bench::new();
    let source = "#include <signal.h>\n#include <stdlib.h>\n\
                  int main(int c, char **v) { raise(atoi(v[1])); return 0; }";
    let program = bench.compile("cc", "raise", source, &[]);
    // SIGPIPE: the default is restored, where Rust ignores it.
    for signal in [libc::SIGTERM, libc::SIGPIPE, libc::SIGRTMIN() + 3] {
        let argv = words(&[&program, &signal.to_string()]);
        let mut spawned = Spawned::start(&argv).expect("start");
        spawned.resume().expect("resume");
        let status = spawned.wait().expect("wait");
        assert_eq!(status.signal(), Some(signal), "{status}");
        assert_eq!(state(spawned.pid()), None);
    }
}

#[test]
fn the_command_has_an_empty_signal_mask_and_our_process_group() {
    let bench = Bench::new();
    let program = bench.compile("cc", "sleeper", "int main() { pause(); }", &[]);
    let spawned = Spawned::start(&words(&[&program])).expect("start");
    let status = fs::read_to_string(format!("/proc/{}/status", spawned.pid())).expect("status");
    let field = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        u64::from_str_radix(line.expect(key).trim(), 16).expect("hex")
    };
    assert_eq!(field("SigBlk:"), 0);
    assert_eq!(field("SigCgt:"), 0);
    assert_eq!(field("SigIgn:") & 1 << (libc::SIGPIPE - 1), 0);
    // SAFETY: neither call touches memory.
    let groups = unsafe { (libc::getpgid(spawned.pid() as i32), libc::getpgrp()) };
    assert_eq!(groups.0, groups.1);
    let fds = fs::read_dir(format!("/proc/{}/fd", spawned.pid())).expect("fd");
    let extra: Vec<_> = fds
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .collect();
    assert!(extra.is_empty(), "descriptors of ours leaked: {extra:?}");
}

#[test]
fn of_a_script_the_interpreter_is_held() {
    let bench = Bench::new();
    let out = bench.path("out");
    for (name, head) in [("with", "#!/bin/sh\n"), ("without", "")] {
        let text = format!("{head}echo ran $1 > {}\nexit 9\n", out.display());
        let script = bench.script(name, &text, 0o755);
        let mut spawned = Spawned::start(&words(&[&script, &"well"])).expect("start");
        assert_eq!(spawned.stop_point(), StopPoint::LoaderDone);
        assert!(!out.exists());
        spawned.resume().expect("resume");
        assert_eq!(spawned.wait().expect("wait").code(), Some(9), "{name}");
        assert_eq!(fs::read_to_string(&out).expect("output"), "ran well\n");
        fs::remove_file(&out).expect("remove");
    }
}

#[test]
fn what_cannot_be_started_is_told_apart() {
    let bench = Bench::new();
    let plain = bench.script("plain", "#!/bin/sh\n", 0o644);
    let orphan = bench.script("orphan", "#!/no/such/interpreter\n", 0o755);
    let start = |path: &Path| Spawned::start(&words(&[&path])).map(|spawned| spawned.pid());
    let missing = Spawned::start(&words(&[&"no-such-command-at-all"]));
    assert!(matches!(missing, Err(SpawnError::NotInPath { .. })), "{missing:?}");
    let missing = start(&bench.path("nothing"));
    assert!(matches!(missing, Err(SpawnError::NotFound { .. })), "{missing:?}");
    let directory = start(bench.root.path());
    assert!(matches!(directory, Err(SpawnError::Directory { .. })), "{directory:?}");
    let refused = start(&plain);
    assert!(matches!(refused, Err(SpawnError::NotExecutable { .. })), "{refused:?}");
    let orphan = start(&orphan);
    assert!(matches!(orphan, Err(SpawnError::Exec { .. })), "{orphan:?}");
}

#[test]
fn a_program_whose_library_is_missing_ended_before_its_start() {
    let bench = Bench::new();
    let (library, _) = bench.library("cc");
    let flags = ["-Wl,--no-as-needed", library.to_str().expect("UTF-8")];
    let program = bench.compile("cc", "program", PROGRAM, &flags);
    fs::remove_file(&library).expect("remove");
    match Spawned::start(&words(&[&program])) {
        Err(SpawnError::EndedBeforeStart { pid, status }) => {
            assert_eq!(status.code(), Some(127));
            assert_eq!(state(pid), None);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_command_killed_while_held_is_told_on_resume() {
    let bench = Bench::new();
    let program = bench.compile("cc", "sleeper", "int main() { pause(); }", &[]);
    let mut spawned = Spawned::start(&words(&[&program])).expect("start");
    // SAFETY: our own unreaped child; no memory is touched.
    unsafe { libc::kill(spawned.pid() as i32, libc::SIGKILL) };
    eventually("it ended", || state(spawned.pid()) == Some('Z'));
    match spawned.resume() {
        Err(SpawnError::EndedBeforeStart { status, .. }) => {
            assert_eq!(status.signal(), Some(libc::SIGKILL));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(state(spawned.pid()), None);
}

#[test]
fn a_loader_that_stops_itself_is_not_stopped_until_resume() {
    // An IFUNC resolver runs while the loader relocates: the earliest code of a program.
    const STOPPER: &str = r#"
#include <unistd.h>
#include <sys/syscall.h>
static int one(void) { return 1; }
static void *resolve(void) {
    long pid, result;
    __asm__ volatile("syscall" : "=a"(pid) : "a"(SYS_getpid) : "rcx", "r11", "memory");
    __asm__ volatile("syscall" : "=a"(result) : "a"(SYS_kill), "D"(pid), "S"(19) : "rcx", "r11", "memory");
    return one;
}
int chosen(void) __attribute__((ifunc("resolve")));
int main(void) { return 40 + chosen(); }
"#;
    let bench = Bench::new();
    let program = bench.compile("cc", "stopper", STOPPER, &["-Wl,-z,now"]);
    let mut spawned = Spawned::start(&words(&[&program])).expect("start");
    let pid = spawned.pid();
    assert_eq!(spawned.stop_point(), StopPoint::LoaderDone);
    assert_eq!(state(pid), Some('t'));
    spawned.resume().expect("resume");
    eventually("the held SIGSTOP arrives", || state(pid) == Some('T'));
    // SAFETY: our own unreaped child; no memory is touched.
    unsafe { libc::kill(pid as i32, libc::SIGCONT) };
    assert_eq!(spawned.wait().expect("wait").code(), Some(41));
}

#[test]
fn sigkill_of_the_starter_leaves_no_held_command() {
    let bench = Bench::new();
    let report = bench.path("pid");
    let program = bench.compile("cc", "sleeper", "int main() { pause(); }", &[]);
    let mut starter = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "starter_that_never_resumes", "--ignored"])
        .env("SPAWN_TEST_PROGRAM", &program)
        .env("SPAWN_TEST_REPORT", &report)
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("start the starter");
    let mut pid = None;
    eventually("the starter holds its command", || {
        let text = fs::read_to_string(&report).unwrap_or_default();
        pid = text.strip_suffix('\n').and_then(|text| text.parse().ok());
        pid.is_some()
    });
    let pid = pid.expect("checked");
    assert_eq!(state(pid), Some('t'));
    starter.kill().expect("kill the starter");
    starter.wait().expect("reap the starter");
    // Reaping it is up to init.
    eventually("the command is gone", || matches!(state(pid), None | Some('Z' | 'X')));
}

#[test]
#[ignore = "the other half of sigkill_of_the_starter_leaves_no_held_command"]
fn starter_that_never_resumes() {
    let from_environment = |key| std::env::var_os(key).expect("run by the other half");
    let program = from_environment("SPAWN_TEST_PROGRAM");
    let spawned = Spawned::start(&[program]).expect("start");
    let report = from_environment("SPAWN_TEST_REPORT");
    fs::write(report, format!("{}\n", spawned.pid())).expect("report");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_set_user_id_program_is_started_with_its_identity_or_with_a_note() {
    let bench = Bench::new();
    let program = bench.compile("cc", "setuid", "int main() { return geteuid() == 65534; }", &[]);
    std::os::unix::fs::chown(&program, Some(65534), None).expect("chown");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("chmod");
    let mut spawned = Spawned::start(&words(&[&program])).expect("start");
    let ignored = spawned.set_id_ignored().is_some();
    spawned.resume().expect("resume");
    let honoured = spawned.wait().expect("wait").code() == Some(1);
    assert_ne!(honoured, ignored);
}

#[test]
fn a_32_bit_program_is_refused() {
    // One page, entry `mov eax, 1; int 0x80`: enough of a program to be executed where the kernel
    // runs 32-bit programs at all.
    let mut elf = vec![0u8; 100];
    elf[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &[2, 0, 3, 0, 1, 0, 0, 0]); // ET_EXEC, EM_386
    put(24, &0x0804_8054u32.to_le_bytes()); // entry
    put(28, &52u32.to_le_bytes()); // program headers
    put(40, &[52, 0, 32, 0, 1, 0]);
    put(52, &[1, 0, 0, 0]); // PT_LOAD, whole file
    put(60, &0x0804_8000u32.to_le_bytes());
    put(68, &100u32.to_le_bytes());
    put(72, &100u32.to_le_bytes());
    put(76, &[5, 0, 0, 0, 0, 0x10]);
    put(84, &[0xb8, 1, 0, 0, 0, 0xcd, 0x80]);
    let bench = Bench::new();
    let program = bench.path("thirty-two");
    fs::write(&program, &elf).expect("write");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    let refused = Spawned::start(&words(&[&program]));
    match refused {
        Err(SpawnError::WrongMachine { found, .. }) => assert!(found.contains("32"), "{found}"),
        // A kernel without CONFIG_IA32_EMULATION.
        Err(SpawnError::Exec { source, .. }) => {
            assert_eq!(source.raw_os_error(), Some(libc::ENOEXEC));
        }
        other => panic!("{other:?}"),
    }
}
