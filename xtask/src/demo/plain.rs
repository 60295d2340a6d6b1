//! A container without docker: namespaces, a memory cgroup of its own, and its own root.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, chdir, execv, fork, pivot_root, sethostname};
use sha2::{Digest, Sha256};

use crate::interrupt;
use crate::shell::{self, Owned};

/// A running plain container; dropping it kills its processes and removes its cgroup.
pub struct Plain {
    id: String,
    pid: u32,
    // Dropped in this order: the processes, then the group they were in.
    _first: Owned,
    _group: Option<Group>,
}

impl Plain {
    pub fn start(root: &Path, memory_bytes: u64, command: &str, flags: &[&str]) -> Result<Self> {
        let id = id()?;
        let group = match Group::create(&id, memory_bytes) {
            Ok(group) => Some(group),
            Err(error) => {
                eprintln!("without a memory limit: {error:#}");
                None
            }
        };
        let mut xtask = Command::new(std::env::current_exe().context("find xtask itself")?);
        xtask.arg("contain").arg("--root").arg(root);
        if let Some(group) = &group {
            xtask.arg("--cgroup").arg(&group.0);
        }
        xtask.arg("--").arg(command).args(flags);
        eprintln!("$ {}", shell::line(&xtask));
        let mut first = Owned::spawn(xtask.stdin(Stdio::null()))?;
        let pid = service_pid(&mut first)?;
        Ok(Self { id, pid, _first: first, _group: group })
    }

    /// 64 hexadecimal digits, the name of its cgroup, as container runtimes have it.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }
}

fn id() -> Result<String> {
    let seed = fs::read_to_string("/proc/sys/kernel/random/uuid").context("read a random uuid")?;
    Ok(Sha256::digest(seed.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The pid on the host of the container's first process: the only child of `contain`.
fn service_pid(first: &mut Owned) -> Result<u32> {
    let pid = first.child.id();
    let children = format!("/proc/{pid}/task/{pid}/children");
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        interrupt::check()?;
        if let Some(status) = first.child.try_wait()? {
            bail!("the container ended with {status}");
        }
        let found = fs::read_to_string(&children).unwrap_or_default();
        if let Some(Ok(pid)) = found.split_whitespace().next().map(str::parse) {
            return Ok(pid);
        }
        if Instant::now() > end {
            bail!("the container's first process did not appear in `{children}`");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A memory cgroup, of version 2 where the memory controller is there, else of version 1.
struct Group(PathBuf);

impl Group {
    fn create(id: &str, memory_bytes: u64) -> Result<Self> {
        let v2 = Path::new("/sys/fs/cgroup");
        let has_memory =
            |controllers: String| controllers.split_whitespace().any(|c| c == "memory");
        let (parent, limit) =
            if fs::read_to_string(v2.join("cgroup.controllers")).is_ok_and(has_memory) {
                fs::write(v2.join("cgroup.subtree_control"), "+memory")
                    .context("enable the memory controller for children")?;
                (v2.to_owned(), "memory.max")
            } else {
                (v2.join("memory"), "memory.limit_in_bytes")
            };
        let path = parent.join(id);
        fs::create_dir(&path)
            .with_context(|| format!("create the memory cgroup `{}`", path.display()))?;
        let group = Self(path);
        fs::write(group.0.join(limit), memory_bytes.to_string())
            .with_context(|| format!("limit the memory of `{}`", group.0.display()))?;
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its last process may be about to go.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("failed to remove the cgroup `{}`; remove it by rmdir", self.0.display());
    }
}

/// `cargo xtask contain`: enters the cgroup and new namespaces, and starts the command in them.
#[derive(Args)]
pub struct Contain {
    #[arg(long)]
    root: PathBuf,
    #[arg(long)]
    cgroup: Option<PathBuf>,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Contain {
    pub fn run(&self) -> Result<()> {
        // When xtask is killed, the container goes with it.
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
            .context("ask to die with the parent")?;
        if let Some(cgroup) = &self.cgroup {
            fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
                .with_context(|| format!("enter the cgroup `{}`", cgroup.display()))?;
        }
        unshare(
            CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWIPC,
        )
        .context("make new namespaces")?;
        loopback_up().context("bring up the loopback interface")?;
        // SAFETY: this process has a single thread.
        match unsafe { fork() }.context("start the container's first process")? {
            ForkResult::Child => {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                self.become_command()
            }
            ForkResult::Parent { child } => {
                let status = waitpid(child, None).context("wait for the container")?;
                bail!("the container's first process ended: {status:?}")
            }
        }
    }

    fn become_command(&self) -> Result<()> {
        const NONE: Option<&str> = None;
        sethostname("memtrace-demo").context("set the host name")?;
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
            .context("keep our mounts to ourselves")?;
        let root = &self.root;
        mount(Some(root), root, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
            .with_context(|| format!("make `{}` a mount", root.display()))?;
        chdir(root)?;
        let proc_flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), "proc", Some("proc"), proc_flags, NONE).context("mount its /proc")?;
        pivot_root(".", ".").context("change to its root")?;
        umount2(".", MntFlags::MNT_DETACH).context("leave the host's root")?;
        chdir("/")?;
        let arguments = self
            .command
            .iter()
            .map(|word| CString::new(word.as_bytes()))
            .collect::<Result<Vec<_>, _>>()
            .context("an argument holds a zero byte")?;
        let program = arguments.first().context("no command")?;
        std::io::stderr().flush()?;
        execv(program, &arguments).with_context(|| format!("run `{}`", self.command[0]))?;
        Ok(())
    }
}

/// `ip link set lo up`, where there may be no `ip`.
fn loopback_up() -> Result<()> {
    use std::os::fd::AsRawFd;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").context("open a socket")?;
    // SAFETY: all fields of `ifreq` are plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING)?;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which `request` is, and keeps nothing.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
    nix::errno::Errno::result(result)?;
    Ok(())
}
