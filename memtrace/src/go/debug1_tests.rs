use proptest::prelude::*;

use super::*;

const TEXT: &str = include_str!("testdata/heap-go1.27.txt");

fn parse_text(text: &str) -> Result<GoBooks, ProfileError> {
    parse(text.as_bytes(), "test", &Limits::default())
}

#[test]
fn the_trailer_of_go_1_27_is_read_and_adds_up() {
    let memory = parse_text(TEXT).unwrap().memory.unwrap();
    let parts = memory.heap_sys
        + memory.stack_sys
        + memory.mspan_sys
        + memory.mcache_sys
        + memory.buck_hash_sys
        + memory.gc_sys
        + memory.other_sys;
    assert_eq!(memory.sys, parts);
    assert_eq!(memory.heap_sys, memory.heap_idle + memory.heap_inuse);
    assert!(memory.heap_released <= memory.heap_idle && memory.heap_released > 0);
    assert!(memory.num_gc >= 2 && memory.next_gc > memory.heap_alloc);
    assert!(memory.stack_inuse > 0 && memory.stack_inuse <= memory.stack_sys);
}

#[test]
fn counts_are_scaled_as_the_runtime_scales_them() {
    assert_eq!(scaled((0, 0), 524_288), (0, 0));
    assert_eq!(scaled((3, 300), 1), (3, 300));
    assert_eq!(scaled((3, 300), 0), (3, 300));
    // 1 / (1 − e^−1) = 1.58197…
    assert_eq!(scaled((1_000_000, 524_288_000_000), 524_288), (1_581_976, 829_411_403_691));
    assert_eq!(scaled((u64::MAX, u64::MAX), u64::MAX), (u64::MAX, u64::MAX));
    assert_eq!(scaled((u64::MAX, 1), 524_288), (u64::MAX, u64::MAX));
}

#[test]
fn frames_keep_function_file_and_line() {
    let name = frame_name("0x6dfb2b\tmain.(*T).grow-fm+0x16b\t\t/src/a:b/main.go:18");
    assert_eq!(name.function, "main.(*T).grow-fm");
    assert_eq!((name.file.as_deref(), name.line), (Some("/src/a:b/main.go"), Some(18)));
    assert_eq!(frame_name("0x6dfb2b").function, "0x6dfb2b");
    assert_eq!(frame_name("").function, "?");
}

#[test]
fn a_trailer_that_is_not_whole_gives_no_memory_figures() {
    let without = TEXT.replace("# HeapReleased", "# HeapRemoved");
    assert_eq!(parse_text(&without).unwrap().memory, None);
    let cut = TEXT.split("# GCSys").next().unwrap();
    let books = parse_text(cut).unwrap();
    assert_eq!(books.memory, None);
    assert_eq!(books.inuse_bytes, parse_text(TEXT).unwrap().inuse_bytes);
}

#[test]
fn lines_that_are_not_understood_are_named() {
    for (text, line) in [
        ("heap profile: 1: 2 [3: 4] @ heap/x\n", 1),
        ("heap profile: 1: 2 [3: 4] @ heap/2\nnonsense\n", 2),
        ("heap profile: 1: 2 [3: 4] @ heap/2\n#\t0x1\tf+0x1\ta.go:1\n", 2),
        ("heap profile: 1: 2 [3: 4] @ heap/2\n1: -2 [3: 4] @ 0x1\n", 2),
    ] {
        match parse_text(text) {
            Err(ProfileError::Text { line: found, .. }) => assert_eq!(found, line, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn records_and_frames_are_bounded() {
    let limits = Limits { rows: 5, frames: 3, ..Limits::default() };
    let records =
        "heap profile: 1: 2 [3: 4] @ heap/2\n".to_owned() + &"1: 2 [3: 4] @ 0x1\n".repeat(6);
    assert!(matches!(
        parse(records.as_bytes(), "test", &limits),
        Err(ProfileError::TooMany { what: "records", limit: 5 })
    ));
    let frames = "heap profile: 1: 2 [3: 4] @ heap/2\n1: 2 [3: 4] @ 0x1\n".to_owned()
        + &"#\t0x1\tf+0x1\ta.go:1\n".repeat(4);
    assert!(matches!(
        parse(frames.as_bytes(), "test", &limits),
        Err(ProfileError::TooMany { what: "frames in one stack", limit: 3 })
    ));
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(tail in "[0-9a-f:#@ \\[\\]\t\n/=x-]{0,300}") {
        let _ = parse_text(&format!("heap profile: 1: 2 [3: 4] @ heap/1048576\n{tail}"));
    }
}
