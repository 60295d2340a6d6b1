//! The Go runtime's own books: its heap profile and its memory statistics, over HTTP or from a file.
//!
//! Whatever a tracee serves is hostile: bounded in time and size, checked before it is believed.
//! What cannot be read is `Unknown` with what was tried. Reading costs the tracee one request.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::snapshot::{GoBooks, Known};

pub mod debug1;
pub mod http;
pub mod memory;
pub mod profile;
pub mod profile_proto;

use http::{Endpoint, Fetcher};
use profile::{Limits, ProfileError};

/// Where to look for the Go heap: the argument of `--go-profile`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GoProfileSource {
    Off,
    /// Ask each port that the process listens on for `/debug/pprof/heap?debug=1`.
    Auto,
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
            "" => Err("expected `auto`, `off`, a URL or a file".to_owned()),
            _ if text.contains("://") => text.parse().map(Self::Url),
            _ => Ok(Self::File(PathBuf::from(text))),
        }
    }
}

/// The most ports that `auto` asks.
const MOST_PORTS: usize = 32;
/// For all of `auto` together, so that a snapshot is never held up for longer.
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
    /// What `auto` found; asked first from then on.
    found: Option<Endpoint>,
}

impl GoReader {
    /// `network_namespace`: as [`open_network_namespace`] gives it.
    pub fn new(source: GoProfileSource, network_namespace: Option<Arc<File>>) -> Self {
        let fetcher = Fetcher::new(network_namespace);
        Self { source, fetcher, limits: Limits::default(), found: None }
    }

    /// One reading. `listening_ports` is asked only for `auto`, and only until one answered.
    pub async fn read(
        &mut self,
        listening_ports: impl FnOnce() -> Vec<(IpAddr, u16)>,
    ) -> Known<GoBooks> {
        match &self.source {
            GoProfileSource::Off => Known::unknown("not asked for (--go-profile off)"),
            GoProfileSource::File(path) => known(read_file(path.clone(), self.limits).await),
            GoProfileSource::Url(endpoint) => {
                known(self.fetch(endpoint).await.map_err(|why| format!("{endpoint}: {why}")))
            }
            GoProfileSource::Auto => {
                match tokio::time::timeout(AUTO_DEADLINE, self.find(listening_ports)).await {
                    Ok(Ok((books, endpoint))) => {
                        self.found = Some(endpoint);
                        Known::Value(books)
                    }
                    Ok(Err(reason)) => Known::unknown(reason),
                    Err(_) => Known::unknown(format!(
                        "no port answered with a Go heap profile within {} s; name the URL with \
                         --go-profile",
                        AUTO_DEADLINE.as_secs()
                    )),
                }
            }
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
