//! The recording file: self-contained, versioned, readable up to its last complete snapshot.
//!
//! ```text
//! file   = magic (8 bytes) version (u32 LE) record*
//! record = length (u32 LE) crc32 (u32 LE) kind (u8) payload (length bytes)
//! ```
//!
//! `payload` is a zstd frame around MessagePack with field names; `crc32` covers length, kind and
//! payload. Of a snapshot only what changed since the one before it is written, and compressed
//! against that one's bytes. Stacks and names stand before the snapshot that needs them and every snapshot is
//! flushed, so a file cut anywhere keeps each snapshot that was complete. A reader takes nothing on
//! trust: every size is bounded before anything is allocated for it. `docs/recording.md` is the
//! specification.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::delta::{Decoder, Delta, Encoder};
use super::{AddressNames, Cohorts, Header, Object, Recording, SCHEMA_VERSION, Snapshot, StackDef};

/// The first bytes of every recording. The high byte and the line ends tell text transfers apart.
pub const MAGIC: [u8; 8] = *b"\x8amtrec\r\n";
/// Version of the framing; the meaning of the rows is [`SCHEMA_VERSION`].
pub const FORMAT_VERSION: u32 = 2;
/// Wrote every snapshot whole; still read.
const OLDEST_FORMAT: u32 = 1;

/// Stacks, names and objects are written in records of at most this many rows, so that no record
/// grows with the recording.
const ROWS_PER_RECORD: usize = 8192;
const ZSTD_LEVEL: i32 = 3;
const RECORD_HEAD_BYTES: usize = 9;
/// 256 MiB in memory.
const MOST_SURVIVORS: usize = 8 << 20;
/// A record and what it is compressed against must lie within zstd's window, which a reader has to
/// hold: beyond this, a snapshot is compressed by itself.
const WINDOW_LOG: u32 = 26;
/// Matches are looked for in all of the window from here on; below, level 3 finds them as well.
const LONG_DISTANCE_BYTES: usize = 1 << 20;

/// What a reader accepts from a file that it does not trust.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    /// One record, compressed.
    pub record_bytes: usize,
    /// One record, decompressed.
    pub record_raw_bytes: usize,
    /// All records together, decompressed.
    pub total_raw_bytes: u64,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { record_bytes: 128 << 20, record_raw_bytes: 256 << 20, total_raw_bytes: 2 << 30 }
    }
}

/// Why a recording could not be written or read at all.
#[derive(Debug, Error)]
pub enum FileError {
    #[error("failed to open recording `{path}`")]
    Open { path: String, source: io::Error },
    #[error("failed to write the recording")]
    Write(#[source] io::Error),
    #[error("failed to read the recording at byte {offset}")]
    Read { offset: u64, source: io::Error },
    #[error("failed to encode {what}")]
    Encode { what: &'static str, source: rmp_serde::encode::Error },
    #[error("{what} takes {bytes} bytes, more than a record holds ({limit})")]
    TooLarge { what: &'static str, bytes: usize, limit: usize },
    #[error("not a memtrace recording: it does not begin with its magic bytes")]
    NotARecording,
    #[error(
        "the recording has format {found}, this memtrace reads 1 to {supported}: use a newer memtrace"
    )]
    UnsupportedFormat { found: u32, supported: u32 },
    #[error(
        "the recording has schema {found}, this memtrace reads {supported}: use the memtrace that wrote it"
    )]
    UnsupportedSchema { found: u32, supported: u32 },
    #[error("the recording holds no complete header: {cut}")]
    NoHeader { cut: Torn },
}

/// Whether a recording was read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// Ended by the recorder, with its reason.
    Complete { reason: String },
    /// What follows the last good record was not used.
    Torn(Torn),
}

/// Where and why reading stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Byte offset of the first record that was not used.
    pub offset: u64,
    /// Complete snapshots before it.
    pub snapshots: usize,
    pub what: String,
}

impl std::fmt::Display for Torn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cut at byte {}: {}; {} complete snapshot{} before it",
            self.offset,
            self.what,
            self.snapshots,
            if self.snapshots == 1 { "" } else { "s" }
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Header = 1,
    Objects = 2,
    Stacks = 3,
    Names = 4,
    /// Whole: of format 1.
    Snapshot = 5,
    End = 6,
    /// What changed, compressed by itself.
    Delta = 7,
    /// What changed, compressed against the bytes of the delta before it.
    DeltaAgainst = 8,
}

impl Kind {
    fn from_u8(value: u8) -> Option<Self> {
        [
            Self::Header,
            Self::Objects,
            Self::Stacks,
            Self::Names,
            Self::Snapshot,
            Self::End,
            Self::Delta,
            Self::DeltaAgainst,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == value)
    }

    const fn what(self) -> &'static str {
        match self {
            Self::Header => "the header",
            Self::Objects => "a list of objects",
            Self::Stacks => "a list of stacks",
            Self::Names => "a list of names",
            Self::Snapshot | Self::Delta | Self::DeltaAgainst => "a snapshot",
            Self::End => "the closing record",
        }
    }
}

#[derive(Serialize, Deserialize)]
struct End {
    reason: String,
}

/// Writes a recording as it grows.
pub struct RecordingWriter<W: Write> {
    output: W,
    encoder: Encoder,
    /// The last delta, not compressed; empty before the first.
    before: Vec<u8>,
}

impl<W: Write> RecordingWriter<W> {
    /// Writes magic, version and header, and flushes them.
    pub fn create(output: W, header: &Header) -> Result<Self, FileError> {
        let mut writer = Self { output, encoder: Encoder::default(), before: Vec::new() };
        writer.output.write_all(&MAGIC).map_err(FileError::Write)?;
        writer.output.write_all(&FORMAT_VERSION.to_le_bytes()).map_err(FileError::Write)?;
        writer.record(Kind::Header, header)?;
        writer.flush()?;
        Ok(writer)
    }

    /// Appends one snapshot with everything new that it needs, and flushes. The rows are those not
    /// appended before.
    pub fn append(
        &mut self,
        new_objects: &[Object],
        new_stacks: &[StackDef],
        new_names: &[AddressNames],
        snapshot: &Snapshot,
    ) -> Result<(), FileError> {
        for rows in new_objects.chunks(ROWS_PER_RECORD) {
            self.record(Kind::Objects, rows)?;
        }
        for rows in new_stacks.chunks(ROWS_PER_RECORD) {
            self.record(Kind::Stacks, rows)?;
        }
        for rows in new_names.chunks(ROWS_PER_RECORD) {
            self.record(Kind::Names, rows)?;
        }
        let written = self.snapshot(snapshot).and_then(|()| self.flush());
        if written.is_err() {
            // The next one stands for itself: a reader does not have this one.
            self.encoder = Encoder::default();
            self.before.clear();
        }
        written
    }

    fn snapshot(&mut self, snapshot: &Snapshot) -> Result<(), FileError> {
        let what = Kind::Delta.what();
        let raw = encode(what, &self.encoder.encode(snapshot))?;
        let before = std::mem::take(&mut self.before);
        let (kind, payload) = match before.len().saturating_add(raw.len()) <= 1 << WINDOW_LOG {
            true if !before.is_empty() => (Kind::DeltaAgainst, compress_against(&before, &raw)),
            _ => (Kind::Delta, zstd::bulk::compress(&raw, ZSTD_LEVEL)),
        };
        self.framed(kind, &payload.map_err(FileError::Write)?)?;
        self.before = raw;
        Ok(())
    }

    /// What it writes to.
    pub fn output(&mut self) -> &mut W {
        &mut self.output
    }

    /// Writes the closing record and hands the output back.
    pub fn finish(mut self, reason: &str) -> Result<W, FileError> {
        self.record(Kind::End, &End { reason: reason.to_owned() })?;
        self.flush()?;
        Ok(self.output)
    }

    fn flush(&mut self) -> Result<(), FileError> {
        self.output.flush().map_err(FileError::Write)
    }

    fn record<T: Serialize + ?Sized>(&mut self, kind: Kind, value: &T) -> Result<(), FileError> {
        let raw = encode(kind.what(), value)?;
        let payload = zstd::bulk::compress(&raw, ZSTD_LEVEL).map_err(FileError::Write)?;
        self.framed(kind, &payload)
    }

    fn framed(&mut self, kind: Kind, payload: &[u8]) -> Result<(), FileError> {
        let what = kind.what();
        let limits = ReadLimits::default();
        let length = u32::try_from(payload.len())
            .ok()
            .filter(|length| *length as usize <= limits.record_bytes)
            .ok_or(FileError::TooLarge {
                what,
                bytes: payload.len(),
                limit: limits.record_bytes,
            })?;
        let mut head = [0; RECORD_HEAD_BYTES];
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4..8].copy_from_slice(&checksum(length, kind as u8, payload).to_le_bytes());
        head[8] = kind as u8;
        self.output.write_all(&head).map_err(FileError::Write)?;
        self.output.write_all(payload).map_err(FileError::Write)
    }
}

fn encode<T: Serialize + ?Sized>(what: &'static str, value: &T) -> Result<Vec<u8>, FileError> {
    let raw =
        rmp_serde::to_vec_named(value).map_err(|source| FileError::Encode { what, source })?;
    let limit = ReadLimits::default().record_raw_bytes;
    if raw.len() > limit {
        return Err(FileError::TooLarge { what, bytes: raw.len(), limit });
    }
    Ok(raw)
}

fn compress_against(before: &[u8], raw: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder =
        zstd::stream::write::Encoder::with_ref_prefix(Vec::new(), ZSTD_LEVEL, before)?;
    let span = before.len().saturating_add(raw.len());
    // At least what the span needs, so that all of `before` stays in reach.
    encoder.window_log((usize::BITS - span.leading_zeros()).clamp(10, WINDOW_LOG + 1))?;
    encoder.long_distance_matching(span > LONG_DISTANCE_BYTES)?;
    encoder.write_all(raw)?;
    encoder.finish()
}

fn checksum(length: u32, kind: u8, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update(&[kind]);
    hasher.update(payload);
    hasher.finalize()
}

/// Reads a recording from a path, `-` for standard input.
pub fn read_recording_file(path: &Path) -> Result<(Recording, Completeness), FileError> {
    if path == Path::new("-") {
        return read_recording(io::stdin().lock());
    }
    let file = File::open(path)
        .map_err(|source| FileError::Open { path: path.display().to_string(), source })?;
    read_recording(io::BufReader::with_capacity(1 << 16, file))
}

/// Reads a recording with the default [`ReadLimits`].
pub fn read_recording(input: impl Read) -> Result<(Recording, Completeness), FileError> {
    read_recording_within(input, &ReadLimits::default())
}

/// Reads a recording. Whatever is damaged ends the reading there; what stood before is returned
/// with the reason. An error is returned only where there is nothing to return.
pub fn read_recording_within(
    input: impl Read,
    limits: &ReadLimits,
) -> Result<(Recording, Completeness), FileError> {
    let mut reader = RecordReader { input, offset: 0, raw_bytes: 0, before: Vec::new(), limits };
    reader.read_preamble()?;

    let header: Header = match reader.next()? {
        Next::Record(Kind::Header, raw) => {
            decode(&raw).map_err(|what| reader.no_header(format!("the header {what}")))?
        }
        Next::Record(kind, _) => {
            return Err(reader.no_header(format!("{} stands in its place", kind.what())));
        }
        Next::Cut(what) => return Err(reader.no_header(what)),
    };
    if header.schema != SCHEMA_VERSION {
        let (found, supported) = (header.schema, SCHEMA_VERSION);
        return Err(FileError::UnsupportedSchema { found, supported });
    }

    let mut recording = Recording {
        header,
        new_objects: Vec::new(),
        stacks: Vec::new(),
        names: Vec::new(),
        snapshots: Vec::new(),
        images: Vec::new(),
        closed: Vec::new(),
    };
    let mut decoder = Decoder::default();
    let mut budget = Budget { left: limits.total_raw_bytes, survivors: 0 };
    loop {
        let record_offset = reader.offset;
        let taken = match reader.next()? {
            Next::Record(Kind::End, raw) => match decode::<End>(&raw) {
                Ok(End { reason }) => return Ok((recording, Completeness::Complete { reason })),
                Err(what) => Err(format!("the closing record {what}")),
            },
            Next::Record(kind, raw) => take(&mut recording, &mut decoder, &mut budget, kind, &raw),
            Next::Cut(what) => Err(what),
        };
        if let Err(what) = taken {
            let snapshots = recording.snapshots.len();
            let torn = Torn { offset: record_offset, snapshots, what };
            return Ok((recording, Completeness::Torn(torn)));
        }
    }
}

fn take(
    recording: &mut Recording,
    decoder: &mut Decoder,
    budget: &mut Budget,
    kind: Kind,
    raw: &[u8],
) -> Result<(), String> {
    let result = match kind {
        Kind::Objects => decode(raw).map(|mut rows| recording.new_objects.append(&mut rows)),
        Kind::Stacks => decode(raw).map(|mut rows| recording.stacks.append(&mut rows)),
        Kind::Names => decode(raw).map(|mut rows| recording.names.append(&mut rows)),
        Kind::Snapshot => decode(raw).map(|snapshot| recording.push(snapshot)),
        Kind::Delta | Kind::DeltaAgainst => {
            decode::<Delta>(raw).and_then(|delta| decoder.decode(delta)).and_then(|snapshot| {
                budget.take(&snapshot)?;
                recording.push(snapshot);
                budget.thin_out(recording);
                Ok(())
            })
        }
        Kind::Header | Kind::End => Err("is out of place".to_owned()),
    };
    result.map_err(|what| format!("{} {what}", kind.what()))
}

/// A delta of a few bytes makes a whole snapshot: what snapshots take together is bounded, too.
struct Budget {
    /// Bytes of rows that snapshots may still take.
    left: u64,
    /// Rows of survivors in all snapshots.
    survivors: usize,
}

impl Budget {
    fn take(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        let native = &snapshot.native;
        let bytes = size_of_val(&native.stacks[..])
            + size_of_val(&native.ranges[..])
            + snapshot.go.value().map_or(0, |books| size_of_val(&books.stacks[..]));
        self.left = self
            .left
            .checked_sub(bytes as u64)
            .ok_or("takes more, with those before it, than the limit for all")?;
        self.survivors += native.cohorts.rows.len();
        Ok(())
    }

    /// Survivors are compared between two instants, not between all: where there are very many, every
    /// second snapshot that has them goes without, the newest excepted.
    fn thin_out(&mut self, recording: &mut Recording) {
        if self.survivors <= MOST_SURVIVORS {
            return;
        }
        let with = recording.snapshots.iter_mut().rev();
        let with = with.filter(|at| !at.native.cohorts.ends_ns.is_empty());
        for snapshot in with.skip(1).step_by(2) {
            self.survivors -= snapshot.native.cohorts.rows.len();
            snapshot.native.cohorts = Cohorts::default();
        }
    }
}

fn decode<T: DeserializeOwned>(raw: &[u8]) -> Result<T, String> {
    rmp_serde::from_slice(raw).map_err(|error| format!("does not decode: {error}"))
}

enum Next {
    Record(Kind, Vec<u8>),
    Cut(String),
}

struct RecordReader<'a, R> {
    input: R,
    /// Of the next record.
    offset: u64,
    raw_bytes: u64,
    /// The last delta, not compressed.
    before: Vec<u8>,
    limits: &'a ReadLimits,
}

impl<R: Read> RecordReader<'_, R> {
    fn read_preamble(&mut self) -> Result<(), FileError> {
        let preamble = self.read_up_to(MAGIC.len() + 4)?;
        if preamble.len() < MAGIC.len() || preamble[..MAGIC.len()] != MAGIC {
            return Err(FileError::NotARecording);
        }
        let Ok(version) = <[u8; 4]>::try_from(&preamble[MAGIC.len()..]) else {
            return Err(self.no_header("the file ends inside its version".to_owned()));
        };
        let found = u32::from_le_bytes(version);
        if !(OLDEST_FORMAT..=FORMAT_VERSION).contains(&found) {
            return Err(FileError::UnsupportedFormat { found, supported: FORMAT_VERSION });
        }
        self.offset = preamble.len() as u64;
        Ok(())
    }

    fn no_header(&self, what: String) -> FileError {
        FileError::NoHeader { cut: Torn { offset: self.offset, snapshots: 0, what } }
    }

    fn next(&mut self) -> Result<Next, FileError> {
        loop {
            let head = self.read_up_to(RECORD_HEAD_BYTES)?;
            if head.is_empty() {
                return Ok(Next::Cut("the file ends without its closing record".to_owned()));
            }
            let (Some(Ok(length)), Some(Ok(crc)), Some(kind)) = (
                head.get(..4).map(<[u8; 4]>::try_from),
                head.get(4..8).map(<[u8; 4]>::try_from),
                head.get(8).copied(),
            ) else {
                return Ok(Next::Cut("the file ends inside a record's head".to_owned()));
            };
            let length = u32::from_le_bytes(length);
            if length as usize > self.limits.record_bytes {
                return Ok(Next::Cut(format!("a record claims {length} bytes, over the limit")));
            }
            let payload = self.read_up_to(length as usize)?;
            if payload.len() < length as usize {
                let what = format!("the file ends inside a record of {length} bytes");
                return Ok(Next::Cut(what));
            }
            if checksum(length, kind, &payload) != u32::from_le_bytes(crc) {
                return Ok(Next::Cut("a record's checksum does not match".to_owned()));
            }
            let Some(kind) = Kind::from_u8(kind) else {
                // Written by a newer memtrace of the same format: whole, and not needed.
                self.offset += (RECORD_HEAD_BYTES + payload.len()) as u64;
                continue;
            };
            let raw = match self.decompress(kind, &payload) {
                Ok(raw) => raw,
                Err(what) => return Ok(Next::Cut(format!("{} {what}", kind.what()))),
            };
            self.offset += (RECORD_HEAD_BYTES + payload.len()) as u64;
            if matches!(kind, Kind::Delta | Kind::DeltaAgainst) {
                self.before.clone_from(&raw);
            }
            return Ok(Next::Record(kind, raw));
        }
    }

    fn decompress(&mut self, kind: Kind, payload: &[u8]) -> Result<Vec<u8>, String> {
        let left = self.limits.total_raw_bytes.saturating_sub(self.raw_bytes);
        let limit = left.min(self.limits.record_raw_bytes as u64);
        let against = if kind == Kind::DeltaAgainst { &self.before[..] } else { &[] };
        let decoder = zstd::stream::read::Decoder::with_ref_prefix(payload, against)
            .map_err(|error| format!("does not decompress: {error}"))?;
        let mut raw = Vec::new();
        decoder
            .take(limit + 1)
            .read_to_end(&mut raw)
            .map_err(|error| format!("does not decompress: {error}"))?;
        if raw.len() as u64 > limit {
            return Err(format!("decompresses to more than the limit of {limit} bytes"));
        }
        self.raw_bytes += raw.len() as u64;
        Ok(raw)
    }

    /// Reads `wanted` bytes, fewer only at the end of the input. Grows with what is there, not with
    /// what is claimed.
    fn read_up_to(&mut self, wanted: usize) -> Result<Vec<u8>, FileError> {
        let mut bytes = Vec::new();
        self.input
            .by_ref()
            .take(wanted as u64)
            .read_to_end(&mut bytes)
            .map_err(|source| FileError::Read { offset: self.offset, source })?;
        Ok(bytes)
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
