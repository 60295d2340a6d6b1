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
    /// The loader's `r_state`: 0 is RT_CONSISTENT, 1 is RT_ADD, 2 is RT_DELETE.
    fn state(self, peek: impl Fn(u64) -> io::Result<u64>) -> io::Result<u32> {
        // struct r_debug { int version; link_map *map; void (*brk)(); int state; void *ldbase; }
        const R_STATE: u64 = 24;
        let address = match self {
            RDebug::At(address) => address,
            RDebug::Behind(pointer) => peek(pointer)?,
        };
        Ok(peek(address.wrapping_add(R_STATE))? as u32)
    }
}

/// Follows a loader's reports until its start-up libraries are mapped and relocated.
#[derive(Debug)]
pub(super) struct Reports {
    r_debug: RDebug,
    /// The state reads RT_CONSISTENT before the first change too. musl reports just once, when it
    /// is done. glibc reports RT_ADD first; reports before that are of `LD_AUDIT` libraries, which
    /// are loaded into name spaces of their own while the program's state is still its initial 0.
    adding_seen: bool,
}

impl Reports {
    pub(super) fn new(r_debug: RDebug) -> Reports {
        Reports { r_debug, adding_seen: matches!(r_debug, RDebug::Behind(_)) }
    }

    /// To be asked once at each report: whether this is the one that says "done".
    pub(super) fn is_done(&mut self, peek: impl Fn(u64) -> io::Result<u64>) -> io::Result<bool> {
        const RT_CONSISTENT: u32 = 0;
        const RT_ADD: u32 = 1;
        let state = self.r_debug.state(peek)?;
        self.adding_seen |= state == RT_ADD;
        Ok(self.adding_seen && state == RT_CONSISTENT)
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

    /// A memory of one struct at 0x1000, whose state is `state`, and a pointer to it at 0x10.
    fn memory(state: u64) -> impl Fn(u64) -> io::Result<u64> {
        move |address| match address {
            0x10 => Ok(0x1000),
            0x1018 => Ok(state),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn answers(r_debug: RDebug, states: &[u64]) -> Vec<bool> {
        let mut reports = Reports::new(r_debug);
        let ask = |state: &u64| reports.is_done(memory(*state)).expect("readable");
        states.iter().map(ask).collect()
    }

    #[test]
    fn glibc_is_done_when_it_is_consistent_after_adding_whatever_the_padding_holds() {
        const PADDING: u64 = 0xdead_beef_0000_0000;
        let at = RDebug::At(0x1000);
        assert_eq!(answers(at, &[1, 0]), [false, true]);
        assert_eq!(answers(at, &[PADDING | 1, PADDING]), [false, true]);
        // Two audit libraries first.
        assert_eq!(answers(at, &[0, 0, 0, 0, 1, 0]), [false, false, false, false, false, true]);
        assert_eq!(answers(at, &[2, 0]), [false, false]);
    }

    #[test]
    fn musl_is_done_at_its_only_report() {
        assert_eq!(answers(RDebug::Behind(0x10), &[0]), [true]);
        assert_eq!(answers(RDebug::Behind(0x10), &[1, 0]), [false, true]);
    }

    #[test]
    fn a_state_that_cannot_be_read_is_an_error() {
        for r_debug in [RDebug::At(0x5000), RDebug::Behind(0x5000)] {
            assert!(Reports::new(r_debug).is_done(memory(0)).is_err());
        }
    }
}
