//! `memtrace bundle`: one archive with all that a bug report needs.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;

use super::outputs::Sink;
use super::recorder::unix_ns;
use super::{load, named_again, to_stdout};
use crate::cli::BundleArgs;
use crate::report::{self, Format, ReportOptions, visible};
use crate::snapshot::file::{MAGIC, ReadLimits, RecordingWriter};
use crate::snapshot::redact::{What, redact};
use crate::snapshot::{Recording, SCHEMA_VERSION};

/// The recording in it.
const RECORDING: &str = "recording.mtrace";
/// What zstd begins with, and a recording does not.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Files looked at in search of the recording.
const MOST_FILES: usize = 1_000;

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
    let mut finder = named_again::finder(&args.debug)?;
    let (mut recording, torn) = load(&args.file)?;
    let again = named_again::name(&mut recording, &mut finder);
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
        // Paths of this host.
        named_again: again.clone().filter(|_| !redacted),
        ..ReportOptions::default()
    };
    let render = |format| report::render(format, &recording, &options);
    let is_another = redacted || again.is_some() || args.file.as_os_str() == "-";
    let bytes = match is_another {
        true => None,
        // Of an archive only the recording is taken.
        false => Some(as_it_is(args)?).filter(|bytes| bytes.starts_with(&MAGIC)),
    };
    let bytes = match bytes {
        Some(bytes) => bytes,
        None => rewritten(&recording, torn.as_deref())?,
    };
    let about = about(&recording, torn.as_deref(), redacted, wanted);
    let about = serde_json::to_vec_pretty(&about).context("failed to encode `about.json`")?;
    let files: [(&str, Vec<u8>); 6] = [
        ("README.txt", ABOUT.as_bytes().to_vec()),
        ("about.json", about),
        ("report.txt", render(Format::Text)?),
        ("profile.pb.gz", render(Format::Pprof)?),
        (RECORDING, bytes),
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
    let most = ReadLimits::default().total_raw_bytes;
    let mut bytes = Vec::new();
    File::open(&args.file)
        .and_then(|file| file.take(most).read_to_end(&mut bytes))
        .with_context(|| format!("failed to read `{}`", args.file.display()))?;
    Ok(bytes)
}

/// Opens a recording: itself (`-`: from standard input), or the one in an archive that
/// `memtrace bundle` made.
pub(super) fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    const BUFFER: usize = 1 << 16;
    if path.as_os_str() == "-" {
        return recording_in(BufReader::with_capacity(BUFFER, io::stdin()));
    }
    recording_in(BufReader::with_capacity(BUFFER, File::open(path)?))
}

fn recording_in(mut input: impl BufRead + 'static) -> io::Result<Box<dyn Read>> {
    if !input.fill_buf()?.starts_with(&ZSTD_MAGIC) {
        return Ok(Box::new(input));
    }
    let most = ReadLimits::default().total_raw_bytes;
    // All that may stand before it, and it.
    let raw = zstd::stream::read::Decoder::with_buffer(input)?.take(2 * most);
    let mut archive = tar::Archive::new(raw);
    for entry in archive.entries()?.take(MOST_FILES) {
        let mut entry = entry?;
        if entry.path()?.file_name().is_none_or(|name| name != RECORDING) {
            continue;
        }
        let mut file = tempfile::tempfile()?;
        io::copy(&mut entry.by_ref().take(most), &mut file)?;
        file.rewind()?;
        return Ok(Box::new(BufReader::new(file)));
    }
    let what = format!("the archive holds no `{RECORDING}`: name one that `memtrace bundle` made");
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
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
    fn a_recording_is_read_from_the_archive_as_from_its_file() {
        let recording = synthetic::recording();
        let bytes = rewritten(&recording, None).unwrap();
        let archive =
            archive(&[("README.txt", b"x".to_vec()), (RECORDING, bytes.clone())]).unwrap();
        for input in [bytes, archive] {
            let read = read_recording(recording_in(io::Cursor::new(input)).unwrap()).unwrap();
            assert_eq!(read.0, recording);
        }
    }

    #[test]
    fn an_archive_without_a_recording_is_refused_by_name() {
        let other = archive(&[("README.txt", b"x".to_vec())]).unwrap();
        let error = recording_in(io::Cursor::new(other)).err().unwrap();
        assert!(error.to_string().contains("memtrace bundle"), "{error}");
        let damaged = [&ZSTD_MAGIC[..], b"nothing of zstd's"].concat();
        assert!(recording_in(io::Cursor::new(damaged)).is_err());
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
