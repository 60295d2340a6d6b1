//! Which C library a process has, and where its variables lie.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::glibc::Libc;
use super::regions::Regions;
use crate::tracee::MappedFile;
use crate::tracee::allocators::{self, Family};
use crate::tracee::elf::{self, DebugFiles, Load};
use crate::tracee::mappings::{MapLine, Mappings};
use crate::tracee::process::Process;
use crate::tracee::root::Root;

/// Most bytes of a library searched for its version.
const MAX_SEARCHED: u64 = 16 << 20;
/// glibc's greeting reads `GNU C Library (…) stable release version 2.36.`
const GREETING: &[u8] = b"GNU C Library ";
const VERSION: &[u8] = b" release version ";
/// Most bytes between the two.
const MAX_GREETING: usize = 256;

/// What was found of a process's allocators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LibcFacts {
    pub glibc: Libc,
    /// Other allocators in the process, by name.
    pub beside: Vec<String>,
}

impl LibcFacts {
    /// Looks for glibc among the files that a process maps; `lines` are its mappings at this time.
    /// An error says what it has instead.
    pub fn find(process: &Process, mappings: &Mappings, lines: &[MapLine]) -> Result<Self, String> {
        let mut beside = Vec::new();
        for file in &mappings.files {
            let other = OTHERS.iter().find(|(mark, _)| file_name(file).starts_with(mark));
            if let Some((_, family)) = other
                && !beside.iter().any(|known| known == family.name())
            {
                beside.push(family.name().to_owned());
            }
        }
        // By name first: reading the symbols of every object takes long.
        let named = mappings.files.iter().find(|file| is_named_libc(file_name(file)));
        if let Some(file) = named
            && has_glibc(process, file)
        {
            return Ok(Self { glibc: facts(process, file, lines)?, beside });
        }
        let found = allocators::read_objects(process, mappings, &|_| false);
        for object in &found.objects {
            for family in &object.families {
                if *family != Family::Glibc && !beside.iter().any(|known| known == family.name()) {
                    beside.push(family.name().to_owned());
                }
            }
        }
        let glibc = found.objects.iter().find(|object| object.families.contains(&Family::Glibc));
        match glibc {
            Some(object) => Ok(Self { glibc: facts(process, &object.file, lines)?, beside }),
            None => Err(no_glibc(&beside)),
        }
    }
}

const OTHERS: [(&str, Family); 3] = [
    ("libjemalloc", Family::Jemalloc),
    ("libtcmalloc", Family::Tcmalloc),
    ("libmimalloc", Family::Mimalloc),
];

fn file_name(file: &MappedFile) -> &str {
    file.path.rsplit('/').next().unwrap_or(&file.path)
}

/// `libc.so.6`, or `libc-2.31.so` in older releases.
fn is_named_libc(name: &str) -> bool {
    name.starts_with("libc.so") || (name.starts_with("libc-2.") && name.ends_with(".so"))
}

fn has_glibc(process: &Process, file: &MappedFile) -> bool {
    let found = allocators::read_some(process, std::slice::from_ref(file), &|_| false);
    found.objects.iter().any(|object| object.families.contains(&Family::Glibc))
}

/// Why there is nothing to read.
fn no_glibc(beside: &[String]) -> String {
    match beside {
        [] => "no C library with an allocator was found in it".to_owned(),
        [only] if only == Family::Musl.name() => {
            "it uses musl, whose malloc keeps no books of what is free".to_owned()
        }
        names => format!(
            "it uses {}, whose books cannot be read from outside: ask the program (jemalloc: \
             `mallctl` or `malloc_stats_print`; tcmalloc: `MallocExtension`; mimalloc: \
             `mi_stats_print`)",
            names.join(" and ")
        ),
    }
}

fn facts(process: &Process, file: &MappedFile, lines: &[MapLine]) -> Result<Libc, String> {
    let (tracee, host) = (Root::of_process(process.pid()).ok(), Root::of_self().ok());
    let directory = file.path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let debug = DebugFiles { tracee: tracee.as_ref(), host: host.as_ref(), directory };
    let (loads, symbols) = elf::addresses(&file.file, &["main_arena", "mp_"], &debug)
        .map_err(|error| format!("the C library `{}` cannot be read: {error}", file.path))?;
    let bias = bias(file, &loads)
        .ok_or_else(|| format!("the C library `{}` is not mapped as it says", file.path))?;
    let writable = loads.iter().filter(|load| load.writable);
    let ranges = writable.map(|load| {
        let start = load.address.wrapping_add(bias);
        start..start.saturating_add(load.memory_size)
    });
    let regions = Regions::writable(lines);
    let data: Vec<Range<u64>> = ranges.flat_map(|range| regions.within(&range)).collect();
    let symbol = |name| symbols.get(name).map(|address| address.wrapping_add(bias));
    Ok(Libc {
        release: release(&file.file),
        main_arena: symbol("main_arena"),
        parameters: symbol("mp_"),
        data,
    })
}

/// What to add to an address in the file to get one in the process.
fn bias(file: &MappedFile, loads: &[Load]) -> Option<u64> {
    file.mappings.iter().find_map(|mapping| {
        let load = loads.iter().find(|load| {
            load.executable && load.file_offset & !0xfff == mapping.file_offset & !0xfff
        })?;
        Some(mapping.start.wrapping_sub(load.address & !0xfff))
    })
}

/// The release that glibc's own greeting tells.
fn release(file: &File) -> Option<(u32, u32)> {
    let length = file.metadata().ok()?.len().min(MAX_SEARCHED);
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    file.read_exact_at(&mut bytes, 0).ok()?;
    parse_release(&bytes)
}

fn parse_release(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut rest = bytes;
    loop {
        let at = find(rest, GREETING)?;
        rest = rest.get(at + GREETING.len()..)?;
        let greeting = rest.get(..rest.len().min(MAX_GREETING))?;
        let Some(version) = find(greeting, VERSION) else { continue };
        let text = greeting.get(version + VERSION.len()..)?;
        let end = text.iter().position(|byte| !byte.is_ascii_digit() && *byte != b'.');
        let text = str::from_utf8(text.get(..end.unwrap_or(text.len()))?).ok()?;
        let mut numbers = text.split('.').map(str::parse);
        if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) {
            // A development version (2.42.9000) has what the next release has, or nearly.
            let next =
                numbers.next().is_some_and(|patch| patch.is_ok_and(|patch: u32| patch >= 9000));
            return Some((major, u32::saturating_add(minor, u32::from(next))));
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let (first, _) = wanted.split_first()?;
    let mut from = 0;
    loop {
        let at = from + bytes.get(from..)?.iter().position(|byte| byte == first)?;
        if bytes.get(at..)?.starts_with(wanted) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_from_the_greeting() {
        let told = |text: &str| parse_release(text.as_bytes());
        assert_eq!(
            told("\0GNU C Library (Debian GLIBC 2.36-9+deb12u14) stable release version 2.36.\nC"),
            Some((2, 36))
        );
        assert_eq!(
            told("GNU C Library (GNU libc) development release version 2.42.9000.\n"),
            Some((2, 43))
        );
        assert_eq!(
            told("see the GNU C Library manual; GNU C Library x release version 2.17"),
            Some((2, 17))
        );
        assert_eq!(told("GNU C Library x release version 2.4294967295.9000"), Some((2, u32::MAX)));
        for nothing in [
            "",
            "GNU C Library ",
            "GNU C Library stable release version 2",
            "GNU C Library release version 99999999999.1",
        ] {
            assert_eq!(told(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn the_c_library_of_this_machine_tells_its_release() {
        let file = File::open("/lib/x86_64-linux-gnu/libc.so.6").unwrap();
        let (major, minor) = release(&file).unwrap();
        assert!(major == 2 && minor >= 17, "{major}.{minor}");
    }

    #[test]
    fn old_and_new_names_of_the_c_library_are_known() {
        assert!(is_named_libc("libc.so.6") && is_named_libc("libc-2.31.so"));
        assert!(!is_named_libc("libcrypt.so.1") && !is_named_libc("libc-client.so"));
    }

    #[test]
    fn an_unreadable_allocator_is_told_with_whom_to_ask() {
        assert!(no_glibc(&["jemalloc".to_owned()]).contains("mallctl"));
        assert!(no_glibc(&["musl".to_owned()]).contains("musl"));
        assert!(no_glibc(&[]).contains("no C library"));
    }
}
