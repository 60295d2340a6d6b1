use std::fs;

use super::*;

fn guarded(directory: &Path) -> (File, PathBuf) {
    let path = directory.join("freezer.state");
    fs::write(&path, "FROZEN").unwrap();
    (OpenOptions::new().write(true).open(&path).unwrap(), path)
}

#[test]
fn the_guard_thaws_when_its_pipe_ends_without_a_word() {
    let directory = tempfile::tempdir().unwrap();
    let (file, path) = guarded(directory.path());
    let guard = start_guard(&file, b"THAWED").unwrap();
    drop(guard.pipe);
    waitpid(guard.pid, None).unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), "THAWED");
}

#[test]
fn the_guard_that_is_told_that_all_is_done_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (file, path) = guarded(directory.path());
    let mut guard = start_guard(&file, b"THAWED").unwrap();
    guard.pipe.write_all(b"d").unwrap();
    drop(guard.pipe);
    waitpid(guard.pid, None).unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), "FROZEN");
}

#[test]
fn memtrace_never_freezes_itself() {
    let refused = freeze(std::process::id(), None);
    assert!(
        matches!(refused, Err(FreezeError::Oneself { .. } | FreezeError::NoFreezer { .. })),
        "{refused:?}"
    );
}
