//! An initramfs: a cpio archive as the kernel unpacks it, written without a tree on disk and
//! without being root.
//!
//! The `newc` format of Documentation/driver-api/early-userspace/buffer-format.rst: a header of
//! hexadecimal fields, the name, the content, each padded to four bytes.

use std::collections::BTreeSet;
use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;

/// Writes the files of an archive, with the directories above each.
pub struct Archive<W> {
    to: W,
    inode: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub fn new(to: W) -> Self {
        Self { to, inode: 0, directories: BTreeSet::new() }
    }

    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || self.directories.contains(path) {
            return Ok(());
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.directories.insert(path.to_owned());
        self.entry(path, DIRECTORY, &[])
    }

    pub fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.at(path, FILE, content)
    }

    pub fn program(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.at(path, PROGRAM, content)
    }

    fn at(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let path = path.trim_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.entry(path, mode, content)
    }

    /// Without this the kernel takes the archive for a broken one.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, name.to_owned());
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        self.inode += 1;
        let links = 1;
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.to.write_all(header.as_bytes())?;
        self.to.write_all(name.as_bytes())?;
        self.to.write_all(&[0])?;
        self.pad(header.len() + name.len() + 1)?;
        self.to.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.to.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: (name, mode, content) of each entry.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |number: usize| {
                let at = 6 + number * 8;
                u32::from_str_radix(std::str::from_utf8(&bytes[at..at + 8]).unwrap(), 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = std::str::from_utf8(&bytes[110..110 + name_size - 1]).unwrap().to_owned();
            let content = (110 + name_size).next_multiple_of(4);
            let end = (content + size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(end, bytes.len());
                return entries;
            }
            entries.push((name, mode, bytes[content..content + size].to_vec()));
            bytes = &bytes[end..];
        }
    }

    #[test]
    fn every_file_comes_after_the_directories_above_it() {
        let mut archive = Archive::new(Vec::new());
        archive.program("/bin/tools/a", b"12345").unwrap();
        archive.file("bin/tools/b", b"").unwrap();
        archive.directory("/proc").unwrap();
        let entries = read(&archive.finish().unwrap());
        let names: Vec<&str> = entries.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(names, ["bin", "bin/tools", "bin/tools/a", "bin/tools/b", "proc"]);
        assert_eq!(entries[2], ("bin/tools/a".to_owned(), PROGRAM, b"12345".to_vec()));
        assert_eq!(entries[3], ("bin/tools/b".to_owned(), FILE, Vec::new()));
        assert_eq!(entries[4].1, DIRECTORY);
    }

    #[test]
    fn the_cpio_of_this_machine_reads_it() {
        use std::process::{Command, Stdio};
        let mut archive = Archive::new(Vec::new());
        archive.file("etc/a", b"content").unwrap();
        let bytes = archive.finish().unwrap();
        let mut cpio = Command::new("cpio")
            .args(["--list", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is installed by `cargo xtask setup`");
        cpio.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "etc\netc/a\n");
    }
}
