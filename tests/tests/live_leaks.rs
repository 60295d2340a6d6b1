//! Leaks by others' code, in libraries that a Python program calls through ctypes: found from
//! outside, named by the C function that was called, with exactly the bytes that were leaked.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memtrace_tests::memtrace::Recording;
use memtrace_tests::recorded::{Recorded, Stack};
use memtrace_tests::{serial, wait};

/// A Python program that is ready, and does its work when it gets a line.
struct Python(Child);

impl Python {
    /// `work` leaks `count` objects; what it printed comes back from [`Python::work`].
    fn start(setup: &str, work: &str) -> Result<Self> {
        let script = format!(
            "import ctypes, sys, gc\n{setup}\ngc.disable()\nprint('ready', flush=True)\n\
             sys.stdin.readline()\n{work}\nprint('done', flush=True)\nsys.stdin.readline()\n"
        );
        let child = Command::new("/usr/bin/python3")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start python3")?;
        Ok(Self(child))
    }

    fn recorded(mut self) -> Result<(Recorded, Vec<String>)> {
        let mut input = self.0.stdin.take().context("python's input")?;
        let output = self.0.stdout.take().context("python's output")?;
        let mut lines = BufReader::new(output).lines();
        ensure!(lines.next().context("python's `ready`")?? == "ready");
        let recording = Recording::attach(self.0.id(), &["--go-profile", "off"])?;
        input.write_all(b"go\n")?;
        let mut told = Vec::new();
        for line in lines {
            let line = line?;
            if line == "done" {
                break;
            }
            told.push(line);
        }
        let recorded = recording.interrupt()?.recorded()?;
        drop(input);
        wait::for_exit(&mut self.0, "python", Duration::from_secs(20))?;
        Ok((recorded, told))
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// What the stacks with both of these functions hold, of all that is outstanding. Nothing was lost,
/// and what holds most passes through the first.
fn held_by(recorded: &Recorded, function: &str, below: &str) -> Result<(u64, u64)> {
    let native = &recorded.last()?.native;
    let lost: Vec<_> = native.losses.iter().filter(|(_, count)| **count > 0).collect();
    ensure!(lost.is_empty(), "losses: {lost:?}");
    let through = |stack: &&Stack| stack.contains(function) && stack.contains(below);
    let most = native.stacks.iter().max_by_key(|stack| stack.bytes).context("no stack")?;
    ensure!(most.contains(function), "not by {function}: {most}");
    let own = native.stacks.iter().filter(through);
    Ok(own.fold((0, 0), |sum, stack| (sum.0 + stack.bytes, sum.1 + stack.blocks)))
}

/// The line that a user reads first: what in the program asked for most.
fn is_first(recorded: &Recorded, function: &str) -> Result<()> {
    let callers = &recorded.last()?.native.callers;
    let first = callers.as_array().and_then(|all| all.first()).context("no callers")?;
    ensure!(first["frame"]["function"] == function, "the first is not {function}: {first:#}");
    Ok(())
}

#[test]
fn documents_of_libxml2_that_are_never_freed_are_xmlreadmemory_s() -> Result<()> {
    let _turn = serial::turn()?;
    const COUNT: u64 = 200;
    // 100 elements with an attribute and a text each.
    let setup = "x = ctypes.CDLL('libxml2.so.2')\nx.xmlReadMemory.restype = ctypes.c_void_p\n\
                 x.xmlReadMemory.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, \
                 ctypes.c_void_p, ctypes.c_int]\nx.xmlFreeDoc.argtypes = [ctypes.c_void_p]\n\
                 s = b'<r>' + b'<a b=\"1\">text</a>' * 100 + b'</r>'\n\
                 def read(): return x.xmlReadMemory(s, len(s), b'n', None, 0)\nx.xmlFreeDoc(read())";
    // As many are freed as are kept.
    let work = format!("for i in range({COUNT}): read(); x.xmlFreeDoc(read())");
    let (recorded, _) = Python::start(setup, &work)?.recorded()?;
    let (bytes, blocks) = held_by(&recorded, "xmlReadMemory", "xmlReadMemory")?;
    is_first(&recorded, "xmlReadMemory")?;
    println!("xmlReadMemory: {bytes} B in {blocks} blocks");
    // Each document has the same blocks: of a node 120 bytes, of an attribute 96 (`libxml/tree.h`).
    ensure!(blocks.is_multiple_of(COUNT) && bytes.is_multiple_of(COUNT), "{bytes} B, {blocks}");
    let (per_document, blocks_each) = (bytes / COUNT, blocks / COUNT);
    ensure!(
        per_document >= 100 * (2 * 120 + 96) && blocks_each >= 100 * 3,
        "{per_document} B in {blocks_each} blocks for a document"
    );
    Ok(())
}

#[test]
fn statements_of_sqlite_that_are_never_finalized_are_sqlite3_prepare_s() -> Result<()> {
    let _turn = serial::turn()?;
    const COUNT: u64 = 300;
    let setup = "q = ctypes.CDLL('libsqlite3.so.0')\ndb = ctypes.c_void_p()\n\
                 used = lambda: (q.sqlite3_memory_used.restype, q.sqlite3_memory_used())[1]\n\
                 q.sqlite3_memory_used.restype = ctypes.c_int64\n\
                 assert q.sqlite3_open(b':memory:', ctypes.byref(db)) == 0\n\
                 def prepare():\n  st = ctypes.c_void_p()\n  \
                 assert q.sqlite3_prepare_v2(db, b'select 1, ?1, ?2 || ?3', -1, ctypes.byref(st), \
                 None) == 0\n  return st\nfor i in range(10): q.sqlite3_finalize(prepare())\n\
                 for i in range(200): prepare()\nbefore = used()";
    let work = format!(
        "for i in range({COUNT}): prepare(); q.sqlite3_finalize(prepare())\nprint(used() - before)"
    );
    let (recorded, told) = Python::start(setup, &work)?.recorded()?;
    let (bytes, blocks) = held_by(&recorded, "sqlite3_prepare_v2", "sqlite3_prepare_v2")?;
    is_first(&recorded, "sqlite3_prepare_v2")?;
    let grown: u64 = told.first().context("sqlite's own count")?.parse()?;
    println!("sqlite3_prepare_v2: {bytes} B in {blocks} blocks, by its own count {grown}");
    ensure!(blocks >= COUNT && blocks.is_multiple_of(COUNT), "{blocks} blocks");
    // SQLite puts each block's size before it, 8 bytes, and does not count that (`mem1.c`).
    ensure!(
        bytes == grown + 8 * blocks,
        "sqlite counts {grown} B, memtrace shows {bytes} B in {blocks} blocks"
    );
    Ok(())
}

#[test]
fn contexts_of_openssl_that_are_never_freed_are_ssl_ctx_new_s() -> Result<()> {
    let _turn = serial::turn()?;
    const COUNT: u64 = 40;
    let setup = "s = ctypes.CDLL('libssl.so.3')\nfor f in (s.TLS_client_method, s.SSL_CTX_new): \
                 f.restype = ctypes.c_void_p\ns.SSL_CTX_new.argtypes = [ctypes.c_void_p]\n\
                 s.SSL_CTX_free.argtypes = [ctypes.c_void_p]\nm = s.TLS_client_method()\n\
                 def make():\n  c = s.SSL_CTX_new(m)\n  assert c\n  return c\n\
                 for i in range(3): s.SSL_CTX_free(make())\nmake()";
    let work = format!("for i in range({COUNT}): make(); s.SSL_CTX_free(make())");
    let (recorded, _) = Python::start(setup, &work)?.recorded()?;
    // `SSL_CTX_new` only jumps there (OpenSSL 3): it has left the stack.
    let (bytes, blocks) = held_by(&recorded, "SSL_CTX_new_ex", "SSL_CTX_new_ex")?;
    is_first(&recorded, "SSL_CTX_new_ex")?;
    println!("SSL_CTX_new: {bytes} B in {blocks} blocks");
    // A context with its lists of ciphers and methods.
    ensure!(bytes / COUNT >= 2_000 && blocks / COUNT >= 10, "{bytes} B in {blocks} blocks");
    // Beside them one text in the thread's queue of errors grew: a digest that it looked for in vain.
    let (queue_bytes, queue_blocks) = held_by(&recorded, "SSL_CTX_new_ex", "ERR_vset_error")?;
    ensure!(queue_blocks <= 1, "{queue_blocks} blocks in the queue of errors");
    let (bytes, blocks) = (bytes - queue_bytes, blocks - queue_blocks);
    ensure!(bytes % COUNT == 0 && blocks % COUNT == 0, "{bytes} B in {blocks} blocks");
    Ok(())
}
