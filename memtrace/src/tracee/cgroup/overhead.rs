//! The container runtime's own processes for one container: the shim or monitor that started it,
//! and the proxies of its published ports. Their memory is outside the container's charge.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::Path;

use super::processes::read_rollup;
use super::stat::read_stat;
use crate::sanitize::visible_up_to;
use crate::snapshot::facts::OverheadFacts;
use crate::tracee::container::cgroup::{parse_memberships, read_bounded, read_cgroup_file};

const FILE_BYTES: u64 = 1 << 20;
/// Names of shims and monitors as `/proc/PID/stat` has them, cut at 15 characters.
const MONITORS: [&str; 5] = ["containerd-shim", "conmon", "docker-containe", "crun", "runc"];
const PROXY: &str = "docker-proxy";

/// For the container whose first process is `pid`. What cannot be read is left out.
pub fn overhead_of(proc: &Path, pid: u32) -> Vec<OverheadFacts> {
    let mut found = Vec::new();
    let mut child = pid;
    // A process that a shell started is no container's: its parent is no monitor.
    for _ in 0..4 {
        let Ok(Some(stat)) = read_stat(&proc.join(child.to_string())) else { break };
        let parent = stat.parent;
        let Ok(Some(of_parent)) = read_stat(&proc.join(parent.to_string())) else { break };
        if MONITORS.iter().any(|name| of_parent.comm.starts_with(name)) {
            let evidence = format!("parent of the container's first process {pid}");
            found.push(facts(proc, parent, &of_parent.comm, evidence));
        } else if parent <= 1 {
            break;
        }
        child = parent;
    }
    found.extend(proxies(proc, pid));
    found
}

fn facts(proc: &Path, pid: u32, comm: &str, evidence: String) -> OverheadFacts {
    let cgroup_path = read_cgroup_file(proc, pid).ok().and_then(|text| {
        parse_memberships(&text).first().map(|line| visible_up_to(line.path, 4096).into_owned())
    });
    OverheadFacts {
        pid,
        comm: comm.to_owned(),
        evidence,
        cgroup_path: cgroup_path.unwrap_or_else(|| "an unknown cgroup".to_owned()),
        rollup: read_rollup(&proc.join(pid.to_string()), pid),
    }
}

/// `docker-proxy -container-ip 172.17.0.2 …`, where that address is the container's.
fn proxies(proc: &Path, pid: u32) -> Vec<OverheadFacts> {
    let table = proc.join(pid.to_string()).join("net/fib_trie");
    let addresses =
        read_bounded(&table, FILE_BYTES).map_or(HashSet::new(), |text| local_addresses(&text));
    if addresses.is_empty() {
        return Vec::new();
    }
    let Ok(entries) = std::fs::read_dir(proc) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(other) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(Some(stat)) = read_stat(&entry.path()) else { continue };
        if stat.comm != PROXY {
            continue;
        }
        let Ok(command) = read_bounded(&entry.path().join("cmdline"), FILE_BYTES) else { continue };
        if let Some(address) = proxied(&command).filter(|address| addresses.contains(address)) {
            let evidence = format!("publishes a port of {address}");
            found.push(facts(proc, other, &stat.comm, evidence));
        }
    }
    found
}

fn proxied(command: &str) -> Option<Ipv4Addr> {
    let mut words = command.split('\0');
    words.find(|word| *word == "-container-ip")?;
    words.next()?.parse().ok()
}

/// Addresses that are the namespace's own: a line `|-- ADDRESS` before `/32 host LOCAL`.
fn local_addresses(fib_trie: &str) -> HashSet<Ipv4Addr> {
    let mut last = None;
    let mut found = HashSet::new();
    for line in fib_trie.lines() {
        let line = line.trim_start();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.trim().parse::<Ipv4Addr>().ok();
        } else if line.contains("host LOCAL")
            && let Some(address) = last.filter(|address| !address.is_loopback())
        {
            found.insert(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_known_by_the_address_it_publishes() {
        let command = "/usr/bin/docker-proxy\0-proto\0tcp\0-host-ip\0 0.0.0.0\0-container-ip\x00172.17.0.2\0-container-port\x0080\0";
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
                    Local:\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 172.17.0.2\n        /32 host LOCAL\n     |-- 172.17.255.255\n        /32 link BROADCAST\n";
        let own = local_addresses(trie);
        assert_eq!(own, HashSet::from([Ipv4Addr::new(172, 17, 0, 2)]));
        assert!(own.contains(&proxied(command).unwrap()));
        assert_eq!(proxied("/usr/bin/docker-proxy\0-container-ip"), None);
        assert_eq!(proxied("x\0-container-ip\0host.name"), None);
    }
}
