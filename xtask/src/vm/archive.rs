//! Kernel images out of Debian's archive, by apt with a configuration of its own: other suites than
//! this machine's, the same mirror, checked by the same keys. One that Debian has not comes from
//! Ubuntu's archive, checked by its hash. What was fetched stays in `target/vm`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

use super::kernels::{self, Kernel, Pinned};
use crate::shell;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Downloads one file and checks its hash.
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";
/// Set where this machine's own apt knows no archive of Debian.
const MIRROR: &str = "MEMTRACE_DEBIAN_MIRROR";

/// An image that qemu can boot.
#[derive(Clone, Debug)]
pub struct Image {
    pub vmlinuz: PathBuf,
    /// The package that it came in.
    pub package: String,
}

/// The images of these kernels, in their order: from the cache, or fetched.
pub fn images(wanted: &[Kernel], refresh: bool) -> Result<Vec<Image>> {
    // Who comes second finds what the first has fetched.
    let _lock = lock()?;
    let missing: Vec<Kernel> = wanted
        .iter()
        .filter(|kernel| refresh || cached(&kernel.series).is_none())
        .cloned()
        .collect();
    if !missing.is_empty() {
        fetch(&missing)?;
    }
    wanted
        .iter()
        .map(|kernel| {
            cached(&kernel.series)
                .with_context(|| format!("the image of {} was not unpacked", kernel.series))
        })
        .collect()
}

/// Modules that a guest with a disk needs; they depend on no other.
const MODULES: [&str; 2] = ["virtio_blk", "overlay"];

/// The kernel's own modules, unpacked, from the cache or fetched.
pub fn modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let _lock = lock()?;
    let directory = directory(&kernel.series);
    let paths: Vec<PathBuf> =
        MODULES.iter().map(|name| directory.join(format!("{name}.ko"))).collect();
    if !paths.iter().all(|path| path.is_file()) {
        // A cache of before modules were kept.
        fetch(std::slice::from_ref(kernel))?;
    }
    match paths.iter().find(|path| !path.is_file()) {
        None => Ok(paths),
        Some(path) => {
            bail!("the package of kernel {} brought no `{}`", kernel.series, path.display())
        }
    }
}

fn lock() -> Result<Flock<File>> {
    let path = super::directory().join("lock");
    let file = File::create(&path).with_context(|| format!("create `{}`", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("lock `{}`", path.display()))
}

/// Whole: the package's name is written last.
pub fn cached(series: &str) -> Option<Image> {
    let directory = directory(series);
    let package = fs::read_to_string(directory.join("package")).ok()?;
    let vmlinuz = directory.join("vmlinuz");
    vmlinuz.is_file().then(|| Image { vmlinuz, package: package.trim().to_owned() })
}

fn directory(series: &str) -> PathBuf {
    super::directory().join("kernels").join(series)
}

fn fetch(missing: &[Kernel]) -> Result<()> {
    let mut of_debian = Vec::new();
    for kernel in missing {
        match kernels::pinned(&kernel.series) {
            Some(pinned) => fetch_pinned(&kernel.series, &pinned)?,
            None => of_debian.push(kernel.clone()),
        }
    }
    if of_debian.is_empty() { Ok(()) } else { fetch_of_debian(&of_debian) }
}

fn fetch_pinned(series: &str, pinned: &Pinned) -> Result<()> {
    shell::step(&format!("fetching Ubuntu's kernel image {series}"));
    let directory = directory(series);
    recreate(&directory)?;
    let mut download = Command::new(APT_HELPER);
    download.args(["download-file", pinned.url]).arg(directory.join("kernel.deb"));
    download.arg(format!("SHA256:{}", pinned.sha256)).stdout(std::io::stderr());
    shell::run(&mut download)?;
    unpack(&directory, pinned.package)
}

fn fetch_of_debian(missing: &[Kernel]) -> Result<()> {
    let series: Vec<&str> = missing.iter().map(|kernel| kernel.series.as_str()).collect();
    shell::step(&format!("fetching Debian's kernel images {}", series.join(", ")));
    let apt = Apt::configure(&kernels::suites(missing))?;
    shell::run(apt.get().arg("update"))?;
    let names = shell::ask(apt.command("apt-cache").args(["pkgnames", "linux-"]))?;
    for kernel in missing {
        let package = kernels::choose(&kernel.series, names.lines()).map_err(|there| {
            anyhow::anyhow!(
                "the archive has no kernel {} for virtual machines; it has {}",
                kernel.series,
                if there.is_empty() { "none".to_owned() } else { there.join(", ") }
            )
        })?;
        let directory = directory(&kernel.series);
        recreate(&directory)?;
        shell::run(apt.get().current_dir(&directory).args(["download", &package]))?;
        unpack(&directory, &package)?;
    }
    Ok(())
}

fn recreate(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("remove `{}`", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("create `{}`", directory.display()))
}

/// Takes `vmlinuz` out of the one package in the directory, and removes the package.
fn unpack(directory: &Path, package: &str) -> Result<()> {
    let file = only_package(directory)?;
    let mut tar = Command::new("dpkg-deb");
    tar.arg("--fsys-tarfile").arg(&file).stdout(Stdio::piped());
    let mut tar = shell::Owned::spawn(&mut tar)?;
    let contents = tar.child.stdout.take().context("dpkg-deb has no output")?;
    let mut unpack = Command::new("tar");
    unpack
        .args(["--extract", "--to-stdout", "--wildcards"])
        .args(["./boot/vmlinuz-*", "./usr/lib/modules/*/vmlinuz"])
        .stdin(contents)
        // One of both patterns matches, and tar complains of the other.
        .stderr(Stdio::null());
    let output = unpack.output().context("run tar")?;
    let status = tar.wait()?;
    ensure!(status.success(), "`{}` ended with {status}", tar.what());
    if !is_image(&output.stdout) {
        bail!("`{}` holds no kernel image", file.display());
    }
    let vmlinuz = directory.join("vmlinuz");
    fs::write(&vmlinuz, &output.stdout)
        .with_context(|| format!("write `{}`", vmlinuz.display()))?;
    unpack_modules(&file, directory)?;
    fs::remove_file(&file).with_context(|| format!("remove `{}`", file.display()))?;
    let name = directory.join("package");
    fs::write(&name, package).with_context(|| format!("write `{}`", name.display()))
}

/// Those of [`MODULES`] that this package has, without their compression, which not every guest's
/// loader knows.
fn unpack_modules(package: &Path, directory: &Path) -> Result<()> {
    let name = package.file_name().context("a package without a name")?.to_string_lossy();
    // tar has no way to say which of several wanted files it wrote out: one at a time.
    for module in MODULES {
        let script = "set -o pipefail; \
                      dpkg-deb --fsys-tarfile \"$0\" | \
                      tar --extract --to-stdout --wildcards \"*/kernel/*/$1.ko*\" 2>/dev/null";
        let output = Command::new("bash")
            .args(["-c", script])
            .arg(package)
            .arg(module)
            .output()
            .context("run bash")?;
        if !output.status.success() || output.stdout.is_empty() {
            continue;
        }
        let path = directory.join(format!("{module}.ko"));
        let packed = directory.join(format!("{module}.packed"));
        fs::write(&packed, &output.stdout)
            .with_context(|| format!("write `{}`", packed.display()))?;
        if output.stdout.starts_with(b"\x7fELF") {
            fs::rename(&packed, &path).with_context(|| format!("name `{}`", path.display()))?;
            continue;
        }
        let plain = Command::new("xz").args(["--decompress", "--stdout"]).arg(&packed).output();
        let plain = plain.context("run xz")?;
        ensure!(plain.status.success(), "`{module}` of `{name}` is not packed by xz");
        fs::write(&path, &plain.stdout).with_context(|| format!("write `{}`", path.display()))?;
        fs::remove_file(&packed).with_context(|| format!("remove `{}`", packed.display()))?;
    }
    Ok(())
}

fn only_package(directory: &Path) -> Result<PathBuf> {
    for entry in
        fs::read_dir(directory).with_context(|| format!("list `{}`", directory.display()))?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(path);
        }
    }
    bail!("apt-get downloaded no package into `{}`", directory.display())
}

/// The magic of x86's boot protocol: Documentation/arch/x86/boot.rst, `header` at 0x202.
fn is_image(bytes: &[u8]) -> bool {
    bytes.get(0x202..0x206) == Some(b"HdrS")
}

/// apt with directories, sources and keys of its own; the machine's stay as they are.
struct Apt {
    configuration: PathBuf,
}

impl Apt {
    fn configure(suites: &[&str]) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).exists(),
            "`{KEYRING}` does not exist: install debian-archive-keyring"
        );
        let mirror = mirror()?;
        let root = super::directory().join("apt");
        for directory in ["lists/partial", "cache/archives/partial"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).with_context(|| format!("create `{}`", path.display()))?;
        }
        let sources: String = suites
            .iter()
            .map(|suite| format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n"))
            .collect();
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = root.join(name);
            fs::write(&path, text).with_context(|| format!("write `{}`", path.display()))?;
            Ok(path)
        };
        write("sources.list", &sources)?;
        let configuration = write("apt.conf", &configuration(&root))?;
        Ok(Self { configuration })
    }

    /// `apt-get`, whose progress is not our result.
    fn get(&self) -> Command {
        let mut command = self.command("apt-get");
        command.arg("--quiet").stdout(std::io::stderr());
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.configuration);
        command
    }
}

fn configuration(root: &Path) -> String {
    let root = root.display();
    format!(
        "Dir::Etc::SourceList \"{root}/sources.list\";\n\
         Dir::Etc::SourceParts \"/dev/null\";\n\
         Dir::State::Lists \"{root}/lists\";\n\
         Dir::Cache \"{root}/cache\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n"
    )
}

/// The archive of Debian itself that this machine uses.
fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var(MIRROR) {
        return Ok(mirror);
    }
    let format = "$(REPO_URI) $(ORIGIN) $(LABEL)";
    let targets = shell::ask(Command::new("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    debian(&targets).with_context(|| {
        format!(
            "this machine's apt knows no archive of Debian: name one in {MIRROR}, or run \
             `apt-get update` where it should"
        )
    })
}

fn debian(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let (uri, of) = line.split_once(' ')?;
        (of == "Debian Debian").then(|| uri.trim_end_matches('/').to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_of_debian_itself() {
        let targets = "http://a.example/nodesource/ . .\n\
                       http://b.example/debian-security/ Debian Debian-Security\n\
                       http://b.example/debian/ Debian Debian\n";
        assert_eq!(debian(targets).as_deref(), Some("http://b.example/debian"));
        assert_eq!(debian("http://c.example/ubuntu/ Ubuntu Ubuntu\n"), None);
    }

    #[test]
    fn only_a_boot_image_is_taken_for_one() {
        let mut image = vec![0; 0x400];
        assert!(!is_image(&image));
        image[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(is_image(&image));
        assert!(!is_image(b"short"));
    }
}
