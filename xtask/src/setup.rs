//! Installs what is missing, and says so first. Everything is asked for before it is installed:
//! a second run does nothing.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{go, paths, shell};

/// What the demo needs: a C compiler and the packages that its service is written over.
const DEMO: &[&str] = &[
    "gcc",
    "libc6-dev",
    "pkg-config",
    "libsqlite3-dev",
    "libxml2-dev",
    "golang-github-mattn-go-sqlite3-dev",
    "util-linux",
];

/// What the live tests need beside that. Names that differ between releases are alternatives.
const TESTS: &[&str] = &[
    "g++",
    "binutils",
    "cpio",
    "musl-tools",
    "libjemalloc-dev",
    "libjemalloc2",
    "libgoogle-perftools-dev",
    "libmimalloc-dev",
    "libtcmalloc-minimal4|libtcmalloc-minimal4t64",
    "libmimalloc2.0|libmimalloc2.1|libmimalloc3",
    "python3",
    "redis-server",
    // A browser without a window: the HTML report is tested in one.
    "chromium",
    "redis-tools",
    "memcached",
    "nginx-light|nginx",
    // Servers that are traced at work.
    "postgresql-15|postgresql-16|postgresql-17|postgresql-18",
    "mariadb-server-core",
    "mariadb-client-core",
    "php8.2-fpm|php8.3-fpm|php8.4-fpm|php8.5-fpm",
    "nodejs",
    "docker.io",
    // A pod, by its CRI plugin, with `ctr` to bring images in.
    "containerd",
    // What `podman stats` shows, and where its monitor is charged.
    "podman",
    // Objects whose unwind tables are compared row by row, and the names of libc's own frames.
    "libc6-dbg",
    "libssl3|libssl3t64",
    "libpython3.11|libpython3.12|libpython3.13|libpython3.14",
];

/// What `cargo xtask bench` needs beside that.
const BENCH: &[&str] = &["heaptrack"];

/// What `cargo xtask vm` needs beside the tests' compilers: the machine, its userland, and the keys
/// of the archive that its kernels come from.
const VM: &[&str] = &[
    "gcc",
    "libc6-dev",
    "qemu-system-x86",
    "busybox-static",
    "debian-archive-keyring",
    "g++",
    "binutils",
    "musl-tools",
    // A disk for docker, and the module to read it.
    "e2fsprogs",
    "xz-utils",
];

/// What rebuilding the BPF object needs: a Rust with its standard library's sources, and LLVM for
/// bpf-linker.
const BPF: &[&str] =
    &["rustc-web", "cargo-web", "rust-web-src", "llvm-22-dev", "libpolly-22-dev", "libzstd-dev"];

const BPF_LINKER: &str = "0.12.0";

pub fn run(only_demo: bool) -> Result<()> {
    demo()?;
    if !only_demo {
        tests()?;
        packages(BENCH)?;
        packages(VM)?;
        if let Err(error) = bpf() {
            eprintln!(
                "The BPF toolchain is not complete: {error:#}\n\
                 That matters only to whoever changes memtrace-ebpf: the built object is \
                 committed, and everything else builds without."
            );
        }
    }
    eprintln!("Everything is there.");
    Ok(())
}

/// For `cargo xtask demo`.
pub fn demo() -> Result<()> {
    packages(DEMO)?;
    go::ensure()
}

/// For `cargo xtask test`.
pub fn tests() -> Result<()> {
    demo()?;
    packages(TESTS)?;
    go::ensure_compared()
}

/// For `cargo xtask bench`.
pub fn bench(with_heaptrack: bool) -> Result<()> {
    packages(DEMO)?;
    if with_heaptrack { packages(BENCH) } else { Ok(()) }
}

/// For `cargo xtask vm`.
pub fn vm() -> Result<()> {
    packages(VM)
}

/// For `cargo xtask bpf`.
pub fn bpf() -> Result<()> {
    packages(BPF)?;
    if paths::which("bpf-linker").is_some() || cargo_bin("bpf-linker") {
        return Ok(());
    }
    shell::step(&format!("bpf-linker {BPF_LINKER} is missing: building it (some minutes)"));
    shell::run(
        Command::new(paths::cargo())
            .env("LLVM_PREFIX", "/usr/lib/llvm-22")
            .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"])
            .args(["--no-default-features", "--features", "llvm-22", "--root"])
            .arg(paths::target().join("tools")),
    )
    .context("build bpf-linker")
}

fn cargo_bin(name: &str) -> bool {
    let home = std::env::var_os("CARGO_HOME").map(std::path::PathBuf::from).or_else(|| {
        std::env::var_os("HOME").map(|home| std::path::PathBuf::from(home).join(".cargo"))
    });
    home.is_some_and(|home| home.join("bin").join(name).is_file())
}

/// Installs those of the packages that are missing.
fn packages(wanted: &[&str]) -> Result<()> {
    let mut missing: Vec<&str> =
        wanted.iter().copied().filter(|names| !names.split('|').any(installed)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if paths::which("apt-get").is_none() {
        anyhow::bail!(
            "missing packages, and no apt-get to install them (the names are Debian's): {}",
            missing.join(", ")
        );
    }
    // A bare machine has empty package lists.
    if missing.iter().any(|names| available(names).is_none()) {
        as_root("apt-get", &["update", "--quiet"])?;
    }
    let mut found = Vec::new();
    missing.retain(|names| match available(names) {
        Some(name) => {
            found.push(name);
            false
        }
        None => true,
    });
    anyhow::ensure!(
        missing.is_empty(),
        "this distribution has no package {}: install it by hand",
        missing.join(", ")
    );
    apt_install(&found)
}

/// `apt-get install` of exactly these, without starting their services.
pub fn apt_install(packages: &[String]) -> Result<()> {
    shell::step(&format!("installing missing packages: {}", packages.join(" ")));
    let _quiet = NoServices::begin()?;
    let mut arguments =
        vec!["install", "--yes", "--quiet", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0"];
    arguments.extend(packages.iter().map(String::as_str));
    as_root("apt-get", &arguments).or_else(|first| {
        eprintln!("{first:#}: the package lists may be old, trying again with new ones");
        as_root("apt-get", &["update", "--quiet"])?;
        as_root("apt-get", &arguments)
    })
}

fn as_root(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = if nix::unistd::geteuid().is_root() {
        Command::new(program)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg(program);
        sudo
    };
    shell::run(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
}

fn installed(package: &str) -> bool {
    shell::ask(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Abbrev}", package]))
        .is_ok_and(|status| status.starts_with("ii"))
}

/// The first of the alternatives that apt can install.
fn available(names: &str) -> Option<String> {
    names
        .split('|')
        .find(|name| {
            shell::ask(Command::new("apt-cache").args(["policy", name])).is_ok_and(|policy| {
                policy.lines().any(|line| {
                    line.trim().strip_prefix("Candidate: ").is_some_and(|c| c != "(none)")
                })
            })
        })
        .map(str::to_owned)
}

/// While it lives, packages do not start the servers that they bring: the tests run them in
/// containers, and nobody asked for a redis on this machine. Debian's own way: policy-rc.d.
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn begin() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        if !nix::unistd::geteuid().is_root() || std::path::Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n")
            .and_then(|()| std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("write `{POLICY}`"))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = std::fs::remove_file(POLICY)
        {
            eprintln!("failed to remove `{POLICY}`: {error}; remove it by hand");
        }
    }
}
