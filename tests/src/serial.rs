//! One live test at a time, over all test processes: they measure the same two processors, and
//! a neighbour's load is not what they test.

use std::fs::File;

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

/// Held for as long as a live test runs.
pub struct Turn(#[expect(dead_code, reason = "held for its lock, never read")] Flock<File>);

/// Waits for this test's turn.
pub fn turn() -> Result<Turn> {
    let path = crate::target_dir().join("live-tests.lock");
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("create `{}`", parent.display()))?;
    }
    let file = File::create(&path).with_context(|| format!("create `{}`", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusive) {
        Ok(lock) => Ok(Turn(lock)),
        Err((_, errno)) => Err(errno).with_context(|| format!("lock `{}`", path.display())),
    }
}
