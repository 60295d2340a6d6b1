//! The service's image from nothing: its binary and the libraries that it needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

/// A root directory with `/notes` and what `ldd` says that it needs.
pub fn root(directory: &Path, service: &Path) -> Result<PathBuf> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("remove the old `{}`", directory.display()))?;
    }
    for empty in ["tmp", "proc", "etc"] {
        fs::create_dir_all(directory.join(empty))
            .with_context(|| format!("create `{}`", directory.join(empty).display()))?;
    }
    copy(service, &directory.join("notes"))?;
    let needed = shell::ask(Command::new("ldd").arg(service))?;
    for library in needed.lines().filter_map(|l| l.split_whitespace().find(|w| w.starts_with('/')))
    {
        copy(Path::new(library), &directory.join(library.trim_start_matches('/')))?;
    }
    Ok(directory.to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create `{}`", parent.display()))?;
    }
    fs::copy(from, to)
        .with_context(|| format!("copy `{}` to `{}`", from.display(), to.display()))?;
    Ok(())
}
