//! Where mappings belong when only a debug file is left, and which names win.

use super::*;

fn load(vaddr: u64, offset: u64, memory_size: u64, executable: bool) -> Segment {
    Segment { vaddr, offset, file_size: memory_size, memory_size, executable, writable: false }
}

fn mapping(start: u64, length: u64, file_offset: u64) -> ObjectMapping {
    ObjectMapping { start, end: start + length, file_offset }
}

fn name(function: &str, line: Option<u32>) -> Name {
    let file = line.map(|_| "a.c".to_owned());
    Name { function: function.to_owned(), file, line, inlined: false }
}

#[test]
fn one_executable_segment_takes_all_mappings_whatever_the_offsets_of_the_debug_file() {
    // As `objcopy --only-keep-debug` leaves them.
    let loads = [load(0, 0, 0x800, false), load(0x2010, 0, 0x3f00, true)];
    let whole = mapping(0x7f00_0000_2000, 0x4000, 0x1000);
    assert_eq!(place(&loads, &[whole], false), [(whole, 0x7f00_0000_0000)]);
    // In two pieces.
    let (first, second) =
        (mapping(0x7f00_0000_2000, 0x1000, 0x1000), mapping(0x7f00_0000_3000, 0x3000, 0x2000));
    let both = place(&loads, &[first, second], false);
    assert_eq!(both, [(first, 0x7f00_0000_0000), (second, 0x7f00_0000_0000)]);
}

#[test]
fn mappings_that_do_not_fit_the_segments_are_not_placed() {
    let one = [load(0x1000, 0, 0x1000, true)];
    assert_eq!(place(&one, &[mapping(0x5000, 0x2000, 0x1000)], false), []);
    let two = [load(0x1000, 0, 0x1000, true), load(0x4000, 0, 0x2000, true)];
    assert_eq!(place(&two, &[mapping(0x5000, 0x2000, 0x1000)], false), []);
    let (first, second) = (mapping(0x1_1000, 0x1000, 0x1000), mapping(0x1_4000, 0x2000, 0x4000));
    assert_eq!(place(&two, &[first, second], false), [(first, 0x1_0000), (second, 0x1_0000)]);
    assert_eq!(place(&[], &[first], false), []);
    // Sizes that no file has.
    let absurd = [load(u64::MAX - 5, 0, u64::MAX, true), load(0, 0, 0, true)];
    assert_eq!(place(&absurd, &[mapping(0, 0x1000, u64::MAX)], false), []);
}

#[test]
fn names_are_replaced_by_better_ones_alone() {
    let offset = [name("libx.so+0x1234", None)];
    let plain = [name("f", None)];
    let lined = [name("f", Some(3))];
    let inlined = [name("g", Some(2)), name("f", Some(3))];
    assert!(is_better(&plain, &offset));
    assert!(is_better(&lined, &plain));
    assert!(is_better(&inlined, &lined));
    // The larger table knows the static function between two exported ones.
    assert!(is_better(&[name("hidden", None)], &plain));
    for (new, old) in [
        (&[][..], &offset[..]),
        (&offset, &plain),
        (&plain, &plain),
        (&plain, &lined),
        (&lined, &lined),
        (&lined, &inlined),
    ] {
        assert!(!is_better(new, old), "{new:?} over {old:?}");
    }
    assert!(!is_offset(&[name("operator+0x", None)]));
}

#[test]
fn what_a_signal_interrupted_is_looked_up_as_it_is() {
    let mut recording = crate::snapshot::synthetic::recording();
    let address = |address| crate::snapshot::AddressNames {
        image: 0,
        address,
        object: None,
        names: vec![name(if address == 20 { "__restore_rt" } else { "f" }, None)],
    };
    recording.names = [10, 20, 30, 40].map(address).to_vec();
    let stack = &mut recording.stacks[0];
    stack.frames = vec![10, 15, 20, 30, 40];
    stack.image = 0;
    recording.stacks.truncate(1);
    let found = looked_up_as_they_are(&recording, &HashMap::new());
    assert_eq!(found, HashSet::from([(0, 10), (0, 20), (0, 30)]));
}

#[test]
fn a_recording_with_impossible_objects_is_named_by_nothing_and_told() {
    let mut recording = crate::snapshot::synthetic::recording();
    for object in recording.header.tracee.objects.iter_mut().chain(&mut recording.new_objects) {
        object.build_id = Some("../../../../etc/passwd".to_owned());
    }
    for names in &mut recording.names {
        names.names.iter_mut().for_each(|name| name.line = None);
        names.object = names.object.map(|_| 0);
    }
    recording.names[0].object = Some(u32::MAX);
    let before = recording.names.clone();
    let again = name_again(&mut recording, &mut Finder::default());
    assert_eq!(recording.names, before);
    assert!(!again.objects.is_empty());
    assert!(again.objects.iter().all(|object| object.outcome == Outcome::NoBuildId));
}
