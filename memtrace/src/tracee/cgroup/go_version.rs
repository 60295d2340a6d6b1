//! The Go version of a program, from the build info that the linker puts into it: a section's
//! header and a few bytes, nothing else of the file is read.

use std::fs::File;
use std::os::unix::fs::FileExt;

use object::LittleEndian as LE;
use object::elf::FileHeader64;
use object::read::ReadCache;
use object::read::elf::{FileHeader, SectionHeader};

const MAGIC: &[u8] = b"\xff Go buildinf:";
/// Set since Go 1.18: the strings stand inline, behind the header of 32 bytes.
const INLINE: u8 = 2;
const HEADER_BYTES: usize = 32;

/// `None` where it is no Go program, or not one that says so.
pub(super) fn go_version(file: &File) -> Option<String> {
    let cache = ReadCache::new(file.try_clone().ok()?);
    let header = FileHeader64::<LE>::parse(&cache).ok()?;
    let sections = header.sections(LE, &cache).ok()?;
    let (_, section) = sections.section_by_name(LE, b".go.buildinfo")?;
    let mut bytes = [0u8; 256];
    let read = file.read_at(&mut bytes, section.sh_offset(LE)).ok()?;
    parse(bytes.get(..read)?)
}

fn parse(info: &[u8]) -> Option<String> {
    if !info.starts_with(MAGIC) {
        return None;
    }
    if info.get(15)? & INLINE == 0 {
        return Some("go before 1.18".to_owned());
    }
    let (length, text) = info.get(HEADER_BYTES..)?.split_first()?;
    // A version is shorter than 128 bytes: the length is one byte of a varint.
    let text = text.get(..usize::from(*length)).filter(|_| *length < 128)?;
    let version = str::from_utf8(text).ok()?;
    version.starts_with("go").then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_stands_inline_behind_the_header() {
        let mut info = Vec::from(MAGIC);
        info.extend([8, INLINE]);
        info.resize(HEADER_BYTES, 0);
        info.push(8);
        info.extend(b"go1.27.3\x00rest");
        assert_eq!(parse(&info).as_deref(), Some("go1.27.3"));
        info[15] = 0;
        assert_eq!(parse(&info).as_deref(), Some("go before 1.18"));
        assert_eq!(parse(&info[..20]).as_deref(), Some("go before 1.18"));
        assert_eq!(parse(b"\xff Go"), None);
        info[15] = INLINE;
        info[HEADER_BYTES] = 0xff;
        assert_eq!(parse(&info), None);
    }
}
