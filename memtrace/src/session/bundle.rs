//! `memtrace bundle`: one archive with all that a bug report needs.

use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;

use super::outputs::Sink;
use super::recorder::unix_ns;
use super::{load, to_stdout};
use crate::cli::BundleArgs;
use crate::report::{self, Format, ReportOptions, visible};
use crate::snapshot::file::{ReadLimits, RecordingWriter};
use crate::snapshot::redact::{What, redact};
use crate::snapshot::{Recording, SCHEMA_VERSION};

/// Columns of the text in it.
const WIDTH: usize = 110;

const ABOUT: &str = "\
recording.mtrace   what memtrace recorded: `memtrace report recording.mtrace` tells it again
report.txt         the report
report.json        the same as JSON, every snapshot (docs/json.md)
profile.pb.gz      for `go tool pprof`
about.json         versions, host, build ids, limits, losses, and what was redacted
";

pub fn run(args: &BundleArgs) -> Result<ExitCode> {
    let (recording, torn) = load(&args.file)?;
    let wanted = What { functions: args.redact_functions };
    let redacted = args.redact || args.redact_functions;
    let recording = match redacted {
        true => redact(&recording, wanted).context("failed to redact the recording")?,
        false => recording,
    };
    let mut sink = Sink::open(&args.output)?;
    let options = ReportOptions {
        top: usize::MAX,
        width: WIDTH,
        torn: torn.clone(),
        ..ReportOptions::default()
    };
    let render = |format| report::render(format, &recording, &options);
    let bytes = match redacted || args.file.as_os_str() == "-" {
        true => rewritten(&recording, torn.as_deref())?,
        false => as_it_is(args)?,
    };
    let about = about(&recording, torn.as_deref(), redacted, wanted);
    let about = serde_json::to_vec_pretty(&about).context("failed to encode `about.json`")?;
    let files: [(&str, Vec<u8>); 6] = [
        ("README.txt", ABOUT.as_bytes().to_vec()),
        ("about.json", about),
        ("report.txt", render(Format::Text)?),
        ("profile.pb.gz", render(Format::Pprof)?),
        ("recording.mtrace", bytes),
        ("report.json", render(Format::Json)?),
    ];
    let failed = || format!("failed to write to {}", args.output.display());
    let archive = archive(&files).with_context(failed)?;
    sink.deliver(&archive)?;
    if args.output.as_os_str() == "-" {
        return Ok(ExitCode::SUCCESS);
    }
    let size = archive.len();
    to_stdout(
        format!("{}: {size} bytes, {} files\n", args.output.display(), files.len()).as_bytes(),
    )
}

/// A tar, compressed by zstd.
fn archive(files: &[(&str, Vec<u8>)]) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(zstd::stream::write::Encoder::new(Vec::new(), 3)?);
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(unix_ns() / 1_000_000_000);
        tar.append_data(&mut header, format!("memtrace/{name}"), &bytes[..])?;
    }
    tar.into_inner()?.finish()
}

/// The file, byte for byte: what is torn may interest, too.
fn as_it_is(args: &BundleArgs) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(&args.file)
        .and_then(|file| file.take(ReadLimits::default().total_raw_bytes).read_to_end(&mut bytes))
        .with_context(|| format!("failed to read `{}`", args.file.display()))?;
    Ok(bytes)
}

/// Written again from what was read.
fn rewritten(recording: &Recording, torn: Option<&str>) -> Result<Vec<u8>> {
    let failed = "failed to write the recording again";
    let mut writer =
        RecordingWriter::create(Vec::new(), &recording.header_as_written()).context(failed)?;
    for (at, snapshot) in recording.snapshots.iter().enumerate() {
        let (objects, stacks, names) = match at {
            0 => (&recording.new_objects[..], &recording.stacks[..], &recording.names[..]),
            _ => (&[][..], &[][..], &[][..]),
        };
        writer.append(objects, stacks, names, snapshot).context(failed)?;
    }
    let ended = recording.snapshots.last().and_then(|last| last.ended.as_deref());
    let mut bytes = writer.finish(ended.or(torn).unwrap_or("bundled")).context(failed)?;
    bytes.flush().context(failed)?;
    Ok(bytes)
}

fn about(
    recording: &Recording,
    torn: Option<&str>,
    redacted: bool,
    what: What,
) -> serde_json::Value {
    let header = &recording.header;
    let last = recording.snapshots.last();
    let objects = header.tracee.objects.iter().chain(&recording.new_objects);
    let limits = last.and_then(|at| at.memory.value()).and_then(|facts| facts.cgroup.value());
    json!({
        "bundled_by": env!("CARGO_PKG_VERSION"),
        "bundled_at_unix_ns": unix_ns(),
        "recorded_by": visible(&header.memtrace),
        "recording_schema": SCHEMA_VERSION,
        "recorded_at_unix_ns": header.armed_at_unix_ns,
        "snapshots": recording.snapshots.len(),
        "torn": torn.filter(|_| !redacted),
        "is_torn": torn.is_some(),
        "host": header.host,
        "go_version": header.tracee.go_version,
        "build_ids": objects.map(|it| json!({ "path": it.path, "build_id": it.build_id }))
            .collect::<Vec<_>>(),
        "not_probed": header.probes.not_probed,
        "limits": limits.map(|cgroup| &cgroup.limits),
        "losses": last.map(|at| at.native.losses.iter().cloned()
            .collect::<std::collections::BTreeMap<_, _>>()),
        "own_cost": last.map(|at| &at.own),
        "redacted": match (redacted, what.functions) {
            (false, _) => json!([]),
            (true, false) => json!(["directories", "arguments", "names of processes and containers"]),
            (true, true) => json!([
                "directories", "arguments", "names of processes and containers", "functions",
                "source files"
            ]),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::ProbeReport;
    use crate::snapshot::file::read_recording;
    use crate::snapshot::synthetic;

    #[test]
    fn what_is_written_again_reads_as_it_did() {
        let mut recording = synthetic::recording();
        let late = recording.header.probes.attached[0].clone();
        recording.snapshots[1].new_probes =
            ProbeReport { attached: vec![late.clone()], not_probed: Vec::new() };
        // As it was once read.
        recording.header.probes.attached.push(late);
        let bytes = rewritten(&recording, None).unwrap();
        assert_eq!(read_recording(&bytes[..]).unwrap().0, recording);
    }

    #[test]
    fn the_archive_holds_every_file_for_its_owner_alone() {
        let bytes = archive(&[("a.txt", b"one".to_vec()), ("b", vec![7; 100_000])]).unwrap();
        let raw = zstd::decode_all(&bytes[..]).unwrap();
        let mut tar = tar::Archive::new(&raw[..]);
        let found: Vec<_> = tar
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.path().unwrap().display().to_string();
                (name, entry.size(), entry.header().mode().unwrap())
            })
            .collect();
        let expected =
            [("memtrace/a.txt".to_owned(), 3, 0o600), ("memtrace/b".to_owned(), 100_000, 0o600)];
        assert_eq!(found, expected);
    }
}
