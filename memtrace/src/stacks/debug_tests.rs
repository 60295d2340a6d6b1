//! Debug information in the object, compressed, in a separate file, damaged.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

const SOURCE: &str = r#"
static __attribute__((always_inline)) inline int twice(int x) {
    return __builtin_abs(x) * 2;
}
__attribute__((noinline)) static int hidden(int x) {
    volatile int result = twice(x);
    return result + 1;
}
int exported(int x) { return hidden(x) + 3; }
"#;

fn run(program: &str, arguments: &[&str], directory: &Path) {
    let status = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .status()
        .unwrap_or_else(|error| panic!("failed to run `{program}`: {error}"));
    assert!(status.success(), "`{program} {arguments:?}` fails");
}

/// A library of one file in a directory that stands for the tracee's root.
struct Library {
    root: tempfile::TempDir,
    /// Virtual address of the inlined code's function.
    hidden: u64,
}

impl Library {
    fn compile(flags: &[&str]) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let directory = root.path().join("lib");
        std::fs::create_dir(&directory).expect("a directory");
        std::fs::write(directory.join("sample.c"), SOURCE).expect("the source is written");
        let mut arguments = vec!["-O1", "-g", "-shared", "-fPIC", "-o", "libsample.so", "sample.c"];
        arguments.extend(flags);
        run("gcc", &arguments, &directory);
        let bytes = std::fs::read(directory.join("libsample.so")).expect("it was built");
        let elf = Elf::parse(&bytes[..]).expect("it is ELF");
        let mut hidden = 0;
        elf.for_each_symbol(|symbol| {
            if symbol.name == b"hidden" {
                hidden = symbol.vaddr;
            }
            hidden == 0
        });
        assert_ne!(hidden, 0, "it has its symbols");
        Self { root, hidden }
    }

    fn directory(&self) -> std::path::PathBuf {
        self.root.path().join("lib")
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory().join("libsample.so")
    }

    /// Moves the debug information to `libsample.debug`.
    fn strip(&self, link: bool) {
        let directory = self.directory();
        let keep = ["--only-keep-debug", "libsample.so", "libsample.debug"];
        run("objcopy", &keep, &directory);
        run("strip", &["libsample.so"], &directory);
        if link {
            run("objcopy", &["--add-gnu-debuglink=libsample.debug", "libsample.so"], &directory);
        }
    }

    /// Moves the debug file to where its build id says, under `usr/lib/debug` of the root.
    fn file_by_build_id(&self) {
        let bytes = std::fs::read(self.path()).expect("it was built");
        let id = Elf::parse(&bytes[..]).expect("it is ELF").build_id().expect("it has one");
        let directory = self.root.path().join("usr/lib/debug/.build-id").join(&id[..2]);
        std::fs::create_dir_all(&directory).expect("the directory is made");
        let target = directory.join(format!("{}.debug", &id[2..]));
        std::fs::rename(self.directory().join("libsample.debug"), target).expect("it is moved");
    }

    fn names(&self, options: Options) -> (Vec<Name>, SymbolizerStats) {
        names_in(&self.path(), self.hidden, options)
    }

    fn options(&self) -> Options {
        Options {
            root: Some(Root::at(self.root.path()).expect("the root opens")),
            debug_dirs: Vec::new(),
            ..Options::default()
        }
    }
}

/// The names in the first 48 bytes of a function, where one has inlined code.
fn names_in(path: &Path, hidden: u64, options: Options) -> (Vec<Name>, SymbolizerStats) {
    let base = 0x7f00_0000_0000;
    let bytes = std::fs::read(path).expect("the library is there");
    let mappings = match Elf::parse(&bytes[..]) {
        Ok(elf) => elf
            .segments
            .loads
            .iter()
            .filter(|load| load.executable && load.vaddr < 1 << 40 && load.memory_size < 1 << 40)
            .map(|load| ObjectMapping {
                start: base + (load.vaddr & !4095),
                end: base + load.vaddr + load.memory_size,
                file_offset: load.offset & !4095,
            })
            .collect(),
        Err(_) => vec![ObjectMapping { start: base, end: base + 0x10_0000, file_offset: 0 }],
    };
    let mut symbolizer = Symbolizer::new(options);
    symbolizer.add_objects(&[MappedFile {
        path: "/lib/libsample.so".to_owned(),
        open_path: path.to_owned(),
        file: Arc::new(File::open(path).expect("the library opens")),
        deleted: false,
        device: (0, 0),
        inode: 1,
        mappings,
    }]);
    let addresses: Vec<u64> = (hidden + 1..hidden + 12).map(|vaddr| base + vaddr).collect();
    let names = symbolizer.name_stacks([&addresses[..]]);
    assert_eq!(names.len(), addresses.len(), "every address is answered");
    assert!(names.iter().all(|names| !names.names.is_empty()), "with a name");
    let best = names.into_iter().max_by_key(|names| names.names.len()).expect("there are some");
    (best.names, symbolizer.stats().clone())
}

fn assert_full(names: &[Name]) {
    let functions: Vec<(&str, bool)> =
        names.iter().map(|name| (name.function.as_str(), name.inlined)).collect();
    assert_eq!(functions, [("twice", true), ("hidden", false)]);
    for (name, line) in names.iter().zip([3, 6]) {
        assert!(name.file.as_ref().is_some_and(|file| file.ends_with("sample.c")), "{name:?}");
        assert_eq!(name.line, Some(line), "{name:?}");
    }
}

#[test]
fn inlined_c_functions_come_innermost_first_with_the_line_of_each() {
    let library = Library::compile(&[]);
    assert_full(&library.names(library.options()).0);
}

#[test]
fn compressed_debug_information_is_inflated() {
    let library = Library::compile(&["-gz=zlib"]);
    assert_full(&library.names(library.options()).0);
}

#[test]
fn a_stripped_library_is_named_from_the_debug_file_of_its_build_id_in_the_tracees_root() {
    let library = Library::compile(&["-Wl,--build-id"]);
    library.strip(false);
    library.file_by_build_id();
    assert_full(&library.names(library.options()).0);
}

#[test]
fn a_stripped_library_is_named_from_the_debug_file_it_links_to() {
    let library = Library::compile(&["-Wl,--build-id=none"]);
    library.strip(true);
    assert_full(&library.names(library.options()).0);
}

#[test]
fn a_debug_file_that_does_not_belong_to_the_library_is_not_used() {
    for flags in ["-Wl,--build-id=none", "-Wl,--build-id"] {
        let library = Library::compile(&[flags]);
        library.strip(true);
        let path = library.directory().join("libsample.debug");
        let other = Library::compile(&[flags, "-DOTHER=1", "-fno-inline", "-O2"]);
        other.strip(true);
        std::fs::copy(other.directory().join("libsample.debug"), path).expect("it is replaced");
        let (names, stats) = library.names(library.options());
        assert!(names[0].function.starts_with("libsample.so+0x"), "{flags}: {names:?}");
        assert!(stats.unnamed > 0);
    }
}

#[test]
fn the_hosts_debug_directories_are_searched_too() {
    let library = Library::compile(&["-Wl,--build-id"]);
    library.strip(false);
    library.file_by_build_id();
    let debug_dirs = vec![library.root.path().join("usr/lib/debug")];
    assert_full(&library.names(Options { root: None, debug_dirs, ..Options::default() }).0);
}

#[test]
fn debug_information_above_the_limit_is_left_out_and_counted() {
    let library = Library::compile(&[]);
    let (names, stats) = library.names(Options { max_debug_bytes: 100, ..library.options() });
    assert_eq!(names[0].function, "hidden", "symbols still name it");
    assert_eq!(names[0].file, None);
    assert_eq!(stats.debug_info_too_large, 1);
}

#[test]
fn a_compressed_section_that_claims_a_huge_size_is_not_inflated() {
    let library = Library::compile(&["-gz=zlib"]);
    let mut bytes = std::fs::read(library.path()).expect("it was built");
    let offset = {
        let elf = Elf::parse(&bytes[..]).expect("it is ELF");
        elf.section(".debug_info").expect("it has one").offset as usize
    };
    bytes[offset + 8..offset + 16].copy_from_slice(&(1u64 << 60).to_le_bytes());
    std::fs::write(library.path(), &bytes).expect("it is written");
    let (names, stats) = library.names(library.options());
    assert_eq!((names[0].function.as_str(), stats.debug_info_too_large), ("hidden", 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn damaged_debug_information_costs_names_and_nothing_else(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
    ) {
        thread_local! {
            static LIBRARY: Library = Library::compile(&[]);
        }
        LIBRARY.with(|library| {
            let mut bytes = std::fs::read(library.path()).expect("it was built");
            // Debug sections, symbol tables and section headers: the second part of the file.
            let half = bytes.len() / 2;
            for (index, value) in damage {
                let at = half + index.index(bytes.len() - half);
                bytes[at] = value;
            }
            let path = library.directory().join("damaged.so");
            std::fs::write(&path, &bytes).expect("it is written");
            let (names, _) = names_in(&path, library.hidden, library.options());
            assert!(names.iter().all(|name| !name.function.is_empty()));
        });
    }
}
