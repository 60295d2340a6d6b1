//! Files with debug information for a recording that was made elsewhere: matched by build id and by
//! nothing else.
//!
//! What a recording says is hostile: a build id is hexadecimal digits or it is not looked for, so
//! that it makes no other path and no other address. What is found is hostile, too: it must be a
//! regular ELF file, carry the same build id and hold symbols, or it is refused, with the reason.
//! No network is asked unless a server was named.

mod directory;
mod server;

use std::fs::File;
use std::time::Duration;

use crate::stacks::elf::{Elf, FileSource, SHT_SYMTAB};
pub use directory::Directory;
pub use server::{Server, ServerError};

/// Shortest and longest build id in hexadecimal digits: 4 to 64 bytes.
const DIGITS: std::ops::RangeInclusive<usize> = 8..=128;

/// How much may be read in search of one recording's files.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// One download.
    pub file_bytes: u64,
    /// All downloads together.
    pub total_bytes: u64,
    /// One request, from the look-up of the name to the last byte.
    pub request: Duration,
    /// Most files of a directory that are looked at for their build ids.
    pub files: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes: 1 << 30,
            total_bytes: 4 << 30,
            request: Duration::from_secs(90),
            files: 50_000,
        }
    }
}

/// Lower-case hexadecimal digits of bounded number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BuildId(String);

impl BuildId {
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (DIGITS.contains(&text.len()) && text.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `abcdef` → `ab`, `cdef`.
    fn parted(&self) -> (&str, &str) {
        self.0.split_at(2)
    }
}

/// What a file can name addresses with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    /// Symbols alone: functions without lines.
    Symbols,
    /// DWARF: functions, lines, inlined calls.
    DebugInfo,
}

/// A file that belongs to the object.
#[derive(Debug)]
pub struct Found {
    pub file: File,
    /// Its path, or its address.
    pub from: String,
    pub holds: Holds,
}

/// What was looked at and not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub from: String,
    pub why: String,
}

/// Where to look, in this order.
#[derive(Debug, Default)]
pub struct Finder {
    pub directories: Vec<Directory>,
    pub servers: Vec<Server>,
}

/// The outcome of one search.
#[derive(Debug, Default)]
pub struct Search {
    pub found: Option<Found>,
    pub refused: Vec<Refused>,
}

impl Search {
    /// Keeps a file that fits, the one with debug information before one without.
    fn offer(&mut self, file: File, from: String, wanted: &BuildId) {
        match judge(&file, wanted) {
            Ok(holds) if self.found.as_ref().is_none_or(|found| found.holds < holds) => {
                self.found = Some(Found { file, from, holds });
            }
            Ok(_) => {}
            Err(why) => self.refuse(from, why),
        }
    }

    fn refuse(&mut self, from: String, why: impl Into<String>) {
        self.refused.push(Refused { from, why: why.into() });
    }

    fn is_done(&self) -> bool {
        self.found.as_ref().is_some_and(|found| found.holds == Holds::DebugInfo)
    }
}

impl Finder {
    pub fn is_empty(&self) -> bool {
        self.directories.is_empty() && self.servers.is_empty()
    }

    /// Looks for the file of a build id; `path` is what the object was called.
    pub fn find(&mut self, wanted: &BuildId, path: &str) -> Search {
        let mut search = Search::default();
        for directory in &mut self.directories {
            directory.look(wanted, path, &mut search);
            if search.is_done() {
                return search;
            }
        }
        for server in &mut self.servers {
            server.ask(wanted, &mut search);
            if search.is_done() {
                return search;
            }
        }
        search
    }
}

/// Whether a file belongs to the build id and names anything; else why not.
fn judge(file: &File, wanted: &BuildId) -> Result<Holds, String> {
    let source = FileSource::new(file).map_err(|error| error.to_string())?;
    let elf = Elf::parse(&source).map_err(|error| error.to_string())?;
    match elf.build_id() {
        Some(id) if id == wanted.as_str() => {}
        Some(id) => {
            let shown: String = id.chars().take(*DIGITS.end()).collect();
            return Err(format!("it has the build id {shown}"));
        }
        None => return Err("it has no build id".to_owned()),
    }
    let has = |name: &str| elf.section(name).is_some_and(|section| section.has_bytes());
    if has(".debug_info") {
        return Ok(Holds::DebugInfo);
    }
    let has_symbols = elf.sections.iter().any(|it| it.kind == SHT_SYMTAB && it.has_bytes());
    match has_symbols {
        true => Ok(Holds::Symbols),
        false => Err("it has the build id, but neither debug information nor symbols".to_owned()),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
