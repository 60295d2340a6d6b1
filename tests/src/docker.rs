//! Containers for the live tests, made by the docker command and removed when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A running container.
pub struct Container {
    pub name: String,
}

impl Container {
    /// `docker run -d` with these arguments, under a name that no other test uses.
    pub fn run(name: &str, arguments: &[&str]) -> Result<Self> {
        let name = format!("memtrace-test-{}-{name}", std::process::id());
        let mut all = vec!["run", "--detach", "--name", &name];
        all.extend(arguments);
        docker(&all)?;
        Ok(Self { name })
    }

    /// The pid of its first process, as the host sees it.
    pub fn pid(&self) -> Result<u32> {
        let pid = docker(&["inspect", "--format", "{{.State.Pid}}", &self.name])?;
        match pid.trim().parse() {
            Ok(0) => bail!("container `{}` has ended: {}", self.name, self.logs()?),
            Ok(pid) => Ok(pid),
            Err(_) => bail!("docker gives the pid `{pid}` for `{}`", self.name),
        }
    }

    pub fn id(&self) -> Result<String> {
        Ok(docker(&["inspect", "--format", "{{.Id}}", &self.name])?.trim().to_owned())
    }

    pub fn logs(&self) -> Result<String> {
        docker(&["logs", &self.name])
    }

    /// A command inside of it, to its end.
    pub fn exec(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["exec", &self.name];
        all.extend(arguments);
        docker(&all)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Nothing can be done here about a daemon that has gone.
        _ = docker(&["rm", "--force", &self.name]);
    }
}

/// An image made of nothing but these executables and the libraries that they need.
pub struct Image {
    pub name: String,
}

impl Image {
    /// `more` are files that the loader does not know of, for instance preloaded allocators.
    pub fn of(name: &str, executables: &[&Path], more: &[&Path]) -> Result<Self> {
        Self::import(name, lay_out(executables, more)?.path())
    }

    /// An image of programs at the paths that they have here, with their libraries, and of
    /// directories with all that is in them: a server of this machine's packages.
    pub fn of_packages(name: &str, executables: &[&Path], directories: &[&str]) -> Result<Self> {
        let root = tempfile::tempdir().context("create a directory for the image")?;
        let place = |path: &Path| -> Result<PathBuf> {
            Ok(root.path().join(path.strip_prefix("/").context("an absolute path")?))
        };
        for directory in ["tmp", "var/tmp", "run", "etc", "proc"] {
            fs::create_dir_all(root.path().join(directory))?;
        }
        // Some servers refuse to be root, and ask who they are.
        let users = "root:x:0:0:root:/:/bin/sh\nserver:x:1000:1000:server:/tmp:/bin/sh\n";
        fs::write(root.path().join("etc/passwd"), users)?;
        for directory in ["tmp", "var/tmp", "run"] {
            set_open(&root.path().join(directory))?;
        }
        for executable in executables {
            let real = fs::canonicalize(executable)
                .with_context(|| format!("find `{}`", executable.display()))?;
            for library in needed_libraries(&real)? {
                copy(&library, &place(&library)?)?;
            }
            copy(&real, &place(executable)?)?;
        }
        for directory in directories {
            let (from, to) = (Path::new(directory), place(Path::new(directory))?);
            fs::create_dir_all(&to)?;
            let mut all = Command::new("cp");
            let done = all.arg("-rL").arg(from.join(".")).arg(&to).output().context("run cp")?;
            if !done.status.success() {
                bail!("copy `{directory}`: {}", String::from_utf8_lossy(&done.stderr));
            }
        }
        Self::import(name, root.path())
    }

    fn import(name: &str, root: &Path) -> Result<Self> {
        let name = format!("memtrace-test-{}-{name}", std::process::id());
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(root).args(["-c", "."]).stdout(std::process::Stdio::piped());
        let mut archive = tar.spawn().context("run tar")?;
        let Some(stream) = archive.stdout.take() else { bail!("tar has no output") };
        let import = Command::new("docker")
            .args(["import", "-", &name])
            .stdin(stream)
            .output()
            .context("run `docker import`")?;
        let tarred = archive.wait()?;
        if !import.status.success() || !tarred.success() {
            bail!("docker import: {}", String::from_utf8_lossy(&import.stderr));
        }
        Ok(Self { name })
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // An image in use by a container that could not be removed stays.
        _ = docker(&["rmi", "--force", &self.name]);
    }
}

/// A root directory of nothing but these executables and the libraries that they need.
pub fn lay_out(executables: &[&Path], more: &[&Path]) -> Result<tempfile::TempDir> {
    let root = tempfile::tempdir().context("create a directory for the image")?;
    fs::create_dir(root.path().join("tmp"))?;
    for executable in executables {
        let Some(file_name) = executable.file_name() else {
            bail!("`{}` is no file", executable.display())
        };
        copy(executable, &root.path().join(file_name))?;
    }
    let mut libraries = Vec::new();
    for file in executables.iter().chain(more) {
        libraries.extend(needed_libraries(file)?);
    }
    for library in libraries.iter().map(PathBuf::as_path).chain(more.iter().copied()) {
        copy(library, &root.path().join(library.strip_prefix("/")?))?;
    }
    Ok(root)
}

/// Anybody may write there.
fn set_open(directory: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o1777))
        .with_context(|| format!("open `{}` to all", directory.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to)
        .with_context(|| format!("copy `{}` to `{}`", from.display(), to.display()))?;
    Ok(())
}

/// What the loader would map for this file, with the loader itself; nothing for a static one.
fn needed_libraries(file: &Path) -> Result<Vec<PathBuf>> {
    let headers = Command::new("readelf").arg("-l").arg(file).output().context("run readelf")?;
    let headers = String::from_utf8_lossy(&headers.stdout).into_owned();
    let loader = headers
        .lines()
        .find_map(|line| line.split_once("program interpreter: ")?.1.strip_suffix(']'))
        .map(PathBuf::from);
    match loader {
        // musl's loader is its libc, and the programs here need nothing else.
        Some(loader) if loader.to_string_lossy().contains("musl") => return Ok(vec![loader]),
        None if !headers.contains("DYNAMIC") => return Ok(Vec::new()),
        Some(_) | None => {}
    }
    let output = Command::new("ldd").arg(file).output().context("run ldd")?;
    if !output.status.success() {
        bail!("ldd {}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    }
    // `libc.so.6 => /lib/libc.so.6 (0x…)`, `/lib64/ld-linux.so.2 (0x…)`
    let path = |line: &str| {
        let (path, _) = line.trim().rsplit_once(" (0x")?;
        let path = path.rsplit_once("=> ").map_or(path, |(_, path)| path);
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(path).collect())
}

/// The docker command; its output on success.
pub fn docker(arguments: &[&str]) -> Result<String> {
    let output =
        Command::new("docker").args(arguments).output().context("run docker: is it installed?")?;
    if !output.status.success() {
        bail!(
            "docker {} ended with {}: {} (`cargo xtask test` starts a daemon where none runs)",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
