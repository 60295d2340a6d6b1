//! Parse, call, print the error chain, exit code; nothing else.

use std::process::ExitCode;

use clap::Parser;
use memtrace::cli::Cli;

fn main() -> ExitCode {
    match memtrace::session::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            memtrace::session::warn(format_args!("{error:#}"));
            memtrace::session::exit_code(&error)
        }
    }
}
