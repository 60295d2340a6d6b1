//! The Go runtime's own books: its heap profile and its memory statistics, from the process's
//! memory, over HTTP or from a file.
//!
//! Whatever a tracee holds or serves is hostile: bounded in time and size, checked before it is
//! believed. What cannot be read is `Unknown` with what was tried. Reading memory costs the tracee
//! nothing, HTTP one request.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::snapshot::{GoBooks, GoProfile, Known};
use crate::tracee::MappedFile;

pub mod debug1;
pub mod http;
pub mod memory;
pub mod profile;
pub mod profile_proto;

use http::{Endpoint, Fetcher};
use memory::{MemoryError, MemoryReader};
use profile::{Limits, ProfileError};

/// Where to look for the Go heap: the argument of `--go-profile`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GoProfileSource {
    Off,
    /// From memory; where that fails, from the target's own pprof port.
    Auto,
    /// From the process's memory only.
    Memory,
    /// Ask each port that the process listens on for `/debug/pprof/heap?debug=1`.
    Http,
    /// As seen from inside the target's network namespace.
    Url(Endpoint),
    /// A profile as `/debug/pprof/heap` gives it, or its `?debug=1` text.
    File(PathBuf),
}

impl FromStr for GoProfileSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            "memory" => Ok(Self::Memory),
            "http" => Ok(Self::Http),
            "" => Err("expected `auto`, `memory`, `http`, `off`, a URL or a file".to_owned()),
            _ if text.contains("://") => text.parse().map(Self::Url),
            _ => Ok(Self::File(PathBuf::from(text))),
        }
    }
}

/// The most ports that `auto` asks.
const MOST_PORTS: usize = 32;
/// For reading memory: what a process does to its books must not hold up a snapshot for longer.
const MEMORY_DEADLINE: Duration = Duration::from_secs(10);
/// For all ports together, so that a snapshot is never held up for longer.
const AUTO_DEADLINE: Duration = Duration::from_secs(10);
/// For reading a file: it may be a pipe that nobody writes to.
const FILE_DEADLINE: Duration = Duration::from_secs(10);

/// Opens the network namespace of a process; `None` where it is the caller's own. Errors name the
/// file: reading it takes the right to ptrace the process, entering it `CAP_SYS_ADMIN`.
pub fn open_network_namespace(pid: u32) -> Result<Option<Arc<File>>, String> {
    use std::os::unix::fs::MetadataExt;
    let open = |path: &str| {
        let file = File::open(path).map_err(|error| format!("failed to open `{path}`: {error}"))?;
        let metadata =
            file.metadata().map_err(|error| format!("failed to stat `{path}`: {error}"))?;
        Ok::<_, String>((file, (metadata.dev(), metadata.ino())))
    };
    let (theirs, their_id) = open(&format!("/proc/{pid}/ns/net"))?;
    let (_, own_id) = open("/proc/thread-self/ns/net")?;
    Ok((their_id != own_id).then(|| Arc::new(theirs)))
}

/// Reads the Go books of one process, again and again.
#[derive(Debug)]
pub struct GoReader {
    source: GoProfileSource,
    fetcher: Fetcher,
    limits: Limits,
    /// What asking the ports found; asked first from then on.
    found: Option<Endpoint>,
    memory: FromMemory,
}

#[derive(Debug)]
enum FromMemory {
    /// Not to be tried.
    No,
    Reader(Box<MemoryReader>),
    /// It cannot be read, now or ever.
    Failed(String),
}

/// What reading memory gave.
enum Outcome {
    Books(Box<GoBooks>),
    /// There is nothing to read: no other source has anything, either.
    NotGo(String),
    Failed(String),
}

impl GoReader {
    /// `network_namespace`: as [`open_network_namespace`] gives it. Reads no memory: see
    /// [`Self::with_memory`].
    pub fn new(source: GoProfileSource, network_namespace: Option<Arc<File>>) -> Self {
        let fetcher = Fetcher::new(network_namespace);
        let memory = FromMemory::No;
        Self { source, fetcher, limits: Limits::default(), found: None, memory }
    }

    /// Where the source asks for it, reads the memory of this process.
    pub fn with_memory(mut self, pid: u32, profile: GoProfile) -> Self {
        if matches!(self.source, GoProfileSource::Auto | GoProfileSource::Memory) {
            let options = memory::Options { profile, ..memory::Options::default() };
            self.memory = match MemoryReader::open(pid, options) {
                Ok(reader) => FromMemory::Reader(Box::new(reader)),
                Err(error) => FromMemory::Failed(error.to_string()),
            };
        }
        self
    }

    /// One reading. `files` are what the process has mapped; `listening_ports` is asked only for
    /// `http`, and for `auto` where memory cannot be read, and only until one answered.
    pub async fn read(
        &mut self,
        files: &[MappedFile],
        listening_ports: impl FnOnce() -> Vec<(IpAddr, u16)>,
    ) -> Known<GoBooks> {
        match &self.source {
            GoProfileSource::Off => Known::unknown("not asked for (--go-profile off)"),
            GoProfileSource::File(path) => known(read_file(path.clone(), self.limits).await),
            GoProfileSource::Url(endpoint) => {
                known(self.fetch(endpoint).await.map_err(|why| format!("{endpoint}: {why}")))
            }
            GoProfileSource::Http => known(self.ask_ports(listening_ports).await),
            GoProfileSource::Memory => match self.read_memory(files).await {
                Some(Outcome::Books(books)) => Known::Value(*books),
                Some(Outcome::NotGo(why) | Outcome::Failed(why)) => Known::unknown(why),
                None => Known::unknown("there is no process whose memory could be read"),
            },
            GoProfileSource::Auto => self.read_what_there_is(files, listening_ports).await,
        }
    }

    /// Memory, then the ports; each degradation with its reason.
    async fn read_what_there_is(
        &mut self,
        files: &[MappedFile],
        listening_ports: impl FnOnce() -> Vec<(IpAddr, u16)>,
    ) -> Known<GoBooks> {
        let (statistics, why) = match self.read_memory(files).await {
            None => (None, None),
            Some(Outcome::NotGo(why)) => return Known::unknown(why),
            Some(Outcome::Failed(why)) => (None, Some(format!("memory: {why}"))),
            Some(Outcome::Books(books)) => match &books.no_profile {
                Some(reason) if self.profile_is_hidden() => {
                    let why = format!("memory: {reason}");
                    (Some(books), Some(why))
                }
                // A program that keeps no profile has none to serve.
                _ => return Known::Value(*books),
            },
        };
        match (self.ask_ports(listening_ports).await, statistics) {
            (Ok(mut books), _) => {
                books.tried = why.into_iter().collect();
                Known::Value(books)
            }
            (Err(reason), Some(mut books)) => {
                books.tried.push(reason);
                Known::Value(*books)
            }
            (Err(reason), None) => {
                let reasons: Vec<String> = why.into_iter().chain([reason]).collect();
                Known::unknown(reasons.join("; "))
            }
        }
    }

    /// The profile's variables were not found: another source may have it.
    fn profile_is_hidden(&self) -> bool {
        let FromMemory::Reader(reader) = &self.memory else { return false };
        reader.found_by().is_some_and(|found| found.profile.is_none())
    }

    /// Off the session's thread: the first reading parses the program's tables. `None` where memory
    /// is not to be read.
    async fn read_memory(&mut self, files: &[MappedFile]) -> Option<Outcome> {
        let mut reader = match std::mem::replace(&mut self.memory, FromMemory::No) {
            FromMemory::No => return None,
            FromMemory::Failed(why) => {
                self.memory = FromMemory::Failed(why.clone());
                return Some(Outcome::Failed(why));
            }
            FromMemory::Reader(reader) => reader,
        };
        let files = files.to_vec();
        let reading = tokio::task::spawn_blocking(move || {
            let books = reader.read(&files);
            (reader, books)
        });
        let why = match tokio::time::timeout(MEMORY_DEADLINE, reading).await {
            Ok(Ok((reader, books))) => {
                self.memory = FromMemory::Reader(reader);
                return Some(match books {
                    Ok(books) => Outcome::Books(Box::new(books)),
                    Err(error @ MemoryError::NotGo) => Outcome::NotGo(error.to_string()),
                    Err(error) => Outcome::Failed(error.to_string()),
                });
            }
            Ok(Err(error)) => format!("the reader failed: {error}"),
            Err(_) => format!("it took more than {} s", MEMORY_DEADLINE.as_secs()),
        };
        self.memory = FromMemory::Failed(why.clone());
        Some(Outcome::Failed(why))
    }

    async fn ask_ports(
        &mut self,
        listening_ports: impl FnOnce() -> Vec<(IpAddr, u16)>,
    ) -> Result<GoBooks, String> {
        match tokio::time::timeout(AUTO_DEADLINE, self.find(listening_ports)).await {
            Ok(Ok((books, endpoint))) => {
                self.found = Some(endpoint);
                Ok(books)
            }
            Ok(Err(reason)) => Err(reason),
            Err(_) => Err(format!(
                "no port answered with a Go heap profile within {} s; name the URL with \
                 --go-profile",
                AUTO_DEADLINE.as_secs()
            )),
        }
    }

    async fn fetch(&self, endpoint: &Endpoint) -> Result<GoBooks, String> {
        let body = self.fetcher.get(endpoint).await.map_err(|error| error.to_string())?;
        parse(body, endpoint.to_string(), self.limits).await
    }

    async fn find(
        &self,
        listening_ports: impl FnOnce() -> Vec<(IpAddr, u16)>,
    ) -> Result<(GoBooks, Endpoint), String> {
        let mut tried = Vec::new();
        let ports = match &self.found {
            Some(endpoint) => match self.fetch(endpoint).await {
                Ok(books) => return Ok((books, endpoint.clone())),
                Err(why) => {
                    tried.push(format!("{endpoint}: {why}"));
                    listening_ports()
                }
            },
            None => listening_ports(),
        };
        if ports.is_empty() {
            return Err("the process listens on no TCP port; name a URL or a file with \
                        --go-profile"
                .to_owned());
        }
        let endpoints = http::candidates(&ports);
        for endpoint in endpoints.iter().take(MOST_PORTS) {
            match self.fetch(endpoint).await {
                Ok(books) => return Ok((books, endpoint.clone())),
                Err(why) => tried.push(format!("{}: {why}", endpoint.address_text())),
            }
        }
        let beyond = endpoints.len().saturating_sub(MOST_PORTS);
        if beyond > 0 {
            tried.push(format!("{beyond} more not tried"));
        }
        Err(format!("no listening port serves /debug/pprof/heap (tried {})", tried.join("; ")))
    }
}

fn known(result: Result<GoBooks, String>) -> Known<GoBooks> {
    match result {
        Ok(books) => Known::Value(books),
        Err(reason) => Known::unknown(reason),
    }
}

/// Off the session's thread: a profile may take a second to parse.
async fn parse(body: Vec<u8>, source: String, limits: Limits) -> Result<GoBooks, String> {
    tokio::task::spawn_blocking(move || profile::parse(&body, &source, &limits))
        .await
        .map_err(|error| format!("the profile's parser failed: {error}"))?
        .map_err(|error: ProfileError| error.to_string())
}

async fn read_file(path: PathBuf, limits: Limits) -> Result<GoBooks, String> {
    let name = path.display().to_string();
    let reading = tokio::task::spawn_blocking(move || read_bounded(&path, limits.body_bytes));
    let body = match tokio::time::timeout(FILE_DEADLINE, reading).await {
        Ok(Ok(body)) => body.map_err(|why| format!("failed to read `{name}`: {why}"))?,
        Ok(Err(error)) => return Err(format!("failed to read `{name}`: {error}")),
        Err(_) => return Err(format!("failed to read `{name}`: nothing came within 10 s")),
    };
    parse(body, name.clone(), limits).await.map_err(|why| format!("{name}: {why}"))
}

fn read_bounded(path: &Path, limit: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut body))
        .map_err(|error| error.to_string())?;
    if body.len() > limit {
        return Err(format!("larger than {limit} bytes"));
    }
    Ok(body)
}

#[cfg(test)]
mod tests;
