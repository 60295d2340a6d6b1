//! Load on the service, from inside its network namespace: it needs no published port.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use serde::Deserialize;

use crate::interrupt;

const PORT: u16 = 8080;
const WORKERS: u64 = 2;
/// Between two rounds of a worker: the load is a service's, not a benchmark's.
const PAUSE: Duration = Duration::from_millis(15);
/// No answer of the service is longer.
const LONGEST_ANSWER: u64 = 64 << 10;

/// What the service says of itself on `/truth`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Truth {
    pub leaked_documents: u64,
    pub leaked_label_bytes: u64,
    pub leaked_labels: u64,
    pub cached_bytes: u64,
}

/// Asks the service that runs as `pid`.
pub fn truth(pid: u32) -> Result<Truth> {
    inside(pid, || {
        let answer = Client::connect()?.request("GET", "/truth", "")?;
        serde_json::from_str(&answer).with_context(|| format!("read the truth `{answer}`"))
    })
}

/// Loads the service for `busy` and returns how many requests it answered.
pub fn put(pid: u32, busy: Duration) -> Result<u64> {
    let end = Instant::now() + busy;
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                scope.spawn({
                    let answered = &answered;
                    move || inside(pid, || work(worker, end, answered))
                })
            })
            .collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow!("a worker of the load panicked"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    interrupt::check()?;
    Ok(answered.into_inner())
}

/// Runs something in a thread of its own in the network namespace of `pid`.
fn inside<T: Send>(pid: u32, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let path = format!("/proc/{pid}/ns/net");
            let namespace = File::open(&path).with_context(|| format!("open `{path}`"))?;
            setns(&namespace, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("enter `{path}`"))?;
            what()
        });
        thread.join().map_err(|_| anyhow!("a thread of the load panicked"))?
    })
}

fn work(worker: u64, end: Instant, answered: &AtomicU64) -> Result<()> {
    let mut client = Client::connect()?;
    let untitled = feed("");
    let titled = feed("<title>Today</title>");
    let mut round = 0;
    while Instant::now() < end && interrupt::check().is_ok() {
        round += 1;
        let name = format!("{worker}-{round}");
        let long = "x".repeat(500 + usize::try_from(round % 500)?);
        let requests = [
            ("POST", format!("/note?text=note-{name}"), ""),
            ("GET", format!("/search?word={}", round % 50), ""),
            ("POST", "/import".to_owned(), untitled.as_str()),
            ("POST", "/import".to_owned(), titled.as_str()),
            ("GET", format!("/label?text={long}"), ""),
            ("GET", format!("/thumbnail?name={name}"), ""),
        ];
        for (method, path, body) in &requests {
            client.request(method, path, body)?;
            answered.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn feed(title: &str) -> String {
    let items: String =
        (0..40).map(|i| format!("<item id=\"{i}\"><text>news of the day</text></item>")).collect();
    format!("<?xml version=\"1.0\"?><feed>{items}{title}</feed>")
}

/// As much of HTTP/1.1 as the service speaks: one connection, answers with a length.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn connect() -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", PORT)).context("connect to the service")?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    fn request(&mut self, method: &str, path: &str, body: &str) -> Result<String> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: notes\r\nContent-Type: text/xml\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(head.as_bytes()).context("ask the service")?;
        let mut length = None;
        loop {
            let mut line = String::new();
            let read = (&mut self.stream).take(LONGEST_ANSWER).read_line(&mut line);
            if read.context("read the service's answer")? == 0 {
                bail!("the service hung up");
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some((key, value)) = line.split_once(':')
                && key.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse::<u64>().ok().filter(|l| *l <= LONGEST_ANSWER);
            }
        }
        let length = length.context("the service's answer has no length, or too great a one")?;
        let mut answer = vec![0; usize::try_from(length)?];
        self.stream.read_exact(&mut answer).context("read the service's answer")?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}
