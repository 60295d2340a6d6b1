//! A containerd of its own for the live tests, with its CRI plugin: pods as a kubelet makes them, from
//! images built here. Root, state and socket lie in a temporary directory; all is gone when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use memtrace::tracee::container::CriSocket;
use sha2::{Digest, Sha256};

use crate::compile::{self, Kind};
use crate::docker::lay_out;
use crate::wait::{patience, until};

const PAUSE: &str = "memtrace.test/pause:1";
const LIMIT: Duration = Duration::from_secs(60);

pub struct Containerd {
    directory: tempfile::TempDir,
    daemon: Child,
    runtime: tokio::runtime::Runtime,
    /// Sandboxes, with the cgroup of each pod.
    pods: Vec<(String, String)>,
}

/// A pod that runs.
pub struct Pod {
    pub namespace: &'static str,
    pub name: String,
    pub uid: String,
    sandbox: String,
    config: SandboxConfig,
}

impl Pod {
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl Containerd {
    pub fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name).display().to_string();
        let configuration = format!(
            r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{opt}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{opt}"
    conf_dir = "{opt}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"#,
            root = at("root"),
            state = at("state"),
            socket = at("containerd.sock"),
            opt = at("opt"),
        );
        fs::write(directory.path().join("config.toml"), configuration)?;
        let log = fs::File::create(directory.path().join("log"))?;
        let daemon = Command::new("containerd")
            .arg("--config")
            .arg(directory.path().join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("run containerd: `cargo xtask setup` installs it")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut containerd = Self { directory, daemon, runtime, pods: Vec::new() };
        let ready = until("containerd's CRI", patience(LIMIT), || {
            if let Some(status) = containerd.daemon.try_wait()? {
                bail!("containerd ended with {status}");
            }
            Ok(containerd.call::<_, Nothing>("Version", &Nothing {}).is_ok())
        });
        ready.with_context(|| containerd.log())?;
        let pause = compile::program("pause", Kind::CStaticMusl)?;
        containerd.import(PAUSE, &pause)?;
        Ok(containerd)
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("containerd.sock")
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(8).collect();
        format!("containerd's last lines, the last first:\n{}", lines.join("\n"))
    }

    /// An image of this executable, started by default, and the libraries that it needs.
    pub fn import(&self, image: &str, executable: &Path) -> Result<()> {
        let root = lay_out(&[executable], &[])?;
        let mut layer = tar::Builder::new(Vec::new());
        layer.append_dir_all(".", root.path())?;
        let layer = layer.into_inner()?;
        let digest: String =
            Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
        let name = executable.file_name().and_then(|name| name.to_str()).context("a name")?;
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "config": { "Entrypoint": [format!("/{name}")] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        });
        let manifest = serde_json::json!([
            { "Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"] }
        ]);
        let mut archive = tar::Builder::new(Vec::new());
        let files = [
            ("config.json", config.to_string().into_bytes()),
            ("layer.tar", layer),
            ("manifest.json", manifest.to_string().into_bytes()),
        ];
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, bytes.as_slice())?;
        }
        let file = self.directory.path().join("image.tar");
        fs::write(&file, archive.into_inner()?)?;
        let output = Command::new("ctr")
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io", "images", "import", "--snapshotter", "native"])
            .arg(&file)
            .output()
            .context("run ctr")?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "ctr images import {image}: {error}");
        Ok(())
    }

    /// A pod with the host's network, in a cgroup as the kubelet's cgroupfs driver names it.
    pub fn pod(&mut self, namespace: &'static str, name: &str) -> Result<Pod> {
        let number = self.pods.len();
        let uid = format!("{:08x}-2222-4333-8444-{number:012x}", std::process::id());
        let cgroup = format!("/kubepods/burstable/pod{uid}");
        let metadata = SandboxMetadata {
            name: name.to_owned(),
            uid: uid.clone(),
            namespace: namespace.to_owned(),
            attempt: 0,
        };
        let config = SandboxConfig {
            metadata: Some(metadata),
            linux: Some(SandboxLinux {
                cgroup_parent: cgroup.clone(),
                security: Some(SandboxSecurity { namespaces: Some(Namespaces::host_network()) }),
            }),
        };
        let question = RunSandbox { config: Some(config.clone()) };
        let answer: Id = self.call("RunPodSandbox", &question)?;
        self.pods.push((answer.id.clone(), cgroup));
        Ok(Pod { namespace, name: name.to_owned(), uid, sandbox: answer.id, config })
    }

    /// Starts a container of the pod; its id.
    pub fn container(&self, pod: &Pod, name: &str, image: &str, args: &[&str]) -> Result<String> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: image.to_owned() }),
            args: args.iter().map(|&argument| argument.to_owned()).collect(),
            linux: Some(ContainerLinux {
                security: Some(ContainerSecurity { namespaces: Some(Namespaces::host_network()) }),
            }),
        };
        let question = CreateContainer {
            sandbox: pod.sandbox.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let created: Id = self.call("CreateContainer", &question)?;
        let _started: Nothing = self.call("StartContainer", &created)?;
        Ok(created.id)
    }

    fn call<Q, A>(&self, method: &str, question: &Q) -> Result<A>
    where
        Q: prost::Message,
        A: prost::Message + Default,
    {
        let path = format!("/runtime.v1.RuntimeService/{method}");
        let socket = CriSocket { path: self.socket() };
        let answer = self.runtime.block_on(socket.call(&path, question, patience(LIMIT)));
        answer.with_context(|| format!("{method}; {}", self.log()))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for (id, cgroup) in std::mem::take(&mut self.pods) {
            let id = Id { id };
            for method in ["StopPodSandbox", "RemovePodSandbox"] {
                if let Err(error) = self.call::<_, Nothing>(method, &id) {
                    eprintln!("{error:#}");
                }
            }
            // One hierarchy for each controller on v1, one for all on v2.
            let below = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
            let roots = below.map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]);
            for root in roots {
                // What is not there, or is still another's, stays.
                let mut directory = root.join(cgroup.trim_start_matches('/'));
                while directory != root && fs::remove_dir(&directory).is_ok() {
                    directory.pop();
                }
            }
        }
        _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.daemon.id().cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        );
        if crate::wait::for_exit(&mut self.daemon, "containerd", patience(LIMIT)).is_err() {
            _ = self.daemon.kill();
            _ = self.daemon.wait();
        }
    }
}

// The fields of CRI's messages that are used here.

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

/// A request or an answer with an id and nothing else.
#[derive(Clone, PartialEq, prost::Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RunSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<SandboxMetadata>,
    #[prost(message, optional, tag = "8")]
    linux: Option<SandboxLinux>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(uint32, tag = "4")]
    attempt: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxLinux {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security: Option<SandboxSecurity>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Namespaces {
    /// 0 the pod's, 1 the container's, 2 the host's
    #[prost(int32, tag = "1")]
    network: i32,
}

impl Namespaces {
    fn host_network() -> Self {
        Self { network: 2 }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "4")]
    args: Vec<String>,
    #[prost(message, optional, tag = "15")]
    linux: Option<ContainerLinux>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    attempt: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerLinux {
    #[prost(message, optional, tag = "2")]
    security: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "3")]
    namespaces: Option<Namespaces>,
}
