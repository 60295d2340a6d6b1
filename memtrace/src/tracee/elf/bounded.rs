//! A bounded view of a hostile file: reads copy (a truncated file fails instead of raising
//! SIGBUS), share no file position, and stop when the budget is used up.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use object::read::{ReadCache, ReadRef};

/// Most bytes read of one file: the symbol tables of the largest programs fit.
const BUDGET_BYTES: u64 = 1 << 30;
/// Bytes that the string scans may cost per look-up.
const STRING_COST: u64 = 4096;

/// `Read + Seek` by `pread`, so that others may use the same open file.
pub struct Positioned<'f> {
    file: &'f File,
    position: u64,
    length: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position = self.position.saturating_add(read as u64);
        Ok(read)
    }
}

impl Seek for Positioned<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(delta) => self.length.checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = position.ok_or_else(|| io::Error::other("seek before the start"))?;
        Ok(self.position)
    }
}

/// What was read of a file, and how much may still be.
pub struct Contents<'f> {
    cache: ReadCache<Positioned<'f>>,
    left: Cell<u64>,
}

impl<'f> Contents<'f> {
    pub fn of(file: &'f File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let cache = ReadCache::new(Positioned { file, position: 0, length });
        Ok(Self { cache, left: Cell::new(BUDGET_BYTES) })
    }

    pub fn bounded(&self) -> Bounded<'_, 'f> {
        Bounded(self)
    }
}

/// The view that the ELF parser gets.
#[derive(Clone, Copy)]
pub struct Bounded<'a, 'f>(&'a Contents<'f>);

impl Bounded<'_, '_> {
    fn spend(&self, bytes: u64) -> Result<(), ()> {
        self.0.left.set(self.0.left.get().checked_sub(bytes).ok_or(())?);
        Ok(())
    }
}

impl<'a> ReadRef<'a> for Bounded<'a, '_> {
    fn len(self) -> Result<u64, ()> {
        (&self.0.cache).len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        self.spend(size)?;
        (&self.0.cache).read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        self.spend(STRING_COST)?;
        (&self.0.cache).read_bytes_at_until(range, delimiter)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_read_beyond_the_end_or_the_budget_fails() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let contents = Contents::of(&file).unwrap();
        assert_eq!(contents.bounded().read_bytes_at(2, 3), Ok(&b"234"[..]));
        assert_eq!(contents.bounded().read_bytes_at(8, 3), Err(()));
        assert_eq!(contents.bounded().read_bytes_at(u64::MAX, 3), Err(()));

        // A sparse file claims any length for nothing.
        file.set_len(1 << 40).unwrap();
        let contents = Contents::of(&file).unwrap();
        assert_eq!(contents.bounded().read_bytes_at(0, BUDGET_BYTES + 1), Err(()));
        for _ in 0..2 {
            let _ = contents.bounded().read_bytes_at(0, 8);
        }
        assert_eq!(contents.left.get(), BUDGET_BYTES - 16);
    }

    #[test]
    fn a_file_that_shrinks_under_the_reader_is_an_error_and_no_crash() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let contents = Contents::of(&file).unwrap();
        file.set_len(100).unwrap();
        assert_eq!(contents.bounded().read_bytes_at(4096, 100), Err(()));
    }
}
