//! The programs under `programs/`, compiled once into `target/programs`.
//!
//! A program is compiled again when one of the sources is newer. C is compiled as cgo does by
//! default: `-g -O2`, without frame pointers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

/// Which compiler makes it, and how it is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// C, dynamic glibc.
    C,
    /// C, dynamic glibc, linked with `-l` this.
    CWith(&'static str),
    /// C, dynamic glibc, with the static library of this name inside the executable.
    CArchive(&'static str),
    CStaticGlibc,
    CMusl,
    CStaticMusl,
    /// C, a shared library.
    CLibrary,
    Cpp,
    /// Go with cgo; the directory is a `main` package.
    Go,
    /// Go with cgo, linked statically: the allocator lies inside the executable.
    GoStatic,
    /// Go with cgo, with the static library of this name inside the executable.
    GoArchive(&'static str),
    Rust,
    /// Rust over `tikv-jemallocator`, whose functions have a prefix: libc's stand beside them.
    RustJemalloc,
    /// Rust, linked with the C object of the same name.
    RustWithC,
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Self::C
            | Self::CWith(_)
            | Self::CArchive(_)
            | Self::CStaticGlibc
            | Self::CMusl
            | Self::CStaticMusl
            | Self::CLibrary => "c",
            Self::Cpp => "cpp",
            Self::Go | Self::GoStatic | Self::GoArchive(_) => "go",
            Self::Rust | Self::RustWithC | Self::RustJemalloc => "rust",
        }
    }

    /// Below the directory of compiled programs.
    pub fn place(self, name: &str) -> PathBuf {
        Path::new(self.folder()).join(format!("{name}{}", self.suffix()))
    }

    fn suffix(self) -> String {
        match self {
            Self::CStaticGlibc => ".static",
            Self::CMusl => ".musl",
            Self::CStaticMusl => ".musl-static",
            Self::CLibrary => ".so",
            Self::GoStatic => ".static",
            Self::RustJemalloc => ".jemalloc",
            Self::CWith(library) => return format!(".with-{library}"),
            Self::CArchive(library) | Self::GoArchive(library) => {
                return format!(".inside-{library}");
            }
            Self::C | Self::Cpp | Self::Go | Self::Rust | Self::RustWithC => "",
        }
        .to_owned()
    }
}

/// Names a directory of programs compiled elsewhere, which are taken as they are: in a guest there
/// is no compiler.
pub const COMPILED: &str = "MEMTRACE_PROGRAMS";

/// The path of the compiled program `name`, compiling it if need be.
pub fn program(name: &str, kind: Kind) -> Result<PathBuf> {
    if let Some(compiled) = std::env::var_os(COMPILED) {
        return Ok(Path::new(&compiled).join(kind.place(name)));
    }
    let _lock = crate::serial::wait_for("compile")?;
    let sources = crate::workspace().join("tests/programs").join(kind.folder());
    let directory = crate::target_dir().join("programs").join(kind.folder());
    fs::create_dir_all(&directory).with_context(|| format!("create `{}`", directory.display()))?;
    let output = crate::target_dir().join("programs").join(kind.place(name));
    if let Ok(built) = fs::metadata(&output).and_then(|m| m.modified())
        && built > newest(&sources)?
    {
        return Ok(output);
    }
    let c = ["-std=gnu11", "-g", "-O2", "-Wall", "-Wno-unused-result", "-pthread", "-o"];
    let source = |extension: &str| sources.join(format!("{name}.{extension}"));
    match kind {
        Kind::C => run(Command::new("cc").args(c).arg(&output).arg(source("c")).arg("-ldl"))?,
        Kind::CWith(library) => run(Command::new("cc")
            .args(c)
            .arg(&output)
            .arg(source("c"))
            .arg(format!("-l{library}")))?,
        Kind::CArchive(library) => run(Command::new("cc")
            .args(c)
            .arg(&output)
            .arg(source("c"))
            .args([&format!("-l:lib{library}.a"), "-lstdc++", "-lm", "-ldl"]))?,
        Kind::CStaticGlibc => {
            run(Command::new("cc").arg("-static").args(c).arg(&output).arg(source("c")))?;
        }
        Kind::CMusl => run(Command::new("musl-gcc").args(c).arg(&output).arg(source("c")))?,
        Kind::CStaticMusl => {
            run(Command::new("musl-gcc").arg("-static").args(c).arg(&output).arg(source("c")))?;
        }
        Kind::CLibrary => {
            run(Command::new("cc")
                .args(["-shared", "-fPIC"])
                .args(c)
                .arg(&output)
                .arg(source("c")))?;
        }
        Kind::Cpp => run(Command::new("c++")
            .args(["-std=c++17", "-g", "-O2", "-Wall", "-pthread", "-o"])
            .arg(&output)
            .arg(source("cc")))?,
        Kind::Go | Kind::GoStatic | Kind::GoArchive(_) => go(&sources.join(name), &output, kind)?,
        Kind::RustJemalloc => {
            let built = crate::target_dir().join("programs/rust-jemalloc");
            run(Command::new("cargo")
                .args(["build", "--locked", "--release", "--features", "jemalloc"])
                .arg("--manifest-path")
                .arg(sources.join("Cargo.toml"))
                .arg("--target-dir")
                .arg(&built))?;
            let made = built.join("release").join(name);
            fs::copy(&made, &output).with_context(|| format!("copy `{}`", made.display()))?;
        }
        Kind::Rust | Kind::RustWithC => {
            let mut rustc = Command::new("rustc");
            rustc.args(["--edition", "2024", "-O", "-g", "-o"]).arg(&output).arg(source("rs"));
            if kind == Kind::RustWithC {
                let object = directory.join(format!("{name}.o"));
                run(Command::new("cc")
                    .args(["-g", "-O2", "-c", "-o"])
                    .arg(&object)
                    .arg(source("c")))?;
                rustc.arg("-C").arg(format!("link-arg={}", object.display()));
            }
            run(&mut rustc)?;
        }
    }
    Ok(output)
}

fn go(source: &Path, output: &Path, kind: Kind) -> Result<()> {
    let compiler = crate::target_dir().join("tools/bin/go");
    if !compiler.exists() {
        bail!("`{}` does not exist: run `cargo xtask setup`", compiler.display());
    }
    let mut go = Command::new(compiler);
    go.current_dir(source).args(["build", "-o"]).arg(output);
    if kind == Kind::GoStatic {
        go.args(["-tags", "netgo,osusergo", "-ldflags", "-linkmode=external -extldflags=-static"]);
    }
    if let Kind::GoArchive(library) = kind {
        go.env("CGO_LDFLAGS", format!("-l:lib{library}.a -lstdc++ -lm -ldl"));
    }
    go.env("GOTOOLCHAIN", "local").env("GOPROXY", "off");
    go.env("CGO_ENABLED", "1").env("GOCACHE", crate::target_dir().join("go-cache"));
    run(go.arg("."))
}

/// When the youngest file below a directory was written.
pub fn newest(directory: &Path) -> Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in
        fs::read_dir(directory).with_context(|| format!("list `{}`", directory.display()))?
    {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let time =
            if metadata.is_dir() { self::newest(&entry.path())? } else { metadata.modified()? };
        newest = newest.max(time);
    }
    Ok(newest)
}

/// Runs a compiler to its end.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| {
        format!("run {command:?}: is the compiler installed? `cargo xtask setup` installs it")
    })?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
