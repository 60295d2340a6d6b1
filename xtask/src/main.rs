//! One command per wish. Every step prints the command it runs; every verb is safe to repeat.

mod bench;
mod bpf;
mod ci;
mod daemon;
mod demo;
mod go;
mod go_layouts;
mod interrupt;
mod licenses;
mod paths;
mod setup;
mod shell;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "One command per wish", disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Installs what building, testing and the demo need, and says so first
    Setup {
        /// Only what the demo needs
        #[arg(long)]
        demo: bool,
    },
    /// Traces a Go service in a container and shows its planted leaks
    Demo(demo::Options),
    /// Runs all tests, pure and live (as root)
    Test {
        /// Passed on to `cargo test`, e.g. `--test live_conformance realloc`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Everything that has to hold before a merge: format, lints, licences, BPF object, demo, tests
    Ci,
    /// Rebuilds the BPF object from source
    Bpf {
        /// Only checks that the committed object matches the sources
        #[arg(long)]
        check: bool,
    },
    /// Generates the offsets within the Go runtime's structs from debug information
    GoLayouts(go_layouts::Options),
    /// Measures what tracing costs per call, against untraced, empty probes and heaptrack
    Bench(bench::Options),
    /// Runs memtrace on other kernels, in emulated machines
    Vm(vm::Options),
    /// Becomes the first process of the demo's plain container
    #[command(hide = true)]
    Contain(demo::plain::Contain),
}

fn main() -> ExitCode {
    paths::prefer_own_tools();
    paths::forget_own_package();
    let result = match Arguments::parse().verb {
        Verb::Setup { demo } => setup::run(demo),
        Verb::Demo(options) => demo::run(&options),
        Verb::Test { arguments } => test::run(&arguments),
        Verb::Ci => ci::run(),
        Verb::Bpf { check } => bpf::run(check),
        Verb::GoLayouts(options) => go_layouts::run(&options),
        Verb::Bench(options) => bench::run(&options),
        Verb::Vm(options) => match vm::run(&options) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Verb::Contain(contain) => contain.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
