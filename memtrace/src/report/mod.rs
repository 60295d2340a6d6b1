//! How it is told: pure functions from a recording to bytes. No arithmetic on totals here: every
//! figure comes from the books, so that all formats agree to the byte.
//!
//! The order of rows is fixed; each number has a unit and says measured, sampled or derived.

use thiserror::Error;

use crate::outstanding::books::{Books, Librarian};
use crate::snapshot::Recording;
use crate::stacks::again::NamedAgain;

pub mod check;
pub mod diff;
mod folded;
mod html;
mod json;
pub mod ledger;
mod ledger_json;
mod ledger_tree;
pub mod named_again;
mod numbers;
mod pprof;
mod processes_json;
mod style;
mod text;
mod verdict_json;

pub use crate::sanitize::{visible, visible_lines};
pub use json::JSON_SCHEMA;
pub use numbers::grouped;

/// How a recording is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For a terminal, or a ticket.
    Text,
    /// The contract of `docs/json.md`: all snapshots, all stacks.
    Json,
    /// One line per stack, outermost frame first, for flame graphs.
    Folded,
    /// gzip'd profile.proto, for `go tool pprof`.
    Pprof,
    /// One self-contained page: all snapshots over time.
    Html,
}

/// What a report shows. The default: the last snapshot, 10 stacks, 80 columns, no colour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportOptions {
    /// `sequence` of the snapshot to tell; the last one by default. JSON always tells all.
    pub snapshot: Option<u32>,
    /// `sequence` of the snapshot to tell growth since; the first one by default.
    pub since: Option<u32>,
    /// Most stacks in the text report, which sums up those below 0.05 %. The other formats always
    /// hold all.
    pub top: usize,
    /// Columns of the text report, at least 40.
    pub width: usize,
    /// ANSI colours in the text report.
    pub colour: bool,
    /// Show `runtime.cgocall` and its kin in text and folded stacks. JSON and pprof always do.
    pub show_runtime_frames: bool,
    /// Merge the Go heap into pprof and folded stacks.
    pub merge_go: bool,
    /// What was found when the recording was read: shown when it was torn.
    pub torn: Option<String>,
    /// What became of names that were looked up again, where that was asked for.
    pub named_again: Option<NamedAgain>,
}

impl Default for ReportOptions {
    fn default() -> Self {
        Self {
            snapshot: None,
            since: None,
            top: 10,
            width: 80,
            colour: false,
            show_runtime_frames: false,
            merge_go: false,
            torn: None,
            named_again: None,
        }
    }
}

/// Why a recording cannot be told.
#[derive(Debug, Error)]
pub enum ReportError {
    #[error("the recording holds no complete snapshot: nothing to report")]
    NoSnapshot,
    #[error("the recording holds no snapshot {wanted}: it has {first} to {last}")]
    NoSuchSnapshot { wanted: u32, first: u32, last: u32 },
    #[error("failed to encode the JSON report")]
    Json(#[from] serde_json::Error),
    #[error("failed to compress the pprof profile")]
    Compress(#[from] std::io::Error),
}

/// Renders a recording. Deterministic: the same recording and options give the same bytes.
pub fn render(
    format: Format,
    recording: &Recording,
    options: &ReportOptions,
) -> Result<Vec<u8>, ReportError> {
    let librarian = Librarian::new(recording);
    if format == Format::Json {
        return json::render(&librarian, options);
    }
    let books = selected(&librarian, options)?;
    match format {
        Format::Json | Format::Text => Ok(text::render(&librarian, &books, options).into_bytes()),
        Format::Folded => Ok(folded::render(&books, options).into_bytes()),
        Format::Pprof => pprof::render(&librarian, &books, options),
        Format::Html => html::render(&librarian, &books, options),
    }
}

/// The books of the snapshot that the options ask for.
fn selected<'a>(
    librarian: &Librarian<'a>,
    options: &ReportOptions,
) -> Result<Books<'a>, ReportError> {
    let snapshots = &librarian.recording().snapshots;
    let (Some(first), Some(last)) = (snapshots.first(), snapshots.last()) else {
        return Err(ReportError::NoSnapshot);
    };
    let position =
        |wanted: u32| {
            snapshots.iter().position(|at| at.sequence == wanted).ok_or(
                ReportError::NoSuchSnapshot { wanted, first: first.sequence, last: last.sequence },
            )
        };
    let at = options.snapshot.map_or(Ok(snapshots.len() - 1), position)?;
    let since = options.since.map(position).transpose()?;
    librarian.books(at, since).ok_or(ReportError::NoSnapshot)
}

#[cfg(test)]
mod tests;
