//! Facts about a new image at its exec stop: its entry point, and where its loader says "done".
//!
//! A loader that the program brings is as hostile as the program: files are bounded, and addresses
//! found here are only ever handed to ptrace, which checks them.

use std::fs::File;
use std::io;

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSymbol, ReadCache};

use super::trace::Tracee;

/// The largest loader that is read for symbols: glibc's has 0.2 MiB, musl's with debug info 10 MiB.
const LOADER_FILE_LIMIT: u64 = 256 << 20;

const AT_BASE: u64 = 7;
const AT_ENTRY: u64 = 9;

/// What the kernel told the new image.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Image {
    /// Load address of the interpreter (`PT_INTERP`); 0 without one.
    pub(super) base: u64,
    /// The program's entry point, relocated.
    pub(super) entry: u64,
}

impl Image {
    pub(super) fn read(tracee: &Tracee) -> io::Result<Image> {
        Ok(Image::from_auxv(&std::fs::read(tracee.proc("auxv"))?))
    }

    fn from_auxv(auxv: &[u8]) -> Image {
        let mut image = Image::default();
        for pair in auxv.as_chunks::<16>().0 {
            let word = |at: usize| {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&pair[at..at + 8]);
                u64::from_ne_bytes(bytes)
            };
            match word(0) {
                AT_BASE => image.base = word(8),
                AT_ENTRY => image.entry = word(8),
                _ => {}
            }
        }
        image
    }
}

/// Where a loader reports what it did, as debuggers read it: `_dl_debug_state` is called after each
/// change, `r_debug` says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rendezvous {
    pub(super) function: u64,
    pub(super) r_debug: RDebug,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RDebug {
    /// glibc: `_r_debug`, the struct.
    At(u64),
    /// musl: `_dl_debug_addr`, a pointer to the struct.
    Behind(u64),
}

impl RDebug {
    /// Whether the start-up libraries are mapped and relocated: `r_state` is RT_CONSISTENT and
    /// there is a list of objects. Without a list it is an `LD_AUDIT` library's private name space
    /// that was loaded, before the program's own.
    pub(super) fn is_consistent(self, peek: impl Fn(u64) -> io::Result<u64>) -> io::Result<bool> {
        // struct r_debug { int version; link_map *map; void (*brk)(); int state; void *ldbase; }
        const R_MAP: u64 = 8;
        const R_STATE: u64 = 24;
        let address = match self {
            RDebug::At(address) => address,
            RDebug::Behind(pointer) => peek(pointer)?,
        };
        let map = peek(address.wrapping_add(R_MAP))?;
        let state = peek(address.wrapping_add(R_STATE))?;
        Ok(map != 0 && state as u32 == 0)
    }
}

/// The loader's rendezvous; `None` when this image's loader has none that can be found.
///
/// The loader is the interpreter, or the program itself (`ld.so PROGRAM`).
pub(super) fn find_rendezvous(tracee: &Tracee, image: &Image) -> Option<Rendezvous> {
    let file = match image.base {
        0 => File::open(tracee.proc("exe")).ok()?,
        base => open_mapped_at(tracee, base)?,
    };
    if file.metadata().ok()?.len() > LOADER_FILE_LIMIT {
        return None;
    }
    let cache = ReadCache::new(file);
    let elf = ElfFile64::<Endianness, _>::parse(&cache).ok()?;
    let bias = match image.base {
        0 => image.entry.wrapping_sub(elf.entry()),
        base => base,
    };
    let mut function = None;
    let mut glibc = None;
    let mut musl = None;
    for symbol in elf.dynamic_symbols().filter(|symbol| symbol.is_definition()) {
        let address = bias.wrapping_add(symbol.address());
        match symbol.name_bytes() {
            Ok(b"_dl_debug_state") => function = Some(address),
            Ok(b"_r_debug") => glibc = Some(RDebug::At(address)),
            Ok(b"_dl_debug_addr") => musl = Some(RDebug::Behind(address)),
            _ => {}
        }
    }
    Some(Rendezvous { function: function?, r_debug: glibc.or(musl)? })
}

/// The file mapped at `base`: by the mapping where that is allowed, otherwise by its name in the
/// process's own root.
fn open_mapped_at(tracee: &Tracee, base: u64) -> Option<File> {
    let maps = std::fs::read_to_string(tracee.proc("maps")).ok()?;
    let line = maps.lines().find(|line| line.starts_with(&format!("{base:x}-")))?;
    let (range, rest) = line.split_once(' ')?;
    File::open(tracee.proc("map_files").join(range))
        .or_else(|_| {
            let path = rest.find('/').map_or("", |at| &rest[at + 1..]);
            File::open(tracee.proc("root").join(path))
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auxv(pairs: &[(u64, u64)]) -> Vec<u8> {
        let words = pairs.iter().flat_map(|(key, value)| [key, value]);
        words.flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn the_auxiliary_vector_gives_base_and_entry_and_its_torn_end_is_ignored() {
        let mut bytes = auxv(&[(3, 0x40), (AT_BASE, 0x7f00), (AT_ENTRY, 0x5555), (0, 0)]);
        bytes.extend([9, 0, 0]);
        let image = Image::from_auxv(&bytes);
        assert_eq!((image.base, image.entry), (0x7f00, 0x5555));
        assert_eq!(Image::from_auxv(&bytes[..24]), Image::default());
    }

    /// A memory of one struct at 0x1000, and a pointer to it at 0x10.
    fn memory(map: u64, state: u64) -> impl Fn(u64) -> io::Result<u64> {
        move |address| match address {
            0x10 => Ok(0x1000),
            0x1008 => Ok(map),
            0x1018 => Ok(state),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    #[test]
    fn consistent_means_a_list_of_objects_and_state_zero_whatever_the_padding_holds() {
        const PADDING: u64 = 0xdead_beef_0000_0000;
        for (map, state, done) in [
            (0x99, 0, true),
            (0x99, PADDING, true),
            (0x99, 1, false),
            (0x99, PADDING | 1, false),
            (0, 0, false),
        ] {
            for r_debug in [RDebug::At(0x1000), RDebug::Behind(0x10)] {
                let said = r_debug.is_consistent(memory(map, state)).expect("readable");
                assert_eq!(said, done, "{r_debug:?} {map:#x} {state:#x}");
            }
        }
        assert!(RDebug::At(0x5000).is_consistent(memory(1, 0)).is_err());
    }
}
