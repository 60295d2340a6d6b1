//! Turns of the live tests, over all test processes. Much of a test's time is waiting for the
//! kernel to remove probes, so a few run at a time; what measures a pace runs alone.

use std::fs::{self, File};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How many live tests run at a time, whatever `--test-threads` says.
const TURNS: usize = 4;

/// Held for as long as a live test runs.
pub struct Turn(#[expect(dead_code, reason = "held for its locks, never read")] Vec<Flock<File>>);

/// Waits for one of the turns.
pub fn turn() -> Result<Turn> {
    loop {
        for number in 0..TURNS {
            match Flock::lock(open(&format!("live-{number}"))?, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Turn(vec![lock])),
                Err((_, Errno::EWOULDBLOCK)) => {}
                Err((_, errno)) => return Err(errno).context("lock a turn of the live tests"),
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until no other live test runs, and keeps them from starting.
pub fn alone() -> Result<Turn> {
    // In a fixed order, so that two who want to be alone do not wait for each other.
    (0..TURNS).map(|number| wait_for(&format!("live-{number}"))).collect::<Result<_>>().map(Turn)
}

/// Waits for a lock of this name.
pub fn wait_for(name: &str) -> Result<Flock<File>> {
    Flock::lock(open(name)?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("take the lock `{name}`"))
}

fn open(name: &str) -> Result<File> {
    let directory = crate::target_dir().join("test-locks");
    fs::create_dir_all(&directory).with_context(|| format!("create `{}`", directory.display()))?;
    let path = directory.join(name);
    File::create(&path).with_context(|| format!("create `{}`", path.display()))
}
