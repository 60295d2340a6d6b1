//! A debuginfod server: `GET URL/buildid/ID/debuginfo`, and what can go wrong with that.
//!
//! The answer goes to a file without a name, bounded in bytes and in time. A server that does not
//! answer, or breaks off, is asked once and then no more: a recording has many objects. Nothing is
//! kept for another run.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;

use thiserror::Error;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::{BuildId, Limits, Search};

/// Redirections that are followed.
const MOST_REDIRECTS: u32 = 3;
/// Certificates of this host that are taken for roots.
const MOST_ROOTS: usize = 1_000;

/// Why a server cannot be asked.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ServerError {
    #[error("`{0}` is no address of a debuginfod server: it begins with http:// or https://")]
    NotAnAddress(String),
    #[error("found no certificate authorities on this host to check `{url}` with: {why}")]
    NoRoots { url: String, why: String },
}

pub struct Server {
    /// Without a `/` at its end.
    url: String,
    agent: ureq::Agent,
    limits: Limits,
    /// Bytes that may still be downloaded.
    left: u64,
    /// Why it is asked no more.
    silent: Option<String>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Why one request brought nothing.
enum Failure {
    /// The server does not have it.
    Missing,
    /// It answered, and that is of no use.
    Refused(String),
    /// Nor will the next request be answered.
    Silent(String),
}

impl Server {
    pub fn new(url: &str, limits: Limits) -> Result<Self, ServerError> {
        let url = url.trim_end_matches('/');
        let is_encrypted = url.starts_with("https://");
        let is_plain =
            !url.chars().any(|c| c.is_control() || c.is_whitespace() || "?#".contains(c));
        if !(is_encrypted || url.starts_with("http://")) || !is_plain {
            return Err(ServerError::NotAnAddress(url.to_owned()));
        }
        // A redirection may lead from one to the other: both know the same authorities.
        let roots = match rustls_native_certs::load_native_certs() {
            loaded if loaded.certs.is_empty() && is_encrypted => {
                let why = loaded.errors.first().map(ToString::to_string);
                let why = why.unwrap_or_else(|| "install ca-certificates".to_owned());
                return Err(ServerError::NoRoots { url: url.to_owned(), why });
            }
            loaded => loaded.certs,
        };
        let roots = roots.iter().take(MOST_ROOTS);
        let roots = roots.map(|root| Certificate::from_der(root).to_owned());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::from(roots.collect::<Vec<_>>()))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .https_only(is_encrypted)
            .http_status_as_error(false)
            .max_redirects(MOST_REDIRECTS)
            .timeout_global(Some(limits.request))
            .user_agent(concat!("memtrace/", env!("CARGO_PKG_VERSION")))
            .build();
        let (agent, left) = (config.new_agent(), limits.total_bytes);
        Ok(Self { url: url.to_owned(), agent, limits, left, silent: None })
    }

    pub(super) fn ask(&mut self, wanted: &BuildId, search: &mut Search) {
        let address = format!("{}/buildid/{}/debuginfo", self.url, wanted.as_str());
        if let Some(why) = &self.silent {
            search.refuse(self.url.clone(), format!("not asked again: {why}"));
            return;
        }
        match self.download(&address) {
            Ok(file) => search.offer(file, address, wanted),
            Err(Failure::Missing) => search.refuse(address, "the server does not have it"),
            Err(Failure::Refused(why)) => search.refuse(address, why),
            Err(Failure::Silent(why)) => {
                search.refuse(address, why.clone());
                self.silent = Some(why);
            }
        }
    }

    fn download(&mut self, address: &str) -> Result<File, Failure> {
        let response = self.agent.get(address).call().map_err(|error| of_request(&error))?;
        match response.status().as_u16() {
            200 => {}
            404 => return Err(Failure::Missing),
            status => return Err(Failure::Refused(format!("the server answers {status}"))),
        }
        let most = self.limits.file_bytes.min(self.left);
        let too_long =
            || Failure::Refused(format!("it is longer than the limit of {most} bytes; left out"));
        let mut body = response.into_body();
        if body.content_length().is_some_and(|length| length > most) {
            return Err(too_long());
        }
        let mut file = tempfile::tempfile().map_err(|error| of_disk(&error))?;
        let mut reader = body.as_reader();
        let (mut taken, mut buffer) = (0u64, vec![0; 1 << 16]);
        loop {
            let length = match reader.read(&mut buffer) {
                Ok(0) => return Ok(file),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(Failure::Silent(format!("the answer broke off: {error}")));
                }
            };
            taken = taken.saturating_add(length as u64);
            self.left = self.left.saturating_sub(length as u64);
            if taken > most {
                return Err(too_long());
            }
            file.write_all(&buffer[..length]).map_err(|error| of_disk(&error))?;
        }
    }
}

fn of_disk(error: &io::Error) -> Failure {
    let directory = std::env::temp_dir();
    let why = format!("failed to set it aside in `{}`: {error}", directory.display());
    Failure::Refused(why)
}

fn of_request(error: &ureq::Error) -> Failure {
    match error {
        ureq::Error::TooManyRedirects | ureq::Error::RequireHttpsOnly(_) => {
            Failure::Refused(error.to_string())
        }
        error => Failure::Silent(format!("the server does not answer: {error}")),
    }
}
