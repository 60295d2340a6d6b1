//! Opening what a tracee names, inside the tracee's own root.
//!
//! `/proc/PID/root/…` alone does not confine: an absolute symbolic link on the way leads out to
//! memtrace's root. `openat2` with `RESOLVE_IN_ROOT` (Linux 5.6) resolves links and `..` as the
//! tracee would. Only regular files are opened for reading, and never for waiting.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// A root directory, held open.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// The root of a process's mount namespace. Needs `CAP_SYS_PTRACE` for others' processes.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::at(Path::new(&format!("/proc/{pid}/root")))
    }

    /// memtrace's own root.
    pub fn of_self() -> io::Result<Self> {
        Self::at(Path::new("/"))
    }

    /// Any directory as the root.
    pub fn at(path: &Path) -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // `read` is ignored with O_PATH, but std wants an access mode.
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        Ok(Self(file.into()))
    }

    /// Opens a regular file by its path inside this root.
    pub fn open_file(&self, path: &[u8]) -> io::Result<(File, Metadata)> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let handle = openat2(self.0.as_fd(), path, how)?;
        reopen_regular(handle)
    }
}

/// Opens a regular file by a path of the kernel's own (`/proc/PID/map_files/…`).
pub fn open_magic_link(path: &str) -> io::Result<(File, Metadata)> {
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    let handle = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    reopen_regular(handle.into())
}

/// From a handle that has opened nothing yet to a readable file, if it is a regular one. A device
/// or a pipe is never opened: that alone can have effects, or wait for ever.
fn reopen_regular(handle: OwnedFd) -> io::Result<(File, Metadata)> {
    let metadata = File::from(handle.try_clone()?).metadata()?;
    if !metadata.file_type().is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", handle.as_raw_fd()))?;
    Ok((file, metadata))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_absolute_link_stays_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/hostname"), "inside").unwrap();
        symlink("/etc/hostname", dir.path().join("link")).unwrap();
        symlink("../../../../../../etc/hostname", dir.path().join("up")).unwrap();
        let root = Root::at(dir.path()).unwrap();
        for name in ["/link", "link", "/up", "/etc/hostname"] {
            let mut text = String::new();
            root.open_file(name.as_bytes()).unwrap().0.read_to_string(&mut text).unwrap();
            assert_eq!(text, "inside", "{name}");
        }
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let root = Root::at(dir.path()).unwrap();
        assert!(root.open_file(b"pipe").is_err());
        assert!(root.open_file(b"").is_err());
        fs::create_dir(dir.path().join("directory")).unwrap();
        assert!(root.open_file(b"directory").is_err());
        assert!(Root::of_self().unwrap().open_file(b"/dev/zero").is_err());
    }
}
