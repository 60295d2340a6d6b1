//! Golden files hold what each format prints of the synthetic recording; `MEMTRACE_BLESS=1` writes
//! them anew, to be read before they are committed.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use prost::Message;
use serde_json::Value;

use super::*;
use crate::go::profile_proto as proto;
use crate::snapshot::synthetic::{self, recording};
use crate::snapshot::{Known, Recording, Snapshot};

fn rendered(format: Format, recording: &Recording, options: &ReportOptions) -> Vec<u8> {
    render(format, recording, options).unwrap()
}

fn text(recording: &Recording, options: &ReportOptions) -> String {
    String::from_utf8(rendered(Format::Text, recording, options)).unwrap()
}

fn json(recording: &Recording) -> Value {
    let bytes = rendered(Format::Json, recording, &ReportOptions::default());
    serde_json::from_slice(&bytes).unwrap()
}

fn pprof(recording: &Recording, options: &ReportOptions) -> proto::Profile {
    let bytes = rendered(Format::Pprof, recording, options);
    let mut inflated = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut inflated).unwrap();
    proto::Profile::decode(&inflated[..]).unwrap()
}

/// Sum of one column of a profile, for one origin or for all.
fn column(profile: &proto::Profile, name: &str, origin: Option<&str>) -> i64 {
    let string = |index: i64| profile.string_table[index as usize].as_str();
    let column = profile.sample_type.iter().position(|t| string(t.r#type) == name).unwrap();
    let wanted = |sample: &&proto::Sample| {
        let label = &sample.label[0];
        assert_eq!(string(label.key), "origin");
        origin.is_none_or(|origin| string(label.str) == origin)
    };
    profile.sample.iter().filter(wanted).map(|sample| sample.value[column]).sum()
}

/// Sum of the last column of folded stacks.
fn folded_sum(bytes: &[u8]) -> u64 {
    let text = std::str::from_utf8(bytes).unwrap();
    text.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
}

fn outstanding(snapshot: &Snapshot) -> u64 {
    snapshot.native.stacks.iter().map(|row| row.allocated_bytes - row.freed_bytes).sum()
}

fn golden(name: &str, found: &[u8]) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/report/golden").join(name);
    if std::env::var_os("MEMTRACE_BLESS").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read(&path).unwrap();
    assert!(
        expected == found,
        "{name} differs; found:\n{}\n(MEMTRACE_BLESS=1 writes it anew)",
        String::from_utf8_lossy(found)
    );
}

#[test]
fn each_format_prints_what_its_golden_file_holds() {
    let recording = recording();
    let at = |width| ReportOptions { width, ..ReportOptions::default() };
    golden("text-80.txt", text(&recording, &at(80)).as_bytes());
    golden("text-160.txt", text(&recording, &at(160)).as_bytes());
    let runtime = ReportOptions { show_runtime_frames: true, top: 1, ..at(100) };
    golden("text-runtime-frames.txt", text(&recording, &runtime).as_bytes());
    let both = ReportOptions { merge_go: true, ..at(80) };
    golden("both.folded", &rendered(Format::Folded, &recording, &both));
    let pretty = serde_json::to_vec_pretty(&json(&recording)).unwrap();
    golden("report.json", &pretty);
}

#[test]
fn the_same_recording_gives_the_same_bytes_whatever_the_order_of_its_rows() {
    let recording = recording();
    let mut shuffled = recording.clone();
    shuffled.stacks.reverse();
    shuffled.names.reverse();
    for snapshot in &mut shuffled.snapshots {
        snapshot.native.stacks.reverse();
        snapshot.native.ranges.reverse();
        snapshot.native.losses.reverse();
    }
    let options = ReportOptions { merge_go: true, ..ReportOptions::default() };
    for format in [Format::Text, Format::Json, Format::Folded, Format::Pprof, Format::Html] {
        let (a, b) =
            (rendered(format, &recording, &options), rendered(format, &shuffled, &options));
        assert!(a == b, "{format:?}");
    }
}

#[test]
fn totals_of_all_formats_are_equal() {
    for min_age_ns in [0, 5 * synthetic::SECOND_NS] {
        let mut recording = recording();
        recording.header.min_age_ns = min_age_ns;
        let last = recording.snapshots.last().unwrap();
        let expected = match min_age_ns {
            0 => outstanding(last),
            _ => last.native.stacks.iter().map(|row| row.live.unwrap().aged_bytes).sum(),
        };
        let options = ReportOptions { top: 1000, ..ReportOptions::default() };
        assert_eq!(folded_sum(&rendered(Format::Folded, &recording, &options)), expected);
        let profile = pprof(&recording, &options);
        assert_eq!(column(&profile, "inuse_space", None) as u64, expected);
        let json = json(&recording);
        let native = &json["snapshots"][2]["native"];
        let key = if min_age_ns == 0 { "outstanding" } else { "aged" };
        assert_eq!(native[key]["bytes"], expected);
        assert_eq!(native["outstanding"]["bytes"], outstanding(last));
        let shown = format!("({} B)", numbers::grouped(expected));
        assert!(text(&recording, &options).contains(&shown), "{shown}");
    }
}

#[test]
fn json_keeps_its_contract() {
    let json = json(&recording());
    assert_eq!(json["schema"], JSON_SCHEMA);
    assert_eq!(json["tracee"]["pid"], 4711);
    assert_eq!(json["probes"]["attached"].as_array().unwrap().len(), 2);
    let snapshots = json["snapshots"].as_array().unwrap();
    assert_eq!(snapshots.len(), 3);
    for snapshot in snapshots {
        let native = &snapshot["native"];
        let stacks = native["stacks"].as_array().unwrap();
        let sum = |key: &str| stacks.iter().map(|stack| stack[key].as_u64().unwrap()).sum::<u64>();
        assert_eq!(native["outstanding"]["bytes"], sum("bytes"));
        assert_eq!(native["outstanding"]["blocks"], sum("blocks"));
        for frame in stacks.iter().flat_map(|stack| stack["frames"].as_array().unwrap()) {
            for key in ["function", "module", "file", "line", "address"] {
                assert!(frame.get(key).is_some(), "{key} in {frame}");
            }
        }
        assert_eq!(native["ranges"]["bytes"], 4 * synthetic::MIB + 4096);
        let losses = native["losses"].as_object().unwrap();
        for loss in memtrace_common::counters::Loss::ALL {
            assert_eq!(losses[loss.label()], 0, "{}", loss.label());
        }
        assert!(snapshot["go"]["inuse_bytes"].is_u64() && snapshot["go_reason"].is_null());
        for key in ["probe_hits", "bpf_time_ns", "kernel_memory_bytes", "user_memory_bytes"] {
            assert!(snapshot["self"].get(key).is_some(), "{key}");
        }
    }
}

#[test]
fn json_says_why_go_is_null() {
    let mut recording = recording();
    recording.snapshots[0].go = Known::unknown("no listening port");
    let json = json(&recording);
    assert!(json["snapshots"][0]["go"].is_null());
    assert_eq!(json["snapshots"][0]["go_reason"], "no listening port");
}

#[test]
fn json_keeps_hostile_names_and_yet_holds_nothing_a_terminal_acts_on() {
    let recording = recording();
    let bytes = rendered(Format::Json, &recording, &ReportOptions::default());
    let text = std::str::from_utf8(&bytes).unwrap().trim_end();
    assert!(!text.chars().any(crate::sanitize::must_escape));
    let hostile = "evil\u{1b}[31m\u{1b}]0;owned\u{7}\nname\u{202e}";
    let json: Value = serde_json::from_str(text).unwrap();
    let stacks = json["snapshots"][2]["native"]["stacks"].as_array().unwrap();
    assert!(stacks.iter().any(|stack| stack["frames"][1]["function"] == hostile));
}

#[test]
fn no_hostile_string_reaches_the_terminal() {
    let mut recording = recording();
    let hostile = "x\u{1b}[2J\u{9b}31m\u{7}\r\u{202e}y".to_owned();
    let tracee = &mut recording.header.tracee;
    tracee.comm = hostile.clone();
    tracee.command_line = vec![hostile.clone(); 3];
    tracee.go_version = Some(hostile.clone());
    let container = tracee.container.as_mut().unwrap();
    container.name = Some(hostile.clone());
    container.id = hostile.clone();
    container.image = Some(hostile.clone());
    container.runtime = hostile.clone();
    tracee.objects.iter_mut().for_each(|object| object.path = format!("/lib/{hostile}"));
    recording.header.host.kernel_release = hostile.clone();
    recording.header.memtrace = hostile.clone();
    for row in &mut recording.header.probes.not_probed {
        (row.object, row.function, row.reason) =
            (hostile.clone(), Some(hostile.clone()), hostile.clone());
    }
    for probe in &mut recording.header.probes.attached {
        (probe.object, probe.allocator) = (hostile.clone(), hostile.clone());
    }
    for names in recording.names.iter_mut().flat_map(|names| &mut names.names) {
        (names.function, names.file) = (hostile.clone(), Some(hostile.clone()));
    }
    let last = recording.snapshots.last_mut().unwrap();
    last.ended = Some(hostile.clone());
    last.native.losses.push((hostile.clone(), 1));
    if let Known::Value(go) = &mut last.go {
        go.source = hostile.clone();
        let frame = &mut std::sync::Arc::make_mut(&mut go.stacks[0].frames)[0];
        std::sync::Arc::make_mut(frame).function = hostile.clone();
    }
    let mut unknown = recording.clone();
    let last = unknown.snapshots.last_mut().unwrap();
    last.go = Known::unknown(hostile.clone());
    last.process = Known::unknown(hostile.clone());

    for recording in [&recording, &unknown] {
        for width in [40, 80, 160] {
            let options = ReportOptions {
                width,
                torn: Some(hostile.clone()),
                show_runtime_frames: true,
                ..ReportOptions::default()
            };
            let shown = text(recording, &options);
            let bad = shown.lines().find(|line| line.chars().any(crate::sanitize::must_escape));
            assert_eq!(bad, None);
            let folded =
                rendered(Format::Folded, recording, &ReportOptions { merge_go: true, ..options });
            let folded = String::from_utf8(folded).unwrap();
            assert!(!folded.lines().any(|line| line.chars().any(crate::sanitize::must_escape)));
        }
        let profile = pprof(recording, &ReportOptions { merge_go: true, ..Default::default() });
        assert!(
            !profile.string_table.iter().any(|text| text.chars().any(crate::sanitize::must_escape))
        );
    }
}

#[test]
fn no_line_is_wider_than_asked() {
    use unicode_width::UnicodeWidthStr;
    let mut recording = recording();
    recording.snapshots[2].native.losses = synthetic::losses(&[("block_map_full", 3)]);
    recording.snapshots[2].native.stacks[0].freed_bytes = u64::MAX;
    recording.snapshots[1].go = Known::unknown("a reason ".repeat(40));
    recording.names[2].names[0].function = "std::map<std::string, 数え上げ>::".repeat(30);
    for snapshot in [1, 2] {
        for width in [40, 60, 80, 100, 120, 160, 200] {
            let options =
                ReportOptions { width, snapshot: Some(snapshot), ..ReportOptions::default() };
            for line in text(&recording, &options).lines() {
                assert!(line.width() <= width, "{width}: {line}");
            }
        }
    }
}

#[test]
fn colour_changes_nothing_but_colour() {
    let recording = recording();
    let plain = text(&recording, &ReportOptions::default());
    assert!(!plain.contains('\u{1b}'));
    let painted = text(&recording, &ReportOptions { colour: true, ..ReportOptions::default() });
    assert!(painted.contains('\u{1b}'));
    let mut stripped = String::new();
    let mut rest = painted.as_str();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        stripped.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    stripped.push_str(rest);
    let lines =
        |text: &str| text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
    assert_eq!(lines(&stripped), lines(&plain));
}

#[test]
fn losses_and_broken_laws_are_told_before_the_figures() {
    let mut recording = recording();
    let last = recording.snapshots.last_mut().unwrap();
    last.native.losses = synthetic::losses(&[("block_map_full", 1234)]);
    last.native.stacks[0].live.as_mut().unwrap().blocks += 1;
    last.own.probe_hits = 0;
    let options = ReportOptions { torn: Some("cut at byte 77".to_owned()), ..Default::default() };
    let shown = text(&recording, &options);
    let figures = shown.find("WHERE THE MEMORY IS").unwrap();
    let told_before = |what: &str| assert!(shown[..figures].contains(what), "{what}:\n{shown}");
    told_before("cut at byte 77");
    told_before("blocks_balance".replace("blocks_balance", "live blocks, blocks").as_str());
    told_before("1 kind of losses");
    told_before("No probe was hit");
    assert!(shown[figures..].contains("1,234  block_map_full: more live blocks than --max-blocks"));
    assert!(!shown.contains("None: all"));
}

#[test]
fn a_moving_snapshot_says_so() {
    let mut recording = recording();
    recording.snapshots[2].moving = true;
    let shown = text(&recording, &ReportOptions::default());
    assert!(shown.split_whitespace().collect::<Vec<_>>().join(" ").contains("kept allocating"));
}

#[test]
fn only_snapshots_that_are_there_can_be_asked_for() {
    let recording = recording();
    let at = |snapshot| ReportOptions { snapshot: Some(snapshot), ..ReportOptions::default() };
    let first = text(&recording, &at(0));
    assert!(first.contains("since the attach") && first.contains("snapshot 1 of 3"));
    let error = render(Format::Text, &recording, &at(9)).unwrap_err().to_string();
    assert!(error.contains("no snapshot 9") && error.contains("0 to 2"), "{error}");
    let mut empty = recording.clone();
    empty.snapshots.clear();
    for format in [Format::Text, Format::Folded, Format::Pprof] {
        let result = render(format, &empty, &ReportOptions::default());
        assert!(matches!(result, Err(ReportError::NoSnapshot)), "{format:?}");
    }
    assert_eq!(json(&empty)["snapshots"].as_array().unwrap().len(), 0);
}

#[test]
fn runtime_frames_are_folded_unless_asked_for() {
    let recording = recording();
    let folded = text(&recording, &ReportOptions::default());
    assert!(!folded.contains("runtime.cgocall") && folded.contains("main._Cfunc_CString"));
    let options = ReportOptions { show_runtime_frames: true, ..ReportOptions::default() };
    let shown = text(&recording, &options);
    assert!(shown.contains("runtime.cgocall") && shown.contains("_cgo_3c1cec0c9a4e"));
}

#[test]
fn stacks_beyond_the_top_or_too_small_to_read_are_summed_up() {
    let recording = recording();
    let shown = text(&recording, &ReportOptions::default());
    assert!(!shown.contains("xmlStrndup"));
    assert!(shown.contains("1 more stack holds 370 B"), "{shown}");
    let shown = text(&recording, &ReportOptions { top: 1, ..ReportOptions::default() });
    assert!(shown.contains("6 more stacks hold 9.4 MiB (33.6 % the largest)"), "{shown}");
}

#[test]
fn the_document_of_the_json_names_every_key() {
    fn keys(value: &Value, found: &mut std::collections::BTreeSet<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| {
                found.insert(key.clone());
                keys(value, found);
            }),
            Value::Array(rows) => rows.iter().for_each(|row| keys(row, found)),
            _ => {}
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md");
    let document = std::fs::read_to_string(path).unwrap();
    let mut found = std::collections::BTreeSet::new();
    keys(&json(&recording()), &mut found);
    assert!(found.len() > 100, "{found:?}");
    let missing: Vec<_> =
        found.iter().filter(|key| !document.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "docs/json.md does not name {missing:?}");
}

#[test]
fn pprof_has_gos_sample_types_and_merges_its_heap_on_request() {
    let recording = recording();
    let native = pprof(&recording, &ReportOptions::default());
    let string = |index: i64| native.string_table[index as usize].as_str();
    let types: Vec<_> =
        native.sample_type.iter().map(|t| (string(t.r#type), string(t.unit))).collect();
    assert_eq!(
        types,
        [
            ("alloc_objects", "count"),
            ("alloc_space", "bytes"),
            ("inuse_objects", "count"),
            ("inuse_space", "bytes")
        ]
    );
    assert_eq!(string(native.default_sample_type), "inuse_space");
    assert_eq!(native.string_table[0], "");
    assert_eq!(column(&native, "inuse_space", Some("go")), 0);

    let both = pprof(&recording, &ReportOptions { merge_go: true, ..ReportOptions::default() });
    let go = recording.snapshots[2].go.value().unwrap();
    assert_eq!(column(&both, "inuse_space", Some("go")) as u64, go.inuse_bytes);
    assert_eq!(column(&both, "alloc_objects", Some("go")) as u64, go.alloc_objects);
    let of_native = column(&both, "inuse_space", Some("native"));
    assert_eq!(of_native, column(&native, "inuse_space", None));
    let stacks = &recording.snapshots[2].native.stacks;
    let allocated: u64 = stacks.iter().map(|row| row.allocated_bytes).sum();
    assert_eq!(column(&both, "alloc_space", Some("native")) as u64, allocated);
}

#[test]
fn pprof_locations_lie_in_mappings_with_build_ids_and_calls_before_return_addresses() {
    let recording = recording();
    let profile = pprof(&recording, &ReportOptions { merge_go: true, ..Default::default() });
    let string = |index: i64| profile.string_table[index as usize].as_str();
    let mappings: HashMap<u64, _> = profile.mapping.iter().map(|m| (m.id, m)).collect();
    assert_eq!(string(mappings[&3].build_id), "feedfacefeedface");
    assert!(mappings[&1].has_functions && mappings[&1].has_line_numbers);
    assert!(!mappings[&5].has_functions, "nothing in libblob.so has a name");
    for location in &profile.location {
        if let Some(mapping) = mappings.get(&location.mapping_id) {
            assert!((mapping.memory_start..mapping.memory_limit).contains(&location.address));
        } else {
            assert_eq!((location.mapping_id, location.address), (0, 0));
        }
    }
    let of = |function: &str| {
        let id = profile.function.iter().find(|f| string(f.name) == function).unwrap().id;
        profile.location.iter().find(|l| l.line.iter().any(|line| line.function_id == id)).unwrap()
    };
    let leaf = recording.stacks[0].frames[0];
    assert_eq!(of("malloc").address, leaf);
    assert_eq!(of("sqlite3LockAndPrepare").address, recording.stacks[0].frames[2] - 1);
    assert_eq!(of("xml::Document::append(xml::Node const&)").line.len(), 3);
}

#[test]
fn pprof_comments_carry_what_makes_the_figures_uncertain() {
    let mut recording = recording();
    recording.snapshots[2].native.losses = synthetic::losses(&[("block_map_full", 7)]);
    let profile = pprof(&recording, &ReportOptions::default());
    let comments: Vec<_> =
        profile.comment.iter().map(|at| profile.string_table[*at as usize].as_str()).collect();
    assert!(comments.iter().any(|comment| comment.contains("block_map_full = 7")), "{comments:?}");
}

#[test]
fn a_hostile_recording_is_told_without_a_panic() {
    let mut recording = recording();
    for snapshot in &mut recording.snapshots {
        snapshot.elapsed_ns = u64::MAX;
        snapshot.unix_ns = u64::MAX;
        for row in &mut snapshot.native.stacks {
            (row.allocated_bytes, row.freed_bytes) = (u64::MAX, 1);
            row.stack = row.stack.wrapping_mul(7);
        }
        for range in &mut snapshot.native.ranges {
            (range.start, range.length_bytes, range.age_ns) = (u64::MAX, u64::MAX, u64::MAX);
        }
        if let Known::Value(go) = &mut snapshot.go {
            go.inuse_bytes = u64::MAX;
            go.sample_rate_bytes = u64::MAX;
        }
    }
    for object in recording.header.tracee.objects.iter_mut().chain(&mut recording.new_objects) {
        for mapping in &mut object.mappings {
            (mapping.start, mapping.end, mapping.file_offset) = (u64::MAX, 0, u64::MAX);
        }
    }
    recording.stacks.iter_mut().for_each(|stack| stack.frames.extend([0, u64::MAX]));
    let options = ReportOptions { merge_go: true, width: 0, top: usize::MAX, ..Default::default() };
    for format in [Format::Text, Format::Json, Format::Folded, Format::Pprof, Format::Html] {
        assert!(!rendered(format, &recording, &options).is_empty());
    }
}

/// `go` from `MEMTRACE_GO`, else from the path; Go 1.24 or newer builds its pprof itself.
#[test]
#[ignore = "live: needs the Go toolchain"]
fn go_tool_pprof_opens_the_profile_with_the_same_totals() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("memtrace.pb.gz");
    let recording = recording();
    let options = ReportOptions { merge_go: true, ..ReportOptions::default() };
    std::fs::write(&path, rendered(Format::Pprof, &recording, &options)).unwrap();
    let go = std::env::var_os("MEMTRACE_GO").unwrap_or_else(|| "go".into());
    let output = std::process::Command::new(go)
        .args(["tool", "pprof", "-raw"])
        .arg(&path)
        .env("GOPROXY", "off")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let raw = String::from_utf8_lossy(&output.stdout);
    let samples = raw.split("Samples:").nth(1).unwrap().split("Locations").next().unwrap();
    assert!(samples.contains("inuse_space/bytes[dflt]"), "{samples}");
    let mut total = 0;
    for line in samples.lines() {
        let Some((values, _)) = line.split_once(": ") else { continue };
        if let Some(Ok(bytes)) = values.split_whitespace().nth(3).map(str::parse::<u64>) {
            total += bytes;
        }
    }
    let last = recording.snapshots.last().unwrap();
    assert_eq!(total, outstanding(last) + last.go.value().unwrap().inuse_bytes);
}
