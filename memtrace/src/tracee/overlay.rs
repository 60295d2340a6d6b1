//! Overlay copy-up: a file of an image layer that was written to after a process mapped it.
//!
//! The process goes on with the layer's file, while every path to it, `map_files` included, leads
//! to the copy in the upper layer, under the same device and inode. So identity is not compared:
//! what counts is whether the mapped page *is* the page of the file found. Both page frame numbers
//! come from `pagemap`, which needs `CAP_SYS_ADMIN`; without it nothing is claimed.

use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, fstatfs};

use super::MappedFile;
use super::process::Process;
use super::root::Root;

const PAGE_BYTES: u64 = 4096;
/// How many pages of a mapping are looked at to find one that is present and unmodified.
const MAX_PAGES: u64 = 64;
const MAX_MOUNTINFO_BYTES: u64 = 4 << 20;
const MAX_LAYERS: usize = 512;

/// Directories of an overlay's layers.
type Layers = Vec<Vec<u8>>;

/// A mapped file whose paths all lead to a copy.
#[derive(Debug)]
pub enum CopyUp {
    /// The mapped file, found in its layer.
    Lower {
        path: PathBuf,
        file: File,
    },
    Unreachable {
        reason: String,
    },
}

/// `None`: the open file is the mapped one, or nothing shows that it is not.
pub fn find_copy_up(process: &Process, mapped: &MappedFile) -> Option<CopyUp> {
    if fstatfs(&*mapped.file).ok()?.filesystem_type() != OVERLAYFS_SUPER_MAGIC {
        return None;
    }
    if is_what_is_mapped(process, mapped, &mapped.file)? {
        return None;
    }
    let unreachable = |reason: &str| Some(CopyUp::Unreachable { reason: reason.to_owned() });
    let Some((mount_point, layers)) = overlay_of(process, mapped.path.as_bytes()) else {
        return unreachable("no overlay mount found for its path");
    };
    let Some(inside) = mapped.path.as_bytes().strip_prefix(mount_point.as_slice()) else {
        return unreachable("its path is not below its mount");
    };
    let Ok(root) = Root::of_self() else { return unreachable("the host's root cannot be opened") };
    for layer in layers {
        let path = [layer.as_slice(), b"/", inside].concat();
        if let Ok((file, _)) = root.open_file(&path)
            && is_what_is_mapped(process, mapped, &file) == Some(true)
        {
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(&path));
            return Some(CopyUp::Lower { path, file });
        }
    }
    unreachable("it is in none of the layers that the mount table names")
}

/// Compares one page of the tracee's mapping with the same page of the file. `None`: cannot tell.
fn is_what_is_mapped(process: &Process, mapped: &MappedFile, file: &File) -> Option<bool> {
    let pagemap = File::open(format!("/proc/{}/pagemap", process.pid())).ok()?;
    let own = File::open("/proc/self/pagemap").ok()?;
    for mapping in &mapped.mappings {
        let pages = (mapping.end - mapping.start) / PAGE_BYTES;
        for page in 0..pages.min(MAX_PAGES) {
            let address = mapping.start.checked_add(page * PAGE_BYTES)?;
            let Some(theirs) = file_page_frame(&pagemap, address) else { continue };
            let offset = mapping.file_offset.checked_add(page * PAGE_BYTES)?;
            let window = PageWindow::of(file, offset)?;
            return Some(file_page_frame(&own, window.touch()?)? == theirs);
        }
    }
    None
}

/// The frame of a page that is present and belongs to a file (not a private copy).
/// Bits: `Documentation/admin-guide/mm/pagemap.rst`.
fn file_page_frame(pagemap: &File, address: u64) -> Option<u64> {
    let mut entry = [0u8; 8];
    pagemap.read_exact_at(&mut entry, address / PAGE_BYTES * 8).ok()?;
    let entry = u64::from_le_bytes(entry);
    let (present, of_file) = (entry >> 63 & 1 == 1, entry >> 61 & 1 == 1);
    let frame = entry & ((1 << 55) - 1);
    (present && of_file && frame != 0).then_some(frame)
}

/// One page of a file mapped into memtrace, for as long as its frame is compared.
struct PageWindow {
    address: std::ptr::NonNull<std::ffi::c_void>,
    file_has_page: bool,
}

impl PageWindow {
    fn of(file: &File, offset: u64) -> Option<Self> {
        let file_has_page = file.metadata().ok()?.len() > offset;
        let length = NonZeroUsize::new(PAGE_BYTES as usize)?;
        let offset = i64::try_from(offset).ok()?;
        // SAFETY: a new private mapping at an address of the kernel's choice touches no memory of
        // Rust's. It is only asked for its frame, never read (see `touch`).
        let address = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE,
                file,
                offset,
            )
        };
        Some(Self { address: address.ok()?, file_has_page })
    }

    /// Its address, once the page is there: `MAP_POPULATE` brought it in without a read of ours,
    /// which could raise SIGBUS if the file shrank.
    fn touch(&self) -> Option<u64> {
        self.file_has_page.then_some(self.address.as_ptr() as u64)
    }
}

impl Drop for PageWindow {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `of`, of this length, and no reference into it exists.
        let _ = unsafe { munmap(self.address, PAGE_BYTES as usize) };
    }
}

/// The overlay mount a path is on: its mount point and its lower layers as the host sees them.
fn overlay_of(process: &Process, path: &[u8]) -> Option<(Vec<u8>, Layers)> {
    let mut text = Vec::new();
    let file = File::open(format!("/proc/{}/mountinfo", process.pid())).ok()?;
    file.take(MAX_MOUNTINFO_BYTES).read_to_end(&mut text).ok()?;
    overlay_in(&text, path)
}

fn overlay_in(mountinfo: &[u8], path: &[u8]) -> Option<(Vec<u8>, Layers)> {
    let mut best: Option<(Vec<u8>, Option<Layers>)> = None;
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let Some(dash) = fields.iter().position(|field| *field == b"-") else { continue };
        let (Some(point), Some(kind)) = (fields.get(4), fields.get(dash + 1)) else { continue };
        let point = unescape(point);
        let covers = point == b"/"
            || path.strip_prefix(point.as_slice()).is_some_and(|rest| rest.starts_with(b"/"));
        // The last mount of the deepest point is the one that is seen.
        if !covers || best.as_ref().is_some_and(|(deepest, _)| deepest.len() > point.len()) {
            continue;
        }
        let layers = (*kind == b"overlay")
            .then(|| fields.get(dash + 3).map(|options| lower_layers(options)))
            .flatten();
        best = Some((point, layers));
    }
    let (point, layers) = best?;
    Some((point, layers?))
}

/// `lowerdir=a:b` or repeated `lowerdir+=a`; names relative to Docker's directory are completed
/// from `upperdir`, whose grandparent that is.
fn lower_layers(options: &[u8]) -> Layers {
    let mut base = None;
    let mut layers = Vec::new();
    for option in options.split(|byte| *byte == b',') {
        if let Some(upper) = option.strip_prefix(b"upperdir=") {
            let upper = unescape(upper);
            let path = Path::new(std::ffi::OsStr::from_bytes(&upper));
            base = path.parent().and_then(Path::parent).map(|p| p.as_os_str().as_bytes().to_vec());
        } else if let Some(list) = option.strip_prefix(b"lowerdir=") {
            layers.extend(list.split(|byte| *byte == b':').map(unescape));
        } else if let Some(one) = option.strip_prefix(b"lowerdir+=") {
            layers.push(unescape(one));
        }
    }
    layers.retain(|layer| !layer.is_empty());
    layers.truncate(MAX_LAYERS);
    for layer in &mut layers {
        if !layer.starts_with(b"/")
            && let Some(base) = &base
        {
            *layer = [base.as_slice(), b"/", layer].concat();
        }
    }
    layers
}

/// `\040` and its like: three octal digits behind a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) if *first == b'\\' => {
                let value =
                    digits.iter().fold(0u32, |sum, digit| sum * 8 + u32::from(digit - b'0'));
                plain.push(value as u8);
                rest = &tail[3..];
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_decides_which_overlay_a_path_is_on() {
        let text = b"1 0 0:40 / / rw - overlay overlay rw,lowerdir=l/AA:l/BB,upperdir=/var/lib/docker/overlay2/x/diff,workdir=/w\n\
                     2 1 0:41 / /data\\040dir rw - ext4 /dev/sda rw\n\
                     3 1 0:42 / /opt rw - overlay overlay rw,lowerdir=/a\\040b:/c,upperdir=/u/v/diff\n";
        let (point, layers) = overlay_in(text, b"/lib/x.so").unwrap();
        assert_eq!(point, b"/");
        assert_eq!(
            layers,
            [b"/var/lib/docker/overlay2/l/AA".to_vec(), b"/var/lib/docker/overlay2/l/BB".to_vec()]
        );
        let (point, layers) = overlay_in(text, b"/opt/y.so").unwrap();
        assert_eq!((point.as_slice(), layers[0].as_slice()), (&b"/opt"[..], &b"/a b"[..]));
        assert_eq!(overlay_in(text, b"/data dir/z.so"), None);
        assert_eq!(overlay_in(b"nonsense\n- - -\n", b"/x"), None);
    }

    #[test]
    fn a_mapping_of_this_process_is_its_own_file() {
        let process = Process::open(std::process::id()).unwrap();
        let mappings = crate::tracee::mappings::Mappings::of(&process).unwrap();
        let own = mappings.files.iter().find(|file| file.path == process.executable).unwrap();
        assert_eq!(is_what_is_mapped(&process, own, &own.file), Some(true));
        // A copy with the same bytes is another file.
        let copy = tempfile::NamedTempFile::new().unwrap();
        std::fs::copy(&process.executable, copy.path()).unwrap();
        let copy = File::open(copy.path()).unwrap();
        assert_eq!(is_what_is_mapped(&process, own, &copy), Some(false));
    }
}
