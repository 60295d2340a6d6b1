//! What the Go linker wrote into a binary of itself: the version and how it was built.
//!
//! Pure over hostile bytes. Only the form with inline strings is read, which is that of Go 1.18
//! and later; older binaries give none.

use crate::stacks::elf::{ByteSource, Elf};

const MAGIC: &[u8] = b"\xff Go buildinf:";
/// The linker aligns the blob so.
const ALIGNMENT: usize = 16;
/// Where the strings start.
const HEADER_BYTES: usize = 32;
/// Longest version and longest list of settings looked at.
const MAX_VERSION_BYTES: usize = 256;
const MAX_SETTINGS_BYTES: usize = 1 << 20;
/// How far into a data segment the magic is searched where no section tells its place.
const SEARCH_BYTES: u64 = 64 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildInfo {
    /// `go1.27.3`, `go1.24.1 X:nocoverageredesign`, `devel go1.28-…`
    pub version: String,
    /// The 24 of `go1.24.11`.
    pub minor: u32,
    /// `build` lines: `-buildmode`, `CGO_ENABLED`, `GOARCH` …
    pub settings: Vec<(String, String)>,
}

impl BuildInfo {
    /// What a binary says of itself, with or without section headers.
    pub fn of<S: ByteSource + ?Sized>(elf: &Elf<'_, S>) -> Option<Self> {
        if let Some(section) = elf.section(".go.buildinfo")
            && let Some(info) = elf.section_bytes(section).and_then(|bytes| Self::parse(&bytes))
        {
            return Some(info);
        }
        elf.segments.loads.iter().filter(|load| !load.executable).find_map(|load| {
            let bytes = elf.source().read(load.offset, load.file_size.min(SEARCH_BYTES))?;
            let skip = (load.vaddr as usize).wrapping_neg() % ALIGNMENT;
            let places = (skip..bytes.len()).step_by(ALIGNMENT);
            places
                .filter(|at| bytes[*at..].starts_with(MAGIC))
                .find_map(|at| Self::parse(&bytes[at..]))
        })
    }

    /// `bytes` starts with the blob.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        const INLINE_STRINGS: u8 = 2;
        if !bytes.starts_with(MAGIC) || bytes.get(15)? & INLINE_STRINGS == 0 {
            return None;
        }
        let (version, rest) = string(bytes.get(HEADER_BYTES..)?, MAX_VERSION_BYTES)?;
        let version = str::from_utf8(version).ok()?.to_owned();
        let minor = minor(&version)?;
        let settings = string(rest, MAX_SETTINGS_BYTES).map_or(&[][..], |(text, _)| text);
        // Between two sentinels of 16 bytes each, which are no text.
        let settings = settings.get(16..settings.len().saturating_sub(16)).unwrap_or_default();
        let settings = String::from_utf8_lossy(settings)
            .lines()
            .filter_map(|line| line.strip_prefix("build\t")?.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Some(Self { version, minor, settings })
    }

    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// `go1.27.3`, `devel go1.28-d1b8a2c …`, `go1.24.1 X:…` → the minor
fn minor(version: &str) -> Option<u32> {
    let word = version.split_whitespace().find(|word| word.starts_with("go1."))?;
    let digits = word.strip_prefix("go1.")?;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// A length and so many bytes.
fn string(bytes: &[u8], limit: usize) -> Option<(&[u8], &[u8])> {
    let mut length = 0u64;
    for (index, byte) in bytes.iter().take(9).enumerate() {
        length |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let length = usize::try_from(length).ok().filter(|length| *length <= limit)?;
            return bytes.get(index + 1..)?.split_at_checked(length);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::go::memory::fuzz_cases;

    fn blob(version: &str, settings: &str) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([8, 2]);
        bytes.resize(HEADER_BYTES, 0);
        let settings = format!("0123456789abcdef{settings}0123456789abcdef");
        for text in [version, &settings] {
            let mut length = text.len();
            while length >= 0x80 {
                bytes.push(length as u8 | 0x80);
                length >>= 7;
            }
            bytes.push(length as u8);
            bytes.extend(text.as_bytes());
        }
        bytes
    }

    #[test]
    fn version_and_settings_are_read() {
        let text = "path\tmain\nbuild\t-buildmode=pie\nbuild\tCGO_ENABLED=1\n";
        let info = BuildInfo::parse(&blob("go1.24.11", text)).unwrap();
        assert_eq!((info.version.as_str(), info.minor), ("go1.24.11", 24));
        assert_eq!(info.setting("-buildmode"), Some("pie"));
        assert_eq!(info.setting("CGO_ENABLED"), Some("1"));
        assert_eq!(info.setting("-race"), None);
    }

    #[test]
    fn versions_of_all_kinds_have_their_minor() {
        for (version, expected) in [
            ("go1.21", Some(21)),
            ("go1.27.3", Some(27)),
            ("go1.25rc1", Some(25)),
            ("go1.24.1 X:nocoverageredesign", Some(24)),
            ("devel go1.28-d1b8a2c Mon Nov 2 2026", Some(28)),
            ("devel +abcdef", None),
            ("go2.1", None),
            ("go1.99999999999", None),
        ] {
            assert_eq!(minor(version), expected, "{version}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(fuzz_cases(512)))]

        #[test]
        fn a_damaged_blob_never_panics(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = blob("go1.27.3", "path\tmain\nbuild\tCGO_ENABLED=1\n");
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            if let Some(info) = BuildInfo::parse(&bytes) {
                prop_assert!(info.version.len() <= MAX_VERSION_BYTES);
            }
        }
    }
}
