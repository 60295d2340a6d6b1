//! The order of the stages: the only caller of everything.

mod outputs;
mod progress;
mod record;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::cli::{Cli, Command, DoctorArgs, ReportArgs};
use crate::snapshot::file::{Completeness, read_recording};
use outputs::Outputs;

/// Runs one command line to its end.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Record(args) => runtime()?.block_on(record::run(args)),
        Command::Report(args) => report(&args),
        Command::Doctor(args) => doctor(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "memtrace", &mut script);
            to_stdout(&script)
        }
        Command::Man => to_stdout(&man_pages()?),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the event loop")
}

fn report(args: &ReportArgs) -> Result<ExitCode> {
    let mut outputs = Outputs::open(&args.formats, &[])?;
    let (recording, completeness) = read_recording(&args.file)
        .with_context(|| format!("failed to read the recording `{}`", args.file.display()))?;
    if let Completeness::Torn { reason } = &completeness {
        eprintln!(
            "memtrace: `{}` is cut: {reason}; showing its {} complete snapshots",
            args.file.display(),
            recording.snapshots.len()
        );
    }
    outputs.render(&recording, &args.formats)?;
    Ok(ExitCode::SUCCESS)
}

/// The main page and one section per subcommand, as one roff text.
fn man_pages() -> Result<Vec<u8>> {
    let mut roff = Vec::new();
    let mut command = Cli::command();
    command.build();
    clap_mangen::Man::new(command.clone()).render(&mut roff)?;
    for subcommand in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let name: &'static str = format!("memtrace-{}", subcommand.get_name()).leak();
        clap_mangen::Man::new(subcommand.clone().name(name)).render(&mut roff)?;
    }
    Ok(roff)
}

/// A reader that went away (`| head`) is no error.
fn to_stdout(bytes: &[u8]) -> Result<ExitCode> {
    match io::stdout().write_all(bytes) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("failed to write to standard output")
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
