//! Container names without a daemon: from the state files that runtimes keep.
//!
//! docker's `config.v2.json`, podman's and CRI-O's `containers.json`, containerd's bundles. What
//! cannot be read is passed over: these files are a second way, and each is another program's own.
//! Only regular files are read: a user's own may be anything.

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::choose::PodName;
use super::engine::clean_name;
use super::{Candidate, is_id, printable};

const CONFIG_BYTES: u64 = 4 << 20;
const STORAGE_BYTES: u64 = 64 << 20;
const MOST_CONTAINERS: usize = 20_000;

/// Where runtimes keep their state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateFiles {
    /// Directories with a directory per container that holds `config.v2.json`.
    pub docker: Vec<PathBuf>,
    /// containers.json files of containers/storage, with the directory that holds, per container,
    /// `userdata/pidfile`.
    pub podman: Vec<(PathBuf, PathBuf)>,
    /// containerd's task directories: NAMESPACE/ID with `config.json` and `init.pid` in them.
    pub containerd: Vec<PathBuf>,
}

impl StateFiles {
    /// The usual places, and docker's `data-root` where its configuration names another.
    pub(super) fn conventional() -> Self {
        let mut docker = vec![
            PathBuf::from("/var/lib/docker/containers"),
            PathBuf::from("/var/snap/docker/common/var-lib-docker/containers"),
        ];
        let daemon = read_bounded(Path::new("/etc/docker/daemon.json"), CONFIG_BYTES);
        if let Some(root) = daemon.ok().and_then(|text| parse_data_root(&text)) {
            docker.insert(0, root.join("containers"));
        }
        let storage = Path::new("/var/lib/containers/storage/overlay-containers");
        let running = Path::new("/run/containers/storage/overlay-containers");
        let containerd = ["/run/containerd", "/run/k3s/containerd", "/run/k0s/containerd"];
        Self {
            docker,
            podman: podman_files(storage, running),
            containerd: containerd
                .map(|state| Path::new(state).join("io.containerd.runtime.v2.task"))
                .to_vec(),
        }
    }

    /// Adds the usual places of a user's own daemons, without root's rights.
    pub(super) fn add_rootless(&mut self, home: &Path, runtime_directory: &Path) {
        let share = home.join(".local/share");
        self.docker.push(share.join("docker/containers"));
        let storage = share.join("containers/storage/overlay-containers");
        let running = runtime_directory.join("containers/overlay-containers");
        self.podman.extend(podman_files(&storage, &running));
    }

    /// Every container that the files tell of.
    pub(super) fn read(&self) -> Vec<Candidate> {
        let mut found = Vec::new();
        for directory in &self.docker {
            for id in ids_in(directory) {
                let path = directory.join(&id).join("config.v2.json");
                let text = read_bounded(&path, CONFIG_BYTES).ok();
                found.extend(text.and_then(|text| parse_docker(id, &text)));
            }
        }
        for (storage, running) in &self.podman {
            let Ok(text) = read_bounded(storage, STORAGE_BYTES) else { continue };
            for mut candidate in parse_podman(&text) {
                let path = running.join(&candidate.id).join("userdata/pidfile");
                candidate.pid = read_pid(&path);
                found.push(candidate);
            }
        }
        for directory in &self.containerd {
            let Ok(namespaces) = std::fs::read_dir(directory) else { continue };
            for namespace in namespaces.flatten().take(MOST_CONTAINERS) {
                let moby = namespace.file_name() == "moby";
                for id in ids_in(&namespace.path()) {
                    let bundle = namespace.path().join(&id);
                    let text = read_bounded(&bundle.join("config.json"), CONFIG_BYTES).ok();
                    let pid = read_pid(&bundle.join("init.pid"));
                    let runtime = if moby { "docker" } else { "containerd" };
                    found.extend(text.and_then(|text| parse_bundle(runtime, id, pid, &text)));
                }
            }
        }
        found
    }
}

/// Containers that outlive a restart of the machine, and those that do not.
fn podman_files(storage: &Path, running: &Path) -> Vec<(PathBuf, PathBuf)> {
    let file = |name: &str| (storage.join(name), running.to_path_buf());
    vec![file("containers.json"), file("volatile-containers.json")]
}

/// Reads a regular file as text, no more than `most` bytes of it; a pipe would block for ever.
fn read_bounded(path: &Path, most: u64) -> std::io::Result<String> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The names of entries that are container ids.
fn ids_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| is_id(name)).take(MOST_CONTAINERS).collect()
}

fn read_pid(path: &Path) -> Option<u32> {
    read_bounded(path, 64).ok()?.trim().parse().ok().filter(|pid| *pid != 0)
}

fn parse_data_root(daemon_json: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Daemon {
        data_root: Option<PathBuf>,
    }
    let daemon: Daemon = serde_json::from_str(daemon_json).ok()?;
    daemon.data_root.filter(|root| root.is_absolute())
}

fn parse_docker(id: String, config_v2: &str) -> Option<Candidate> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct File {
        name: String,
        state: State,
        config: Option<Config>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct State {
        running: bool,
        #[serde(default)]
        paused: bool,
        #[serde(default)]
        pid: i64,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Config {
        image: Option<String>,
    }
    let file: File = serde_json::from_str(config_v2).ok()?;
    let state = match file.state {
        State { running: true, paused: true, .. } => "paused",
        State { running: true, .. } => "running",
        State { .. } => "not running",
    };
    let candidate = Candidate {
        id,
        runtime: "docker".to_string(),
        names: vec![clean_name(&file.name)],
        image: file.config.and_then(|config| config.image).map(|image| printable(&image)),
        state: Some(state.to_string()),
        pid: u32::try_from(file.state.pid).ok().filter(|pid| *pid != 0),
        ..Candidate::default()
    };
    Some(candidate.with_kubelet_name())
}

fn parse_podman(containers_json: &str) -> Vec<Candidate> {
    #[derive(Deserialize)]
    struct Entry {
        id: String,
        names: Option<Vec<String>>,
        metadata: Option<String>,
    }
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(rename = "image-name")]
        image_name: Option<String>,
    }
    let entries: Vec<Entry> = serde_json::from_str(containers_json).unwrap_or_default();
    let candidate = |entry: Entry| {
        let metadata = entry.metadata.and_then(|text| serde_json::from_str::<Metadata>(&text).ok());
        let candidate = Candidate {
            id: entry.id,
            runtime: "podman".to_string(),
            names: entry.names.unwrap_or_default().iter().map(|name| clean_name(name)).collect(),
            image: metadata.and_then(|it| it.image_name).map(|image| printable(&image)),
            ..Candidate::default()
        };
        let mut candidate = candidate.with_kubelet_name();
        if candidate.pod.is_some() {
            candidate.runtime = "cri-o".to_string();
        }
        candidate
    };
    entries.into_iter().filter(|entry| is_id(&entry.id)).map(candidate).collect()
}

/// An OCI bundle of containerd.
fn parse_bundle(
    runtime: &str,
    id: String,
    pid: Option<u32>,
    config_json: &str,
) -> Option<Candidate> {
    #[derive(Deserialize)]
    struct Bundle {
        #[serde(default)]
        annotations: HashMap<String, String>,
    }
    let annotations = serde_json::from_str::<Bundle>(config_json).ok()?.annotations;
    let told = |key: &str| annotations.get(key).map(|value| printable(value));
    let of_pod = |key: &str| told(&format!("io.kubernetes.cri.sandbox-{key}"));
    let pod = of_pod("name").zip(of_pod("namespace"));
    let pod = pod.map(|(name, namespace)| PodName { namespace, name, uid: of_pod("uid") });
    let container = told("io.kubernetes.cri.container-name");
    let mut names = container.map(|name| PodName::names_of(pod.as_ref(), name)).unwrap_or_default();
    names.extend(told("nerdctl/name"));
    Some(Candidate {
        id,
        runtime: runtime.to_string(),
        names,
        image: told("io.kubernetes.cri.image-name"),
        pid,
        is_sandbox: told("io.kubernetes.cri.container-type").as_deref() == Some("sandbox"),
        pod,
        ..Candidate::default()
    })
}

#[cfg(test)]
#[path = "state_files_tests.rs"]
mod tests;
