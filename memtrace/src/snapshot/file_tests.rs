use std::io::Cursor;

use proptest::prelude::*;

use super::super::synthetic;
use super::*;

/// The synthetic recording as a session would write it: all stacks and names before the first
/// snapshot, the late object before the last.
fn write(recording: &Recording) -> Vec<u8> {
    let mut writer = RecordingWriter::create(Vec::new(), &recording.header).unwrap();
    for (i, snapshot) in recording.snapshots.iter().enumerate() {
        let (stacks, names) = match i {
            0 => (&recording.stacks[..], &recording.names[..]),
            _ => (&[][..], &[][..]),
        };
        let objects =
            if i + 1 == recording.snapshots.len() { &recording.new_objects[..] } else { &[] };
        writer.append(objects, stacks, names, snapshot).unwrap();
    }
    writer.finish("the test is over").unwrap()
}

/// Offsets at which records begin, and the end of the file.
fn record_offsets(bytes: &[u8]) -> Vec<usize> {
    let mut offsets = vec![MAGIC.len() + 4];
    while let Some(head) = bytes.get(offsets[offsets.len() - 1]..) {
        let Some(length) = head.get(..4) else { break };
        let length = u32::from_le_bytes(length.try_into().unwrap()) as usize;
        offsets.push(offsets[offsets.len() - 1] + RECORD_HEAD_BYTES + length);
    }
    offsets
}

#[test]
fn what_was_written_is_read_again() {
    let recording = synthetic::recording();
    let (read, completeness) = read_recording(Cursor::new(write(&recording))).unwrap();
    assert_eq!(read, recording);
    assert_eq!(completeness, Completeness::Complete { reason: "the test is over".to_owned() });
}

#[test]
fn a_file_cut_anywhere_keeps_every_complete_snapshot() {
    let recording = synthetic::recording();
    let bytes = write(&recording);
    let offsets = record_offsets(&bytes);
    assert_eq!(*offsets.last().unwrap(), bytes.len());
    // header, stacks, names, snapshot 0, snapshot 1, object, snapshot 2, end
    assert_eq!(offsets.len(), 9);
    let ends = [offsets[4], offsets[5], offsets[7]];
    for length in 0..bytes.len() {
        let result = read_recording(&bytes[..length]);
        if length < MAGIC.len() {
            assert!(matches!(result, Err(FileError::NotARecording)), "cut at {length}");
        } else if length < offsets[1] {
            assert!(matches!(result, Err(FileError::NoHeader { .. })), "cut at {length}");
        } else {
            let (read, completeness) = result.unwrap();
            let complete = ends.iter().filter(|end| **end <= length).count();
            assert_eq!(read.snapshots, recording.snapshots[..complete], "cut at {length}");
            let Completeness::Torn(torn) = completeness else { panic!("cut at {length} unseen") };
            assert_eq!(torn.snapshots, complete);
            let last_start = *offsets.iter().rfind(|offset| **offset <= length).unwrap();
            assert_eq!(torn.offset as usize, last_start, "cut at {length}");
        }
    }
}

#[test]
fn a_flipped_bit_is_never_taken_for_data() {
    let recording = synthetic::recording();
    let bytes = write(&recording);
    let offsets = record_offsets(&bytes);
    for position in offsets[1]..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[position] ^= 1 << (position % 8);
        let (read, completeness) = read_recording(Cursor::new(damaged)).unwrap();
        let Completeness::Torn(torn) = completeness else { panic!("byte {position} unseen") };
        assert!(torn.offset as usize <= position);
        assert_eq!(read.snapshots, recording.snapshots[..torn.snapshots]);
    }
}

/// A record as a writer would frame it, whatever its payload.
fn framed(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(checksum(length, kind, payload).to_le_bytes());
    bytes.push(kind);
    bytes.extend(payload);
    bytes
}

fn preamble_and_header() -> Vec<u8> {
    let bytes = write(&synthetic::recording());
    bytes[..record_offsets(&bytes)[1]].to_vec()
}

#[test]
fn a_decompression_bomb_stops_at_the_limit() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
    assert!(bomb.len() < 16 << 10);
    let mut bytes = preamble_and_header();
    bytes.extend(framed(Kind::Stacks as u8, &bomb));
    let limits = ReadLimits { record_raw_bytes: 1 << 20, ..ReadLimits::default() };
    let (_, completeness) = read_recording_within(&bytes[..], &limits).unwrap();
    let Completeness::Torn(torn) = completeness else { panic!("the bomb was swallowed") };
    assert!(torn.what.contains("limit of 1048576 bytes"), "{torn}");
}

#[test]
fn many_records_together_stop_at_the_total_limit() {
    let recording = synthetic::recording();
    let bytes = write(&recording);
    let all = read_recording_within(&bytes[..], &ReadLimits::default()).unwrap();
    assert_eq!(all.0.snapshots.len(), 3);
    let within = |total_raw_bytes| {
        let limits = ReadLimits { total_raw_bytes, ..ReadLimits::default() };
        read_recording_within(&bytes[..], &limits)
    };
    let enough = (1..).map(|kib| kib << 10).find(|total| {
        within(*total).is_ok_and(|(_, how)| matches!(how, Completeness::Complete { .. }))
    });
    let (read, completeness) = within(enough.unwrap() - (2 << 10)).unwrap();
    assert!(matches!(completeness, Completeness::Torn(_)));
    assert!(read.snapshots.len() < 3);
}

#[test]
fn a_claimed_length_is_not_allocated() {
    let mut bytes = preamble_and_header();
    bytes.extend(u32::MAX.to_le_bytes());
    bytes.extend([0; 5]);
    let (_, completeness) = read_recording(&bytes[..]).unwrap();
    let Completeness::Torn(torn) = completeness else { panic!("not seen") };
    assert!(torn.what.contains("4294967295"), "{torn}");
}

#[test]
fn a_record_of_unknown_kind_is_skipped() {
    let recording = synthetic::recording();
    let bytes = write(&recording);
    let header_end = record_offsets(&bytes)[1];
    let mut extended = bytes[..header_end].to_vec();
    extended.extend(framed(99, b"from the future"));
    extended.extend(&bytes[header_end..]);
    let (read, completeness) = read_recording(&extended[..]).unwrap();
    assert_eq!(read, recording);
    assert!(matches!(completeness, Completeness::Complete { .. }));
}

#[test]
fn other_files_and_other_versions_are_refused_by_name() {
    assert!(matches!(read_recording(&b"\x7fELF\x02\x01\x01"[..]), Err(FileError::NotARecording)));
    let mut bytes = preamble_and_header();
    bytes[8..12].copy_from_slice(&7u32.to_le_bytes());
    let error = read_recording(&bytes[..]).unwrap_err().to_string();
    assert!(error.contains("format 7") && error.contains("newer memtrace"), "{error}");

    let mut header = synthetic::recording().header;
    header.schema = SCHEMA_VERSION + 1;
    let writer = RecordingWriter::create(Vec::new(), &header).unwrap();
    let bytes = writer.finish("x").unwrap();
    assert!(matches!(read_recording(&bytes[..]), Err(FileError::UnsupportedSchema { .. })));
}

/// A file as format 1 had it: every snapshot whole.
fn write_format_1(recording: &Recording) -> Vec<u8> {
    let mut writer = RecordingWriter::create(Vec::new(), &recording.header).unwrap();
    writer.record(Kind::Objects, &recording.new_objects).unwrap();
    writer.record(Kind::Stacks, &recording.stacks).unwrap();
    writer.record(Kind::Names, &recording.names).unwrap();
    for snapshot in &recording.snapshots {
        writer.record(Kind::Snapshot, snapshot).unwrap();
    }
    let mut bytes = writer.finish("the test is over").unwrap();
    bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
    bytes
}

#[test]
fn a_recording_of_format_1_is_still_read() {
    let recording = synthetic::recording();
    let (read, completeness) = read_recording(&write_format_1(&recording)[..]).unwrap();
    assert_eq!(read, recording);
    assert!(matches!(completeness, Completeness::Complete { .. }));
}

#[test]
fn a_snapshot_like_the_one_before_takes_a_few_bytes() {
    let mut recording = synthetic::recording();
    let last = recording.snapshots.swap_remove(2);
    recording.snapshots = (0..100u32)
        .map(|at| Snapshot {
            sequence: at,
            elapsed_ns: u64::from(at) * synthetic::SECOND_NS,
            ..last.clone()
        })
        .collect();
    let bytes = write(&recording);
    assert_eq!(read_recording(&bytes[..]).unwrap().0, recording);
    let offsets = record_offsets(&bytes);
    let (first, second) = (offsets[4] - offsets[3], offsets[6] - offsets[5]);
    assert!(first > 1000 && second < 200, "{first} bytes, then {second}");
}

#[test]
fn small_deltas_of_a_large_snapshot_stop_at_the_total_limit() {
    let mut recording = synthetic::recording();
    let mut last = recording.snapshots.swap_remove(2);
    last.native.stacks = (0..20_000)
        .map(|stack| crate::snapshot::StackTotals { stack, ..Default::default() })
        .collect();
    recording.snapshots =
        (0..1_000).map(|sequence| Snapshot { sequence, ..last.clone() }).collect();
    let bytes = write(&recording);
    assert!(bytes.len() < 1 << 20, "{}", bytes.len());
    let limits = ReadLimits { total_raw_bytes: 256 << 20, ..ReadLimits::default() };
    let (read, completeness) = read_recording_within(&bytes[..], &limits).unwrap();
    let Completeness::Torn(torn) = completeness else { panic!("all of it was taken") };
    assert!(torn.what.contains("limit for all"), "{torn}");
    assert!((50..500).contains(&read.snapshots.len()), "{}", read.snapshots.len());
}

#[test]
fn very_many_survivors_are_kept_of_some_snapshots_and_the_last() {
    let mut recording = synthetic::recording();
    let mut last = recording.snapshots.swap_remove(2);
    let row = |stack| crate::snapshot::CohortRow { stack, cohort: 0, bytes: 1, blocks: 1 };
    last.native.cohorts.ends_ns = vec![1];
    last.native.cohorts.rows = (0..600_000).map(row).collect();
    recording.snapshots = (0..40).map(|sequence| Snapshot { sequence, ..last.clone() }).collect();
    let (read, _) = read_recording(&write(&recording)[..]).unwrap();
    assert_eq!(read.snapshots.len(), 40);
    let rows: usize = read.snapshots.iter().map(|at| at.native.cohorts.rows.len()).sum();
    assert!((600_000..=MOST_SURVIVORS).contains(&rows), "{rows}");
    assert_eq!(read.snapshots[39], recording.snapshots[39]);
}

#[test]
fn snapshots_beyond_the_window_are_compressed_by_themselves() {
    let mut recording = synthetic::recording();
    for (at, snapshot) in recording.snapshots.iter_mut().enumerate() {
        let mut state = at as u64 + 1;
        let rows = (0..1_000_000u64).map(|stack| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            crate::snapshot::StackTotals {
                stack,
                allocated_bytes: state,
                allocated_blocks: state,
                freed_bytes: state,
                freed_blocks: state,
                live: None,
            }
        });
        snapshot.native.stacks = rows.collect();
    }
    let bytes = write(&recording);
    let kinds: Vec<u8> = record_offsets(&bytes)
        .iter()
        .filter_map(|at| bytes.get(at + 8).copied())
        .filter(|kind| *kind >= Kind::Delta as u8)
        .collect();
    assert_eq!(kinds, [Kind::Delta as u8; 3]);
    assert_eq!(read_recording(&bytes[..]).unwrap().0, recording);
}

#[test]
fn more_rows_than_a_record_holds_are_split() {
    let mut recording = synthetic::recording();
    let frames = vec![0x1000, 0x2000];
    recording.stacks = (0..ROWS_PER_RECORD as u64 * 2 + 1)
        .map(|id| StackDef { id, image: 0, frames: frames.clone(), end: 0 })
        .collect();
    let bytes = write(&recording);
    assert_eq!(record_offsets(&bytes).len(), 9 + 2);
    assert_eq!(read_recording(&bytes[..]).unwrap().0, recording);
}

#[test]
fn a_recording_may_come_through_a_pipe() {
    let recording = synthetic::recording();
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || read_recording_file(&fifo).unwrap()
    });
    let output = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    let writer = RecordingWriter::create(output, &recording.header);
    writer.unwrap().finish("through a pipe").unwrap();
    let (read, completeness) = reader.join().unwrap();
    assert_eq!(read.header, recording.header);
    assert_eq!(completeness, Completeness::Complete { reason: "through a pipe".to_owned() });
}

#[test]
fn a_full_disk_and_a_missing_file_are_told() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let full = RecordingWriter::create(full, &synthetic::recording().header);
    assert!(matches!(full, Err(FileError::Write(_))));
    let error = read_recording_file("/no/such/recording".as_ref()).unwrap_err().to_string();
    assert!(error.contains("/no/such/recording"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_reader_panic(
        tail in proptest::collection::vec(any::<u8>(), 0..600),
        kind in 0u8..10,
        compressed in any::<bool>(),
    ) {
        let mut bytes = preamble_and_header();
        let payload = if compressed { zstd::bulk::compress(&tail, 1).unwrap() } else { tail };
        bytes.extend(framed(kind, &payload));
        let limits = ReadLimits { record_raw_bytes: 1 << 16, ..ReadLimits::default() };
        let (read, _) = read_recording_within(&bytes[..], &limits).unwrap();
        prop_assert!(read.snapshots.is_empty());
    }

    #[test]
    fn corruption_of_any_bytes_is_an_answer_not_a_panic(
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = write(&synthetic::recording());
        for (position, value) in edits {
            let position = position.index(bytes.len());
            bytes[position] = value;
        }
        let _ = read_recording(&bytes[..]);
    }
}
