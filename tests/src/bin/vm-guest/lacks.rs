//! A kernel without what memtrace needs: every way in ends with the exit code for that, and says
//! what is missing and what to try.

use anyhow::{Result, ensure};
use memtrace_tests::compile;
use memtrace_tests::memtrace::{self, exit_code};
use memtrace_tests::program::Program;

use crate::{cases, event};

/// What Linux 5.10 lacks of what `record` requires.
const MISSING: [&str; 1] = ["attach cookie"];
/// What the user is told to look at or for.
const ADVICE: [&str; 2] = ["memtrace doctor", "5.15"];

pub fn all() {
    event::check("doctor says no", doctor);
    event::check("record --pid ends with 6", by_pid);
    event::check("record -- COMMAND ends with 6", by_command);
}

fn doctor() -> Result<()> {
    let output = memtrace::run(&["doctor"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    event::text("doctor", &text);
    ensure!(output.status.code() == Some(exit_code::FAILED), "doctor ended with {}", output.status);
    for feature in MISSING {
        ensure!(text.contains(feature), "doctor does not name `{feature}`:\n{text}");
    }
    Ok(())
}

/// The process lives on, and was never stopped.
fn by_pid() -> Result<()> {
    let (name, kind) = cases::MALLOC;
    let mut program = Program::start(&compile::program(name, kind)?, &[] as &[&str], &[])?;
    refused(&["record", "--pid", &program.pid().to_string(), "--duration", "1s"])?;
    program.go()?;
    program.truth(std::time::Duration::from_secs(60))?;
    program.finish()
}

fn by_command() -> Result<()> {
    let (name, kind) = cases::MALLOC;
    let path = compile::program(name, kind)?;
    refused(&["record", "--duration", "1s", "--", &path.to_string_lossy()])
}

fn refused(arguments: &[&str]) -> Result<()> {
    let output = memtrace::run(arguments)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    event::text(&format!("memtrace {}", arguments[..2].join(" ")), &stderr);
    ensure!(
        output.status.code() == Some(exit_code::KERNEL_LACKS),
        "memtrace ended with {}:\n{stderr}",
        output.status
    );
    for word in MISSING.iter().chain(&ADVICE) {
        ensure!(stderr.contains(word), "the message does not say `{word}`:\n{stderr}");
    }
    Ok(())
}
