//! The harness of the live tests: start a program that knows its own truth, trace it, compare.
//!
//! Every program of `programs/` speaks one protocol: it prints `ready`, waits for a line, does its
//! work, prints its truth as one line of JSON, and stays alive until its standard input ends.
//! Nothing here skips: what a test needs and does not find is an error that says how to get it.

pub mod browser;
pub mod cgroup;
pub mod compile;
pub mod conformance;
pub mod cri;
pub mod docker;
pub mod go_books;
pub mod ledger;
pub mod memtrace;
pub mod podman;
pub mod program;
pub mod recorded;
pub mod serial;
pub mod tracks;
pub mod truth;
pub mod unharmed;
pub mod wait;

use std::path::{Path, PathBuf};

/// The workspace's root.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// `target/`, wherever cargo was told to put it.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}
