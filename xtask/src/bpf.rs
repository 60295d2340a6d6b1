//! `cargo xtask bpf [--check]`: builds the kernel side and commits to what was built.
//!
//! The object is kept in the repository, so that whoever builds memtrace needs no BPF toolchain.
//! Beside it stands a record of the sources and tools that made it. The build is reproducible: no
//! path of the machine is in the object. DWARF is cut off (nothing reads it); BTF stays.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::strip::canonical;

#[path = "bpf/strip.rs"]
mod strip;

const OBJECT: &str = "memtrace/src/kernel/memtrace.bpf.o";
const RECORD: &str = "memtrace/src/kernel/memtrace.bpf.json";
/// Every file that decides what is built.
const SOURCES: [&str; 6] = [
    "memtrace-common/Cargo.toml",
    "memtrace-common/src",
    "memtrace-ebpf/.cargo/config.toml",
    "memtrace-ebpf/Cargo.lock",
    "memtrace-ebpf/Cargo.toml",
    "memtrace-ebpf/src",
];
/// Debian's toolchain carries the sources of `core`; others are named by these variables.
const CARGO: (&str, &str) = ("MEMTRACE_BPF_CARGO", "/usr/bin/cargo");
const RUSTC: (&str, &str) = ("MEMTRACE_BPF_RUSTC", "/usr/bin/rustc");
const FLAGS: [&str; 4] =
    ["--cfg=bpf_target_arch=\"x86_64\"", "-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3"];

/// What made the committed object.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Record {
    sources_sha256: String,
    object_sha256: String,
    toolchain: BTreeMap<String, String>,
}

/// Builds the object and writes it with its record; with `check`, compares instead.
pub fn run(check: bool) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent")?;
    if check { verify(root) } else { rebuild(root) }
}

fn rebuild(root: &Path) -> Result<()> {
    let toolchain = toolchain()?;
    println!("building the kernel side with {}", summary(&toolchain));
    let object = build(root)?;
    let record = Record {
        sources_sha256: hash_sources(root)?,
        object_sha256: hex(&Sha256::digest(&object)),
        toolchain,
    };
    write(&root.join(OBJECT), &object)?;
    let mut json = serde_json::to_vec_pretty(&record)?;
    json.push(b'\n');
    write(&root.join(RECORD), &json)?;
    println!("{OBJECT}: {} bytes, sha256 {}", object.len(), record.object_sha256);
    Ok(())
}

fn verify(root: &Path) -> Result<()> {
    let path = root.join(RECORD);
    let text = fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
    let record: Record = serde_json::from_slice(&text)
        .with_context(|| format!("failed to parse `{}`", path.display()))?;
    let object =
        fs::read(root.join(OBJECT)).with_context(|| format!("failed to read `{OBJECT}`"))?;
    ensure!(
        hex(&Sha256::digest(&object)) == record.object_sha256,
        "`{OBJECT}` is not the object of its record: run `cargo xtask bpf`"
    );
    ensure!(
        hash_sources(root)? == record.sources_sha256,
        "the sources of the kernel side have changed since `{OBJECT}` was built: run \
         `cargo xtask bpf` and commit the object with its record"
    );
    let here = match toolchain() {
        Ok(here) => here,
        Err(error) => {
            println!("sources match the record; bytes not compared: {error:#}");
            return Ok(());
        }
    };
    if here != record.toolchain {
        println!(
            "sources match the record; bytes not compared: built with {}, here is {}",
            summary(&record.toolchain),
            summary(&here)
        );
        return Ok(());
    }
    ensure!(
        build(root)? == object,
        "the sources give another object than `{OBJECT}` with the recorded toolchain: run \
         `cargo xtask bpf`, and commit what it writes"
    );
    println!("sources and bytes match the record");
    Ok(())
}

/// Builds, and returns the object as it is committed.
fn build(root: &Path) -> Result<Vec<u8>> {
    let directory = root.join("memtrace-ebpf");
    let target = directory.join("target");
    let flags: Vec<String> =
        FLAGS.iter().map(|flag| (*flag).to_owned()).chain(remaps(root)?).collect();
    let mut command = Command::new(program(CARGO));
    // What cargo and rustup set for xtask itself would choose another toolchain.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let is_ours = text.starts_with("CARGO_HOME") || text.starts_with("CARGO_NET");
        let is_theirs = text.starts_with("CARGO") || text.starts_with("RUST");
        if is_theirs && !is_ours {
            command.env_remove(&name);
        }
    }
    let status = command
        .current_dir(&directory)
        .args(["build", "--release", "--locked", "--target-dir"])
        .arg(&target)
        .env("RUSTC", program(RUSTC))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .status()
        .with_context(|| format!("failed to run `{}`", program(CARGO).display()))?;
    ensure!(status.success(), "the build of the kernel side failed: {status}");
    let built = target.join("bpfel-unknown-none/release/memtrace-ebpf");
    let object = fs::read(&built)
        .with_context(|| format!("failed to read what was built, `{}`", built.display()))?;
    canonical(&object).context("failed to cut off the debug information")
}

/// Flags that keep the paths of this machine out of the object.
fn remaps(root: &Path) -> Result<Vec<String>> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let sysroot = PathBuf::from(output(program(RUSTC), &["--print", "sysroot"])?);
    let library = sysroot.join("lib/rustlib/src/rust");
    let mut remaps = vec![(root.to_owned(), "/memtrace".to_owned())];
    if let Some(sources) = home.map(|home| home.join("registry/src"))
        && let Ok(registries) = fs::read_dir(&sources)
    {
        // Each registry has a directory with a hash in its name.
        remaps.extend(registries.flatten().map(|one| (one.path(), "/registry".to_owned())));
    }
    if let Ok(real) = library.canonicalize() {
        remaps.push((real, "/rust".to_owned()));
    }
    remaps.push((library, "/rust".to_owned()));
    Ok(remaps
        .into_iter()
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()))
        .collect())
}

fn program((variable, default): (&str, &str)) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| default.into(), PathBuf::from)
}

/// The versions that decide the bytes.
fn toolchain() -> Result<BTreeMap<String, String>> {
    let rustc = output(program(RUSTC), &["-vV"])?;
    let field = |name: &str| {
        rustc
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim().to_owned())
            .with_context(|| format!("`rustc -vV` tells no `{name}`"))
    };
    Ok(BTreeMap::from([
        ("rustc".to_owned(), format!("{} ({})", field("release:")?, field("commit-hash:")?)),
        ("rustc_llvm".to_owned(), field("LLVM version:")?),
        ("bpf_linker".to_owned(), output("bpf-linker".into(), &["--version"])?),
    ]))
}

fn summary(toolchain: &BTreeMap<String, String>) -> String {
    let parts: Vec<String> =
        toolchain.iter().map(|(name, version)| format!("{name} {version}")).collect();
    parts.join(", ")
}

fn output(program: PathBuf, args: &[&str]) -> Result<String> {
    let shown = program.display();
    let output = Command::new(&program)
        .args(args)
        .env_remove("RUSTUP_TOOLCHAIN")
        .output()
        .with_context(|| format!("failed to run `{shown}`: `cargo xtask setup` installs it"))?;
    if !output.status.success() {
        bail!("`{shown} {}` failed: {}", args.join(" "), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// One hash over the paths and contents of all sources, in the order of their paths.
fn hash_sources(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let content =
            fs::read(&file).with_context(|| format!("failed to read `{}`", file.display()))?;
        let name = file.strip_prefix(root)?.to_string_lossy().into_owned();
        hash.update(format!("{name}\0{}\0", content.len()));
        hash.update(&content);
    }
    Ok(hex(&hash.finalize()))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    let entries =
        fs::read_dir(path).with_context(|| format!("failed to read `{}`", path.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else if entry.path().extension().is_some_and(|extension| extension == "rs") {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("failed to write `{}`", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
