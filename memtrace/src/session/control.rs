//! `--control PATH`: a socket that takes one line, `mark NAME`, `snapshot` or `stop`, and answers
//! with one. Only its owner and root can write to it; a peer that says nothing or too much keeps
//! nobody waiting.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::stat::{Mode, umask};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::say::warn;

/// No name of a phase is longer.
pub const LONGEST_NAME: usize = 64;
const LONGEST_LINE: u64 = 256;
/// How long a peer may take for its line.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long memtrace may take to answer: a snapshot of many blocks takes a while.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Mark(String),
    Snapshot,
    Stop,
}

/// A request, and where its answer goes.
pub struct Asked {
    pub request: Request,
    pub answer: oneshot::Sender<String>,
}

/// `mark NAME`, `snapshot` or `stop`; else what is wrong.
fn parse(line: &str) -> Result<Request, String> {
    match line.trim_end_matches(['\r', '\n']) {
        "snapshot" => Ok(Request::Snapshot),
        "stop" => Ok(Request::Stop),
        line => match line.strip_prefix("mark ") {
            Some(name) => check_name(name.trim()).map(Request::Mark),
            None => Err("expected `mark NAME`, `snapshot` or `stop`".to_owned()),
        },
    }
}

/// A name that a report can show and a command line can name.
pub fn check_name(name: &str) -> Result<String, String> {
    if name.is_empty() || name.len() > LONGEST_NAME {
        return Err(format!("a name has 1 to {LONGEST_NAME} bytes"));
    }
    if name.chars().any(crate::sanitize::must_escape) {
        return Err("a name has no control characters".to_owned());
    }
    Ok(name.to_owned())
}

/// The listening socket; its file goes with it.
pub struct Control {
    path: PathBuf,
    /// Device and inode of the socket's file.
    identity: Option<(u64, u64)>,
    requests: mpsc::Receiver<Asked>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Control {
    /// Mode 0600 from the first instant.
    pub fn listen(path: &Path) -> Result<Self> {
        let failed = || format!("failed to listen on the control socket `{}`", path.display());
        remove_stale(path).with_context(failed)?;
        // No other thread of memtrace makes files here.
        let before = umask(Mode::S_IXUSR | Mode::S_IRWXG | Mode::S_IRWXO);
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener.with_context(failed)?;
        let identity = path.symlink_metadata().ok().map(|at| (at.dev(), at.ino()));
        let (sender, requests) = mpsc::channel(16);
        let accepting = tokio::spawn(accept(listener, sender));
        Ok(Self { path: path.to_owned(), identity, requests, accepting })
    }

    pub async fn next(&mut self) -> Asked {
        match self.requests.recv().await {
            Some(asked) => asked,
            // The listener failed, and said so.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.accepting.abort();
        let now = self.path.symlink_metadata().ok().map(|at| (at.dev(), at.ino()));
        if now.is_some() && now == self.identity {
            // A socket that stays is taken over by the next one.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// What a memtrace that was killed left. Anything else that is there stays, and is an error.
fn remove_stale(path: &Path) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(found) = path.symlink_metadata() else { return Ok(()) };
    if !found.file_type().is_socket() {
        bail!("something is there already; name a path that does not exist");
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).context("failed to remove the socket of an ended memtrace")
        }
        _ => bail!("somebody listens there already; name another path"),
    }
}

async fn accept(listener: UnixListener, requests: mpsc::Sender<Asked>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let requests = requests.clone();
                tokio::spawn(async move {
                    // A peer that went away does not want its answer.
                    let _ = tokio::time::timeout(ANSWER_WITHIN, serve(stream, requests)).await;
                });
            }
            Err(error) => {
                warn(format_args!("the control socket failed: {error}; it takes no more lines"));
                return;
            }
        }
    }
}

async fn serve(stream: UnixStream, requests: mpsc::Sender<Asked>) -> std::io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    let (reading, mut writing) = stream.into_split();
    if peer != 0 && peer != nix::unistd::geteuid().as_raw() {
        return writing.write_all(b"error: not permitted\n").await;
    }
    let mut line = String::new();
    let mut reading = tokio::io::BufReader::new(reading.take(LONGEST_LINE));
    let read = tokio::time::timeout(PATIENCE, reading.read_line(&mut line)).await;
    let request = match read {
        Ok(Ok(_)) if line.ends_with('\n') => parse(&line),
        _ => Err(format!("expected a line of at most {LONGEST_LINE} bytes")),
    };
    let answer = match request {
        Err(what) => format!("error: {what}"),
        Ok(request) => {
            let (answer, answered) = oneshot::channel();
            match requests.send(Asked { request, answer }).await {
                Ok(()) => answered.await.unwrap_or_else(|_| "error: memtrace ends".to_owned()),
                Err(_) => "error: memtrace ends".to_owned(),
            }
        }
    };
    writing.write_all(format!("{answer}\n").as_bytes()).await
}

/// `memtrace mark`: says it, and waits for the answer.
pub fn ask(path: &Path, line: &str) -> Result<String> {
    let failed = || format!("failed to ask memtrace at the control socket `{}`", path.display());
    let mut stream = std::os::unix::net::UnixStream::connect(path).with_context(|| {
        format!("{}; is a `memtrace record --control` running there?", failed())
    })?;
    stream.set_read_timeout(Some(ANSWER_WITHIN)).with_context(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).with_context(failed)?;
    stream.write_all(format!("{line}\n").as_bytes()).with_context(failed)?;
    let mut answer = String::new();
    BufReader::new(stream.take(LONGEST_LINE)).read_line(&mut answer).with_context(failed)?;
    let answer = answer.trim_end();
    match answer.strip_prefix("ok") {
        Some(told) => Ok(told.trim().to_owned()),
        None => bail!("memtrace answers: {}", crate::report::visible(answer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_lines_are_understood_and_no_other() {
        assert_eq!(parse("mark warm up\n"), Ok(Request::Mark("warm up".to_owned())));
        assert_eq!(parse("snapshot\r\n"), Ok(Request::Snapshot));
        assert_eq!(parse("stop\n"), Ok(Request::Stop));
        for bad in ["", "mark \n", "mark", "halt\n", "mark \u{1b}[31m\n"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(parse(&format!("mark {}\n", "x".repeat(65))).is_err());
    }

    #[tokio::test]
    async fn the_socket_is_its_owners_alone_and_goes_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let mut control = Control::listen(&path).unwrap();
        assert_eq!(path.symlink_metadata().unwrap().mode() & 0o777, 0o600);
        let asking = tokio::task::spawn_blocking({
            let path = path.clone();
            move || ask(&path, "mark load").unwrap()
        });
        let asked = control.next().await;
        assert_eq!(asked.request, Request::Mark("load".to_owned()));
        asked.answer.send("ok snapshot 3".to_owned()).unwrap();
        assert_eq!(asking.await.unwrap(), "snapshot 3");
        assert!(Control::listen(&path).is_err(), "a second one took it");
        drop(control);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_stale_socket_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(Control::listen(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
        let stale = directory.path().join("stale");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        assert!(Control::listen(&stale).is_ok());
    }
}
