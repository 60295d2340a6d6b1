//! A memory cgroup of a test's own, removed when it goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

/// With nothing in it: the page cache in it is its program's.
pub struct Group(pub PathBuf);

impl Group {
    /// `name`: for tests that run beside one another.
    pub fn create(name: &str) -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let v2 = fs::read_to_string(root.join("cgroup.controllers"))
            .is_ok_and(|all| all.split_whitespace().any(|one| one == "memory"));
        let parent = match v2 {
            true => {
                fs::write(root.join("cgroup.subtree_control"), "+memory")
                    .context("enable the memory controller")?;
                root.to_owned()
            }
            false => root.join("memory"),
        };
        let path = parent.join(format!("memtrace-test-{}-{name}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("create `{}`", path.display()))?;
        Ok(Self(path))
    }

    /// Moves a process into it.
    pub fn take(&self, pid: u32) -> Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).context("move the program")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
