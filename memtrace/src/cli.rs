//! The command line: clap types only. What they mean is in `session`.

use std::path::PathBuf;
use std::time::Duration;

use crate::go::GoProfileSource;
use crate::plan::system_calls::MmapSource;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Explains where the memory of a container is: native allocations by complete stack, beside the
/// Go heap, from the outside, with no restart and no code injected.
#[derive(Debug, Parser)]
#[command(name = "memtrace", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Trace native allocations of a process or a container and report what is outstanding, by stack
    ///
    /// Needs root (or CAP_SYS_ADMIN, CAP_SYS_PTRACE and read access to the target) and Linux 5.15.
    /// Nothing is injected: uprobes stand on the allocator's functions while memtrace runs, and
    /// are gone when it ends, however it ends. Blocks allocated before the attach are not seen.
    Record(Box<RecordArgs>),
    /// Say where a container's memory is, to the last byte, and why every tool says something else
    ///
    /// Reads the cgroup's and the processes' own accounts once: no probes, nobody is stopped, nothing
    /// is allocated in the target. Needs root, or CAP_SYS_PTRACE over the processes.
    Explain(ExplainArgs),
    /// Render a recording again, in any format; needs neither root nor the process
    Report(ReportArgs),
    /// Say what grew and what shrank between two snapshots, of one recording or of two
    ///
    /// A snapshot is FILE (its last one), FILE@N, FILE@first, FILE@last or FILE@mark:NAME. Stacks
    /// are matched by what they read as, not by address.
    Diff(DiffArgs),
    /// Check a recording against limits, for CI
    ///
    /// Exits with 0 when every limit holds, with 8 when one does not or cannot be judged.
    Check(CheckArgs),
    /// Put a recording, its reports and what is needed to judge them into one archive (.tar.zst)
    Bundle(BundleArgs),
    /// Name the phase that begins now, in a `record --control PATH` that is running
    ///
    /// Takes a snapshot there, and waits until it is taken.
    Mark(MarkArgs),
    /// Check the stacks of a live process against the objects' own unwind information
    ///
    /// At allocator calls, sampled, each stack is walked as `record` walks it, and again by
    /// framehop over a copy of the same memory; says how many agree. Exits with 0 when none
    /// contradicts, with 7 when one does. Needs what `record` needs, and Linux 5.17; nothing is recorded.
    Selftest(SelftestArgs),
    /// Say what this host can do: kernel features, capabilities, cgroups, container runtimes
    ///
    /// Exits with 0 when `record` would work here, with 1 when it would not.
    Doctor(DoctorArgs),
    /// Print the completion script for a shell
    Completions {
        /// Shell to print it for
        shell: clap_complete::Shell,
    },
    /// Print the man page (roff)
    Man,
}

#[derive(Debug, Args)]
pub struct RecordArgs {
    #[command(flatten)]
    pub target: TargetArgs,

    /// With `--pid` or a command: trace the processes that it starts, too, each with books of its own
    #[arg(long, visible_alias = "children", conflicts_with_all = ["container", "pod", "cgroup"])]
    pub follow_forks: bool,

    /// When the last process has ended, wait for the container, pod or cgroup to run again
    #[arg(long, conflicts_with_all = ["pid", "command"])]
    pub follow: bool,

    /// How long to trace, e.g. `20s`, `5m`, `1h`; until Ctrl-C or the target's exit when not given
    #[arg(short, long, value_parser = parse_duration, value_name = "TIME")]
    pub duration: Option<Duration>,

    /// Take a snapshot at once, every so often, and at the end; the default is one at the end. Growth
    /// is judged from 8 snapshots under load on
    #[arg(short, long, value_parser = parse_interval, value_name = "TIME")]
    pub interval: Option<Duration>,

    /// Listen on a socket at this path for `mark NAME`, `snapshot` and `stop`, one line each; only
    /// root and who runs memtrace can write to it. SIGUSR1 marks, too, with a number for a name
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// Name a phase: from the start, or from so long after it with `NAME@TIME`, e.g. `--mark warm-up
    /// --mark load@30s`. A snapshot is taken there, for `memtrace diff FILE@mark:warm-up FILE@mark:load`
    #[arg(long, value_name = "NAME[@TIME]", value_parser = parse_mark)]
    pub mark: Vec<PlannedMark>,

    /// Write the recording here, for `memtrace report`
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    #[command(flatten)]
    pub formats: FormatArgs,

    /// Count only blocks at least this old as outstanding, e.g. `10s`
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub min_age: Option<Duration>,

    /// Where the Go runtime's heap profile and memory statistics come from: `memory` (of the
    /// process, from outside), `http` (the target's own pprof port), `auto` (memory, where that
    /// fails http), a URL inside the target's network namespace, a profile FILE, or `off`
    #[arg(
        long,
        visible_alias = "go",
        value_name = "auto|memory|http|URL|FILE|off",
        default_value = "auto"
    )]
    pub go_profile: GoProfileSource,

    /// Show Go's heap profile as of now instead of the published one: allocations up to now, frees
    /// only up to the last sweep. Only from memory
    #[arg(long)]
    pub go_profile_current: bool,

    /// Where mmap and its kin are seen: in libc's functions, or where they enter the `kernel`, which
    /// sees system calls made without libc as well, and costs every system call of the host about
    /// 0.3 µs meanwhile. `auto`: the kernel for Go programs without libc and Go programs that
    /// map memory themselves
    #[arg(long, value_name = "auto|libc|kernel", default_value = "auto")]
    pub mmap_source: MmapSource,

    #[command(flatten)]
    pub limits: LimitArgs,

    /// Show the plan, every probe's site, and the kernel side's diagnostics on stderr
    #[arg(short, long)]
    pub verbose: bool,
}

/// Exactly one of these says what to trace; a pod's container is named by both.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct TargetArgs {
    /// A process by its id in this pid namespace
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(conflicts_with_all = ["container", "pod", "cgroup", "command"])]
    pub pid: Option<u32>,

    /// A container by name or id prefix (docker, podman, containerd, CRI-O): all of its processes,
    /// and those that come. With `--pod`, that pod's container
    #[arg(conflicts_with_all = ["cgroup", "command"])]
    #[arg(short, long, value_name = "NAME|ID", value_parser = NonEmptyStringValueParser::new())]
    pub container: Option<String>,

    /// A Kubernetes pod by UID (or its beginning), NAME or NAMESPACE/NAME: all processes of all of
    /// its containers
    #[arg(conflicts_with_all = ["cgroup", "command"])]
    #[arg(long, value_name = "UID|NAME", value_parser = NonEmptyStringValueParser::new())]
    pub pod: Option<String>,

    /// A cgroup by its path in the hierarchy (`/docker/ID`) or its directory: all of its processes
    #[arg(conflicts_with = "command")]
    #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
    pub cgroup: Option<String>,

    /// Start this command and trace it from its first allocation
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

/// What is shown, and in which files. `-` is standard output.
#[derive(Clone, Debug, Args)]
pub struct FormatArgs {
    /// Write JSON (documented in docs/json.md)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write a pprof profile, for `go tool pprof`
    #[arg(long, value_name = "FILE")]
    pub pprof: Option<PathBuf>,

    /// Merge the Go heap into the pprof profile (label `origin=go`)
    #[arg(long, requires = "pprof")]
    pub merge_go: bool,

    /// Write folded stacks (outstanding bytes), for flame graphs
    #[arg(long, value_name = "FILE")]
    pub folded: Option<PathBuf>,

    /// Write one self-contained page: memory over time, flame graph, ledger, every tool's figure
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// How many stacks the text report shows
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,

    /// Show the frames of the Go runtime and of cgo's glue, which are folded otherwise
    #[arg(long)]
    pub show_runtime_frames: bool,

    /// Colour in the text report
    #[arg(long, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub color: ColorChoice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal
    Auto,
    Always,
    Never,
}

/// Sizes of the kernel side's maps. They grow with use; these are the most they may hold.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Most live blocks (16 bytes of kernel memory each at once, 96 more while a block lives)
    #[arg(long, value_name = "N", default_value_t = 1 << 22, value_parser = clap::value_parser!(u32).range(1_000..=200_000_000))]
    pub max_blocks: u32,

    /// Most distinct stacks (32 bytes each at once, about 2.2 KiB more for each stack seen)
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(100..=4_000_000))]
    pub max_stacks: u32,

    /// Most threads with an allocator call seen (16 bytes each at once, 2.5 KiB more for each living one)
    #[arg(long, value_name = "N", default_value_t = 32_768, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    pub max_threads: u32,

    /// Most processes traced at once; of the others is said that they are not. Detaching at the end
    /// takes up to 0.1 s for each probe of each of them
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub max_processes: u32,

    /// Size of the ring for mmap events, bytes, a power of two (allocated at the start)
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = parse_ring_bytes)]
    pub ring_bytes: u32,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub target: ExplainTarget,

    /// Explain what `--save` wrote, without root and without the process
    #[arg(long, value_name = "FILE", group = "what")]
    #[arg(conflicts_with_all = ["pid", "container", "pod", "cgroup"])]
    pub from: Option<PathBuf>,

    /// Where the Go runtime's books come from: `memory` (the process's own), `http` (its pprof port,
    /// asked: that makes it allocate), `auto` (memory, then http), a URL inside its network
    /// namespace, a profile FILE, or `off`
    #[arg(
        long,
        visible_alias = "go",
        value_name = "memory|http|auto|URL|FILE|off",
        default_value = "memory",
        conflicts_with = "from"
    )]
    pub go_profile: GoProfileSource,

    /// Stop the container's processes while they are read (its cgroup's freezer): the ledger is
    /// exact then. They go on whatever happens to memtrace
    #[arg(long, conflicts_with = "from")]
    pub freeze: bool,

    /// Write JSON (documented in docs/json.md)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write what was read, for `memtrace explain --from FILE`
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    pub save: Option<PathBuf>,

    /// Show every digit, and every row however small
    #[arg(long)]
    pub bytes: bool,

    /// Colour in the text
    #[arg(long, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub color: ColorChoice,
}

/// Exactly one of these, or `--from`, says what to explain; a pod's container is named by both.
#[derive(Debug, Args)]
#[group(id = "what", required = true, multiple = true)]
pub struct ExplainTarget {
    /// A process by its id in this pid namespace, and the container (or cgroup) that it is in
    #[arg(conflicts_with_all = ["container", "pod", "cgroup"])]
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Option<u32>,

    /// A container by name or id prefix (docker, podman, containerd, CRI-O). With `--pod`, that pod's
    /// container
    #[arg(conflicts_with = "cgroup")]
    #[arg(short, long, value_name = "NAME|ID", value_parser = NonEmptyStringValueParser::new())]
    pub container: Option<String>,

    /// A Kubernetes pod by UID (or its beginning), NAME or NAMESPACE/NAME
    #[arg(conflicts_with = "cgroup")]
    #[arg(long, value_name = "UID|NAME", value_parser = NonEmptyStringValueParser::new())]
    pub pod: Option<String>,

    /// A cgroup by its path in the hierarchy (`/docker/ID`) or its directory
    #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
    pub cgroup: Option<String>,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The recording, as written by `memtrace record -o`, or the archive that `memtrace bundle` made
    pub file: PathBuf,

    #[command(flatten)]
    pub formats: FormatArgs,

    #[command(flatten)]
    pub debug: DebugArgs,
}

/// Where to find debug information that the recorder did not have.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Debug information")]
pub struct DebugArgs {
    /// Name functions, lines and inlined calls again with debug files from this directory, matched by
    /// build id: `.build-id/ab/cdef.debug`, the same under `usr/lib/debug`, or any ELF file in it
    #[arg(long, value_name = "DIR")]
    pub debug_dir: Vec<PathBuf>,

    /// The same from this debuginfod server, or with `env` from those of `DEBUGINFOD_URLS`. Without
    /// this option nothing is asked over a network
    #[arg(long, value_name = "URL|env", value_parser = NonEmptyStringValueParser::new())]
    pub debuginfod: Vec<String>,

    /// How long a debuginfod server may take for one file
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = parse_timeout)]
    pub debuginfod_timeout: Duration,
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The earlier snapshot
    #[arg(value_name = "FILE[@WHERE]")]
    pub before: String,

    /// The later snapshot
    #[arg(value_name = "FILE[@WHERE]")]
    pub after: String,

    /// Requests served between the two: growth is told per request, too
    #[arg(long, value_name = "N", conflicts_with_all = ["requests_before", "requests_after"])]
    pub requests: Option<u64>,

    /// Requests served from the attach to the earlier snapshot, of two recordings
    #[arg(long, value_name = "N", requires = "requests_after")]
    pub requests_before: Option<u64>,

    /// Requests served from the attach to the later snapshot, of two recordings
    #[arg(long, value_name = "N", requires = "requests_before")]
    pub requests_after: Option<u64>,

    /// Match stacks by function and file alone: lines move from one build to the next
    #[arg(long)]
    pub ignore_lines: bool,

    /// Write JSON (documented in docs/json.md)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write a pprof profile of the difference, as `go tool pprof -diff_base` makes it
    #[arg(long, value_name = "FILE")]
    pub pprof: Option<PathBuf>,

    /// How many stacks of each kind the text shows
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,

    /// Show the frames of the Go runtime and of cgo's glue, which are folded otherwise
    #[arg(long)]
    pub show_runtime_frames: bool,

    /// Colour in the text
    #[arg(long, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub color: ColorChoice,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("limit").required(true).multiple(true)
    .args(["max_native_growth", "max_outstanding", "no_leak_candidates", "baseline"])))]
pub struct CheckArgs {
    /// The recording, as written by `memtrace record --interval TIME -o`
    pub file: PathBuf,

    /// Most growth of all native blocks together under load, e.g. `10MiB/h`, `1KiB/s`
    #[arg(long, value_name = "BYTES/TIME", value_parser = parse_rate)]
    pub max_native_growth: Option<f64>,

    /// Most native bytes not freed at the end, e.g. `64MiB`
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_outstanding: Option<u64>,

    /// No call whose blocks outlive the load in every interval
    #[arg(long)]
    pub no_leak_candidates: bool,

    /// No leak candidate that this recording does not have, and none that grows more than 1.5 times
    /// as fast as there
    #[arg(long, value_name = "OLD")]
    pub baseline: Option<PathBuf>,

    /// Leave out stacks that match a line `leak:PATTERN` of this file (LeakSanitizer's format)
    #[arg(long, value_name = "FILE")]
    pub suppressions: Vec<PathBuf>,

    /// Write JSON (documented in docs/json.md)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write JUnit XML, one test case for each limit
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,

    /// Colour in the text
    #[arg(long, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub color: ColorChoice,
}

#[derive(Debug, Args)]
pub struct BundleArgs {
    /// The recording, as written by `memtrace record -o`
    pub file: PathBuf,

    /// Where the archive goes
    #[arg(short, long, value_name = "FILE", default_value = "memtrace-bundle.tar.zst")]
    pub output: PathBuf,

    /// Leave out directories, arguments, and the names of processes, containers, images and cgroups
    #[arg(long)]
    pub redact: bool,

    /// Leave out the names of functions and source files, too
    #[arg(long)]
    pub redact_functions: bool,

    #[command(flatten)]
    pub debug: DebugArgs,
}

#[derive(Debug, Args)]
pub struct MarkArgs {
    /// The socket, as given to `memtrace record --control`
    #[arg(long, value_name = "PATH")]
    pub control: PathBuf,

    /// What to call the phase, e.g. `warm-up`, `load`, `idle`
    #[arg(value_parser = crate::session::check_mark_name)]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct SelftestArgs {
    #[command(flatten)]
    pub target: TargetArgs,

    /// How many stacks to compare
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub stacks: u64,

    /// End after this time at the latest
    #[arg(short, long, value_parser = parse_duration, value_name = "TIME", default_value = "60s")]
    pub duration: Duration,

    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// `20s`, `1500ms`, `5m`, `1h`, or a bare number of seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let seconds_per_unit = match unit {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        _ => return Err(format!("unknown unit `{unit}`: use ms, s, m or h, as in `20s`")),
    };
    let number: f64 = number.parse().map_err(|_| "needs a number, as in `20s`".to_string())?;
    Duration::try_from_secs_f64(number * seconds_per_unit)
        .map_err(|_| "is too long for a duration".to_string())
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("must be longer than 0".to_owned()),
        timeout => Ok(timeout),
    }
}

/// A phase that is named before it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedMark {
    pub name: String,
    /// Since the probes were armed.
    pub after: Duration,
}

/// `warm-up`, `load@30s`.
fn parse_mark(text: &str) -> Result<PlannedMark, String> {
    let (name, after) = match text.rsplit_once('@') {
        Some((name, after)) => (name, parse_duration(after)?),
        None => (text, Duration::ZERO),
    };
    Ok(PlannedMark { name: crate::session::check_mark_name(name)?, after })
}

/// Shorter than this, snapshots would be most of the work.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval < SHORTEST_INTERVAL {
        return Err(format!("must be at least {} ms", SHORTEST_INTERVAL.as_millis()));
    }
    Ok(interval)
}

/// `64MiB`, `10M`, `1.5GiB`, or a bare number of bytes; `K`, `M` and `G` are binary, too.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let scale = match unit {
        "" | "B" => 1u64,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        _ => return Err(format!("unknown unit `{unit}`: use KiB, MiB or GiB, as in `64MiB`")),
    };
    let number: f64 = number.parse().map_err(|_| "needs a number, as in `64MiB`".to_string())?;
    let bytes = number * scale as f64;
    if bytes > 1e18 {
        return Err("is more than any machine has".to_string());
    }
    Ok(bytes as u64)
}

/// `10MiB/h`, `1KiB/s`: bytes per second.
fn parse_rate(text: &str) -> Result<f64, String> {
    let Some((bytes, time)) = text.split_once('/') else {
        return Err("needs a time, as in `10MiB/h`".to_string());
    };
    let seconds = match time {
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(format!("unknown time `{time}`: use s, m, h or d, as in `10MiB/h`")),
    };
    Ok(parse_bytes(bytes)? as f64 / seconds)
}

fn parse_ring_bytes(text: &str) -> Result<u32, String> {
    let bytes: u32 = text.parse().map_err(|_| "needs a number of bytes".to_string())?;
    if !bytes.is_power_of_two() || !(65_536..=(1 << 30)).contains(&bytes) {
        return Err("must be a power of two from 65536 to 1073741824".to_string());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("20s"), Ok(Duration::from_secs(20)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "s", "5x", "-1s", "1e300h", "99999999999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_bytes_by_a_time() {
        assert_eq!(parse_rate("10MiB/h"), Ok(10.0 * 1_048_576.0 / 3_600.0));
        assert_eq!(parse_rate("1K/s"), Ok(1024.0));
        assert_eq!(parse_bytes("1.5GiB"), Ok(3 << 29));
        for bad in ["10MiB", "10MiB/y", "x/h", "10XiB/h", "1e9/h"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mark_is_a_name_and_perhaps_a_time() {
        let mark = |name: &str, seconds| {
            Ok(PlannedMark { name: name.to_owned(), after: Duration::from_secs(seconds) })
        };
        assert_eq!(parse_mark("warm-up"), mark("warm-up", 0));
        assert_eq!(parse_mark("load@2m"), mark("load", 120));
        for bad in ["", "@30s", "load@", "load@soon", "a\u{1b}b", &"x".repeat(65)] {
            assert!(parse_mark(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_check_needs_something_to_check() {
        assert!(Cli::try_parse_from(["memtrace", "check", "x"]).is_err());
        assert!(Cli::try_parse_from(["memtrace", "check", "x", "--no-leak-candidates"]).is_ok());
    }

    #[test]
    fn exactly_one_target_is_needed() {
        assert!(Cli::try_parse_from(["memtrace", "record"]).is_err());
        assert!(
            Cli::try_parse_from(["memtrace", "record", "--pid", "1", "--container", "x"]).is_err()
        );
        assert!(Cli::try_parse_from(["memtrace", "record", "--", "ls", "-l"]).is_ok());
        let targets = [["--pid", "1"], ["--container", "x"], ["--pod", "x"], ["--cgroup", "/x"]];
        for verb in ["record", "explain"] {
            for (at, one) in targets.iter().enumerate() {
                let parse = |more: &[&str]| {
                    Cli::try_parse_from([&["memtrace", verb], &one[..], more].concat()).is_ok()
                };
                assert!(parse(&[]), "{verb} {one:?}");
                let more: &[&str] = if verb == "record" { &["--", "ls"] } else { &["--from", "f"] };
                assert!(!parse(more), "{verb} {one:?} {more:?}");
                for other in &targets[at + 1..] {
                    // A container of a pod.
                    let both = (one[0], other[0]) == ("--container", "--pod");
                    assert_eq!(parse(other), both, "{verb} {one:?} {other:?}");
                }
            }
        }
    }
}
