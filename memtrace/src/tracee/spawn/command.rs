//! From the words of a command line to what `execv` needs: the file to execute, and C strings.
//!
//! Looks up PATH as `execvp` does, but before the fork, so that each failure has its own error.

use std::ffi::{CString, OsStr, OsString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::AccessFlags;

use super::SpawnError;

/// Where `execvp` looks when PATH is not set.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// A command, ready to be executed without another allocation.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) path: PathBuf,
    pub(super) file: CString,
    /// The strings that `argv` points to.
    _words: Vec<CString>,
    /// Ends with a null pointer.
    argv: Vec<*const c_char>,
}

impl Command {
    pub(super) fn resolve(argv: &[OsString]) -> Result<Command, SpawnError> {
        let name = argv.first().filter(|name| !name.is_empty()).ok_or(SpawnError::EmptyCommand)?;
        let to_c = |word: &OsStr| {
            CString::new(word.as_bytes())
                .map_err(|_| SpawnError::NulByte { command: name.to_string_lossy().into_owned() })
        };
        let words = argv.iter().map(|word| to_c(word)).collect::<Result<Vec<_>, _>>()?;
        let path = look_up(name, std::env::var_os("PATH"))?;
        let file = to_c(path.as_os_str())?;
        let pointers = words.iter().map(|word| word.as_ptr());
        let argv = pointers.chain([std::ptr::null()]).collect();
        Ok(Command { path, file, _words: words, argv })
    }

    /// The null-terminated vector for `execv`; valid as long as `self`.
    pub(super) fn argv(&self) -> *const *const c_char {
        self.argv.as_ptr()
    }

    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// The file that `name` means. With a slash in it, itself; otherwise the first executable of that
/// name in `search`, where an empty entry is the working directory.
fn look_up(name: &OsStr, search: Option<OsString>) -> Result<PathBuf, SpawnError> {
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return check(&path).map(|()| path);
    }
    let search = search.unwrap_or_else(|| DEFAULT_PATH.into());
    let mut refused = None;
    for directory in search.as_bytes().split(|byte| *byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let path = Path::new(OsStr::from_bytes(directory)).join(name);
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(error @ SpawnError::NotExecutable { .. }) => refused = refused.or(Some(error)),
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or_else(|| SpawnError::NotInPath {
        command: name.to_string_lossy().into_owned(),
        path: search.to_string_lossy().into_owned(),
    }))
}

fn check(path: &Path) -> Result<(), SpawnError> {
    let path_buf = || path.to_path_buf();
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(SpawnError::NotExecutable { path: path_buf() })
        }
        Err(_) => Err(SpawnError::NotFound { path: path_buf() }),
        Ok(metadata) if metadata.is_dir() => Err(SpawnError::Directory { path: path_buf() }),
        Ok(metadata) if !metadata.is_file() => Err(SpawnError::NotExecutable { path: path_buf() }),
        Ok(_) => nix::unistd::eaccess(path, AccessFlags::X_OK)
            .map_err(|_| SpawnError::NotExecutable { path: path_buf() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(directory: &Path, name: &str, mode: u32) {
        let path = directory.join(name);
        std::fs::write(&path, "").expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    }

    #[test]
    fn lookup_takes_the_first_executable_and_passes_over_directories_and_plain_files() {
        let root = tempfile::tempdir().expect("temporary directory");
        let [a, b, c] = ["a", "b", "c"].map(|name| root.path().join(name));
        for directory in [&a, &b, &c] {
            std::fs::create_dir(directory).expect("mkdir");
        }
        std::fs::create_dir(a.join("tool")).expect("mkdir");
        file(&b, "tool", 0o644);
        file(&c, "tool", 0o755);
        let all = std::env::join_paths([&a, &b, &c]).expect("join");
        let found = look_up(OsStr::new("tool"), Some(all)).expect("found");
        assert_eq!(found, c.join("tool"));

        let without = std::env::join_paths([&a, &b]).expect("join");
        let refused = look_up(OsStr::new("tool"), Some(without));
        assert!(
            matches!(refused, Err(SpawnError::NotExecutable { ref path }) if *path == b.join("tool")),
            "{refused:?}"
        );
        let missing = look_up(OsStr::new("tool"), Some(a.clone().into_os_string()));
        assert!(matches!(missing, Err(SpawnError::NotInPath { .. })), "{missing:?}");
    }

    #[test]
    fn an_unset_path_means_the_default_directories() {
        let found = look_up(OsStr::new("sh"), None).expect("sh");
        assert_eq!(found, Path::new("/bin/sh"));
    }

    #[test]
    fn nul_bytes_and_empty_commands_are_refused_before_the_fork() {
        let nul = Command::resolve(&["sh".into(), "a\0b".into()]);
        assert!(matches!(nul, Err(SpawnError::NulByte { .. })), "{nul:?}");
        let nul = Command::resolve(&["/bin/\0sh".into()]);
        assert!(matches!(nul, Err(SpawnError::NulByte { .. })), "{nul:?}");
        for empty in [&[][..], &["".into()]] {
            let refused = Command::resolve(empty);
            assert!(matches!(refused, Err(SpawnError::EmptyCommand)), "{refused:?}");
        }
    }

    #[test]
    fn the_argument_vector_ends_with_null_and_keeps_argv0_as_typed() {
        let command = Command::resolve(&["sh".into(), "-c".into()]).expect("sh");
        assert_eq!(command.argv.len(), 3);
        assert!(command.argv[2].is_null());
        assert_eq!(command._words[0].as_bytes(), b"sh");
        assert!(command.path.is_absolute());
    }
}
