//! The vDSO: code that the kernel maps into every process, as an object of its own.
//!
//! Its image is taken from this process, where it is the same for all 64-bit processes of this
//! kernel and no tracee has written to it. A tracee that has another one (32-bit) goes without.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::mappings::parse_maps;

pub(super) const NAME: &str = "[vdso]";
const MAX_BYTES: u64 = 1 << 20;

/// The image as a file, if it has this size.
pub(super) fn image(size_bytes: u64) -> io::Result<File> {
    let (lines, _) = parse_maps(&std::fs::read("/proc/self/maps")?);
    let own = lines.iter().find(|line| line.path == NAME.as_bytes());
    let own = own.ok_or_else(|| io::Error::other("this process has no vDSO"))?;
    let size = own.end - own.start;
    if size != size_bytes || size > MAX_BYTES {
        return Err(io::Error::other("it is not the one of this process"));
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    File::open("/proc/self/mem")?.read_exact_at(&mut bytes, own.start)?;
    let mut file = File::from(memfd_create(c"memtrace-vdso", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&bytes)?;
    Ok(file)
}
