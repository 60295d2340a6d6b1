//! What the ledger's tests share: an explanation as JSON, the program that holds known amounts, and
//! a container's freezer, alike for both versions of cgroups.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::compile::{self, Kind};
use crate::docker::{Container, Image};
use crate::memtrace;
use crate::wait::{patience, until};

pub const PAGE: i64 = 4096;

/// One explanation, as JSON.
pub struct Explained(pub Value);

impl Explained {
    pub fn of(arguments: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("ledger.json");
        let mut all = vec!["explain", "--json", path.to_str().context("a path")?];
        all.extend(arguments);
        let output = memtrace::run(&all)?;
        ensure!(
            output.status.success(),
            "memtrace ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Self(serde_json::from_slice(&fs::read(&path)?)?))
    }

    /// Bytes of the first row with this key below `charge`, or of the process's own tree.
    pub fn row(&self, tree: &str, key: &str) -> Result<i64> {
        let root = match tree {
            "charge" => &self.0["charge"],
            process_tree => &self.0["processes"][0][process_tree],
        };
        let row = find(root, key).with_context(|| format!("no row `{key}` in {tree}: {root:#}"))?;
        row["bytes"].as_i64().with_context(|| format!("`{key}` is unknown: {row:#}"))
    }

    pub fn tool(&self, key: &str) -> Result<i64> {
        let tools = self.0["tools"].as_array().context("tools")?;
        let tool = tools.iter().find(|tool| tool["key"] == key).context("the tool")?;
        tool["bytes"].as_i64().with_context(|| format!("{tool:#}"))
    }

    pub fn laws_hold(&self) -> Result<()> {
        let checks = self.0["checks"].as_array().context("checks")?;
        ensure!(!checks.is_empty(), "no law was checked");
        let broken: Vec<&Value> = checks.iter().filter(|check| check["holds"] == false).collect();
        ensure!(broken.is_empty(), "broken: {broken:#?}\n{}", self.0["cgroup"]["figures"]);
        Ok(())
    }

    pub fn is_v2(&self) -> bool {
        self.0["cgroup"]["version"] == 2
    }

    /// A figure of the cgroup, by file and key.
    pub fn figure(&self, name: &str) -> Result<i64> {
        let figure = self.0["cgroup"]["figures"][name].as_i64();
        figure.with_context(|| format!("no `{name}` in {:#}", self.0["cgroup"]))
    }

    pub fn has_law(&self, name: &str) -> bool {
        let checks = self.0["checks"].as_array();
        checks.is_some_and(|all| all.iter().any(|it| it["name"] == name && it["holds"] == true))
    }
}

pub fn find<'a>(row: &'a Value, key: &str) -> Option<&'a Value> {
    if row["key"] == key {
        return Some(row);
    }
    row["rows"].as_array()?.iter().find_map(|child| find(child, key))
}

/// `figure` is what was planted, at least, and no more than `more` above it.
pub fn about(what: &str, figure: i64, planted: i64, more: i64) -> Result<()> {
    ensure!(
        (planted..=planted + more).contains(&figure),
        "{what}: {figure} B, planted {planted} B, at most {more} B more"
    );
    Ok(())
}

pub fn truth_in(logs: &str) -> Result<Option<Value>> {
    match logs.lines().find(|line| line.starts_with('{')) {
        Some(line) => Ok(Some(serde_json::from_str(line)?)),
        None => Ok(None),
    }
}

pub fn truth_of(container: &Container) -> Result<Value> {
    let mut truth = None;
    until("the truth", patience(Duration::from_secs(60)), || {
        truth = truth_in(&container.logs()?)?;
        Ok(truth.is_some())
    })?;
    truth.context("the truth")
}

pub fn ledger_container(name: &str, more: &[&str]) -> Result<(Image, Container)> {
    let program = compile::program("ledger", Kind::C)?;
    let image = Image::of(name, &[&program], &[])?;
    let mut arguments = vec!["--network", "none", "--memory", "256m", "--shm-size", "32m"];
    arguments.extend(["--env", "STAY=1", &image.name, "/ledger", "/tmp"]);
    arguments.extend(more);
    let container = Container::run(name, &arguments)?;
    Ok((image, container))
}

/// `41.3MiB / 256MiB` → 41.3 MiB, and how far the rounding may be off.
pub fn docker_figure(text: &str) -> Result<(f64, f64)> {
    let used = text.split('/').next().context("usage")?.trim();
    let split = used.find(|c: char| c.is_ascii_alphabetic()).context("a unit")?;
    let (number, unit) = used.split_at(split);
    let scale = match unit {
        "B" => 1.0,
        // podman counts in thousands.
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1048576.0,
        "GiB" => 1073741824.0,
        _ => bail!("the unit of `{text}`"),
    };
    let decimals = number.split_once('.').map_or(0, |(_, digits)| digits.len());
    Ok((number.parse::<f64>()? * scale, scale / 10f64.powi(decimals as i32)))
}

/// The state of a container's freezer, from the outside.
pub struct Freezer {
    file: PathBuf,
    thawed: &'static str,
}

impl Freezer {
    pub fn of(pid: u32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        if let Some((_, path)) = text.lines().find_map(|line| line.split_once(":freezer:")) {
            let file = PathBuf::from(format!("/sys/fs/cgroup/freezer{path}/freezer.state"));
            return Ok(Self { file, thawed: "THAWED" });
        }
        let path = text.lines().find_map(|line| line.strip_prefix("0::")).context("no cgroup")?;
        let file = PathBuf::from(format!("/sys/fs/cgroup{path}/cgroup.events"));
        Ok(Self { file, thawed: "frozen 0" })
    }

    /// Frozen, or about to be.
    pub fn is_touched(&self) -> Result<bool> {
        let state = fs::read_to_string(&self.file)
            .with_context(|| format!("read `{}`", self.file.display()))?;
        Ok(!state.lines().any(|line| line.trim() == self.thawed))
    }
}
