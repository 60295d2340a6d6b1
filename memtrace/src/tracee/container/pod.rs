//! A Kubernetes pod by its UID or its name, from cgroup paths and containerd's bundles.
//!
//! ```text
//! cgroupfs  /kubepods[/burstable|/besteffort]/podUID/ID
//! systemd   /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_I_D.slice/…
//! ```
//!
//! A UID has dashes when it came from the API server, none for a static pod; a slice's name has
//! underscores instead. The path is the one in a process's own cgroup file: empty look-alikes
//! beside it are never met. Limit: a pod's name is known where containerd's bundles can be read.

use std::collections::BTreeMap;
use std::path::Path;

use super::cgroup::{self, parse_memberships, read_cgroup_file};
use super::state_files::StateFiles;

/// A pod that has a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodTarget {
    /// In lower case, with dashes where it had any.
    pub uid: String,
    /// `NAMESPACE/POD`, where containerd tells it.
    pub name: Option<String>,
    /// Its cgroup, in the hierarchy that accounts for memory.
    pub cgroup_path: String,
    /// Its processes, in our pid namespace.
    pub pids: Vec<u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error("failed to list processes in `{proc}`")]
    Proc {
        proc: String,
        #[source]
        source: std::io::Error,
    },
    #[error("no pod matches `{asked}` by UID or name{}", list("; there are", known))]
    NotFound { asked: String, known: Vec<String> },
    #[error(
        "several pods match `{asked}`{}; give more of the UID, or NAMESPACE/NAME",
        list("", matches)
    )]
    Ambiguous { asked: String, matches: Vec<String> },
}

const SHOWN: usize = 8;

fn list(intro: &str, pods: &[String]) -> String {
    if pods.is_empty() {
        return String::new();
    }
    let shown: Vec<_> = pods.iter().take(SHOWN).map(String::as_str).collect();
    let more = match pods.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{intro}: {}{more}", shown.join(", "))
}

/// The pod in a cgroup path: its UID, and the path up to it.
pub fn pod_in(path: &str) -> Option<(String, &str)> {
    let mut end = 0;
    for segment in path.split('/') {
        end += segment.len() + 1;
        if let Some(uid) = uid_of(segment) {
            return Some((uid, path.get(..end - 1)?));
        }
    }
    None
}

/// `podUID`, `kubepods-burstable-podU_I_D.slice`
fn uid_of(segment: &str) -> Option<String> {
    let name = match segment.strip_suffix(".slice") {
        Some(slice) => slice.strip_prefix("kubepods-")?.rsplit_once("pod")?.1,
        None => segment.strip_prefix("pod")?,
    };
    let uid = name.replace('_', "-").to_ascii_lowercase();
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let plain = uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    (plain && digits == 32).then_some(uid)
}

/// The pod that `asked` means: a UID (or its beginning, dashes or not), `POD` or `NAMESPACE/POD`.
pub fn find_pod(asked: &str) -> Result<PodTarget, PodError> {
    find_in(Path::new("/proc"), &StateFiles::conventional(), asked)
}

fn find_in(proc: &Path, state_files: &StateFiles, asked: &str) -> Result<PodTarget, PodError> {
    let mut pods: BTreeMap<String, PodTarget> = BTreeMap::new();
    let mut containers: Vec<(String, String)> = Vec::new();
    let scanned = cgroup::scan(proc)
        .map_err(|source| PodError::Proc { proc: proc.display().to_string(), source })?;
    for process in scanned {
        let Ok(text) = read_cgroup_file(proc, process.pid) else { continue };
        let memberships = parse_memberships(&text);
        let Some((uid, path)) = memberships.iter().find_map(|line| pod_in(line.path)) else {
            continue;
        };
        let pod = pods.entry(uid.clone()).or_insert_with(|| PodTarget {
            uid: uid.clone(),
            name: None,
            cgroup_path: path.to_owned(),
            pids: Vec::new(),
        });
        pod.pids.push(process.pid);
        containers.extend(process.containers.into_iter().map(|named| (named.id, uid.clone())));
    }
    for candidate in state_files.read() {
        let Some((_, uid)) = containers.iter().find(|(id, _)| *id == candidate.id) else {
            continue;
        };
        // NAMESPACE/POD/CONTAINER
        let full = candidate.names.iter().find(|name| name.matches('/').count() == 2);
        let name = full.and_then(|name| name.rsplit_once('/')).map(|(pod, _)| pod.to_owned());
        if let Some(pod) = pods.get_mut(uid)
            && pod.name.is_none()
        {
            pod.name = name;
        }
    }
    choose(asked, pods.into_values().collect())
}

fn choose(asked: &str, pods: Vec<PodTarget>) -> Result<PodTarget, PodError> {
    let plain = |text: &str| text.replace(['-', '_'], "").to_ascii_lowercase();
    let wanted = plain(asked.strip_prefix("pod").filter(|rest| rest.len() >= 32).unwrap_or(asked));
    let by_name = |pod: &PodTarget| {
        let Some(name) = &pod.name else { return false };
        name == asked || name.rsplit('/').next() == Some(asked)
    };
    let by_uid = |pod: &PodTarget| plain(&pod.uid) == wanted;
    let by_prefix = |pod: &PodTarget| wanted.len() >= 4 && plain(&pod.uid).starts_with(&wanted);
    let tiers: [&dyn Fn(&PodTarget) -> bool; 3] = [&by_uid, &by_name, &by_prefix];
    for tier in tiers {
        let mut matches: Vec<PodTarget> = pods.iter().filter(|pod| tier(pod)).cloned().collect();
        match matches.len() {
            0 => {}
            1 => return Ok(matches.remove(0)),
            _ => {
                let matches = matches.iter().map(shown).collect();
                return Err(PodError::Ambiguous { asked: asked.to_owned(), matches });
            }
        }
    }
    Err(PodError::NotFound { asked: asked.to_owned(), known: pods.iter().map(shown).collect() })
}

fn shown(pod: &PodTarget) -> String {
    match &pod.name {
        Some(name) => format!("`{name}` ({})", pod.uid),
        None => format!("`{}`", pod.uid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "06cdedde911e3e27546992f6ba02104cabf3eaf1ce9809e8aa02c16c7b390f6b";

    #[test]
    fn both_drivers_name_the_pod() {
        let cgroupfs = format!("/kubepods/burstable/pod11111111-2222-3333-4444-555555555555/{ID}");
        let (uid, path) = pod_in(&cgroupfs).unwrap();
        assert_eq!(uid, "11111111-2222-3333-4444-555555555555");
        assert_eq!(path, "/kubepods/burstable/pod11111111-2222-3333-4444-555555555555");

        let systemd = format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod11111111_2222_3333_4444_555555555555.slice/cri-containerd-{ID}.scope"
        );
        let (uid, path) = pod_in(&systemd).unwrap();
        assert_eq!(uid, "11111111-2222-3333-4444-555555555555");
        assert!(path.ends_with("_555555555555.slice"), "{path}");

        let guaranteed = format!("/kubepods/poddb2eeb7a73034a710a6a7f3b931698d5/{ID}");
        assert_eq!(pod_in(&guaranteed).unwrap().0, "db2eeb7a73034a710a6a7f3b931698d5");
        let slice = "/kubepods.slice/kubepods-poddb2eeb7a73034a710a6a7f3b931698d5.slice/x";
        assert_eq!(pod_in(slice).unwrap().0, "db2eeb7a73034a710a6a7f3b931698d5");
    }

    #[test]
    fn what_only_looks_like_a_pod_is_none() {
        for path in ["/docker/x", "/podman", "/pods/podcast", "/kubepods/burstable", "/"] {
            assert_eq!(pod_in(path), None, "{path}");
        }
    }

    fn pod(uid: &str, name: &str) -> PodTarget {
        PodTarget {
            uid: uid.to_owned(),
            name: Some(name.to_owned()),
            cgroup_path: String::new(),
            pids: Vec::new(),
        }
    }

    #[test]
    fn a_pod_is_found_by_uid_name_or_the_beginning_of_its_uid() {
        let pods = || {
            vec![
                pod("db2eeb7a73034a710a6a7f3b931698d5", "default/web"),
                pod("11111111-2222-3333-4444-555555555555", "shop/db"),
                pod("99999999-2222-3333-4444-555555555555", "test/db"),
            ]
        };
        for asked in ["db2e", "web", "default/web", "poddb2eeb7a73034a710a6a7f3b931698d5"] {
            assert_eq!(choose(asked, pods()).unwrap().name.as_deref(), Some("default/web"));
        }
        let found = choose("11111111222233334444555555555555", pods()).unwrap();
        assert_eq!(found.name.as_deref(), Some("shop/db"));
        assert!(matches!(choose("db", pods()), Err(PodError::Ambiguous { .. })));
        let missing = choose("cache", pods()).unwrap_err().to_string();
        assert!(missing.contains("shop/db"), "{missing}");
    }
}
