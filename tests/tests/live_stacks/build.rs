//! Builds the programs of `programs/stacks` into `target/programs/stacks`, each once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use memtrace_tests::{compile, serial, target_dir, workspace};

pub fn sources() -> PathBuf {
    workspace().join("tests/programs/stacks")
}

/// What `command` writes to the path that it is given, as `name`: made when the sources are newer,
/// or when it was made by another command.
fn once(name: &str, command: impl FnOnce(&Path) -> Command) -> Result<PathBuf> {
    let _lock = serial::wait_for(&format!("compile-stacks-{}", name.replace('/', "-")))?;
    let output = target_dir().join("programs/stacks").join(name);
    if let Some(directory) = output.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("create `{}`", directory.display()))?;
    }
    // Under another name until it is whole: a torn one would count as made.
    let unfinished = output.with_extension("unfinished");
    let mut command = command(&unfinished);
    let made_by = output.with_extension("command");
    let text = format!("{command:?}");
    let newest = compile::newest(&sources())?.max(compile::newest(&protocol())?);
    if let Ok(made) = fs::metadata(&output).and_then(|metadata| metadata.modified())
        && made > newest
        && fs::read_to_string(&made_by).is_ok_and(|before| before == text)
    {
        return Ok(output);
    }
    compile::run(&mut command)?;
    fs::rename(&unfinished, &output).with_context(|| format!("name `{}`", output.display()))?;
    fs::write(&made_by, text).with_context(|| format!("write `{}`", made_by.display()))?;
    Ok(output)
}

/// Where truth.h is.
fn protocol() -> PathBuf {
    workspace().join("tests/programs/c")
}

/// Compiled by `compiler` with `-g -O2` and `flags`, which stand behind the sources.
pub fn program(compiler: &str, name: &str, files: &[&str], flags: &[&str]) -> Result<PathBuf> {
    once(name, |output| {
        let mut command = Command::new(compiler);
        command.args(["-g", "-O2", "-Wall", "-Wno-unused-result", "-pthread"]);
        command.arg("-I").arg(protocol()).arg("-o").arg(output);
        command.args(files.iter().map(|file| sources().join(file))).args(flags);
        command
    })
}

/// Optimised Rust with debug information.
pub fn rust(name: &str, file: &str) -> Result<PathBuf> {
    once(name, |output| {
        let mut command = Command::new("rustc");
        command.args(["--edition", "2024", "-O", "-g", "--crate-name", "inlined", "-o"]);
        command.arg(output).arg(sources().join(file));
        command
    })
}

pub fn library(compiler: &str, name: &str, file: &str, flags: &[&str]) -> Result<PathBuf> {
    let mut all = vec!["-shared", "-fPIC"];
    all.extend(flags);
    program(compiler, name, &[file], &all)
}

/// Without the symbols and the debug information of `of`.
pub fn stripped(name: &str, of: &Path) -> Result<PathBuf> {
    stripped_but(name, of, &[])
}

/// The same with some of its symbols left.
pub fn stripped_but(name: &str, of: &Path, left: &[&str]) -> Result<PathBuf> {
    let made = fs::metadata(of)?.modified()?;
    once(name, |output| {
        let mut command = Command::new("strip");
        // Part of the command's text, so that another original is stripped again.
        command.env("OF", format!("{made:?}")).arg("-o").arg(output).arg(of);
        command.args(left.iter().map(|symbol| format!("--keep-symbol={symbol}")));
        command
    })
}

/// levels.c in a static program over musl, with no symbols but those of the allocator: without them
/// there is nothing to probe.
pub fn static_musl_stripped() -> Result<PathBuf> {
    const SOURCES: &[&str] = &["levels_main.c", "levels.c"];
    let whole = program("musl-gcc", "levels-musl-static", SOURCES, &["-static"])?;
    let left = ["malloc", "calloc", "realloc", "free", "aligned_alloc", "posix_memalign"];
    stripped_but("levels-musl-static-stripped", &whole, &left)
}

pub fn has_section(object: &Path, section: &str) -> Result<bool> {
    let output =
        Command::new("readelf").args(["-S", "-W"]).arg(object).output().context("run readelf")?;
    Ok(String::from_utf8_lossy(&output.stdout).split_whitespace().any(|word| word == section))
}

fn directory_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("/"))
}

/// `-L` and `-rpath` for what lies beside `file`.
pub fn link_beside(file: &Path) -> String {
    let directory = directory_of(file).display().to_string();
    format!("-L{directory} -Wl,-rpath,{directory}")
}

/// liblevels.so and libmake.so; the path of the first.
pub fn levels() -> Result<PathBuf> {
    library("g++", "lib/libmake.so", "make.cc", &[])?;
    library("gcc", "lib/liblevels.so", "levels.c", &[])
}

/// The releases of Go whose runtimes differ in the frames between Go and C.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Go {
    V1_21,
    V1_24,
    V1_27,
}

impl Go {
    fn name(self) -> &'static str {
        match self {
            Self::V1_21 => "go1.21",
            Self::V1_24 => "go1.24",
            Self::V1_27 => "go1.27",
        }
    }
}

/// How the Go program is linked, and what is left of its symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linked {
    Plain,
    /// `-ldflags='-s -w'`
    WithoutSymbols,
    /// `strip`
    Stripped,
    Pie,
    PieStripped,
    /// `-buildmode=c-shared`, and a C program that loads it.
    Shared,
    SharedStripped,
}

impl Linked {
    pub fn is_stripped(self) -> bool {
        matches!(
            self,
            Self::WithoutSymbols | Self::Stripped | Self::PieStripped | Self::SharedStripped
        )
    }

    pub fn is_shared(self) -> bool {
        matches!(self, Self::Shared | Self::SharedStripped)
    }
}

/// The program that goes over every boundary between Go and C.
pub fn boundary(go: Go, linked: Linked) -> Result<PathBuf> {
    let version = go.name();
    let path = |of: &str| format!("{version}/{of}");
    match linked {
        Linked::Plain => go_build(go, &path("plain/boundary"), &[]),
        Linked::WithoutSymbols => {
            go_build(go, &path("without-symbols/boundary"), &["-ldflags=-s -w"])
        }
        Linked::Stripped => stripped(&path("stripped/boundary"), &boundary(go, Linked::Plain)?),
        Linked::Pie => go_build(go, &path("pie/boundary"), &["-buildmode=pie"]),
        Linked::PieStripped => {
            stripped(&path("pie-stripped/boundary"), &boundary(go, Linked::Pie)?)
        }
        Linked::Shared | Linked::SharedStripped => {
            let mut library =
                go_build(go, &path("shared/libboundary.so"), &["-buildmode=c-shared"])?;
            if linked == Linked::SharedStripped {
                library = stripped(&path("shared-stripped/libboundary.so"), &library)?;
            }
            let name = directory_of(&library).join("load").display().to_string();
            let (beside, levels) = (link_beside(&library), link_beside(&levels()?));
            let flags: Vec<&str> =
                beside.split(' ').chain(levels.split(' ')).chain(["-lboundary"]).collect();
            // An absolute name takes the place of the directory that it is joined to.
            program("gcc", &name, &["load_shared.c"], &flags)
        }
    }
}

fn go_build(go: Go, name: &str, flags: &[&str]) -> Result<PathBuf> {
    let levels = levels()?;
    let compiler = target_dir().join("tools/bin").join(go.name());
    if !compiler.exists() {
        bail!("`{}` does not exist: run `cargo xtask setup`", compiler.display());
    }
    once(name, |output| {
        let mut command = Command::new(compiler);
        command.current_dir(sources().join("boundary")).args(["build", "-buildvcs=false"]);
        command.args(flags).arg("-o").arg(output).arg(".");
        command.env("GOTOOLCHAIN", "local").env("GOPROXY", "off").env("CGO_ENABLED", "1");
        command.env("CGO_LDFLAGS", link_beside(&levels));
        command.env("GOCACHE", target_dir().join("go-cache"));
        command
    })
}
