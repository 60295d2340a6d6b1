//! The ledger where cgroup v2 has the memory controller: limits of ancestors, events, pressure,
//! swap, both drivers' paths, and the charge of containers at work. Needs docker on such a host, or
//! `cargo xtask vm --docker`, which brings one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::docker::{Container, Image, docker};
use memtrace_tests::ledger::{Explained, ledger_container, truth_of};
use memtrace_tests::serial;
use memtrace_tests::wait::{Lines, patience, until};

const ROOT: &str = "/sys/fs/cgroup";
const ID: &str = "7c1c9a5e7b2d4f60819203a4b5c6d7e8f90112233445566778899aabbccddeef";
const MIB: u64 = 1 << 20;

/// All laws that speak of a container without a Go program.
const LAWS: [&str; 8] = ["I1", "I2", "I3", "I4", "I5", "I6", "I10", "I12"];

/// The cgroup of a process in the one hierarchy.
fn group_of(pid: u32) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).context("no cgroup v2")?;
    Ok(PathBuf::from(format!("{ROOT}{path}")))
}

fn read_number(path: &Path) -> Result<i64> {
    let text = fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
    text.trim().parse().with_context(|| format!("`{}` is `{}`", path.display(), text.trim()))
}

fn read_key(path: &Path, key: &str) -> Result<i64> {
    let text = fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no `{key}` in `{}`", path.display()))?.trim().parse()?)
}

fn shell() -> Result<Image> {
    Image::of("shell", &[Path::new("/bin/busybox")], &[])
}

#[test]
#[ignore = "needs docker with cgroup v2: cargo xtask vm --docker"]
fn containers_at_rest_and_at_work_are_told_within_the_kernels_batches() -> Result<()> {
    let _turn = serial::turn()?;
    let (_image, rest) = ledger_container("rest", &[])?;
    truth_of(&rest)?;
    let at_rest = Explained::of(&["--container", &rest.name])?;
    ensure!(at_rest.is_v2(), "this is no cgroup v2: {:#}", at_rest.0["cgroup"]);
    at_rest.laws_hold()?;
    for law in LAWS {
        ensure!(at_rest.has_law(law), "{law} was not checked");
    }
    // Level 3: nothing moves, nothing is left over.
    ensure!(at_rest.row("resident", "rss_residual")? == 0);
    within_the_batches(&at_rest)?;

    let image = shell()?;
    let script = "mkdir -p /tmp; while :; do dd if=/dev/zero of=/tmp/f bs=65536 count=64; \
                  cat /tmp/f > /dev/null; done 2>/dev/null";
    let arguments = ["--network", "none", "-m", "64m", &image.name, "/busybox", "sh", "-c", script];
    let work = Container::run("work", &arguments)?;
    std::thread::sleep(Duration::from_secs(3));
    for _ in 0..3 {
        let at_work = Explained::of(&["--container", &work.name])?;
        at_work.laws_hold()?;
        within_the_batches(&at_work)?;
    }
    Ok(())
}

fn within_the_batches(explained: &Explained) -> Result<()> {
    let epsilon = &explained.0["epsilon"];
    let of = |key: &str| epsilon[key].as_i64().with_context(|| format!("{epsilon:#}"));
    let (bytes, lowest, highest) = (of("bytes")?, of("lowest")?, of("highest")?);
    println!("residual {bytes} B, bound {lowest} to {highest}");
    ensure!((lowest..=highest).contains(&bytes), "{epsilon:#}");
    Ok(())
}

#[test]
#[ignore = "needs docker with cgroup v2: cargo xtask vm --docker"]
fn a_paused_container_is_told_as_its_files_are() -> Result<()> {
    let _turn = serial::turn()?;
    let (_image, container) = ledger_container("files", &[])?;
    truth_of(&container)?;
    let group = group_of(container.pid()?)?;
    docker(&["pause", &container.name])?;
    // Statistics are flushed every 2 s.
    std::thread::sleep(patience(Duration::from_secs(3)));
    let explained = Explained::of(&["--container", &container.name])?;
    let stat = group.join("memory.stat");
    for (row, key) in [
        ("anon", "anon"),
        ("file", "file"),
        ("inactive_file", "inactive_file"),
        ("active_file", "active_file"),
        ("shmem", "shmem"),
        ("kernel", "kernel"),
        ("kernel_stack", "kernel_stack"),
        ("pagetables", "pagetables"),
        ("slab_reclaimable", "slab_reclaimable"),
        ("slab_unreclaimable", "slab_unreclaimable"),
        ("sock", "sock"),
    ] {
        let (told, there) = (explained.row("charge", row)?, read_key(&stat, key)?);
        ensure!(told == there, "`{row}` is told as {told}, memory.stat says {there}");
    }
    let current = read_number(&group.join("memory.current"))?;
    ensure!(explained.row("charge", "charge")? == current, "the charge is {current}");
    // cAdvisor, `setMemoryStats` in `container/libcontainer/handler.go`: never below nothing.
    let working_set = (current - read_key(&stat, "inactive_file")?).max(0);
    for tool in ["kubectl", "docker", "podman"] {
        ensure!(explained.tool(tool)? == working_set, "{tool}: the files make it {working_set}");
    }
    let peak = explained.0["limits"]["peak"].as_i64().context("the peak")?;
    ensure!(peak == read_number(&group.join("memory.peak"))? && peak >= current, "peak {peak}");
    docker(&["unpause", &container.name])?;
    Ok(())
}

#[test]
#[ignore = "needs docker with cgroup v2: cargo xtask vm --docker"]
fn what_happened_at_the_limit_is_told_with_the_pressure() -> Result<()> {
    let _turn = serial::turn()?;
    let image = shell()?;
    let script = "dd if=/dev/zero of=/f bs=65536 count=1024 2>/dev/null; echo written; sleep 1000";
    let arguments = ["--network", "none", "-m", "24m", &image.name, "/busybox", "sh", "-c", script];
    let container = Container::run("limit", &arguments)?;
    until("the file", patience(Duration::from_secs(60)), || {
        Ok(container.logs()?.contains("written"))
    })?;
    let group = group_of(container.pid()?)?;
    let explained = Explained::of(&["--container", &container.name])?;
    explained.laws_hold()?;
    let limits = &explained.0["limits"];
    let hits = read_key(&group.join("memory.events"), "max")?;
    ensure!(hits > 0, "64 MiB were written below a limit of 24 MiB, and it was never met");
    ensure!(limits["events"]["memory.events max"].as_i64() == Some(hits), "{limits:#}");
    ensure!(limits["events"]["memory.events oom_kill"] == 0, "{limits:#}");
    let pressure = limits["pressure"].as_str().context("no pressure")?;
    ensure!(pressure.starts_with("some avg10=") && pressure.contains("\nfull "), "{pressure}");
    ensure!(limits["effective"]["bytes"] == 24 * MIB, "{limits:#}");
    ensure!(limits["effective"]["file"] == "memory.max", "{limits:#}");
    Ok(())
}

#[test]
#[ignore = "needs docker with cgroup v2: cargo xtask vm --docker"]
fn what_was_swapped_out_stands_beside_the_charge() -> Result<()> {
    let _turn = serial::turn()?;
    let program = compile::program("ledger", Kind::C)?;
    let image = Image::of("swap", &[&program], &[])?;
    // It holds more than twice that.
    let memory = ["--network", "none", "--memory", "40m", "--memory-swap", "200m"];
    let mut arguments = memory.to_vec();
    arguments.extend(["--shm-size", "32m", "--env", "STAY=1", &image.name, "/ledger", "/tmp"]);
    let container = Container::run("swap", &arguments)?;
    truth_of(&container)?;
    let group = group_of(container.pid()?)?;
    docker(&["pause", &container.name])?;
    let explained = Explained::of(&["--container", &container.name])?;
    explained.laws_hold()?;
    let there = read_number(&group.join("memory.swap.current"))?;
    ensure!(there >= MIB as i64, "nothing was swapped out: {there} B");
    let beside = explained.0["beside"].as_array().context("beside")?;
    let row = beside.iter().find(|row| row["key"] == "swap").context("no swap row")?;
    ensure!(row["bytes"].as_i64() == Some(there), "{row:#}, memory.swap.current {there}");
    let of_process = explained.0["processes"][0]["swap"].as_i64().context("swap")?;
    ensure!((1..=there).contains(&of_process), "the process has {of_process} of {there}");
    let swap = explained.0["limits"]["swap"].as_array().context("limits of swap")?;
    ensure!(swap.iter().any(|limit| limit["bytes"] == 160 * MIB), "{swap:#?}");
    docker(&["unpause", &container.name])?;
    Ok(())
}

/// A cgroup made by hand, with the delegation of its parents; removed at the end.
struct Group(Vec<PathBuf>);

impl Group {
    fn make(path: &str) -> Result<Self> {
        let mut directory = PathBuf::from(ROOT);
        let mut made = Vec::new();
        let parts: Vec<&str> = path.split('/').collect();
        for (at, part) in parts.iter().enumerate() {
            directory.push(part);
            if !directory.exists() {
                fs::create_dir(&directory)
                    .with_context(|| format!("create `{}`", directory.display()))?;
                made.push(directory.clone());
            }
            if at + 1 < parts.len() {
                fs::write(directory.join("cgroup.subtree_control"), "+memory")
                    .with_context(|| format!("delegate in `{}`", directory.display()))?;
            }
        }
        Ok(Self(made))
    }

    fn leaf(&self) -> Result<&Path> {
        self.0.last().map(PathBuf::as_path).context("it was there before")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for directory in self.0.iter().rev() {
            // Who was killed leaves it a moment later.
            for _ in 0..50 {
                if fs::remove_dir(directory).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// The program, born in a cgroup.
struct Born {
    child: Child,
    _lines: Lines,
}

impl Born {
    fn in_group(group: &Path) -> Result<Self> {
        let program = compile::program("ledger", Kind::C)?;
        let script = "echo $$ > \"$0/cgroup.procs\" && exec \"$1\" /tmp";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .arg(group)
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = Lines::of(child.stdout.take().context("output")?);
        lines.find("the truth", patience(Duration::from_secs(60)), |line| line.starts_with('{'))?;
        Ok(Self { child, _lines: lines })
    }
}

impl Drop for Born {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs docker with cgroup v2: cargo xtask vm --docker"]
fn both_drivers_paths_lead_to_the_container_and_to_the_limits_above_it() -> Result<()> {
    let _turn = serial::turn()?;
    let dashed = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
    let plain = dashed.replace('-', "");
    let slice = dashed.replace('-', "_");
    let burstable = "kubepods.slice/kubepods-burstable.slice";
    for (path, uid) in [
        (format!("kubepods/burstable/pod{dashed}/{ID}"), Some(dashed)),
        // A static pod.
        (format!("kubepods/burstable/pod{plain}/{ID}"), Some(plain.as_str())),
        (
            format!("{burstable}/kubepods-burstable-pod{slice}.slice/cri-containerd-{ID}.scope"),
            Some(dashed),
        ),
        (format!("system.slice/docker-{ID}.scope"), None),
        (format!("machine.slice/libpod-{ID}.scope/container"), None),
        (format!("docker/{ID}"), None),
    ] {
        let group = Group::make(&path).with_context(|| path.clone())?;
        let leaf = group.leaf()?;
        let parent = leaf.parent().context("a parent")?;
        fs::write(parent.join("memory.max"), (400 * MIB).to_string())?;
        fs::write(leaf.join("memory.max"), (500 * MIB).to_string())?;
        fs::write(leaf.join("memory.high"), (450 * MIB).to_string())?;
        fs::write(leaf.join("memory.low"), (8 * MIB).to_string())?;
        let _program = Born::in_group(leaf)?;
        let explained = settled(&["--container", &ID[..12]]).with_context(|| path.clone())?;
        told_with_limits(&explained, &path).with_context(|| path.clone())?;
        if let Some(uid) = uid {
            let pod = settled(&["--pod", uid]).with_context(|| format!("pod {uid}"))?;
            pod.laws_hold()?;
            let told = pod.0["cgroup"]["path"].as_str().context("path")?;
            ensure!(path.starts_with(told.trim_start_matches('/')), "{uid} leads to {told}");
            ensure!(pod.0["limits"]["effective"]["bytes"] == 400 * MIB, "{:#}", pod.0["limits"]);
        }
        fs::write(parent.join("memory.max"), "max")?;
    }
    Ok(())
}

/// A huge page that khugepaged fills for a program that has just started is charged before it is
/// anybody's: who breaks a law for that reason breaks it once.
fn settled(arguments: &[&str]) -> Result<Explained> {
    let first = Explained::of(arguments)?;
    if first.laws_hold().is_ok() {
        return Ok(first);
    }
    std::thread::sleep(patience(Duration::from_secs(1)));
    Explained::of(arguments)
}

fn told_with_limits(explained: &Explained, path: &str) -> Result<()> {
    explained.laws_hold()?;
    within_the_batches(explained)?;
    let told = explained.0["cgroup"]["path"].as_str().context("path")?;
    ensure!(format!("/{path}").starts_with(told), "it is told to be in {told}");
    let limits = &explained.0["limits"];
    let all = limits["all"].as_array().context("limits")?;
    let set = |file: &str, bytes: u64| {
        all.iter().any(|limit| limit["file"] == file && limit["bytes"] == bytes)
    };
    // The container's own where its own cgroup is told, the ancestor's in any case.
    ensure!(set("memory.max", 400 * MIB), "{limits:#}");
    ensure!(limits["effective"]["bytes"] == 400 * MIB, "{limits:#}");
    if format!("/{path}") == told {
        ensure!(set("memory.max", 500 * MIB) && set("memory.high", 450 * MIB), "{limits:#}");
        let protected = limits["protected"].as_array().context("protection")?;
        let low = |limit: &&serde_json::Value| limit["file"] == "memory.low";
        let low = protected.iter().find(low).context("no memory.low")?;
        ensure!(low["bytes"] == 8 * MIB, "{low:#}");
    }
    Ok(())
}
