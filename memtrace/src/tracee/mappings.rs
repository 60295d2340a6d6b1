//! What is mapped: `/proc/PID/maps`, and the files behind it held open.
//!
//! A file is opened by `/proc/PID/map_files/START-END`, which is what is mapped whatever its path
//! says now; without the capability for that, by its path inside the tracee's root, and only when
//! the inode there is the mapped one. Limits: 64 MiB of maps, 4096 files; a file on a hostile
//! network file system can make an open wait.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::MappedFile;
use super::capabilities::missing_for;
use super::overlay::{CopyUp, find_copy_up};
use super::process::{Process, ProcessError, read_error};
use super::root::{Root, open_magic_link};
use super::vdso;
use crate::snapshot::{NotProbed, ObjectMapping};

const MAX_MAPS_BYTES: u64 = 64 << 20;
const MAX_FILES: usize = 4096;

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapLine {
    pub start: u64,
    pub end: u64,
    pub readable: bool,
    pub writable: bool,
    pub executable: bool,
    pub shared: bool,
    pub file_offset: u64,
    pub device: (u32, u32),
    pub inode: u64,
    /// As bytes: a name need not be UTF-8. Newlines are restored, ` (deleted)` is still there.
    pub path: Vec<u8>,
}

/// The mapped files of a process at one time.
#[derive(Debug, Default)]
pub struct Mappings {
    pub files: Vec<MappedFile>,
    /// Executable mappings whose file could not be opened, and why.
    pub unreadable: Vec<NotProbed>,
    /// What the user should know beside the figures: replaced or copied-up files, cut lists.
    pub warnings: Vec<String>,
    /// Indices of the files that the last scan found at other addresses than the one before.
    pub moved: Vec<usize>,
    executable_ranges: HashSet<RangeKey>,
}

type RangeKey = (u64, u64, u64, (u32, u32), u64);

impl MapLine {
    fn key(&self) -> RangeKey {
        (self.start, self.end, self.file_offset, self.device, self.inode)
    }

    /// An executable mapping of a file, or of the vDSO.
    fn is_code_of_file(&self) -> bool {
        self.executable && (self.inode != 0 && self.path.starts_with(b"/") || self.is_vdso())
    }

    fn is_vdso(&self) -> bool {
        self.inode == 0 && self.path == vdso::NAME.as_bytes()
    }
}

/// Parses maps; lines that make no sense are counted, not guessed at.
pub fn parse_maps(text: &[u8]) -> (Vec<MapLine>, u64) {
    let mut damaged = 0;
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let lines = lines.filter_map(|line| {
        let parsed = parse_line(line);
        damaged += u64::from(parsed.is_none());
        parsed
    });
    let lines = lines.collect();
    (lines, damaged)
}

fn parse_line(line: &[u8]) -> Option<MapLine> {
    let mut rest = line;
    let mut field = || {
        let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        rest = tail.strip_prefix(b" ").unwrap_or(tail);
        str::from_utf8(word).ok()
    };
    let hex = |word: &str| u64::from_str_radix(word, 16).ok();
    let (start, end) = field()?.split_once('-')?;
    let permissions = field()?.as_bytes();
    let file_offset = hex(field()?)?;
    let (major, minor) = field()?.split_once(':')?;
    let inode = field()?.parse().ok()?;
    let (start, end) = (hex(start)?, hex(end)?);
    let [read, write, execute, share] = *permissions else { return None };
    let major = u32::from_str_radix(major, 16).ok()?;
    let minor = u32::from_str_radix(minor, 16).ok()?;
    let name = rest.iter().position(|byte| *byte != b' ').unwrap_or(rest.len());
    (start < end).then(|| MapLine {
        start,
        end,
        readable: read == b'r',
        writable: write == b'w',
        executable: execute == b'x',
        shared: share == b's',
        file_offset,
        device: (major, minor),
        inode,
        path: restore_newlines(&rest[name..]),
    })
}

/// The kernel writes a newline in a name as `\012`, and escapes nothing else.
fn restore_newlines(name: &[u8]) -> Vec<u8> {
    let mut restored = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.windows(4).position(|window| window == b"\\012") {
        restored.extend_from_slice(&rest[..at]);
        restored.push(b'\n');
        rest = &rest[at + 4..];
    }
    restored.extend_from_slice(rest);
    restored
}

/// Reads the maps of a process as lines.
pub fn read_maps(process: &Process) -> Result<(Vec<MapLine>, Vec<String>), ProcessError> {
    let path = format!("/proc/{}/maps", process.pid());
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_MAPS_BYTES).read_to_end(&mut text))
        .map_err(|source| read_error(process.pid(), &path, source))?;
    let mut warnings = Vec::new();
    if text.len() as u64 == MAX_MAPS_BYTES {
        let end = text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
        text.truncate(end);
        warnings.push(format!("`{path}` is longer than 64 MiB: mappings behind that are not seen"));
    }
    let (lines, damaged) = parse_maps(&text);
    if damaged > 0 {
        warnings.push(format!("{damaged} lines of `{path}` were not understood"));
    }
    Ok((lines, warnings))
}

impl Mappings {
    /// Opens every file that the process has mapped executable.
    pub fn of(process: &Process) -> Result<Self, ProcessError> {
        let mut mappings = Self::default();
        mappings.rescan(process)?;
        Ok(mappings)
    }

    /// Whether an executable mapping came or went since the last scan, generated code included.
    /// Reads maps, opens nothing.
    pub fn changed(&self, process: &Process) -> Result<bool, ProcessError> {
        let (lines, _) = read_maps(process)?;
        Ok(executable_ranges(&lines) != self.executable_ranges)
    }

    /// Scans again. Files already open stay open and get their present mappings; files that are
    /// no longer mapped stay listed, without mappings. Returns the indices of new files.
    pub fn rescan(&mut self, process: &Process) -> Result<Vec<usize>, ProcessError> {
        let (lines, warnings) = read_maps(process)?;
        for warning in warnings {
            self.warn(warning);
        }
        self.moved.clear();
        let ranges = executable_ranges(&lines);
        if ranges == self.executable_ranges {
            return Ok(Vec::new());
        }
        self.executable_ranges = ranges;
        let code = lines.iter().filter(|line| line.is_code_of_file());
        let before: Vec<_> =
            self.files.iter_mut().map(|file| std::mem::take(&mut file.mappings)).collect();

        let mut order = Vec::new();
        let mut by_file: HashMap<_, Vec<&MapLine>> = HashMap::new();
        for line in code {
            let of_file = by_file.entry((line.device, line.inode, &line.path)).or_default();
            if of_file.is_empty() {
                order.push((line.device, line.inode, &line.path));
            }
            of_file.push(line);
        }
        let mut new = Vec::new();
        let mut opener = Opener::of(process);
        for key in order {
            let Some(lines) = by_file.get(&key) else { continue };
            let ranges: Vec<ObjectMapping> = lines
                .iter()
                .map(|line| ObjectMapping {
                    start: line.start,
                    end: line.end,
                    file_offset: line.file_offset,
                })
                .collect();
            let is_it = |file: &MappedFile| {
                (file.device, file.inode) == (key.0, key.1) && is_path(file, key.2)
            };
            if let Some(index) = self.files.iter().position(is_it) {
                if before.get(index).is_some_and(|before| *before != ranges) {
                    self.moved.push(index);
                }
                self.files[index].mappings = ranges;
                continue;
            }
            if self.files.len() >= MAX_FILES {
                self.warn(format!("more than {MAX_FILES} files are mapped: the rest is not seen"));
                break;
            }
            match opener.open(lines[0], ranges) {
                Ok((file, warning)) => {
                    new.push(self.files.len());
                    self.files.push(file);
                    warning.into_iter().for_each(|warning| self.warn(warning));
                }
                Err(reason) => {
                    let object = String::from_utf8_lossy(key.2).into_owned();
                    let unreadable = NotProbed { object, function: None, reason };
                    if !self.unreadable.contains(&unreadable) {
                        self.unreadable.push(unreadable);
                    }
                }
            }
        }
        Ok(new)
    }

    fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}

/// Of files and of generated code.
fn executable_ranges(lines: &[MapLine]) -> HashSet<RangeKey> {
    lines.iter().filter(|line| line.executable).map(MapLine::key).collect()
}

fn is_path(file: &MappedFile, name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name);
    name == file.path || name.strip_suffix(DELETED) == Some(&file.path)
}

const DELETED: &str = " (deleted)";

/// Opens what one process has mapped.
struct Opener<'p> {
    process: &'p Process,
    root: io::Result<Root>,
}

impl<'p> Opener<'p> {
    fn of(process: &'p Process) -> Self {
        Self { process, root: Root::of_process(process.pid()) }
    }

    fn open(
        &mut self,
        line: &MapLine,
        mappings: Vec<ObjectMapping>,
    ) -> Result<(MappedFile, Option<String>), String> {
        if line.is_vdso() {
            let file = vdso::image(line.end - line.start).map_err(|error| error.to_string())?;
            return Ok((
                MappedFile {
                    path: vdso::NAME.to_owned(),
                    open_path: PathBuf::from(vdso::NAME),
                    file: Arc::new(file),
                    deleted: false,
                    device: line.device,
                    inode: line.inode,
                    mappings,
                },
                None,
            ));
        }
        let pid = self.process.pid();
        let link = format!("/proc/{pid}/map_files/{:x}-{:x}", line.start, line.end);
        let (by_link, refused) = match open_magic_link(&link) {
            Ok(opened) => (Some(opened), None),
            Err(error) => (None, Some(error)),
        };
        let (name, deleted) = self.name_of(line, by_link.as_ref().map(|(_, metadata)| metadata));
        let path = String::from_utf8_lossy(&name).into_owned();
        let (file, open_path) = match (by_link, refused) {
            (Some((file, _)), _) => (file, PathBuf::from(link)),
            (None, refused) => {
                let file = self.open_in_root(&name, line).map_err(|why| {
                    let refused = refused.map(|error| format!("; `{link}`: {error}"));
                    format!("{why}{}", refused.unwrap_or_default())
                })?;
                (file, PathBuf::from(format!("/proc/{pid}/root{path}")))
            }
        };
        let mut mapped = MappedFile {
            path,
            open_path,
            file: Arc::new(file),
            deleted,
            device: line.device,
            inode: line.inode,
            mappings,
        };
        let warning = self.repair_copy_up(&mut mapped);
        let warning = warning.or_else(|| {
            deleted.then(|| {
                format!(
                    "`{}` was deleted or replaced since it was mapped: what is mapped is traced",
                    mapped.path
                )
            })
        });
        Ok((mapped, warning))
    }

    /// The name without ` (deleted)`, and whether that suffix is the kernel's and not the file's.
    fn name_of(&self, line: &MapLine, opened: Option<&fs::Metadata>) -> (Vec<u8>, bool) {
        let Some(stripped) = line.path.strip_suffix(DELETED.as_bytes()) else {
            return (line.path.clone(), false);
        };
        let linked = opened.is_none_or(|metadata| metadata.nlink() > 0);
        let really_named_so = linked
            && self.root.as_ref().is_ok_and(|root| {
                root.open_file(&line.path).is_ok_and(|(_, found)| found.ino() == line.inode)
            });
        if really_named_so { (line.path.clone(), false) } else { (stripped.to_vec(), true) }
    }

    /// By path in the tracee's root, if what is there is what is mapped. The device is not
    /// compared: kernels before 6.12 show an overlay's file with its layer's device.
    fn open_in_root(&self, name: &[u8], line: &MapLine) -> Result<File, String> {
        let capabilities = || missing_for(&["CAP_SYS_ADMIN", "CAP_SYS_PTRACE"]);
        let root = self.root.as_ref().map_err(|error| {
            format!("the tracee's root cannot be opened: {error}; missing: {}", capabilities())
        })?;
        let (file, metadata) = root
            .open_file(name)
            .map_err(|error| format!("its path cannot be opened in the tracee's root: {error}"))?;
        if metadata.ino() != line.inode {
            return Err(format!(
                "another file stands at its path now, and reading what is mapped is not permitted; missing: {}",
                capabilities()
            ));
        }
        Ok(file)
    }

    /// A file of a lower layer that was copied up after it was mapped: every path leads to the
    /// copy, where probes see nothing. The layer's own file is taken instead.
    fn repair_copy_up(&self, mapped: &mut MappedFile) -> Option<String> {
        match find_copy_up(self.process, mapped)? {
            CopyUp::Lower { path, file } => {
                let shown = path.display().to_string();
                mapped.open_path = path;
                mapped.file = Arc::new(file);
                Some(format!(
                    "`{}` was modified in the container after it was mapped (overlay copy-up): the mapped file is taken from its layer, `{shown}`",
                    mapped.path
                ))
            }
            CopyUp::Unreachable { reason } => Some(format!(
                "`{}` was modified in the container after it was mapped (overlay copy-up), and its layer cannot be reached ({reason}): its probes may see nothing",
                mapped.path
            )),
        }
    }
}

#[cfg(test)]
#[path = "mappings_tests.rs"]
mod tests;
