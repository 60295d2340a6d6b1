//! What the guest tells the host: lines of JSON on standard output, which is a serial line.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Said first: the kernel, and the seconds it took to come here.
pub fn booted() -> Result<()> {
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("read `{path}`"));
    let uptime = read("/proc/uptime")?;
    let seconds: f64 =
        uptime.split_whitespace().next().context("`/proc/uptime` is empty")?.parse()?;
    let release = read("/proc/sys/kernel/osrelease")?;
    tell(&json!({ "event": "booted", "release": release.trim(), "seconds": seconds }));
    Ok(())
}

/// One thing that had to hold: tells that it starts, then whether it holds. Goes on in any case.
pub fn check(name: &str, body: impl FnOnce() -> Result<()>) {
    tell(&json!({ "event": "started", "name": name }));
    let start = Instant::now();
    let error = body().err().map(|error| format!("{error:#}"));
    let seconds = start.elapsed().as_secs_f64();
    tell(&json!({ "event": "checked", "name": name, "seconds": seconds, "error": error }));
}

/// What memtrace wrote, for the host to keep.
pub fn text(name: &str, text: &str) {
    tell(&json!({ "event": "text", "name": name, "text": text }));
}

/// What the verifier and the loading took.
pub fn loaded(milliseconds: u64, programs: &[(String, u64)]) {
    let programs: serde_json::Map<String, Value> =
        programs.iter().map(|(name, count)| (name.clone(), Value::from(*count))).collect();
    tell(&json!({ "event": "loaded", "milliseconds": milliseconds, "programs": programs }));
}

/// A piece of a command's output; each character is a byte.
pub fn output(stream: &str, bytes: &[u8]) {
    let latin1: String = bytes.iter().map(|&byte| char::from(byte)).collect();
    tell(&json!({ "event": "output", "stream": stream, "bytes": latin1 }));
}

/// How the command ended, as a shell would say it.
pub fn exited(code: i32) {
    tell(&json!({ "event": "exited", "code": code }));
}

/// Said last: nothing was cut off.
pub fn done() {
    tell(&json!({ "event": "done" }));
}

fn tell(event: &Value) {
    let mut stdout = std::io::stdout().lock();
    // A line that the host does not get is missed there: it waits for `done`.
    _ = writeln!(stdout, "{event}").and_then(|()| stdout.flush());
}
