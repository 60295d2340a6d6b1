//! Names of this process's own functions, of libraries with separate debug files, and of nothing.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::*;

fn mapped(path: &str, mappings: Vec<ObjectMapping>) -> MappedFile {
    let file = File::open(path).expect("the file opens");
    let inode = file.metadata().expect("it has metadata").ino();
    MappedFile {
        path: path.to_owned(),
        open_path: PathBuf::from(path),
        file: Arc::new(file),
        deleted: false,
        device: (0, 0),
        inode,
        mappings,
    }
}

/// The executable mappings of this process's files.
fn own_files() -> Vec<MappedFile> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps can be read");
    let mut files: Vec<MappedFile> = Vec::new();
    for line in maps.lines() {
        let fields: Vec<&str> = line.splitn(6, ' ').collect();
        let [range, flags, offset, _, _, path] = fields[..] else { continue };
        let path = path.trim_start();
        if !flags.contains('x') || !path.starts_with('/') {
            continue;
        }
        let number = |text| u64::from_str_radix(text, 16).expect("a hexadecimal number");
        let (start, end) = range.split_once('-').expect("a range");
        let (start, end) = (number(start), number(end));
        files.push(mapped(path, vec![ObjectMapping { start, end, file_offset: number(offset) }]));
    }
    files
}

#[test]
fn a_symbol_qualifies_the_bare_name_of_its_own_function_only() {
    assert!(qualifies("memtrace::stacks::walk", "walk"));
    assert!(qualifies("ns::Class::method(int, char const*)", "method"));
    assert!(qualifies("<a::B as c::D>::drop", "drop"));
    assert!(qualifies("(anonymous namespace)::make(unsigned long)", "make"));
    assert!(qualifies("ns::(anonymous namespace)::make(void (*)(int))", "make"));
    assert!(qualifies("std::vector<int, std::allocator<int> >::reserve(unsigned long)", "reserve"));
    assert!(qualifies("void ns::swap<a::B<int>, c>(a::B<int>&)", "swap"));
    assert!(!qualifies("ns::swap<a::remake>(int)", "remake"));
    assert!(!qualifies("ns::apply(ns::make)", "make"));
    assert!(!qualifies("memtrace::stacks::sidewalk", "walk"));
    assert!(!qualifies("walk", "walk"));
    assert!(!qualifies("__GI___libc_malloc", "malloc"));
    assert!(!qualifies("a::other", "walk"));
}

#[inline(never)]
fn a_function_of_this_test() -> u64 {
    let line = line!();
    std::hint::black_box(u64::from(line))
}

#[test]
fn a_function_of_this_process_is_named_with_its_file_and_line() {
    let mut symbolizer = Symbolizer::new(Options::default());
    symbolizer.add_objects(&own_files());
    let address = a_function_of_this_test as *const () as u64;
    let names = symbolizer.name_stacks([&[address][..]]);
    assert_eq!(names.len(), 1);
    let outer = names[0].names.last().expect("it has a name");
    assert!(outer.function.ends_with("::a_function_of_this_test"), "{outer:?}");
    assert!(outer.file.as_ref().is_some_and(|f| f.ends_with("symbolize_tests.rs")), "{outer:?}");
    assert!(outer.line.is_some_and(|line| u64::from(line).abs_diff(a_function_of_this_test()) < 4));
    assert!(!outer.inlined);
}

#[test]
fn a_return_address_is_looked_up_as_the_address_before_it() {
    let mut symbolizer = Symbolizer::new(Options::default());
    symbolizer.add_objects(&own_files());
    let address = a_function_of_this_test as *const () as u64;
    // As a return address, the first byte of a function belongs to what precedes it.
    let names = symbolizer.name_stacks([&[0, address, address + 1][..]]);
    let name_of = |wanted| {
        let found = names.iter().find(|names| names.address == wanted).expect("it is answered");
        found.names.last().expect("it has a name").function.clone()
    };
    assert!(!name_of(address).ends_with("::a_function_of_this_test"));
    assert!(name_of(address + 1).ends_with("::a_function_of_this_test"));
}

#[test]
fn an_exported_function_of_a_stripped_library_is_named_and_the_rest_by_object_and_address() {
    let path = "/usr/lib/x86_64-linux-gnu/libstdc++.so.6";
    let source = std::fs::read(path).expect("libstdc++ is there");
    let elf = Elf::parse(&source[..]).expect("it is ELF");
    let load = *elf.segments.loads.iter().find(|l| l.executable).expect("it has code");
    let mut operator_new = 0;
    elf.for_each_symbol(|symbol| {
        if symbol.name == b"_Znwm" {
            operator_new = symbol.vaddr;
        }
        operator_new == 0
    });
    assert_ne!(operator_new, 0, "libstdc++ exports operator new");
    let base = 0x7f12_3456_0000;
    let (start, offset) = (load.vaddr & !4095, load.offset & !4095);
    let mapping = ObjectMapping {
        start: base + start,
        end: base + load.vaddr + load.memory_size,
        file_offset: offset,
    };
    let mut symbolizer = Symbolizer::new(Options { debug_dirs: Vec::new(), ..Options::default() });
    symbolizer.add_objects(&[mapped(path, vec![mapping])]);
    let nowhere = base + load.vaddr + 1;
    let names = symbolizer.name_stacks([&[base + operator_new, nowhere][..]]);
    let functions: Vec<(Option<u32>, &str)> =
        names.iter().map(|n| (n.object, n.names[0].function.as_str())).collect();
    let expected = format!("libstdc++.so.6+{:#x}", load.vaddr + 1);
    assert_eq!(functions, [(Some(0), expected.as_str()), (Some(0), "operator new(unsigned long)")]);
    assert_eq!(symbolizer.stats().unnamed, 1);
}

#[test]
fn an_address_in_no_mapping_keeps_its_number_and_a_region_its_name() {
    let mut symbolizer = Symbolizer::new(Options::default());
    let name = "[vdso]".to_owned();
    symbolizer.add_region(NamedRegion { start: 0x1000, end: 0x2000, name });
    let names = symbolizer.name_stacks([&[0x1800, 0x5001][..]]);
    let functions: Vec<&str> = names.iter().map(|n| n.names[0].function.as_str()).collect();
    assert_eq!(functions, ["[vdso]", "[unmapped] 0x5001"]);
    assert_eq!(symbolizer.stats().unmapped, 1);
}

#[test]
fn a_file_that_is_no_object_names_addresses_by_itself() {
    let mut symbolizer = Symbolizer::new(Options::default());
    let mapping = ObjectMapping { start: 0x4000, end: 0x5000, file_offset: 0x100 };
    symbolizer.add_objects(&[mapped("/etc/passwd", vec![mapping])]);
    let names = symbolizer.name_stacks([&[0x4010][..]]);
    assert_eq!(names[0].names[0].function, "passwd+0x110");
    assert_eq!(symbolizer.stats().objects_unreadable, 1);
}

#[test]
fn what_is_mapped_later_takes_the_place_of_what_it_covers() {
    let mut symbolizer = Symbolizer::new(Options::default());
    for (start, end, name) in
        [(0x1000, 0x9000, "[a]"), (0x3000, 0x4000, "[b]"), (0x8000, 0xa000, "[c]")]
    {
        symbolizer.add_region(NamedRegion { start, end, name: name.to_owned() });
    }
    let now = |at: u64| owned(at + 1, symbolizer.owner_at(at));
    let stack = [0x1000, now(0x3000), now(0x4000), now(0x8000), now(0x9fff), now(0xa000)];
    assert_eq!(functions(&mut symbolizer, &stack), {
        ["[a]", "[b]", "[a]", "[c]", "[c]", "[unmapped] 0xa001"]
    });
    // What a frame meant that was walked before.
    let before = [0x1000, 0x3000 + 1, 0x8000 + 1];
    assert_eq!(functions(&mut symbolizer, &before), ["[a]", "[a]", "[a]"]);
}

/// In the order of the stack.
fn functions(symbolizer: &mut Symbolizer, stack: &[u64]) -> Vec<String> {
    let names = symbolizer.name_stacks([stack]);
    let name = |frame: &u64| {
        let found = names.iter().find(|names| names.address == *frame).expect("it is answered");
        found.names[0].function.clone()
    };
    stack.iter().map(name).collect()
}

#[test]
fn each_of_those_that_stood_at_an_address_keeps_its_frames() {
    let mut symbolizer = Symbolizer::new(Options::default());
    let region = |name: &str| NamedRegion { start: 0x1000, end: 0x2000, name: name.to_owned() };
    for name in ["[first]", "[second]", "[first]", "[second]", "[third]"] {
        symbolizer.look_again();
        symbolizer.add_region(region(name));
        // The same again is the same.
        symbolizer.add_region(region(name));
    }
    let stack = [0x1000, owned(0x1800, 0), owned(0x1800, 1), owned(0x1800, 2), owned(0x1800, 3)];
    let expected = ["[first]", "[first]", "[second]", "[third]", "[unmapped] 0x1800"];
    assert_eq!(functions(&mut symbolizer, &stack), expected);
    assert_eq!(symbolizer.former.len(), 2, "what comes and goes all the time takes no more room");
    for number in 0..200 {
        symbolizer.add_region(region(&format!("[{number}]")));
    }
    assert_eq!(symbolizer.owner_at(0x1000), OWNER_OF_MANY);
    let name = "[one of many that were mapped here] 0x1800";
    let many = [0x1000, owned(0x1800, OWNER_OF_MANY)];
    assert_eq!(functions(&mut symbolizer, &many)[1], name, "no longer told apart, so not named");
}

#[test]
fn generated_code_that_grows_has_one_owner() {
    let mut symbolizer = Symbolizer::new(Options::default());
    for end in [0x2000, 0x3000, 0x9000] {
        let name = "[generated code]".to_owned();
        symbolizer.add_region(NamedRegion { start: 0x1000, end, name });
        assert_eq!(symbolizer.owner_at(0x1000), 0);
    }
    assert!(symbolizer.former.is_empty());
}

#[test]
fn a_frame_of_an_unknown_mapping_is_what_was_found_there_before_anything_went() {
    let mut symbolizer = Symbolizer::new(Options::default());
    let region = |name: &str| NamedRegion { start: 0x1000, end: 0x2000, name: name.to_owned() };
    let unknown = owned(0x1800, OWNER_UNKNOWN);
    let owner_when = |symbolizer: &Symbolizer, changes| {
        let mut frames = [0x5000, unknown];
        symbolizer.own_unknown(&mut frames, changes);
        owner_of(frames[1])
    };
    symbolizer.look_again();
    symbolizer.add_region(region("[first]"));
    assert_eq!(owner_when(&symbolizer, 0), OWNER_UNKNOWN, "something may have changed meanwhile");
    symbolizer.settle(0);
    assert_eq!(owner_when(&symbolizer, 0), 0);
    symbolizer.look_again();
    symbolizer.add_region(region("[second]"));
    symbolizer.settle(2);
    assert_eq!(owner_when(&symbolizer, 0), 0, "the first one, also when it has gone");
    assert_eq!(owner_when(&symbolizer, 2), 1);
    assert_eq!(owner_when(&symbolizer, 1), OWNER_UNKNOWN, "it may have come and gone in between");
    // It has been there for longer than the look that says so.
    symbolizer.look_again();
    symbolizer.add_region(region("[third]"));
    symbolizer.look_again();
    symbolizer.settle(6);
    assert_eq!(owner_when(&symbolizer, 6), 2);
    // And not for longer than it was there: what comes next may be called before the next look.
    symbolizer.look_again();
    symbolizer.keep_only(std::slice::from_ref(&(0x5000..0x6000)));
    symbolizer.settle(8);
    assert_eq!(owner_when(&symbolizer, 8), OWNER_UNKNOWN);
    assert_eq!(owner_when(&symbolizer, 6), 2);
    assert_eq!(functions(&mut symbolizer, &[0x5000, owned(0x1800, 2)])[1], "[third]");
    for _ in 0..MAX_LOOKS {
        symbolizer.look_again();
    }
    assert_eq!(owner_when(&symbolizer, 6), OWNER_UNKNOWN, "what is too long ago is forgotten");
}

#[test]
fn names_survive_the_release_of_what_they_were_read_from() {
    let mut symbolizer = Symbolizer::new(Options::default());
    symbolizer.add_objects(&own_files());
    let address = a_function_of_this_test as *const () as u64;
    let before = symbolizer.name_stacks([&[address][..]]);
    symbolizer.release();
    assert!(symbolizer.objects.iter().all(|object| object.sources.is_none()));
    assert_eq!(symbolizer.name_stacks([&[address][..]]), before);
    assert!(symbolizer.objects.iter().all(|object| object.sources.is_none()), "nothing was read");
}
