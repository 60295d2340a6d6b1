//! A file of an image layer that is written to while a process has it mapped (overlay copy-up).
//!
//! Needs root: the test mounts an overlay of its own, as a container runtime does.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use memtrace::tracee::MappedFile;
use memtrace::tracee::mappings::Mappings;
use memtrace::tracee::process::Process;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// An overlay mount over one layer that holds a copy of `sleep`, and that copy running.
struct Overlay {
    directory: tempfile::TempDir,
    child: Option<Child>,
}

impl Overlay {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(at(name)).unwrap();
        }
        assert!(Command::new("cp").arg("/bin/sleep").arg(at("lower")).status().unwrap().success());
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            at("lower").display(),
            at("upper").display(),
            at("work").display()
        );
        let merged = at("merged");
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .expect("mounting an overlay needs root and a file system that can be an upper layer");
        let mut overlay = Self { directory, child: None };
        let program = overlay.merged();
        let child = Command::new(&program).arg("60").stdout(Stdio::null()).spawn().unwrap();
        let maps = format!("/proc/{}/maps", child.id());
        overlay.child = Some(child);
        let start = Instant::now();
        while !fs::read_to_string(&maps).unwrap().contains("libc.so") {
            assert!(start.elapsed() < Duration::from_secs(20), "the program did not start");
            std::thread::sleep(Duration::from_millis(2));
        }
        overlay
    }

    fn merged(&self) -> PathBuf {
        self.directory.path().join("merged/sleep")
    }

    fn mapped(&self) -> (MappedFile, Vec<String>) {
        let process = Process::open(self.child.as_ref().unwrap().id()).unwrap();
        let mappings = Mappings::of(&process).unwrap();
        let path = self.merged().display().to_string();
        let file = mappings.files.iter().find(|file| file.path == path).unwrap().clone();
        (file, mappings.warnings)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = umount2(&self.directory.path().join("merged"), MntFlags::MNT_DETACH);
    }
}

fn content(file: &MappedFile) -> Vec<u8> {
    let mut bytes = Vec::new();
    fs::File::open(Path::new(&format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&*file.file)
    )))
    .unwrap()
    .read_to_end(&mut bytes)
    .unwrap();
    bytes
}

#[test]
fn a_file_of_a_layer_that_nobody_touched_is_taken_as_it_is() {
    let overlay = Overlay::new();
    let (file, warnings) = overlay.mapped();
    assert!(file.open_path.starts_with("/proc"), "{file:?}");
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn a_file_copied_up_after_it_was_mapped_is_taken_from_its_layer() {
    let overlay = Overlay::new();
    let mut bytes = fs::read("/bin/sleep").unwrap();
    // Only the times change: same device, same inode, same content, another file.
    assert!(Command::new("touch").arg(overlay.merged()).status().unwrap().success());
    let (file, warnings) = overlay.mapped();
    let lower = overlay.directory.path().join("lower/sleep");
    assert_eq!(file.open_path, lower, "{warnings:?}");
    assert!(warnings[0].contains("copy-up"), "{warnings:?}");
    assert_eq!(content(&file), bytes);
    // What is mapped stays what it was when the copy is written to.
    bytes.reverse();
    let _ = fs::remove_file(overlay.merged());
    fs::write(overlay.merged(), &bytes).unwrap();
    let (file, _) = overlay.mapped();
    bytes.reverse();
    assert_eq!(content(&file), bytes);
}

#[test]
fn a_program_started_from_the_copy_is_taken_as_it_is() {
    let mut overlay = Overlay::new();
    assert!(Command::new("touch").arg(overlay.merged()).status().unwrap().success());
    if let Some(mut child) = overlay.child.take() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let child = Command::new(overlay.merged()).arg("60").stdout(Stdio::null()).spawn().unwrap();
    let maps = format!("/proc/{}/maps", child.id());
    overlay.child = Some(child);
    let start = Instant::now();
    while !fs::read_to_string(&maps).unwrap().contains("libc.so") {
        assert!(start.elapsed() < Duration::from_secs(20), "the program did not start");
        std::thread::sleep(Duration::from_millis(2));
    }
    let (_, warnings) = overlay.mapped();
    assert!(warnings.is_empty(), "{warnings:?}");
}
