//! Where the debug information of a stripped object is: by build id, then by `.gnu_debuglink`.
//!
//! Looked for in the tracee's root first (what its image brings matches it best), then in the
//! host's debug directories. A path in the tracee's root is resolved by the kernel inside that
//! root: no symbolic link of the tracee leads out of it. Whatever is found must be a regular file
//! and prove that it belongs to the object, by build id or, without one, by the link's checksum.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::elf::{ByteSource, Elf, FileSource, u32_at};
use crate::tracee::root::Root;

/// Where distributions put debug files, in any root.
const DEBUG_DIRECTORY: &str = "usr/lib/debug";

/// What the object says about its debug file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DebugLink {
    build_id: Option<String>,
    /// File name and checksum of `.gnu_debuglink`.
    link: Option<(String, u32)>,
}

impl DebugLink {
    pub(crate) fn of<S: ByteSource + ?Sized>(elf: &Elf<'_, S>) -> Self {
        let link = elf.section(".gnu_debuglink").and_then(|section| {
            const LONGEST: usize = 255;
            let bytes = elf.section_bytes(section)?;
            let end = bytes.iter().position(|byte| *byte == 0)?;
            let name = std::str::from_utf8(&bytes[..end]).ok()?;
            // A name, not a path: the tracee does not say where on the host to look.
            let is_name = !name.is_empty() && !name.contains('/') && !name.starts_with('.');
            let checksum = u32_at(&bytes, (end + 4) & !3);
            (is_name && name.len() <= LONGEST).then(|| (name.to_owned(), checksum))
        });
        Self { build_id: elf.build_id().filter(|id| id.len() > 4), link }
    }

    /// Paths relative to a root where the debug file may be.
    fn candidates(&self, object: &str) -> Vec<PathBuf> {
        let debug = Path::new(DEBUG_DIRECTORY);
        let mut paths = self.in_debug_directory(debug, object);
        if let Some((name, _)) = &self.link {
            let directory = directory_of(object);
            paths.push(directory.join(name));
            paths.push(directory.join(".debug").join(name));
        }
        paths
    }

    fn in_debug_directory(&self, debug: &Path, object: &str) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        if let Some((first, rest)) = self.build_id.as_deref().and_then(|id| id.split_at_checked(2))
        {
            paths.push(debug.join(".build-id").join(first).join(format!("{rest}.debug")));
        }
        if let Some((name, _)) = &self.link {
            paths.push(debug.join(directory_of(object)).join(name));
            paths.push(debug.join(name));
        }
        paths
    }

    /// Whether a file is the object's debug file.
    fn fits(&self, file: &File) -> bool {
        let Ok(source) = FileSource::new(file) else { return false };
        let Ok(elf) = Elf::parse(&source) else { return false };
        if elf.section(".debug_info").is_none() && elf.section(".symtab").is_none() {
            return false;
        }
        match (&self.build_id, &self.link) {
            (Some(build_id), _) => elf.build_id().as_ref() == Some(build_id),
            (None, Some((_, checksum))) => checksum_of(&source) == Some(*checksum),
            (None, None) => false,
        }
    }

    /// The object's debug file, opened.
    pub(crate) fn find(
        &self,
        object: &str,
        tracee: Option<&Root>,
        host_directories: &[PathBuf],
    ) -> Option<File> {
        let in_tracee = tracee.into_iter().flat_map(|root| {
            let paths = self.candidates(object).into_iter();
            paths.filter_map(|path| Some(root.open_file(path.as_os_str().as_bytes()).ok()?.0))
        });
        let on_host = host_directories.iter().flat_map(|directory| {
            let paths = self.in_debug_directory(directory, object);
            paths.into_iter().filter_map(|path| File::open(path).ok())
        });
        in_tracee.chain(on_host).find(|file| self.fits(file))
    }
}

/// The object's directory relative to its root, without `..`.
fn directory_of(object: &str) -> PathBuf {
    use std::path::Component;
    let parent = Path::new(object).parent().unwrap_or(Path::new(""));
    parent.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

fn checksum_of(source: &FileSource<'_>) -> Option<u32> {
    const CHUNK: u64 = 1 << 20;
    let mut hasher = crc32fast::Hasher::new();
    let mut at = 0;
    while at < source.length() {
        let length = CHUNK.min(source.length() - at);
        hasher.update(&source.read(at, length)?);
        at += length;
    }
    Some(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, build_id: Option<&str>) -> DebugLink {
        DebugLink { build_id: build_id.map(str::to_owned), link: Some((name.to_owned(), 7)) }
    }

    #[test]
    fn candidates_stay_under_the_directories_meant_for_them() {
        let candidates = link("libx.debug", Some("abcdef")).candidates("/opt/../app/lib/libx.so");
        let expected = [
            "usr/lib/debug/.build-id/ab/cdef.debug",
            "usr/lib/debug/opt/app/lib/libx.debug",
            "usr/lib/debug/libx.debug",
            "opt/app/lib/libx.debug",
            "opt/app/lib/.debug/libx.debug",
        ];
        assert_eq!(candidates, expected.map(PathBuf::from));
    }
}
