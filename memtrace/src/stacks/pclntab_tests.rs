//! A small table written by hand, of each layout, and what becomes of it when it is damaged.

use proptest::prelude::*;

use super::*;

const TEXT: u64 = 0x40_1000;

fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A pc-value table: (length in bytes, value) runs.
fn put_values(values: &mut Vec<u8>, runs: &[(u32, i32)]) -> u32 {
    let at = values.len() as u32;
    let mut last = -1;
    for (length, value) in runs {
        let delta = value - last;
        put_varint(values, ((delta << 1) ^ (delta >> 31)) as u32);
        put_varint(values, *length);
        last = *value;
    }
    values.push(0);
    at
}

struct Sample {
    table: Vec<u8>,
    inline_trees: Vec<u8>,
}

/// Two functions: `main.outer` (64 bytes; bytes 16..32 are `main.middle` inlined, of which 20..28
/// are `main.inner`), and `runtime.goexit` (32 bytes, a top frame).
fn sample(version: Version) -> Sample {
    let names = b"\0main.outer\0main.middle\0main.inner\0runtime.goexit\0";
    let name = |wanted: &str| {
        let at = names.windows(wanted.len()).position(|part| part == wanted.as_bytes());
        at.expect("the name is there") as u32
    };
    let files = b"/src/a.go\0/src/b.go\0";
    let units: Vec<u8> = [0u32, 10].iter().flat_map(|at| at.to_le_bytes()).collect();
    let mut values = vec![0];
    let file = put_values(&mut values, &[(20, 0), (8, 1), (36, 0)]);
    let line = put_values(&mut values, &[(16, 10), (4, 20), (8, 30), (4, 21), (32, 11)]);
    let tree = put_values(&mut values, &[(16, -1), (4, 0), (8, 1), (4, 0), (32, -1)]);
    let exit_line = put_values(&mut values, &[(32, 99)]);
    let sizes = put_values(&mut values, &[(4, 0), (4, 8), (48, 40), (8, 0)]);

    let put_function = |out: &mut Vec<u8>, start: u32, fields: [u32; 3], top: bool, has_tree| {
        let [name, file, line] = fields;
        // Both: that the runtime ends stacks in one of them must tell.
        match version {
            Version::Go116 => out.extend((TEXT + u64::from(start)).to_le_bytes()),
            _ => out.extend(start.to_le_bytes()),
        }
        let pcdata = if has_tree { 3u32 } else { 0 };
        for field in [name, 0, 0, sizes, file, line, pcdata, 0] {
            out.extend(field.to_le_bytes());
        }
        if version == Version::Go120 {
            out.extend(1u32.to_le_bytes());
        }
        out.extend([0, u8::from(top), 0, if has_tree { 4 } else { 0 }]);
        if has_tree {
            out.extend(
                [0, 0, tree, u32::MAX, u32::MAX, u32::MAX, 0]
                    .iter()
                    .flat_map(|w: &u32| w.to_le_bytes()),
            );
        }
    };
    let entry_size = if version == Version::Go116 { 16 } else { 8 };
    let entries = 2 * entry_size + entry_size / 2;
    let (mut outer, mut exit) = (Vec::new(), Vec::new());
    put_function(&mut outer, 0, [name("main.outer"), file, line], false, version == Version::Go120);
    put_function(&mut exit, 64, [name("runtime.goexit"), 0, exit_line], true, false);
    let mut table = Vec::new();
    for (start, at) in [(0u64, entries), (64, entries + outer.len())] {
        match version {
            Version::Go116 => {
                table.extend((TEXT + start).to_le_bytes());
                table.extend((at as u64).to_le_bytes());
            }
            _ => {
                table.extend((start as u32).to_le_bytes());
                table.extend((at as u32).to_le_bytes());
            }
        }
    }
    match version {
        Version::Go116 => table.extend((TEXT + 96).to_le_bytes()),
        _ => table.extend(96u32.to_le_bytes()),
    }
    table.extend(outer);
    table.extend(exit);

    let magic: u32 = match version {
        Version::Go116 => 0xffff_fffa,
        Version::Go118 => 0xffff_fff0,
        Version::Go120 => 0xffff_fff1,
    };
    let parts: [&[u8]; 5] = [names, &units, files, &values, &table];
    let header_bytes = if version == Version::Go116 { 64 } else { 72 };
    let mut words: Vec<u64> = vec![2, 2];
    words.extend((version != Version::Go116).then_some(TEXT));
    let mut at = header_bytes;
    for part in parts {
        words.push(at);
        at += part.len() as u64;
    }
    let mut bytes = magic.to_le_bytes().to_vec();
    bytes.extend([0, 0, 1, 8]);
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    assert_eq!(bytes.len() as u64, header_bytes);
    parts.iter().for_each(|part| bytes.extend(*part));

    let mut inline_trees = Vec::new();
    for (name, parent) in [(name("main.middle"), 12u32), (name("main.inner"), 18)] {
        inline_trees.extend([0, 0, 0, 0]);
        inline_trees.extend([name, parent, 1].iter().flat_map(|word| word.to_le_bytes()));
    }
    Sample { table: bytes, inline_trees }
}

fn parse(sample: &Sample) -> PclnTable<'_> {
    let mut table =
        PclnTable::parse(Cow::Borrowed(&sample.table), TEXT).expect("the sample is a table");
    table.set_inline_trees(Cow::Borrowed(&sample.inline_trees));
    table
}

fn frame(function: &str, file: &str, line: u32, inlined: bool) -> GoFrame {
    let (function, file) = (function.to_owned(), Some(file.to_owned()));
    GoFrame { function, file, line: Some(line), inlined }
}

#[test]
fn inlined_calls_come_innermost_first_each_with_its_own_line() {
    let sample = sample(Version::Go120);
    let table = parse(&sample);
    assert_eq!(table.check_inline_trees(), (1, 0));
    assert_eq!(
        table.frames(TEXT + 21),
        [
            frame("main.inner", "/src/b.go", 30, true),
            frame("main.middle", "/src/a.go", 20, true),
            frame("main.outer", "/src/a.go", 10, false),
        ]
    );
    assert_eq!(table.frames(TEXT + 40), [frame("main.outer", "/src/a.go", 11, false)]);
}

#[test]
fn every_layout_names_the_physical_function() {
    for version in [Version::Go116, Version::Go118, Version::Go120] {
        let sample = sample(version);
        let table = parse(&sample);
        assert_eq!((table.version(), table.function_count()), (version, 2));
        assert_eq!(table.text_range(), TEXT..TEXT + 96);
        let outer = table.frames(TEXT + 40);
        assert_eq!(outer, [frame("main.outer", "/src/a.go", 11, false)], "{version:?}");
        let exit = table.find(TEXT + 95).expect("the last byte is covered");
        assert_eq!(table.name(&exit).as_deref(), Some("runtime.goexit"));
        assert_eq!(exit.is_top_frame, version != Version::Go116);
        assert_eq!(table.frames(TEXT + 96), [], "past the end of the text");
        assert_eq!(table.frames(TEXT - 1), [], "before the text");
    }
}

#[test]
fn wrong_inline_trees_are_told_from_right_ones() {
    let mut sample = sample(Version::Go120);
    sample.inline_trees[4] += 1;
    assert_eq!(parse(&sample).check_inline_trees(), (0, 1), "no name starts there");
    sample.inline_trees.clear();
    assert_eq!(parse(&sample).check_inline_trees(), (0, 1));
    let frames = parse(&sample).frames(TEXT + 21);
    assert_eq!(frames.len(), 1, "the physical function is still named");
}

#[test]
fn an_inline_tree_that_is_its_own_parent_ends() {
    let mut sample = sample(Version::Go120);
    // main.middle's call site is inside main.middle.
    sample.inline_trees[8..12].copy_from_slice(&17u32.to_le_bytes());
    assert_eq!(parse(&sample).frames(TEXT + 17).len(), MAX_INLINED + 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::go::memory::fuzz_cases(512)))]

    #[test]
    fn a_damaged_table_never_panics(
        version in prop::sample::select(vec![Version::Go116, Version::Go118, Version::Go120]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
        cut_it in prop::bool::weighted(0.2),
    ) {
        let mut sample = sample(version);
        let length = sample.table.len();
        for (index, value) in damage {
            let at = index.index(length + sample.inline_trees.len());
            match at.checked_sub(length) {
                None => sample.table[at] = value,
                Some(at) => sample.inline_trees[at] = value,
            }
        }
        if cut_it {
            sample.table.truncate(cut.index(length));
        }
        if let Some(mut table) = PclnTable::parse(Cow::Borrowed(&sample.table), TEXT) {
            table.set_inline_trees(Cow::Borrowed(&sample.inline_trees));
            table.check_inline_trees();
            for vaddr in (TEXT..TEXT + 100).chain([0, u64::MAX]) {
                for frame in table.frames(vaddr) {
                    prop_assert!(frame.function.len() <= 3 * MAX_NAME_BYTES);
                }
            }
            prop_assert!(table.functions().count() <= table.function_count());
        }
    }
}

#[test]
fn frame_sizes_are_told_of_compiled_code_that_has_a_frame() {
    for version in [Version::Go118, Version::Go120] {
        let sample = sample(version);
        let table = PclnTable::parse(Cow::Borrowed(&sample.table), TEXT).expect("it is a table");
        let at = |offset: u64| table.frame_bytes(TEXT + offset);
        assert_eq!([at(4), at(7), at(8), at(55)], [Some(8), Some(8), Some(40), Some(40)]);
        assert_eq!([at(0), at(56)], [None, None], "no frame: no call");
        assert_eq!(at(64 + 8), None, "stacks end there");
        assert_eq!(at(96), None, "no function");
    }
    let sample = sample(Version::Go116);
    let table = PclnTable::parse(Cow::Borrowed(&sample.table), TEXT).expect("it is a table");
    assert_eq!(table.frame_bytes(TEXT + 8), None, "its marks are elsewhere");
}
