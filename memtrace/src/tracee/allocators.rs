//! Which allocator an object carries, by evidence: names that only this allocator defines.
//!
//! Which functions of it matter is not decided here: the caller says which names are wanted.

use std::collections::BTreeSet;

use super::MappedFile;
use super::elf::{self, DebugFiles, ElfFacts};
use super::mappings::Mappings;
use super::process::Process;
use super::root::Root;
use crate::snapshot::NotProbed;

/// An allocator's family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    Glibc,
    Musl,
    Jemalloc,
    Tcmalloc,
    Mimalloc,
}

impl Family {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Glibc => "glibc",
            Self::Musl => "musl",
            Self::Jemalloc => "jemalloc",
            Self::Tcmalloc => "tcmalloc",
            Self::Mimalloc => "mimalloc",
        }
    }
}

/// Names that give a family away. Replacements stand before the C libraries they replace, so that
/// a static program with both is named by what provides its `malloc`.
const MARKERS: &[(&str, Family)] = &[
    ("mi_malloc", Family::Mimalloc),
    ("mi_heap_malloc", Family::Mimalloc),
    ("tc_malloc", Family::Tcmalloc),
    ("TCMallocInternalMalloc", Family::Tcmalloc),
    ("MallocExtension_Internal_GetNumericProperty", Family::Tcmalloc),
    ("mallctl", Family::Jemalloc),
    ("mallctlnametomib", Family::Jemalloc),
    ("malloc_conf", Family::Jemalloc),
    ("gnu_get_libc_version", Family::Glibc),
    ("__libc_freeres", Family::Glibc),
    ("__libc_mallopt", Family::Glibc),
    ("_int_malloc", Family::Glibc),
    ("__malloc_hugepage_config", Family::Glibc),
    ("__dls2b", Family::Musl),
    ("__malloc_donate", Family::Musl),
    ("__libc_malloc_impl", Family::Musl),
    ("__malloc_atfork", Family::Musl),
    ("__bin_chunk", Family::Musl),
];

/// Whether a symbol name is evidence of a family.
pub fn is_marker(name: &str) -> bool {
    MARKERS.iter().any(|(marker, _)| *marker == name)
}

/// One mapped object and what it says of itself.
#[derive(Clone, Debug)]
pub struct ObjectFacts {
    pub file: MappedFile,
    pub elf: ElfFacts,
    /// Every family that left a mark, in the order of precedence.
    pub families: Vec<Family>,
    /// It is the program itself, not a library.
    pub is_executable: bool,
    /// It is the program's `PT_INTERP`.
    pub is_loader: bool,
}

/// The objects of a process.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub objects: Vec<ObjectFacts>,
    /// Mapped executable, but no ELF file or a damaged one.
    pub unreadable: Vec<NotProbed>,
}

/// The families that left a mark in an object.
pub fn families(defined: &[String]) -> Vec<Family> {
    let mut families = Vec::new();
    for (marker, family) in MARKERS {
        let is_defined = defined.binary_search_by(|name| name.as_str().cmp(marker)).is_ok();
        if is_defined && !families.contains(family) {
            families.push(*family);
        }
    }
    families
}

/// Reads the facts of all mapped files. `wanted` says which function names matter.
pub fn read_objects(
    process: &Process,
    mappings: &Mappings,
    wanted: &dyn Fn(&str) -> bool,
) -> Objects {
    read_some(process, &mappings.files, wanted)
}

/// The same for some files, e.g. those that a rescan found new.
pub fn read_some(
    process: &Process,
    files: &[MappedFile],
    wanted: &dyn Fn(&str) -> bool,
) -> Objects {
    let (tracee, host) = (Root::of_process(process.pid()).ok(), Root::of_self().ok());
    let wanted = |name: &str| wanted(name) || is_marker(name);
    let mut found = Objects::default();
    for file in files {
        let directory = file.path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let debug = DebugFiles { tracee: tracee.as_ref(), host: host.as_ref(), directory };
        match elf::read(&file.file, &wanted, &debug) {
            Ok(elf) => found.objects.push(ObjectFacts {
                file: file.clone(),
                families: families(&elf.defined),
                elf,
                is_executable: file.path == process.executable_path(),
                is_loader: false,
            }),
            Err(error) => found.unreadable.push(NotProbed {
                object: file.path.clone(),
                function: None,
                reason: error.to_string(),
            }),
        }
    }
    mark_loader(&mut found.objects);
    found
}

/// The loader is mapped by the kernel under the name in `PT_INTERP`, links resolved: it is known
/// by its soname, or by being the C library itself (musl).
fn mark_loader(objects: &mut [ObjectFacts]) {
    let names: BTreeSet<String> = objects
        .iter()
        .filter(|object| object.is_executable)
        .filter_map(|object| object.elf.interpreter.as_deref())
        .map(|path| path.rsplit('/').next().unwrap_or(path).to_owned())
        .collect();
    for object in objects {
        let file_name = object.file.path.rsplit('/').next().unwrap_or("");
        object.is_loader = names.contains(file_name)
            || object.elf.soname.as_ref().is_some_and(|soname| names.contains(soname));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(names: &[&str]) -> Vec<String> {
        let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_replacement_is_named_before_the_c_library_it_replaces() {
        let defined = sorted(&["malloc", "free", "mallctl", "_int_malloc"]);
        assert_eq!(families(&defined), [Family::Jemalloc, Family::Glibc]);
        assert!(families(&sorted(&["malloc", "free"])).is_empty());
    }

    #[test]
    fn each_library_of_this_machine_gives_its_family_away() {
        for (path, family) in [
            ("/lib/x86_64-linux-gnu/libc.so.6", Family::Glibc),
            ("/lib/ld-musl-x86_64.so.1", Family::Musl),
            ("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", Family::Jemalloc),
            ("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4", Family::Tcmalloc),
            ("/usr/lib/x86_64-linux-gnu/libmimalloc.so.2", Family::Mimalloc),
        ] {
            let file = std::fs::File::open(path).unwrap();
            let facts = elf::read(&file, &is_marker, &DebugFiles::default()).unwrap();
            assert_eq!(families(&facts.defined), [family], "{path}");
        }
    }
}
