//! The Kubernetes Container Runtime Interface, as containerd and CRI-O answer it on a unix socket:
//! pods, their containers, names and states.
//!
//! Two calls, both lists. Only the fields that are read are declared. Answers are untrusted: bounded
//! in time and size, ids checked, names made fit for a terminal. A first pid is not asked for:
//! it is only in a text for debugging; the cgroups tell it.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::UnixStream;

use super::choose::PodName;
use super::{Candidate, is_id, printable};
use crate::grpc::{self, GrpcError};

/// A container with its labels is about 1 KiB.
const ANSWER_BYTES: usize = 16 << 20;
/// The second is what containerd before 1.6 and CRI-O before 1.20 speak; the fields are the same.
const SERVICES: [&str; 2] = ["runtime.v1.RuntimeService", "runtime.v1alpha2.RuntimeService"];

/// Where crictl is told its socket.
pub(super) const VARIABLE: &str = "CONTAINER_RUNTIME_ENDPOINT";
const USUAL: [&str; 6] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/cri-dockerd.sock",
];

/// A runtime's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CriSocket {
    pub path: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum CriError {
    #[error("failed to connect")]
    Connect(#[source] std::io::Error),
    #[error("failed to ask by CRI")]
    Call(#[source] GrpcError),
}

impl CriError {
    /// The socket is there, but not for us.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Self::Connect(error) if error.kind() == ErrorKind::PermissionDenied)
    }

    /// A containerd without the plugin, as Docker runs it: it has no pods to tell of.
    pub(super) fn is_without_cri(&self) -> bool {
        matches!(self, Self::Call(error) if error.is_unimplemented())
    }
}

/// The sockets of [`VARIABLE`], or those of convention that exist; what cannot be asked beside.
pub(super) fn conventional(
    environment: impl Fn(&str) -> Option<String>,
) -> (Vec<CriSocket>, Option<(String, String)>) {
    let Some(value) = environment(VARIABLE).filter(|value| !value.is_empty()) else {
        let usual = USUAL.iter().map(PathBuf::from).filter(|path| path.exists());
        return (usual.map(|path| CriSocket { path }).collect(), None);
    };
    // crictl takes a plain path as well.
    let path = value.strip_prefix("unix://").unwrap_or(&value);
    if path.starts_with('/') {
        return (vec![CriSocket { path: path.into() }], None);
    }
    let why = "only unix sockets are asked: memtrace must run where the containers run";
    (Vec::new(), Some((format!("{VARIABLE}={}", printable(&value)), why.to_owned())))
}

impl CriSocket {
    /// All containers and sandboxes, running or not. `timeout` is for each of two calls.
    pub(super) async fn list(&self, timeout: Duration) -> Result<Vec<Candidate>, CriError> {
        let mut last = None;
        for service in SERVICES {
            match self.list_by(service, timeout).await {
                Err(error) if error.is_without_cri() => last = Some(error),
                answered => return answered,
            }
        }
        match last {
            Some(error) => Err(error),
            None => Ok(Vec::new()),
        }
    }

    async fn list_by(&self, service: &str, timeout: Duration) -> Result<Vec<Candidate>, CriError> {
        let everything = All {};
        let sandboxes: Sandboxes =
            self.call(&format!("/{service}/ListPodSandbox"), &everything, timeout).await?;
        let containers: Containers =
            self.call(&format!("/{service}/ListContainers"), &everything, timeout).await?;
        Ok(candidates(self.runtime(), sandboxes, containers))
    }

    /// One call with one answer.
    pub async fn call<Q, A>(
        &self,
        path: &str,
        question: &Q,
        timeout: Duration,
    ) -> Result<A, CriError>
    where
        Q: prost::Message,
        A: prost::Message + Default,
    {
        let stream = tokio::time::timeout(timeout, UnixStream::connect(&self.path))
            .await
            .map_err(|_| CriError::Call(GrpcError::TimedOut(timeout)))?
            .map_err(CriError::Connect)?;
        grpc::call(stream, path, question, timeout, ANSWER_BYTES).await.map_err(CriError::Call)
    }

    fn runtime(&self) -> &'static str {
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match name {
            name if name.contains("crio") => "cri-o",
            name if name.contains("dockerd") => "docker",
            _ => "containerd",
        }
    }
}

/// A request without a filter.
#[derive(Clone, PartialEq, prost::Message)]
struct All {}

#[derive(Clone, PartialEq, prost::Message)]
struct Sandboxes {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Sandbox>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sandbox {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<SandboxMetadata>,
    /// 0 ready, 1 not ready
    #[prost(int32, tag = "3")]
    state: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Containers {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<CriContainer>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CriContainer {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    sandbox: String,
    #[prost(message, optional, tag = "3")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "4")]
    image: Option<Image>,
    /// 0 created, 1 running, 2 exited, 3 unknown
    #[prost(int32, tag = "6")]
    state: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Image {
    #[prost(string, tag = "1")]
    image: String,
}

fn candidates(runtime: &str, sandboxes: Sandboxes, containers: Containers) -> Vec<Candidate> {
    let mut found = Vec::new();
    let mut pods: HashMap<String, PodName> = HashMap::new();
    for sandbox in sandboxes.items.into_iter().filter(|it| is_id(&it.id)) {
        let pod = sandbox.metadata.map(|told| PodName {
            namespace: printable(&told.namespace),
            name: printable(&told.name),
            uid: Some(printable(&told.uid)).filter(|uid| !uid.is_empty()),
        });
        if let Some(pod) = &pod {
            pods.insert(sandbox.id.clone(), pod.clone());
        }
        found.push(Candidate {
            id: sandbox.id,
            runtime: runtime.to_owned(),
            state: Some(if sandbox.state == 0 { "running" } else { "exited" }.to_owned()),
            pod,
            is_sandbox: true,
            ..Candidate::default()
        });
    }
    for container in containers.containers.into_iter().filter(|it| is_id(&it.id)) {
        let pod = pods.get(&container.sandbox).cloned();
        let name = container.metadata.map(|told| printable(&told.name));
        let name = name.filter(|name| !name.is_empty());
        let state = match container.state {
            0 => Some("created"),
            1 => Some("running"),
            2 => Some("exited"),
            _ => None,
        };
        found.push(Candidate {
            id: container.id,
            runtime: runtime.to_owned(),
            names: name.map(|name| PodName::names_of(pod.as_ref(), name)).unwrap_or_default(),
            image: container.image.map(|it| printable(&it.image)).filter(|it| !it.is_empty()),
            state: state.map(str::to_owned),
            pod,
            ..Candidate::default()
        });
    }
    found
}

#[cfg(test)]
#[path = "cri_tests.rs"]
mod tests;
