//! Where things lie: the workspace, `target/`, and the tools that setup puts there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}

/// Programs that setup installed for this workspace alone.
pub fn tools() -> PathBuf {
    target().join("tools/bin")
}

/// The cargo that runs this xtask.
pub fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or("cargo".into())
}

/// Puts our own tools, and the directories of administrators' commands, on the PATH.
pub fn prefer_own_tools() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::iter::once(tools())
        .chain(std::env::split_paths(&path))
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    if let Ok(path) = std::env::join_paths(directories) {
        // SAFETY: called first in `main`, before any other thread exists.
        unsafe { std::env::set_var("PATH", path) };
    }
}

/// What cargo told this xtask of its own package is not for the cargo that it runs: build scripts
/// that look at it would take themselves for stale after each plain `cargo build`, and the other way.
pub fn forget_own_package() {
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if told.starts_with("CARGO_PKG_") || told.starts_with("CARGO_MANIFEST_") {
            // SAFETY: called in `main`, before any other thread exists.
            unsafe { std::env::remove_var(name) };
        }
    }
}

/// The file that a command's name means, by PATH.
pub fn which(command: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(command)).find(|p| p.is_file())
}
