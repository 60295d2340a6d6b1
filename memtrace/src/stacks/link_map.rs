//! Which mappings may go while a process runs, and where its loader tells that one does.
//!
//! A dynamic loader calls an empty function, `_dl_debug_state`, before and after it changes its list
//! of libraries, so that debuggers can stand there; `_r_debug` says what is being changed. What a
//! program was started with is never unloaded: the program, and all that it needs, directly or not.
//! Everything else may be: what `dlopen` brought, preloaded libraries (which nothing here tells apart
//! from those), generated code.
//!
//! Not seen: a program that unmaps code by system calls of its own.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::elf::{Elf, FileSource};
use crate::tracee::MappedFile;

/// Where a loader tells of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Teller {
    /// The object's path, as the tracee sees it.
    pub object: String,
    pub open_path: PathBuf,
    /// Of the function, in the file.
    pub file_offset: u64,
    /// The address of `r_state` in the process; 0: not known.
    pub state: u64,
}

const FUNCTION: &[u8] = b"_dl_debug_state";
const LIST: &[u8] = b"_r_debug";
/// Offset of `r_state` in `struct r_debug`, `<link.h>`.
const R_STATE: u64 = 24;

/// The loader among the mapped files. Loaders are called `ld…`, or are musl's `libc.so`.
pub fn find_teller(files: &[MappedFile]) -> Option<Teller> {
    files.iter().find_map(|file| {
        let name = base_name(&file.path);
        let mapping = file.mappings.first()?;
        if !name.starts_with("ld") && !name.starts_with("libc") {
            return None;
        }
        let source = FileSource::new(&file.file).ok()?;
        let elf = Elf::parse(&source).ok()?;
        let file_offset = elf.file_offset(elf.dynamic_symbol(FUNCTION)?)?;
        let state = elf.dynamic_symbol(LIST).zip(elf.segments.load_bias(mapping));
        Some(Teller {
            object: file.path.clone(),
            open_path: file.open_path.clone(),
            file_offset,
            state: state.map_or(0, |(list, bias)| list.wrapping_add(bias).wrapping_add(R_STATE)),
        })
    })
}

/// What one object says of itself and of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Its file's name, and its own.
    pub names: Vec<String>,
    pub needed: Vec<String>,
}

impl Needs {
    /// Of a file that cannot be read, its name.
    pub fn of(file: &MappedFile) -> Self {
        let mut needs = Self { names: vec![base_name(&file.path).to_owned()], needed: Vec::new() };
        if let Ok(source) = FileSource::new(&file.file)
            && let Ok(elf) = Elf::parse(&source)
        {
            let (soname, needed) = elf.soname_and_needed();
            needs.names.extend(soname);
            needs.needed = needed;
        }
        needs
    }
}

/// Which objects stay for as long as the process: `program`, by its index, and what it needs.
pub fn that_stay(program: Option<usize>, objects: &[Needs]) -> BTreeSet<usize> {
    let mut staying = BTreeSet::new();
    let mut next: Vec<usize> = program.into_iter().collect();
    while let Some(index) = next.pop() {
        let Some(object) = objects.get(index).filter(|_| staying.insert(index)) else { continue };
        let is_needed = |other: &Needs| other.names.iter().any(|name| object.needed.contains(name));
        let needed = objects.iter().enumerate().filter(|(_, other)| is_needed(other));
        next.extend(needed.map(|(at, _)| at));
    }
    staying
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(names: &[&str], needed: &[&str]) -> Needs {
        let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        Needs { names: owned(names), needed: owned(needed) }
    }

    #[test]
    fn what_a_program_needs_directly_or_not_stays() {
        let objects = [
            needs(&["libplugin.so"], &["libonlyplugins.so", "libc.so.6"]),
            needs(&["program"], &["libm.so.6", "libc.so.6"]),
            needs(&["libc-2.36.so", "libc.so.6"], &["ld-linux-x86-64.so.2"]),
            needs(&["libm.so.6"], &["libc.so.6"]),
            needs(&["ld-linux-x86-64.so.2"], &[]),
            needs(&["libonlyplugins.so"], &["libc.so.6", "libplugin.so"]),
        ];
        assert_eq!(that_stay(Some(1), &objects), BTreeSet::from([1, 2, 3, 4]));
        assert_eq!(that_stay(None, &objects), BTreeSet::new(), "nothing is known to stay");
        assert_eq!(that_stay(Some(9), &objects), BTreeSet::new());
    }

    #[test]
    fn the_loader_of_this_process_tells_of_changes() {
        let path = std::fs::canonicalize("/lib64/ld-linux-x86-64.so.2").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let source = FileSource::new(&file).unwrap();
        let elf = Elf::parse(&source).unwrap();
        let code = elf.segments.loads.iter().find(|load| load.executable).unwrap();
        let start = 0x7f00_0000_0000 + code.vaddr;
        let mapping = crate::snapshot::ObjectMapping {
            start,
            end: start + code.file_size,
            file_offset: code.offset,
        };
        let mapped = |path: &str| MappedFile {
            path: path.to_owned(),
            open_path: PathBuf::from(path),
            file: std::sync::Arc::new(file.try_clone().unwrap()),
            deleted: false,
            device: (0, 0),
            inode: 1,
            mappings: vec![mapping],
        };
        let teller = find_teller(&[mapped("/lib64/ld-linux-x86-64.so.2")]).unwrap();
        let at = elf.dynamic_symbol(b"_dl_debug_state").unwrap();
        assert_eq!(elf.file_offset(at), Some(teller.file_offset));
        let list = elf.dynamic_symbol(b"_r_debug").unwrap();
        assert_eq!(teller.state, 0x7f00_0000_0000 + list + 24);
        assert_eq!(find_teller(&[mapped("/usr/bin/program")]), None, "no loader by its name");
    }

    #[test]
    fn a_library_says_its_name_and_what_it_needs() {
        let path = "/usr/lib/x86_64-linux-gnu/libm.so.6";
        let file = std::fs::File::open(path).unwrap();
        let source = FileSource::new(&file).unwrap();
        let (soname, needed) = Elf::parse(&source).unwrap().soname_and_needed();
        assert_eq!(soname.as_deref(), Some("libm.so.6"));
        assert!(needed.iter().any(|name| name == "libc.so.6"), "{needed:?}");
    }
}
