//! Where the symbols of a stripped file are: in a separate debug file, found by build id or by
//! `.gnu_debuglink`, in the tracee's root first and then on the host.
//!
//! A file counts only if it proves to belong: the same build id, or the checksum of the link.

use std::fs::File;
use std::io::{self, Read};

use super::Object;
use crate::tracee::root::Root;

/// Longest debug file whose checksum is computed.
const MAX_CHECKED_BYTES: u64 = 1 << 30;

/// `.gnu_debuglink`: a file name and the CRC-32 of that file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebugLink {
    pub file_name: Vec<u8>,
    pub crc32: u32,
}

pub struct DebugFile {
    pub file: File,
    /// As memtrace names it, e.g. `/usr/lib/debug/.build-id/93/ac61….debug (host)`.
    pub path: String,
}

/// Where to look.
#[derive(Clone, Copy, Debug, Default)]
pub struct DebugFiles<'r> {
    /// The tracee's root.
    pub tracee: Option<&'r Root>,
    /// memtrace's own.
    pub host: Option<&'r Root>,
    /// The object's directory in the tracee, for `.gnu_debuglink`.
    pub directory: &'r str,
}

impl DebugFiles<'_> {
    pub(super) fn find(
        &self,
        build_id: Option<&str>,
        link: Option<&DebugLink>,
    ) -> Option<DebugFile> {
        let roots = [(self.tracee, "tracee"), (self.host, "host")];
        for (root, whose) in roots.iter().filter_map(|(root, whose)| root.map(|r| (r, whose))) {
            if let Some((id, path)) = build_id.and_then(|id| Some((id, build_id_path(id)?)))
                && let Ok((file, _)) = root.open_file(path.as_bytes())
                && matches!(super::read_build_id(&file), Ok(Some(other)) if other == id)
            {
                return Some(DebugFile { file, path: format!("{path} ({whose})") });
            }
            let Some(link) = link else { continue };
            for path in link_paths(self.directory, &link.file_name) {
                if let Ok((file, _)) = root.open_file(&path)
                    && crc32(&file).is_ok_and(|crc| crc == link.crc32)
                {
                    let path = String::from_utf8_lossy(&path);
                    return Some(DebugFile { file, path: format!("{path} ({whose})") });
                }
            }
        }
        None
    }
}

fn build_id_path(id: &str) -> Option<String> {
    let (first, rest) = id.split_at_checked(2)?;
    (!rest.is_empty()).then(|| format!("/usr/lib/debug/.build-id/{first}/{rest}.debug"))
}

fn link_paths(directory: &str, name: &[u8]) -> Vec<Vec<u8>> {
    if name.is_empty() || name.contains(&b'/') || name == b".." {
        return Vec::new();
    }
    let directory = directory.trim_end_matches('/');
    [format!("{directory}/"), format!("{directory}/.debug/"), format!("/usr/lib/debug{directory}/")]
        .into_iter()
        .map(|prefix| [prefix.as_bytes(), name].concat())
        .collect()
}

fn crc32(file: &File) -> io::Result<u32> {
    if file.metadata()?.len() > MAX_CHECKED_BYTES {
        return Err(io::Error::other("too large"));
    }
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut reader = file.take(MAX_CHECKED_BYTES);
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

impl Object<'_, '_> {
    pub(super) fn debug_link(&self) -> Option<DebugLink> {
        let data = self.bytes_of(b".gnu_debuglink")?;
        let end = data.iter().position(|byte| *byte == 0)?;
        let at = (end + 4) & !3;
        let crc = data.get(at..at + 4)?;
        Some(DebugLink {
            file_name: data[..end].to_vec(),
            crc32: u32::from_le_bytes(crc.try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_never_names_a_path() {
        assert_eq!(link_paths("/bin", b"a/b").len(), 0);
        assert_eq!(link_paths("/bin", b"..").len(), 0);
        let paths = link_paths("/usr/bin/", b"x.debug");
        assert_eq!(
            paths,
            [
                b"/usr/bin/x.debug".to_vec(),
                b"/usr/bin/.debug/x.debug".to_vec(),
                b"/usr/lib/debug/usr/bin/x.debug".to_vec()
            ]
        );
    }

    #[test]
    fn a_build_id_leads_to_its_path() {
        assert_eq!(build_id_path("93ac").as_deref(), Some("/usr/lib/debug/.build-id/93/ac.debug"));
        assert_eq!(build_id_path("93"), None);
        assert_eq!(build_id_path(""), None);
    }
}
