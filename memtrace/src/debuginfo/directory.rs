//! A directory with debug files: where distributions put them, then every file in it by build id.
//!
//! The whole directory is looked through once, when the usual places do not have what is asked for;
//! symbolic links to directories are not followed then, and at most [`Limits::files`] files are
//! opened.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use super::{BuildId, Limits, Search};
use crate::stacks::elf::{Elf, FileSource};

/// Deeper directories are not entered.
const DEEPEST: usize = 16;

#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    limits: Limits,
    /// Files by build id, once they were looked at.
    index: Option<Index>,
}

#[derive(Debug, Default)]
struct Index {
    files: HashMap<String, Vec<PathBuf>>,
    looked_at: usize,
    /// Some were not looked at.
    is_cut: bool,
    /// Directories that could not be read.
    unread: usize,
}

impl Directory {
    pub fn new(path: PathBuf, limits: Limits) -> Self {
        Self { path, limits, index: None }
    }

    /// Where a file of this build id is usually found.
    fn usual_places(&self, wanted: &BuildId, object: &str) -> Vec<PathBuf> {
        let (first, rest) = wanted.parted();
        let by_id = Path::new(".build-id").join(first);
        let object: PathBuf = Path::new(object)
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .collect();
        let with_suffix = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(".debug");
            PathBuf::from(name)
        };
        let debug = Path::new("usr/lib/debug");
        let mut places = vec![
            by_id.join(format!("{rest}.debug")),
            debug.join(&by_id).join(format!("{rest}.debug")),
        ];
        if let Some(name) = object.file_name().map(Path::new) {
            places.push(with_suffix(&debug.join(&object)));
            places.push(debug.join(&object));
            places.push(with_suffix(&object));
            places.push(object.clone());
            places.push(with_suffix(name));
            places.push(name.to_owned());
        }
        places.push(by_id.join(rest));
        places.into_iter().map(|place| self.path.join(place)).collect()
    }

    pub(super) fn look(&mut self, wanted: &BuildId, object: &str, search: &mut Search) {
        for place in self.usual_places(wanted, object) {
            if let Some(file) = open_regular(&place) {
                search.offer(file, place.display().to_string(), wanted);
            }
            if search.is_done() {
                return;
            }
        }
        let (path, limits) = (&self.path, &self.limits);
        let index = self.index.get_or_insert_with(|| Index::of(path, limits.files));
        for place in index.files.get(wanted.as_str()).into_iter().flatten() {
            if let Some(file) = open_regular(place) {
                search.offer(file, place.display().to_string(), wanted);
            }
            if search.is_done() {
                return;
            }
        }
        let name = self.path.display().to_string();
        if index.is_cut {
            let why = format!("only its first {} files were looked at", index.looked_at);
            search.refuse(name.clone(), why);
        }
        if index.unread > 0 {
            search.refuse(name, format!("{} directories could not be read", index.unread));
        }
    }
}

impl Index {
    fn of(root: &Path, most: usize) -> Self {
        let mut index = Self::default();
        let mut todo = vec![(root.to_owned(), 0)];
        while let Some((directory, depth)) = todo.pop() {
            let Ok(entries) = std::fs::read_dir(&directory) else {
                index.unread += 1;
                continue;
            };
            let mut entries: Vec<_> = entries.flatten().collect();
            // The order of a directory is nobody's: the first files are the same each time.
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                let Ok(kind) = entry.file_type() else { continue };
                if kind.is_dir() {
                    match depth < DEEPEST {
                        true => todo.push((entry.path(), depth + 1)),
                        false => index.is_cut = true,
                    }
                } else if index.looked_at == most {
                    index.is_cut = true;
                    return index;
                } else {
                    index.looked_at += 1;
                    index.take(entry.path());
                }
            }
        }
        index
    }

    fn take(&mut self, path: PathBuf) {
        let Some(file) = open_regular(&path) else { return };
        let Ok(source) = FileSource::new(&file) else { return };
        if let Some(id) = Elf::parse(&source).ok().and_then(|elf| elf.build_id()) {
            self.files.entry(id).or_default().push(path);
        }
    }
}

/// A FIFO keeps nobody waiting, and is no file.
fn open_regular(path: &Path) -> Option<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}
