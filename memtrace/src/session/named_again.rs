//! `--debug-dir` and `--debuginfod`: names looked up again, for `report` and `bundle`.

use anyhow::{Context, Result, bail};

use super::say::{say, warn};
use crate::cli::DebugArgs;
use crate::debuginfo::{Directory, Finder, Limits, Server};
use crate::report::named_again::{lines, summary};
use crate::snapshot::Recording;
use crate::stacks::again::{NamedAgain, name_again};

/// Where debuginfod's own tools read their servers from, separated by spaces.
const SERVERS: &str = "DEBUGINFOD_URLS";

/// Where the command line says to look. Nothing is read and nobody is asked yet.
pub fn finder(args: &DebugArgs) -> Result<Finder> {
    let limits = Limits { request: args.debuginfod_timeout, ..Limits::default() };
    let mut finder = Finder::default();
    for path in &args.debug_dir {
        // A mistyped directory is not one that has nothing.
        std::fs::read_dir(path).with_context(|| {
            format!("failed to read the directory `{}` of --debug-dir", path.display())
        })?;
        finder.directories.push(Directory::new(path.clone(), limits));
    }
    for url in &args.debuginfod {
        if url != "env" {
            finder.servers.push(Server::new(url, limits)?);
            continue;
        }
        let named = std::env::var(SERVERS).unwrap_or_default();
        let mut urls = named.split_whitespace().peekable();
        if urls.peek().is_none() {
            bail!("`--debuginfod env` asks the servers of {SERVERS}, which names none: set it");
        }
        for url in urls {
            // elfutils' way to name certificates.
            match url.starts_with("ima:") {
                true => warn(format_args!("`{url}` of {SERVERS} is no address of a server")),
                false => finder.servers.push(Server::new(url, limits)?),
            }
        }
    }
    Ok(finder)
}

/// Looks the names up where that was asked for, and says what became of it.
pub fn name(recording: &mut Recording, finder: &mut Finder) -> Option<NamedAgain> {
    if finder.is_empty() {
        return None;
    }
    let again = name_again(recording, finder);
    say(format_args!("{}", summary(&again)));
    for line in lines(&again) {
        say(format_args!("  {line}"));
    }
    Some(again)
}
