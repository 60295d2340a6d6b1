//! `memtrace diff`: two snapshots, of one recording or of two.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use super::outputs::{Sink, is_coloured};
use super::{exit::SessionError, load, to_stdout};
use crate::cli::DiffArgs;
use crate::outstanding::books::Librarian;
use crate::outstanding::diff::{Options, Side, diff};
use crate::report::diff::{DiffOptions, Named, json, profile, text};
use crate::report::visible;
use crate::snapshot::Recording;

/// `FILE`, `FILE@3`, `FILE@first`, `FILE@last`, `FILE@mark:NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    file: PathBuf,
    at: At,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum At {
    First,
    Last,
    Sequence(u32),
    Mark(String),
}

impl Place {
    fn parse(asked: &str) -> Self {
        let whole = || Self { file: asked.into(), at: At::Last };
        let Some((file, at)) = asked.rsplit_once('@') else { return whole() };
        let at = match at {
            "first" => At::First,
            "last" => At::Last,
            _ => match (at.strip_prefix("mark:"), at.parse()) {
                (Some(name), _) => At::Mark(name.to_owned()),
                (None, Ok(sequence)) => At::Sequence(sequence),
                // A file may have the character in its name.
                (None, Err(_)) => return whole(),
            },
        };
        // So may one that looks like a place in another one.
        if Path::new(asked).exists() {
            return whole();
        }
        Self { file: file.into(), at }
    }

    fn find(&self, recording: &Recording) -> Result<usize> {
        let snapshots = &recording.snapshots;
        if snapshots.is_empty() {
            bail!("`{}` holds no complete snapshot", self.file.display());
        }
        let found = match &self.at {
            At::First => Some(0),
            At::Last => snapshots.len().checked_sub(1),
            At::Sequence(wanted) => snapshots.iter().position(|it| it.sequence == *wanted),
            At::Mark(name) => {
                snapshots.iter().position(|it| it.mark.as_deref() == Some(name.as_str()))
            }
        };
        found.with_context(|| {
            let marks: Vec<_> =
                snapshots.iter().filter_map(|it| it.mark.as_deref().map(visible)).collect();
            let (first, last) = (snapshots[0].sequence, snapshots[snapshots.len() - 1].sequence);
            format!(
                "`{}` has no such snapshot: it has {first} to {last}, and the marks: {}",
                self.file.display(),
                if marks.is_empty() { "none".to_owned() } else { marks.join(", ") }
            )
        })
    }
}

pub fn run(args: &DiffArgs) -> Result<ExitCode> {
    let (before, after) = (Place::parse(&args.before), Place::parse(&args.after));
    let stdout = [&args.json, &args.pprof].into_iter().flatten();
    let stdout = stdout.filter(|path| path.as_os_str() == "-").count();
    if stdout > 1 {
        return Err(SessionError::TwoOnStdout.into());
    }
    let same = before.file == after.file;
    let old = load(&before.file)?.0;
    let new = if same { None } else { Some(load(&after.file)?.0) };
    let (old_at, new_at) = (before.find(&old)?, after.find(new.as_ref().unwrap_or(&old))?);

    let old_books = Librarian::new(&old);
    let new_books = new.as_ref().map(Librarian::new);
    let new_books = new_books.as_ref().unwrap_or(&old_books);
    let options = Options {
        ignore_lines: args.ignore_lines,
        same_recording: same,
        requests_between: args.requests,
    };
    let side = |librarian, position, requests| Side { librarian, position, requests };
    let found = diff(
        side(&old_books, old_at, args.requests_before),
        side(new_books, new_at, args.requests_after),
        options,
    )
    .context("there is no such snapshot")?;
    let (old, new) = (old_books.recording(), new_books.recording());
    let named_old = Named { asked: &args.before, recording: old, snapshot: &old.snapshots[old_at] };
    let named_new = Named { asked: &args.after, recording: new, snapshot: &new.snapshots[new_at] };
    if let Some(path) = &args.json {
        Sink::open(path)?.deliver(&json(named_old, named_new, &found)?)?;
    }
    if let Some(path) = &args.pprof {
        Sink::open(path)?.deliver(&profile(named_new, &found)?)?;
    }
    if stdout > 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let options = DiffOptions {
        top: args.top,
        colour: is_coloured(args.color),
        show_runtime_frames: args.show_runtime_frames,
    };
    to_stdout(text(named_old, named_new, &found, options).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::synthetic::recording;

    #[test]
    fn a_place_is_a_file_and_where_in_it() {
        for (asked, file, at) in [
            ("a.mtrace", "a.mtrace", At::Last),
            ("a.mtrace@3", "a.mtrace", At::Sequence(3)),
            ("a@b.mtrace", "a@b.mtrace", At::Last),
            ("a@b@first", "a@b", At::First),
            ("a@mark:warm up", "a", At::Mark("warm up".to_owned())),
        ] {
            assert_eq!(Place::parse(asked), Place { file: file.into(), at }, "{asked}");
        }
    }

    #[test]
    fn a_mark_that_is_not_there_is_told_with_those_that_are() {
        let mut recording = recording();
        recording.snapshots[1].mark = Some("load".to_owned());
        let find = |asked: &str| Place::parse(asked).find(&recording);
        assert_eq!(find("x@mark:load").unwrap(), 1);
        assert_eq!(find("x@first").unwrap(), 0);
        let error = find("x@mark:idle").unwrap_err().to_string();
        assert!(error.contains("0 to 2") && error.contains("load"), "{error}");
    }
}
