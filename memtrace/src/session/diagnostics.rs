//! Diagnostics of memtrace itself, and of its kernel side, to standard error.
//!
//! Warnings always, everything with `--verbose`. Other crates' messages stay out.

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::say::say;
use crate::report::visible;

/// The kernel side logs under `memtrace_ebpf`.
const OURS: &str = "memtrace";

struct StandardError;

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_ours(metadata.target()) && metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            say(line(record));
        }
    }

    fn flush(&self) {}
}

fn is_ours(target: &str) -> bool {
    target.split("::").next().is_some_and(|first| first == OURS || first == "memtrace_ebpf")
}

fn line(record: &Record<'_>) -> String {
    let source = match record.target().starts_with("memtrace_ebpf") {
        true => "memtrace (kernel side)",
        false => OURS,
    };
    let level = match record.level() {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info | Level::Debug | Level::Trace => "",
    };
    format!("{source}: {level}{}", visible(&record.args().to_string()))
}

/// Once, before the first stage. A program that has its own logger keeps it.
pub fn install(verbose: bool) {
    if log::set_logger(&StandardError).is_ok() {
        log::set_max_level(if verbose { LevelFilter::Trace } else { LevelFilter::Warn });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(target: &str, level: Level, text: &str) -> String {
        line(&Record::builder().target(target).level(level).args(format_args!("{text}")).build())
    }

    #[test]
    fn only_our_own_messages_are_told() {
        for (target, ours) in [
            ("memtrace::kernel::load", true),
            ("memtrace_ebpf", true),
            ("memtrace_ebpf::tasks", true),
            ("aya::bpf", false),
            ("memtracer", false),
        ] {
            assert_eq!(is_ours(target), ours, "{target}");
        }
    }

    #[test]
    fn a_message_says_which_side_speaks_and_nothing_a_terminal_acts_on() {
        assert_eq!(
            told("memtrace_ebpf::tasks", Level::Info, "process 7 runs\u{1b}[2J"),
            "memtrace (kernel side): process 7 runs\\u{1b}[2J"
        );
        assert_eq!(told("memtrace", Level::Warn, "slow"), "memtrace: warning: slow");
    }
}
