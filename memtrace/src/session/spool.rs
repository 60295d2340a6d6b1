//! Where a recording is written to while it grows: the file that was asked for, and a place aside
//! from which the report at the end is told.
//!
//! Aside is memory for what is short, then a file without a name in the directory for temporary
//! files; where that cannot be written, memory again.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

use super::outputs::Sink;
use super::say::warn;

/// From here on the recording is set aside in a file.
const MOST_IN_MEMORY: usize = 4 << 20;

/// What was written, to be read once.
#[derive(Debug, Default)]
pub struct Spool {
    memory: Vec<u8>,
    /// Holds what came before `memory`, this many bytes.
    file: Option<(File, u64)>,
    /// The file could not be made or written: from here on all stays in memory.
    no_file: bool,
}

impl Spool {
    fn take(&mut self, bytes: &[u8]) {
        self.memory.extend_from_slice(bytes);
        if self.memory.len() < MOST_IN_MEMORY || self.no_file {
            return;
        }
        if let Err(error) = self.spill() {
            warn(format_args!(
                "failed to set the recording aside in `{}`: {error}; it stays in memory, which \
                 grows with each snapshot; name a directory with room in TMPDIR",
                std::env::temp_dir().display()
            ));
            self.no_file = true;
        }
    }

    fn spill(&mut self) -> io::Result<()> {
        let (file, length) = match &mut self.file {
            Some(file) => file,
            None => self.file.insert((tempfile::tempfile()?, 0)),
        };
        // A write that failed half way leaves bytes behind `length`, which nobody reads.
        file.seek(SeekFrom::Start(*length))?;
        file.write_all(&self.memory)?;
        *length += self.memory.len() as u64;
        self.memory.clear();
        Ok(())
    }

    fn into_reader(self) -> io::Result<impl Read> {
        let file: Box<dyn Read> = match self.file {
            Some((mut file, length)) => {
                file.rewind()?;
                Box::new(io::BufReader::with_capacity(1 << 16, file.take(length)))
            }
            None => Box::new(io::empty()),
        };
        Ok(file.chain(Cursor::new(self.memory)))
    }
}

/// Writes to both. A file that fails is told once, by [`take_failure`](Self::take_failure), and
/// written to no more.
pub struct Tee {
    sink: Option<Sink>,
    failure: Option<io::Error>,
    spool: Spool,
}

impl Tee {
    pub fn new(sink: Option<Sink>, spool: Spool) -> Self {
        Self { sink, failure: None, spool }
    }

    pub fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    pub fn close_sink(&mut self) {
        self.sink = None;
    }

    pub fn into_spool(self) -> io::Result<impl Read> {
        self.spool.into_reader()
    }

    fn on_sink(&mut self, act: impl FnOnce(&mut Sink) -> io::Result<()>) {
        if let Some(sink) = &mut self.sink
            && let Err(error) = act(sink)
        {
            self.failure = Some(error);
            self.sink = None;
        }
    }
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.spool.take(bytes);
        self.on_sink(|sink| sink.write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.on_sink(Sink::flush);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(spool: Spool) -> Vec<u8> {
        let mut bytes = Vec::new();
        spool.into_reader().unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_was_set_aside_comes_back_and_little_of_it_stays_in_memory() {
        let mut spool = Spool::default();
        let mut expected = Vec::new();
        for at in 0..40u8 {
            let bytes = vec![at; 300_000];
            spool.take(&bytes);
            expected.extend(bytes);
            assert!(spool.memory.len() < MOST_IN_MEMORY);
        }
        assert!(spool.file.is_some());
        assert!(read(spool) == expected);
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_memory() {
        // Opened for reading: every write fails.
        let file = Some((File::open("/dev/null").unwrap(), 0));
        let mut spool = Spool { file, ..Spool::default() };
        let bytes = vec![7; MOST_IN_MEMORY + 1];
        spool.take(&bytes);
        spool.take(b"more");
        assert!(spool.no_file);
        assert_eq!(read(spool).len(), bytes.len() + 4);
    }

    #[test]
    fn a_sink_that_fails_is_told_once_and_the_rest_goes_on() {
        let full = Sink::open("/dev/full".as_ref()).unwrap();
        let mut tee = Tee::new(Some(full), Spool::default());
        tee.write_all(b"one").unwrap();
        tee.write_all(b"two").unwrap();
        assert_eq!(tee.take_failure().unwrap().kind(), io::ErrorKind::StorageFull);
        assert!(tee.take_failure().is_none());
        assert_eq!(read(tee.spool), b"onetwo");
    }
}
