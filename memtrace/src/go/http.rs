//! One bounded GET from inside the target's network namespace.
//!
//! The answer is hostile: deadlines for the connection, the head and the whole; a bounded body; only
//! status 200; no redirect, no name look-up, no proxy, no credentials. The namespace is entered by a
//! thread of its own that ends with the connection made: no other thread ever leaves its own.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hyper::{StatusCode, Uri};
use thiserror::Error;

use super::profile::Limits;
use crate::http::{self, HttpError};

/// What is asked for where no path was given: profile and `runtime.MemStats` in one answer.
const DEFAULT_PATH: &str = "/debug/pprof/heap?debug=1";

/// A plain HTTP address with a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    address: SocketAddr,
    path: String,
}

impl Endpoint {
    fn heap_at(address: SocketAddr) -> Self {
        Self { address, path: DEFAULT_PATH.to_owned() }
    }

    /// `127.0.0.1:6060`
    pub fn address_text(&self) -> String {
        self.address.to_string()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.address, self.path)
    }
}

impl FromStr for Endpoint {
    type Err = String;

    /// `http://127.0.0.1:6060/debug/pprof/heap`. Without a query `debug=1` is asked for, which
    /// carries `runtime.MemStats` too; without a path Go's default one.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("cannot use URL `{text}`: {why}");
        let uri: Uri = text.parse().map_err(|error| wrong(&format!("{error}")))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("only plain http is spoken; save the profile and give the file"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("credentials are not sent; save the profile and give the file"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let ip = match host {
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            _ => host.parse().map_err(|_| {
                wrong("names are not looked up inside the target: give a numeric address")
            })?,
        };
        let path = match (uri.path(), uri.query()) {
            ("" | "/", None) => DEFAULT_PATH.to_owned(),
            (path, None) => format!("{path}?debug=1"),
            (path, Some(query)) => format!("{path}?{query}"),
        };
        Ok(Self { address: SocketAddr::new(ip, authority.port_u16().unwrap_or(80)), path })
    }
}

/// Where to ask, given what a process listens on: the customary port first, any-addresses by
/// loopback (IPv4 first: a listener on `::` takes both).
pub fn candidates(listening: &[(IpAddr, u16)]) -> Vec<Endpoint> {
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for (ip, port) in listening {
        let reachable: &[IpAddr] = match ip {
            IpAddr::V4(ip) if ip.is_unspecified() => &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
            IpAddr::V6(ip) if ip.is_unspecified() => {
                &[IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
            }
            ip => std::slice::from_ref(ip),
        };
        addresses.extend(reachable.iter().map(|ip| SocketAddr::new(*ip, *port)));
    }
    // Stable: the order given decides among equals.
    addresses.sort_by_key(|address| (address.port() != 6060, address.is_ipv6()));
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for address in addresses {
        let endpoint = Endpoint::heap_at(address);
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    endpoints
}

/// Why an endpoint gave no body.
#[derive(Debug, Error)]
pub enum FetchError {
    #[error("failed to enter the target's network namespace: {0} (it takes CAP_SYS_ADMIN)")]
    Namespace(io::Error),
    #[error("failed to connect: {0}")]
    Connect(io::Error),
    #[error("no answer within {} ms", .0.as_millis())]
    NoAnswer(Duration),
    #[error("the answer was not complete within {} ms", .0.as_millis())]
    TooSlow(Duration),
    #[error("not an HTTP answer: {0}")]
    Http(hyper::Error),
    #[error("answered {0}; redirects are not followed")]
    Status(StatusCode),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the answer broke off: {0}")]
    Broken(String),
    #[error("the request cannot be made: {0}")]
    Request(HttpError),
}

impl From<HttpError> for FetchError {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::NoAnswer(limit) => Self::NoAnswer(limit),
            HttpError::TimedOut(limit) => Self::TooSlow(limit),
            HttpError::Protocol(error) => Self::Http(error),
            HttpError::TooLong(limit) => Self::TooLarge(limit),
            HttpError::Body(error) => Self::Broken(error.to_string()),
            HttpError::Request { .. } => Self::Request(error),
        }
    }
}

/// Fetches within fixed bounds.
#[derive(Clone, Debug)]
pub struct Fetcher {
    network_namespace: Option<Arc<File>>,
    pub connect_timeout: Duration,
    /// From the request to the end of the answer's head.
    pub head_timeout: Duration,
    /// From the start to the last byte.
    pub deadline: Duration,
    pub body_bytes: usize,
}

impl Fetcher {
    pub fn new(network_namespace: Option<Arc<File>>) -> Self {
        Self {
            network_namespace,
            connect_timeout: Duration::from_secs(1),
            head_timeout: Duration::from_secs(3),
            deadline: Duration::from_secs(10),
            body_bytes: Limits::default().body_bytes,
        }
    }

    /// The body of the answer.
    pub async fn get(&self, endpoint: &Endpoint) -> Result<Vec<u8>, FetchError> {
        tokio::time::timeout(self.deadline, self.exchange(endpoint))
            .await
            .map_err(|_| FetchError::TooSlow(self.deadline))?
    }

    async fn exchange(&self, endpoint: &Endpoint) -> Result<Vec<u8>, FetchError> {
        let stream = self.connect(endpoint.address).await?;
        stream.set_nonblocking(true).map_err(FetchError::Connect)?;
        let stream = tokio::net::TcpStream::from_std(stream).map_err(FetchError::Connect)?;
        let limits = http::Limits {
            head_timeout: Some(self.head_timeout),
            timeout: self.deadline,
            body_bytes: self.body_bytes,
        };
        let host = endpoint.address_text();
        let response = http::get(stream, &host, &endpoint.path, limits).await?;
        match StatusCode::from_u16(response.status) {
            Ok(StatusCode::OK) => Ok(response.body.to_vec()),
            Ok(status) => Err(FetchError::Status(status)),
            Err(_) => Err(FetchError::Broken(format!("status {}", response.status))),
        }
    }

    /// Connects on a thread that may change its namespace, because it ends here.
    async fn connect(&self, address: SocketAddr) -> Result<TcpStream, FetchError> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let (namespace, timeout) = (self.network_namespace.clone(), self.connect_timeout);
        let connect = move || {
            if let Some(namespace) = namespace {
                nix::sched::setns(&*namespace, nix::sched::CloneFlags::CLONE_NEWNET)
                    .map_err(|errno| FetchError::Namespace(errno.into()))?;
            }
            TcpStream::connect_timeout(&address, timeout).map_err(FetchError::Connect)
        };
        std::thread::Builder::new()
            .name("go-profile".to_owned())
            .spawn(move || {
                // The receiver is gone when the deadline has passed: nobody wants it any more.
                let _ = sender.send(connect());
            })
            .map_err(FetchError::Connect)?;
        receiver.await.unwrap_or_else(|_| {
            Err(FetchError::Connect(io::Error::other("the connecting thread died")))
        })
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
pub(crate) mod tests;
