//! A Kubernetes pod by its UID or its name, and a container in it.
//!
//! ```text
//! cgroupfs  /kubepods[/burstable|/besteffort]/podUID/ID
//! systemd   /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_I_D.slice/…
//! ```
//!
//! A UID has dashes when it came from the API server, none for a static pod; a slice's name has
//! underscores instead. The path is the one in a process's own cgroup file: empty look-alikes
//! beside it are never met. Names come from the runtime's socket (CRI) or its state files. Limit: the
//! UID of a static pod is the kubelet's; the API server's copy of the pod has another one.

use std::collections::BTreeMap;

use super::cgroup::{parse_memberships, read_cgroup_file};
use super::choose::{self, Candidate, Choice};
use super::{ContainerError, ContainerTarget, Sources, Told, Unanswered, printable, unanswered};

/// A pod that has a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodTarget {
    /// In lower case, with dashes where it had any.
    pub uid: String,
    /// `NAMESPACE/POD`, where the runtime tells it.
    pub name: Option<String>,
    /// Its cgroup, in the hierarchy that accounts for memory.
    pub cgroup_path: String,
    /// Its processes, in our pid namespace; the sandbox's own last.
    pub pids: Vec<u32>,
    /// Its containers and its sandbox, as far as they are known.
    pub containers: Vec<Candidate>,
}

#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error(
        "no pod matches `{asked}` by UID or name{}{}",
        list("; there are", known),
        unanswered(silent)
    )]
    NotFound { asked: String, known: Vec<String>, silent: Vec<Unanswered> },
    #[error(
        "pod {pod} is known to the runtime, but no process here is in its cgroup: it does not run, or it was not made by a kubelet; try `--container` with one of its containers{}",
        choose::candidates("", containers)
    )]
    NoCgroup { pod: String, containers: Vec<Candidate> },
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
        // A kubelet may have a root of its own: `kubelet-kubepods-…`.
        Some(slice) => slice.split_once("kubepods-")?.1.rsplit_once("pod")?.1,
        None => segment.strip_prefix("pod")?,
    };
    let uid = name.replace('_', "-").to_ascii_lowercase();
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let plain = uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    (plain && digits == 32).then_some(uid)
}

/// The pod that `asked` means: a UID (or its beginning, dashes or not), `POD` or `NAMESPACE/POD`.
///
/// Needs a tokio runtime with I/O and time, as [`super::find_container`].
pub async fn find_pod(asked: &str) -> Result<PodTarget, ContainerError> {
    Sources::from_environment().find_pod(asked).await
}

/// The container of a pod: its name there, or the beginning of its id.
pub async fn find_container_in(pod: &str, asked: &str) -> Result<ContainerTarget, ContainerError> {
    Sources::from_environment().find_container_in(pod, asked).await
}

impl Sources {
    /// See [`find_pod`].
    pub async fn find_pod(&self, asked: &str) -> Result<PodTarget, ContainerError> {
        let told = self.gather().await?;
        self.choose_pod(asked, &told)
    }

    /// See [`find_container_in`].
    pub async fn find_container_in(
        &self,
        pod: &str,
        asked: &str,
    ) -> Result<ContainerTarget, ContainerError> {
        let told = self.gather().await?;
        let pod = self.choose_pod(pod, &told)?;
        let mut known = pod.containers.clone();
        let candidate = match choose::choose(asked, &known) {
            Choice::One(candidate) => candidate.clone(),
            Choice::Several(matches) => {
                let matches = matches.into_iter().cloned().collect();
                return Err(ContainerError::Ambiguous { asked: printable(asked), matches });
            }
            Choice::None => {
                choose::sort_by_likeness(asked, &mut known);
                let (asked, pod) = (printable(asked), shown(&pod));
                return Err(ContainerError::NotInPod { asked, pod, known });
            }
        };
        self.locate(candidate, &told.answering, &told.scanned).await
    }

    fn choose_pod(&self, asked: &str, told: &Told<'_>) -> Result<PodTarget, ContainerError> {
        let pods = self.pods(told).into_values().collect();
        choose_pod(asked, pods, &told.silent).map_err(ContainerError::Pod)
    }

    /// Every pod that has a process or that a runtime knows, by its UID without dashes.
    fn pods(&self, told: &Told<'_>) -> BTreeMap<String, PodTarget> {
        let mut pods: BTreeMap<String, PodTarget> = BTreeMap::new();
        // (container, pod)
        let mut members: Vec<(&str, String)> = Vec::new();
        for process in &told.scanned {
            let Ok(text) = read_cgroup_file(&self.proc, process.pid) else { continue };
            let memberships = parse_memberships(&text);
            let Some((uid, path)) = memberships.iter().find_map(|line| pod_in(line.path)) else {
                continue;
            };
            let key = plain(&uid);
            let pod = pods.entry(key.clone()).or_insert_with(|| PodTarget::new(uid));
            pod.cgroup_path = path.to_owned();
            pod.pids.push(process.pid);
            // What is further in is a container's own affair.
            members
                .extend(process.containers.first().map(|outermost| (outermost.id.as_str(), key)));
        }
        for candidate in &told.known {
            let by_process = members.iter().find(|(id, _)| *id == candidate.id);
            let told_uid = candidate.pod.as_ref().and_then(|pod| pod.uid.as_ref());
            let key = match (by_process, told_uid) {
                (Some((_, key)), _) => key.clone(),
                (None, Some(uid)) => plain(uid),
                (None, None) => continue,
            };
            let pod = pods
                .entry(key.clone())
                .or_insert_with(|| PodTarget::new(told_uid.cloned().unwrap_or(key)));
            if pod.name.is_none() {
                pod.name = candidate.pod.as_ref().map(ToString::to_string);
            }
            pod.containers.push(candidate.clone());
        }
        for pod in pods.values_mut() {
            let of_sandbox = |pid: &u32| {
                let process = told.scanned.iter().find(|process| process.pid == *pid);
                let container = process.and_then(|process| process.containers.first());
                let known = &pod.containers;
                container.is_some_and(|it| known.iter().any(|c| c.is_sandbox && c.id == it.id))
            };
            pod.pids.sort_by_cached_key(|pid| (of_sandbox(pid), *pid));
        }
        pods
    }
}

impl PodTarget {
    fn new(uid: String) -> Self {
        let (name, cgroup_path) = (None, String::new());
        Self { uid, name, cgroup_path, pids: Vec::new(), containers: Vec::new() }
    }
}

/// A UID as it is compared.
fn plain(uid: &str) -> String {
    uid.replace(['-', '_'], "").to_ascii_lowercase()
}

/// Those that run are meant before those that the runtime only remembers.
fn choose_pod(
    asked: &str,
    pods: Vec<PodTarget>,
    silent: &[Unanswered],
) -> Result<PodTarget, PodError> {
    let (running, others): (Vec<_>, Vec<_>) =
        pods.into_iter().partition(|pod| !pod.pids.is_empty());
    match choose(asked, &running)? {
        Some(pod) => Ok(pod.clone()),
        None => Err(match choose(asked, &others)? {
            Some(pod) => PodError::NoCgroup { pod: shown(pod), containers: pod.containers.clone() },
            None => PodError::NotFound {
                asked: printable(asked),
                known: running.iter().map(shown).collect(),
                silent: silent.to_vec(),
            },
        }),
    }
}

fn choose<'a>(asked: &str, pods: &'a [PodTarget]) -> Result<Option<&'a PodTarget>, PodError> {
    let uid = asked.strip_prefix("pod").filter(|rest| rest.len() >= 32).unwrap_or(asked);
    let wanted = plain(uid);
    let by_name = |pod: &PodTarget| {
        let Some(name) = &pod.name else { return false };
        name == asked || name.rsplit('/').next() == Some(asked)
    };
    let by_uid = |pod: &PodTarget| plain(&pod.uid) == wanted;
    let by_prefix = |pod: &PodTarget| wanted.len() >= 4 && plain(&pod.uid).starts_with(&wanted);
    let tiers: [&dyn Fn(&PodTarget) -> bool; 3] = [&by_uid, &by_name, &by_prefix];
    for tier in tiers {
        let matches: Vec<_> = pods.iter().filter(|pod| tier(pod)).collect();
        match matches.as_slice() {
            [] => {}
            [one] => return Ok(Some(one)),
            several => {
                let matches = several.iter().map(|pod| shown(pod)).collect();
                return Err(PodError::Ambiguous { asked: printable(asked), matches });
            }
        }
    }
    Ok(None)
}

fn shown(pod: &PodTarget) -> String {
    match &pod.name {
        Some(name) => format!("`{name}` ({})", pod.uid),
        None => format!("`{}`", pod.uid),
    }
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
