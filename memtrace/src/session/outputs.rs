//! Where results go: files, pipes, `/dev/null`, `-`. All are opened before the first probe is
//! attached, so that an unwritable one is told before the target is touched; what a file held
//! before is kept until there is something to write, and a new file that got nothing is removed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::exit::SessionError;
use super::say::warn;
use crate::cli::{ColorChoice, FormatArgs};
use crate::report::{self, Format, ReportOptions};
use crate::snapshot::Recording;
use crate::stacks::again::NamedAgain;

/// One opened output.
pub struct Sink {
    /// As a message quotes it.
    name: String,
    writer: Writer,
}

enum Writer {
    Stdout(io::Stdout),
    /// `created` is set as long as nothing was written to a file that was not there before.
    File {
        file: File,
        untouched: bool,
        created: Option<PathBuf>,
    },
}

impl Sink {
    pub fn open(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self {
                name: "standard output".into(),
                writer: Writer::Stdout(io::stdout()),
            });
        }
        let name = format!("`{}`", path.display());
        let new = OpenOptions::new().write(true).create_new(true).open(path);
        let (file, created) = match new {
            Ok(file) => (Ok(file), Some(path.to_owned())),
            Err(_) => {
                (OpenOptions::new().write(true).create(true).truncate(false).open(path), None)
            }
        };
        let file = file.with_context(|| {
            format!("failed to open {name} for writing; name a file in a writable directory")
        })?;
        Ok(Self { name, writer: Writer::File { file, untouched: true, created } })
    }

    /// As a message quotes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Device and inode of a regular file: two names may mean the same one.
    fn identity(&self) -> Option<(u64, u64)> {
        match &self.writer {
            Writer::Stdout(_) => None,
            Writer::File { file, .. } => {
                file.metadata().ok().filter(|m| m.is_file()).map(|m| (m.dev(), m.ino()))
            }
        }
    }

    /// Before the first byte: what the file held goes.
    fn begin(&mut self) -> io::Result<()> {
        if let Writer::File { file, untouched, created } = &mut self.writer
            && std::mem::take(untouched)
        {
            *created = None;
            if file.metadata()?.is_file() {
                file.set_len(0)?;
            }
        }
        Ok(())
    }

    /// A reader that went away (`| head`) is no error. A result without a byte leaves an empty file.
    pub(super) fn deliver(&mut self, bytes: &[u8]) -> Result<()> {
        match self.begin().and_then(|()| self.write_all(bytes)).and_then(|()| self.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.with_context(|| format!("failed to write to {}", self.name)),
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Writer::File { created: Some(path), .. } = &self.writer {
            // An empty file that stays is no harm.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begin()?;
        match &mut self.writer {
            Writer::Stdout(stdout) => stdout.write(bytes),
            Writer::File { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.writer {
            Writer::Stdout(stdout) => stdout.flush(),
            Writer::File { file, .. } => file.flush(),
        }
    }
}

/// Every rendered output that the user asked for, and the text report unless standard output is
/// taken.
pub struct Outputs {
    sinks: Vec<(Format, Sink)>,
    recording: Option<Sink>,
    text_to_stdout: bool,
    color: bool,
    width: usize,
}

impl Outputs {
    /// `recording` is where a recording is written to, `input` where one is read from.
    pub fn open(
        formats: &FormatArgs,
        recording: Option<&Path>,
        input: Option<&Path>,
    ) -> Result<Self> {
        let wanted = [
            (Format::Json, &formats.json),
            (Format::Pprof, &formats.pprof),
            (Format::Folded, &formats.folded),
            (Format::Html, &formats.html),
        ];
        let claims = wanted
            .iter()
            .filter_map(|(_, path)| path.as_deref())
            .chain(recording)
            .filter(|path| path.as_os_str() == "-")
            .count();
        if claims > 1 {
            return Err(SessionError::TwoOnStdout.into());
        }
        let mut sinks = Vec::new();
        for (format, path) in wanted {
            if let Some(path) = path {
                sinks.push((format, Sink::open(path)?));
            }
        }
        let recording = recording.map(Sink::open).transpose()?;
        let mut taken: Vec<_> = input
            .and_then(|path| path.metadata().ok())
            .map(|m| (m.dev(), m.ino()))
            .into_iter()
            .collect();
        for sink in sinks.iter().map(|(_, sink)| sink).chain(&recording) {
            let Some(identity) = sink.identity() else { continue };
            if taken.contains(&identity) {
                return Err(SessionError::SameFileTwice { name: sink.name.clone() }.into());
            }
            taken.push(identity);
        }
        Ok(Self {
            sinks,
            recording,
            text_to_stdout: claims == 0,
            color: is_coloured(formats.color),
            width: terminal_width(),
        })
    }

    /// Where the recording goes, once.
    pub fn take_recording(&mut self) -> Option<Sink> {
        self.recording.take()
    }

    /// Renders the recording into every output. One that fails keeps no other from being written;
    /// the last failure is the result, those before it are told.
    pub fn render(
        &mut self,
        recording: &Recording,
        formats: &FormatArgs,
        torn: Option<String>,
        named_again: Option<NamedAgain>,
    ) -> Result<()> {
        let options = ReportOptions {
            top: formats.top,
            width: self.width,
            colour: self.color,
            show_runtime_frames: formats.show_runtime_frames,
            merge_go: formats.merge_go,
            torn,
            named_again,
            ..ReportOptions::default()
        };
        if self.text_to_stdout {
            self.sinks.push((Format::Text, Sink::open(Path::new("-"))?));
        }
        let mut failed: Option<anyhow::Error> = None;
        for (format, mut sink) in self.sinks.drain(..) {
            let delivered = report::render(format, recording, &options)
                .map_err(anyhow::Error::from)
                .and_then(|bytes| sink.deliver(&bytes));
            if let Err(error) = delivered
                && let Some(earlier) = failed.replace(error)
                && failed.as_ref().is_some_and(|last| last.to_string() != earlier.to_string())
            {
                warn(format_args!("{earlier:#}"));
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// Columns of the terminal, of `COLUMNS`, or 100 where the output is no terminal.
pub fn terminal_width() -> usize {
    terminal_size::terminal_size()
        .map(|(width, _)| usize::from(width.0))
        .or_else(|| std::env::var("COLUMNS").ok()?.parse().ok())
        .filter(|width| (40..=1000).contains(width))
        .unwrap_or(100)
}

/// Whether what goes to standard output is coloured.
pub fn is_coloured(choice: ColorChoice) -> bool {
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => stdout_takes_color(),
    }
}

pub fn stdout_takes_color() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_without_a_byte_leaves_an_empty_file_and_no_result_leaves_none() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty");
        Sink::open(&empty).unwrap().deliver(b"").unwrap();
        assert_eq!(std::fs::read(&empty).unwrap(), b"");
        let absent = directory.path().join("absent");
        drop(Sink::open(&absent).unwrap());
        assert!(!absent.exists());
        let held = directory.path().join("held");
        std::fs::write(&held, "before").unwrap();
        drop(Sink::open(&held).unwrap());
        assert_eq!(std::fs::read(&held).unwrap(), b"before");
        Sink::open(&held).unwrap().deliver(b"").unwrap();
        assert_eq!(std::fs::read(&held).unwrap(), b"", "what it held is not this result");
    }
}
