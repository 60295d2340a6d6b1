//! What a guest consists of: one initramfs with busybox, memtrace, the agent, the programs to
//! trace, and the libraries that these need, at the paths that they have here.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::libraries;
use crate::shell;

/// The guest's first process.
const INIT: &str = include_str!("init.sh");

/// A file that is there as long as this is.
pub struct Initramfs(PathBuf);

impl Initramfs {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Initramfs {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("failed to remove `{}`: {error}", self.0.display());
        }
    }
}

pub struct Builder {
    archive: Archive<BufWriter<File>>,
    output: Initramfs,
    /// Placed already, by their path in the guest.
    placed: BTreeSet<String>,
}

impl Builder {
    /// An initramfs with what every guest has, and what it is to do.
    pub fn new(task: &serde_json::Value) -> Result<Self> {
        // Others may boot a guest from the same target directory.
        let name = format!("initramfs-{}.cpio", std::process::id());
        let output = Initramfs(super::directory().join(name));
        let file =
            File::create(&output.0).with_context(|| format!("create `{}`", output.0.display()))?;
        let mut builder =
            Self { archive: Archive::new(BufWriter::new(file)), output, placed: BTreeSet::new() };
        for directory in ["dev", "proc", "sys", "tmp", "root", "sbin", "usr/bin"] {
            builder.written(|archive| archive.directory(directory))?;
        }
        builder.written(|archive| archive.program("init", INIT.as_bytes()))?;
        builder.written(|archive| archive.file("task.json", task.to_string().as_bytes()))?;
        builder
            .written(|archive| archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"))?;
        let busybox = crate::paths::which("busybox").context("find `busybox`")?;
        builder.program(&busybox, "/bin/busybox")?;
        Ok(builder)
    }

    /// A file of ours, as it is written here.
    pub fn text(&mut self, place: &str, text: &str) -> Result<()> {
        self.placed.insert(place.to_owned());
        self.written(|archive| archive.file(place, text.as_bytes()))
    }

    /// A program of ours without its debug information, which is most of its size.
    pub fn stripped(&mut self, program: &Path, place: &str) -> Result<()> {
        let name = program.file_name().context("a program without a name")?;
        let own = format!("{}-{}", name.to_string_lossy(), std::process::id());
        let stripped = super::directory().join(own);
        shell::ask(
            Command::new("strip").args(["--strip-debug", "-o"]).arg(&stripped).arg(program),
        )?;
        self.program(&stripped, place)?;
        fs::remove_file(&stripped).with_context(|| format!("remove `{}`", stripped.display()))
    }

    /// A program as it is, with the libraries that it needs.
    pub fn program(&mut self, program: &Path, place: &str) -> Result<()> {
        for library in libraries::of(program)? {
            let place = library.to_string_lossy().into_owned();
            self.place(&library, &place)?;
        }
        self.place(program, place)
    }

    /// Any file; a directory with all that is in it. Programs bring their libraries.
    pub fn any(&mut self, path: &Path, place: &str) -> Result<()> {
        if path.is_dir() {
            for entry in fs::read_dir(path).with_context(|| format!("list `{}`", path.display()))? {
                let entry = entry?;
                let place = format!("{place}/{}", entry.file_name().to_string_lossy());
                self.any(&entry.path(), &place)?;
            }
            return self.written(|archive| archive.directory(place));
        }
        if is_elf(path)? { self.program(path, place) } else { self.place(path, place) }
    }

    fn place(&mut self, path: &Path, place: &str) -> Result<()> {
        if !place.starts_with('/') || place.split('/').any(|part| part == "..") {
            bail!("`{place}` is no absolute path for the guest");
        }
        if !self.placed.insert(place.to_owned()) {
            return Ok(());
        }
        let content = fs::read(path).with_context(|| format!("read `{}`", path.display()))?;
        let metadata =
            fs::metadata(path).with_context(|| format!("examine `{}`", path.display()))?;
        match metadata.permissions().mode() & 0o111 {
            0 => self.written(|archive| archive.file(place, &content)),
            _ => self.written(|archive| archive.program(place, &content)),
        }
    }

    fn written(
        &mut self,
        write: impl FnOnce(&mut Archive<BufWriter<File>>) -> std::io::Result<()>,
    ) -> Result<()> {
        write(&mut self.archive).with_context(|| format!("write `{}`", self.output.0.display()))
    }

    pub fn finish(self) -> Result<Initramfs> {
        let Self { archive, output, .. } = self;
        archive
            .finish()
            .and_then(|mut file| file.flush())
            .with_context(|| format!("write `{}`", output.0.display()))?;
        Ok(output)
    }
}

fn is_elf(path: &Path) -> Result<bool> {
    use std::io::Read;
    let mut magic = Vec::new();
    File::open(path)
        .and_then(|file| file.take(4).read_to_end(&mut magic))
        .with_context(|| format!("read `{}`", path.display()))?;
    Ok(magic == b"\x7fELF")
}
