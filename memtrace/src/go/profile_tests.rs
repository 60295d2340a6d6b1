use std::io::Write;

use proptest::prelude::*;

use super::*;

/// Both served by one idle Go 1.27.3 program, without a collection in between.
const PROTO: &[u8] = include_bytes!("testdata/heap-go1.27.pb.gz");
const TEXT: &[u8] = include_bytes!("testdata/heap-go1.27.txt");

fn parse_default(body: &[u8]) -> Result<GoBooks, ProfileError> {
    parse(body, "test", &Limits::default())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// One sample of one location with two lines, as small as a heap profile gets.
fn small() -> proto::Profile {
    let table = ["", "inuse_objects", "count", "inuse_space", "bytes", "leaf", "caller", "a.go"];
    let value_type = |r#type, unit| proto::ValueType { r#type, unit };
    let function = |id, name| proto::Function { id, name, system_name: name, filename: 7 };
    proto::Profile {
        sample_type: vec![value_type(1, 2), value_type(3, 4)],
        sample: vec![proto::Sample { location_id: vec![1], value: vec![3, 300], label: vec![] }],
        location: vec![proto::Location {
            id: 1,
            line: vec![
                proto::Line { function_id: 1, line: 10 },
                proto::Line { function_id: 2, line: 20 },
            ],
            ..Default::default()
        }],
        function: vec![function(1, 5), function(2, 6)],
        string_table: table.iter().map(|text| (*text).to_owned()).collect(),
        period: 524_288,
        ..Default::default()
    }
}

#[test]
fn a_real_profile_is_read_with_go_tool_pprofs_totals() {
    let books = parse_default(PROTO).unwrap();
    // `go tool pprof -raw`, summed per column.
    assert_eq!(books.inuse_bytes, 41284851);
    assert_eq!(books.inuse_objects, 140653);
    assert_eq!(books.alloc_bytes, 45174186);
    assert_eq!(books.alloc_objects, 140664);
    assert_eq!(books.sample_rate_bytes, 524_288);
    assert_eq!(books.memory, None);
    let largest = &books.stacks[0];
    assert_eq!(largest.frames[0].function, "main.grow");
    assert!(largest.frames.iter().any(|frame| frame.function == "main.main"));
    assert!(books.stacks.windows(2).all(|pair| pair[0].inuse_bytes >= pair[1].inuse_bytes));
    assert_eq!(books.stacks.iter().map(|stack| stack.inuse_bytes).sum::<u64>(), books.inuse_bytes);
}

#[test]
fn the_text_and_the_protobuf_give_the_same_figures() {
    let (text, proto) = (parse_default(TEXT).unwrap(), parse_default(PROTO).unwrap());
    assert_eq!(text.inuse_bytes, proto.inuse_bytes);
    assert_eq!(text.inuse_objects, proto.inuse_objects);
    assert_eq!(text.alloc_bytes, proto.alloc_bytes);
    assert_eq!(text.alloc_objects, proto.alloc_objects);
    assert_eq!(text.sample_rate_bytes, proto.sample_rate_bytes);
    assert_eq!(text.stacks[0].inuse_bytes, proto.stacks[0].inuse_bytes);
    assert_eq!(text.stacks[0].frames[0].function, proto.stacks[0].frames[0].function);
    assert_eq!(text.stacks[0].frames[0].line, proto.stacks[0].frames[0].line);
}

#[test]
fn inlined_lines_stand_before_the_function_that_holds_them() {
    let books = parse_default(&small().encode_to_vec()).unwrap();
    let frames = &books.stacks[0].frames;
    assert_eq!((frames[0].function.as_str(), frames[0].inlined), ("leaf", true));
    assert_eq!((frames[1].function.as_str(), frames[1].inlined), ("caller", false));
    assert_eq!((books.inuse_objects, books.inuse_bytes), (3, 300));
    assert_eq!((books.alloc_objects, books.alloc_bytes), (0, 0));
}

#[test]
fn samples_of_one_stack_are_one_row() {
    let mut profile = small();
    profile.sample.push(profile.sample[0].clone());
    let books = parse_default(&profile.encode_to_vec()).unwrap();
    assert_eq!(books.stacks.len(), 1);
    assert_eq!(books.inuse_bytes, 600);
}

#[test]
fn a_cpu_profile_is_refused_by_what_it_measures() {
    let mut profile = small();
    profile.string_table[3] = "cpu".to_owned();
    let error = parse_default(&profile.encode_to_vec()).unwrap_err();
    assert!(error.to_string().contains("inuse_objects, cpu"), "{error}");
}

#[test]
fn contradictions_are_refused() {
    let breaks: [fn(&mut proto::Profile); 7] = [
        |profile| profile.sample[0].value.truncate(1),
        |profile| profile.sample[0].value[1] = -5,
        |profile| profile.sample[0].location_id[0] = 9,
        |profile| profile.location[0].line[0].function_id = 9,
        |profile| profile.function[0].name = 99,
        |profile| profile.function[0].filename = -1,
        |profile| {
            let mut large = profile.sample[0].clone();
            large.value[1] = i64::MAX;
            profile.sample.extend([large.clone(), large.clone(), large]);
        },
    ];
    for (i, breaks) in breaks.iter().enumerate() {
        let mut profile = small();
        breaks(&mut profile);
        let result = parse_default(&profile.encode_to_vec());
        assert!(matches!(result, Err(ProfileError::Contradiction(_))), "{i}: {result:?}");
    }
}

#[test]
fn a_gzip_bomb_stops_at_the_limit() {
    let bomb = gzip(&vec![0; 8 << 20]);
    let limits = Limits { inflated_bytes: 1 << 20, ..Limits::default() };
    assert!(matches!(parse(&bomb, "test", &limits), Err(ProfileError::Bomb { limit: 1_048_576 })));
}

#[test]
fn rows_are_counted_before_they_are_decoded() {
    // Two bytes each on the wire.
    let bytes = [0x12, 0x00].repeat(101);
    let limits = Limits { rows: 100, ..Limits::default() };
    let result = parse(&bytes, "test", &limits);
    assert!(matches!(result, Err(ProfileError::TooMany { what: "samples", limit: 100 })));
}

#[test]
fn a_long_name_in_many_stacks_is_bounded() {
    let mut profile = small();
    profile.string_table[5] = "x".repeat(1 << 20);
    profile.sample =
        vec![proto::Sample { location_id: vec![1; 40], value: vec![1, 1], label: vec![] }; 100];
    let result = parse_default(&profile.encode_to_vec());
    assert!(matches!(result, Err(ProfileError::TooMany { what: "bytes of names", .. })));
    profile.string_table[5] = "leaf".to_owned();
    profile.sample.truncate(1);
    profile.sample[0].location_id = vec![1; 4096];
    let result = parse_default(&profile.encode_to_vec());
    assert!(matches!(result, Err(ProfileError::TooMany { what: "frames in one stack", .. })));
}

#[test]
fn what_is_no_profile_is_told_from_a_damaged_one() {
    assert!(matches!(parse_default(b""), Err(ProfileError::Empty)));
    let error = parse_default(b"<html>\x1b[2J404 page not found").unwrap_err().to_string();
    assert!(error.contains("<html>.[2J404"), "{error}");
    for length in [3, PROTO.len() / 2, PROTO.len() - 1] {
        assert!(matches!(parse_default(&PROTO[..length]), Err(ProfileError::Gzip(_))), "{length}");
    }
    let whole = small().encode_to_vec();
    assert!(parse_default(&whole[..whole.len() - 1]).is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse_default(&bytes);
        let _ = parse_default(&gzip(&bytes));
    }

    #[test]
    fn a_damaged_profile_is_an_answer_not_a_panic(
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut inflated = Vec::new();
        flate2::read::GzDecoder::new(PROTO).read_to_end(&mut inflated).unwrap();
        for (position, value) in edits {
            let position = position.index(inflated.len());
            inflated[position] = value;
        }
        if let Ok(books) = parse_default(&inflated) {
            let sum: u64 = books.stacks.iter().map(|stack| stack.inuse_bytes).sum();
            prop_assert_eq!(sum, books.inuse_bytes);
        }
    }
}
