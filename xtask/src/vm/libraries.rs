//! The shared libraries that a program of this machine needs: asked of the loader that it names
//! itself, so that glibc and musl are the same here.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

/// The loader and every library, by the paths at which the program will look for them. Empty for
/// a static program.
pub fn of(program: &Path) -> Result<Vec<PathBuf>> {
    let headers =
        shell::ask(Command::new("readelf").args(["--wide", "--program-headers"]).arg(program))?;
    let Some(loader) = interpreter(&headers) else { return Ok(Vec::new()) };
    let list = shell::ask(Command::new(loader).arg("--list").arg(program))
        .with_context(|| format!("ask for the libraries of `{}`", program.display()))?;
    let mut paths = vec![PathBuf::from(loader)];
    paths.extend(listed(&list).map(PathBuf::from).filter(|path| path != Path::new(loader)));
    Ok(paths)
}

/// `      [Requesting program interpreter: /lib64/ld-linux-x86-64.so.2]`
fn interpreter(headers: &str) -> Option<&str> {
    let (_, rest) = headers.split_once("[Requesting program interpreter: ")?;
    rest.split(']').next()
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)` → the path; the vDSO has none.
fn listed(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| {
        let place = line.split_once(" => ").map_or(line, |(_, place)| place).trim();
        let path = place.rsplit_once(" (").map_or(place, |(path, _)| path);
        path.starts_with('/').then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_list_is_read() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd2c5f2000)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f3f0c000000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f3f0c4d9000)\n";
        let paths: Vec<&str> = listed(list).collect();
        assert_eq!(paths, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn the_loader_is_the_one_that_the_program_names() {
        let headers = "  INTERP         0x000318\n      \
                       [Requesting program interpreter: /lib/ld-musl-x86_64.so.1]\n  LOAD\n";
        assert_eq!(interpreter(headers), Some("/lib/ld-musl-x86_64.so.1"));
        assert_eq!(interpreter("  LOAD           0x000000\n"), None);
    }

    #[test]
    fn this_very_program_needs_its_libc() {
        let own = std::env::current_exe().unwrap();
        let paths = of(&own).unwrap();
        assert!(paths.iter().any(|path| path.to_string_lossy().contains("libc.so")), "{paths:?}");
    }
}
