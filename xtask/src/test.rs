//! All tests, pure and live, from a clean clone.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{daemon, go, interrupt, paths, setup, shell};

pub fn run(arguments: &[String]) -> Result<()> {
    shell::require_root("test")?;
    interrupt::watch()?;
    setup::tests()?;
    let _daemon = daemon::ensure()?;

    shell::step("building memtrace and the tests");
    shell::run(Command::new(paths::cargo()).args(["build", "--workspace"]))?;
    shell::run(Command::new(paths::cargo()).args(["test", "--workspace", "--no-run"]))?;

    shell::step("running all tests; the live ones take some minutes");
    let mut command = Command::new(paths::cargo());
    command.args(["test", "--workspace"]);
    let own = arguments.iter().position(|argument| argument == "--");
    let (ours, theirs) = arguments.split_at(own.unwrap_or(arguments.len()));
    command.arg("--no-fail-fast").args(ours).args(theirs);
    // The live tests wait for the kernel most of the time, and limit themselves.
    command.env("RUST_TEST_THREADS", "4");
    command.env("MEMTRACE_BIN", paths::target().join("debug/memtrace"));
    let mut results = Results::default();
    results.run(&mut command)?;
    if arguments.is_empty() {
        shell::step("running the library's tests that need root and the Go toolchain");
        let mut command = Command::new(paths::cargo());
        command.args(["test", "--package", "memtrace", "--lib", "--", "--ignored"]);
        results.run(command.env("MEMTRACE_GO", go::go()))?;
    }
    println!();
    println!("{} passed, {} failed", results.passed, results.failed);
    for name in &results.failures {
        println!("failed: {name}");
    }
    if results.broken > 0 || results.failed > 0 {
        bail!("{} tests failed; {} runs of cargo test did", results.failed, results.broken);
    }
    if results.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// Sums over the result lines of all test binaries.
#[derive(Default, Debug, PartialEq, Eq)]
struct Results {
    passed: u64,
    failed: u64,
    failures: Vec<String>,
    /// Runs of `cargo test` that did not end well.
    broken: u64,
}

impl Results {
    fn run(&mut self, command: &mut Command) -> Result<()> {
        let status = shell::run_lines(command, |line| {
            println!("{line}");
            self.read(line);
        })?;
        self.broken += u64::from(!status.success());
        Ok(())
    }

    fn read(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... FAILED")) {
            self.failures.push(name.to_owned());
        }
        // `test result: ok. 5 passed; 0 failed; 0 ignored; …`
        let Some(counts) = line.strip_prefix("test result: ") else { return };
        for part in counts.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next())
            else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_binaries_are_summed() {
        let mut results = Results::default();
        results.read("test a::b ... ok");
        results.read("test a::c ... FAILED");
        results.read("test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.01s");
        results.read("test result: ok. 7 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.01s");
        let failures = vec!["a::c".to_owned()];
        assert_eq!(results, Results { passed: 12, failed: 1, failures, broken: 0 });
    }
}
