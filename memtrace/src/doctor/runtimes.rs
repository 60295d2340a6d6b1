//! Which container runtimes have a socket here, and whether someone listens on it.
//!
//! Only a connection is made and closed; nothing is sent. It cannot hang: connecting to a local
//! socket without waiting either works or is refused at once.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A socket that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeSocket {
    pub runtime: String,
    pub path: PathBuf,
    pub answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Listens,
    /// Nobody listens, or this process may not ask.
    Refused {
        reason: String,
        is_permission: bool,
    },
}

const PLACES: [(&str, &str); 6] = [
    ("docker", "/run/docker.sock"),
    ("docker", "/var/run/docker.sock"),
    ("podman", "/run/podman/podman.sock"),
    ("containerd", "/run/containerd/containerd.sock"),
    ("containerd", "/run/k3s/containerd/containerd.sock"),
    ("cri-o", "/run/crio/crio.sock"),
];

/// Those that exist, each once, with the one that `DOCKER_HOST` names first.
pub(super) fn find_sockets(docker_host: Option<&str>) -> Vec<RuntimeSocket> {
    let named = docker_host.and_then(|host| host.strip_prefix("unix://"));
    find_among(named.map(|path| ("docker", path)).into_iter().chain(PLACES))
}

fn find_among<'a>(places: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<RuntimeSocket> {
    let mut seen = Vec::new();
    let mut sockets = Vec::new();
    for (runtime, path) in places {
        let path = Path::new(path);
        let refused = match path.metadata() {
            Ok(file) if file.file_type().is_socket() => {
                if seen.contains(&(file.dev(), file.ino())) {
                    continue;
                }
                seen.push((file.dev(), file.ino()));
                connect(path).err()
            }
            // A directory on the way may be closed to this user.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Some(error),
            _ => continue,
        };
        let answer = match refused {
            None => Answer::Listens,
            Some(error) => Answer::Refused {
                is_permission: error.kind() == io::ErrorKind::PermissionDenied,
                reason: match error.raw_os_error() {
                    Some(libc::ECONNREFUSED) => "nobody listens on it".to_owned(),
                    Some(libc::EAGAIN) => "its queue of callers is full".to_owned(),
                    Some(libc::EACCES) => "permission denied".to_owned(),
                    _ => error.to_string(),
                },
            },
        };
        sockets.push(RuntimeSocket {
            runtime: runtime.to_owned(),
            path: path.to_path_buf(),
            answer,
        });
    }
    sockets
}

fn connect(path: &Path) -> io::Result<()> {
    // SAFETY: an all-zero address is a valid one.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let path = path.as_os_str().as_bytes();
    if path.len() >= address.sun_path.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path is too long"));
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes plain numbers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: `address` is a live `sockaddr_un` of the length given, its path terminated.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_un>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_with_a_listener_answers_and_one_without_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let (live, dead, file, absent) = (path("live"), path("dead"), path("file"), path("absent"));
        let _listener = UnixListener::bind(&live).unwrap();
        drop(UnixListener::bind(&dead).unwrap());
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&live, path("again")).unwrap();
        let again = path("again");
        let places = [&live, &dead, &file, &absent, &again];
        let found = find_among(places.into_iter().map(|place| ("r", place.as_str())));
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].answer, Answer::Listens);
        let reason = "nobody listens on it".to_owned();
        assert_eq!(found[1].answer, Answer::Refused { reason, is_permission: false });
    }

    #[test]
    fn a_full_queue_is_told_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        // SAFETY: takes plain numbers; called again on a descriptor of ours, to shorten its queue.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let error = (0..16).find_map(|_| connect(&path).err());
        // A caller that has gone still stands in the queue.
        assert_eq!(error.and_then(|error| error.raw_os_error()), Some(libc::EAGAIN));
    }

    #[test]
    fn a_path_that_fits_no_address_is_refused() {
        assert!(connect(Path::new(&"x".repeat(200))).is_err());
    }
}
