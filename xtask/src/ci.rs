//! Everything that has to hold before a merge. The tests come last, so that their result lines
//! stand at the end of the output.

use std::process::Command;

use anyhow::Result;

use crate::{bpf, demo, interrupt, licenses, paths, setup, shell, test, vm};

pub fn run() -> Result<()> {
    shell::require_root("ci")?;
    interrupt::watch()?;

    shell::step("format");
    shell::run(Command::new(paths::cargo()).args(["fmt", "--all", "--check"]))?;
    shell::step("lints");
    shell::run(Command::new(paths::cargo()).args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    shell::step("licences");
    licenses::check()?;

    shell::step("the committed BPF object is the one of the sources");
    bpf::run(true)?;
    shell::step("the BPF object from source, for the live tests");
    setup::bpf()?;
    bpf::run(false)?;

    shell::step("other kernels, in emulated machines");
    vm::short()?;
    demo::run(&demo::Options { duration: 14, no_docker: false })?;
    test::run(&[])
}
