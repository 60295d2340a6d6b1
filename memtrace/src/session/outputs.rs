//! Where results go: files, pipes, `/dev/null`, `-`. All are opened before the first probe is
//! attached, so that an unwritable one is told before the target is touched.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cli::{ColorChoice, FormatArgs};
use crate::report::{self, Format, ReportOptions};
use crate::snapshot::Recording;

/// One opened output.
pub struct Sink {
    name: String,
    writer: Box<dyn Write>,
}

impl Sink {
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if path.as_os_str() == "-" {
            return Ok(Self { name: "standard output".into(), writer: Box::new(io::stdout()) });
        }
        let file = File::create(path).with_context(|| {
            format!("failed to open `{name}` for writing; name a file in a writable directory")
        })?;
        Ok(Self { name, writer: Box::new(file) })
    }

    /// A reader that went away (`| head`) is no error.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self.writer.write_all(bytes).and_then(|()| self.writer.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.with_context(|| format!("failed to write to `{}`", self.name)),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Every rendered output that the user asked for, and the text report unless standard output is
/// taken.
pub struct Outputs {
    sinks: Vec<(Format, Sink)>,
    text_to_stdout: bool,
    color: bool,
    width: usize,
}

impl Outputs {
    /// `others` are paths besides the formats' that may claim standard output too.
    pub fn open(formats: &FormatArgs, others: &[&Path]) -> Result<Self> {
        let wanted = [
            (Format::Json, &formats.json),
            (Format::Pprof, &formats.pprof),
            (Format::Folded, &formats.folded),
        ];
        let claims = wanted
            .iter()
            .filter_map(|(_, path)| path.as_deref())
            .chain(others.iter().copied())
            .filter(|path| path.as_os_str() == "-")
            .count();
        if claims > 1 {
            bail!("only one output can be `-` (standard output); give the others a file");
        }
        let mut sinks = Vec::new();
        for (format, path) in wanted {
            if let Some(path) = path {
                sinks.push((format, Sink::open(path)?));
            }
        }
        Ok(Self {
            sinks,
            text_to_stdout: claims == 0,
            color: match formats.color {
                ColorChoice::Always => true,
                ColorChoice::Never => false,
                ColorChoice::Auto => stdout_takes_color(),
            },
            width: terminal_width(),
        })
    }

    /// Renders the recording into every output.
    pub fn render(
        &mut self,
        recording: &Recording,
        formats: &FormatArgs,
        torn: Option<String>,
    ) -> Result<()> {
        let options = ReportOptions {
            top: formats.top,
            width: self.width,
            colour: self.color,
            show_runtime_frames: formats.show_runtime_frames,
            merge_go: formats.merge_go,
            torn,
            ..ReportOptions::default()
        };
        for (format, sink) in &mut self.sinks {
            sink.write(&report::render(*format, recording, &options)?)?;
        }
        if self.text_to_stdout {
            let text = report::render(Format::Text, recording, &options)?;
            Sink::open(Path::new("-"))?.write(&text)?;
        }
        Ok(())
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

pub fn stdout_takes_color() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}
