//! Maps as the kernel writes them, hostile names, and files replaced under a live mapping.

use std::io::Write;
use std::num::NonZero;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

#[test]
fn a_line_is_read_field_by_field() {
    let text = b"7f1c-7f2c r-xp 0001a000 fe:01 1065519                    /lib/x.so\n\
                 7ffd00000000-7ffd00001000 rw-s 00000000 00:00 0 \n";
    let (lines, damaged) = parse_maps(text);
    assert_eq!(damaged, 0);
    assert_eq!(
        lines[0],
        MapLine {
            start: 0x7f1c,
            end: 0x7f2c,
            readable: true,
            writable: false,
            executable: true,
            shared: false,
            file_offset: 0x1a000,
            device: (0xfe, 1),
            inode: 1065519,
            path: b"/lib/x.so".to_vec(),
        }
    );
    assert!(lines[1].path.is_empty() && lines[1].shared);
}

#[test]
fn a_newline_in_a_name_is_restored_and_other_backslashes_stay() {
    let (lines, _) = parse_maps(b"1-2 r-xp 0 0:1 5 /a\\012b\\040c (deleted)\n");
    assert_eq!(lines[0].path, b"/a\nb\\040c (deleted)");
}

#[test]
fn lines_that_make_no_sense_are_counted() {
    let (lines, damaged) = parse_maps(b"hello\n2-1 r-xp 0 0:1 5 /x\n1-2 r-xpp 0 0:1 5 /x\n");
    assert_eq!((lines.len(), damaged), (0, 3));
}

proptest! {
    #[test]
    fn hostile_maps_never_panic(text in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse_maps(&text);
    }
}

/// A copy of `sleep` under a name of choice, running.
struct Sleeper {
    directory: tempfile::TempDir,
    child: Child,
}

impl Sleeper {
    fn start(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        // By another process: a descriptor open for writing that a concurrent test's fork inherits
        // would make the file busy.
        assert!(Command::new("cp").arg("/bin/sleep").arg(&path).status().unwrap().success());
        let child =
            Command::new(&path).arg("60").stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let sleeper = Self { directory, child: child.unwrap() };
        // spawn returns in the midst of the exec: wait until the C library is mapped as well.
        let start = Instant::now();
        let maps = format!("/proc/{}/maps", sleeper.child.id());
        while !std::fs::read_to_string(&maps).unwrap().contains("libc.so") {
            assert!(start.elapsed() < Duration::from_secs(20), "the program did not start");
            std::thread::sleep(Duration::from_millis(2));
        }
        sleeper
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn mapped(&self, name: &str) -> (MappedFile, Vec<String>) {
        let process = Process::open(self.child.id()).unwrap();
        let mappings = Mappings::of(&process).unwrap();
        let wanted = self.path(name).to_string_lossy().into_owned();
        let file = mappings.files.iter().find(|file| file.path == wanted);
        (file.unwrap_or_else(|| panic!("{wanted} not in {mappings:#?}")).clone(), mappings.warnings)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn content(file: &MappedFile) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.file.try_clone().unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_replaced_file_is_read_as_it_is_mapped() {
    let sleeper = Sleeper::start("victim");
    let path = sleeper.path("victim");
    std::fs::remove_file(&path).unwrap();
    std::fs::File::create(&path).unwrap().write_all(b"something else").unwrap();
    let (file, warnings) = sleeper.mapped("victim");
    assert!(file.deleted);
    assert_eq!(content(&file), std::fs::read("/bin/sleep").unwrap());
    assert!(warnings.iter().any(|warning| warning.contains("replaced")), "{warnings:?}");
}

#[test]
fn a_name_that_ends_like_a_deleted_one_is_no_deleted_file() {
    let sleeper = Sleeper::start("odd (deleted)");
    let (file, warnings) = sleeper.mapped("odd (deleted)");
    assert!(!file.deleted);
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn a_name_with_a_newline_is_found() {
    let sleeper = Sleeper::start("two\nlines");
    let (file, _) = sleeper.mapped("two\nlines");
    assert_eq!(content(&file), std::fs::read("/bin/sleep").unwrap());
}

#[test]
fn without_map_files_a_path_is_taken_only_with_the_mapped_inode() {
    let sleeper = Sleeper::start("victim");
    let process = Process::open(sleeper.child.id()).unwrap();
    let (lines, _) = read_maps(&process).unwrap();
    let path = sleeper.path("victim").to_string_lossy().into_owned();
    let line = lines.iter().find(|l| l.executable && l.path == path.as_bytes()).unwrap();
    let opener = Opener::of(&process);
    assert!(opener.open_in_root(path.as_bytes(), line).is_ok());
    std::fs::copy("/bin/true", sleeper.path("other")).unwrap();
    std::fs::rename(sleeper.path("other"), sleeper.path("victim")).unwrap();
    let refused = opener.open_in_root(path.as_bytes(), line).unwrap_err();
    assert!(refused.contains("another file stands at its path"), "{refused}");
}

#[test]
fn a_rescan_tells_only_new_files_and_is_quiet_when_nothing_changed() {
    let process = Process::open(std::process::id()).unwrap();
    let mut mappings = Mappings::of(&process).unwrap();
    let known = mappings.files.len();
    assert!(!mappings.changed(&process).unwrap());
    assert!(mappings.rescan(&process).unwrap().is_empty());

    let library = Path::new("/usr/lib/x86_64-linux-gnu/libmimalloc.so.2");
    let file = File::open(library).unwrap();
    let length = NonZero::new(4096).unwrap();
    // SAFETY: a private mapping at a free address; nothing refers to it.
    let window = unsafe {
        nix::sys::mman::mmap(
            None,
            length,
            nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_EXEC,
            nix::sys::mman::MapFlags::MAP_PRIVATE,
            &file,
            0,
        )
    }
    .unwrap();
    assert!(mappings.changed(&process).unwrap());
    let new = mappings.rescan(&process).unwrap();
    assert_eq!(new, [known]);
    assert!(mappings.files[known].path.contains("libmimalloc"));
    // SAFETY: the mapping made above, of the same length.
    unsafe { nix::sys::mman::munmap(window, 4096) }.unwrap();
}
