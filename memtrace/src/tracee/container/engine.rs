//! Docker's Engine API, as Docker and podman answer it on a unix socket: names, images, first pids.
//!
//! The API is spoken without a version in the path, so that each daemon answers in its own. Answers
//! are untrusted: bounded in time and size, ids checked before they become part of a path.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{Candidate, is_id, printable};
use crate::http::{self, HttpError, Limits};

/// A list entry is about 1 KiB: some ten thousand containers.
const ANSWER_BYTES: usize = 16 << 20;

/// A daemon's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// "docker" or "podman"
    pub runtime: &'static str,
    pub socket: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("failed to connect")]
    Connect(#[source] std::io::Error),
    #[error("failed to ask")]
    Http(#[source] HttpError),
    #[error("it answered with status {status}: {message}")]
    Status { status: u16, message: String },
    #[error("its answer is not the Engine API's")]
    Json(#[source] serde_json::Error),
}

impl EngineError {
    /// The socket is there, but not for us.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Self::Connect(error) if error.kind() == ErrorKind::PermissionDenied)
    }
}

/// What the environment and convention say of sockets; the rest of `DOCKER_HOST`'s forms are given
/// back as what cannot be asked.
pub(super) fn conventional(
    environment: impl Fn(&str) -> Option<String>,
) -> (Vec<Engine>, Vec<(String, String)>) {
    let mut engines: Vec<Engine> = Vec::new();
    let mut unasked = Vec::new();
    let mut add = |runtime, socket: String| {
        let socket = PathBuf::from(socket);
        if !engines.iter().any(|engine| engine.socket == socket) {
            engines.push(Engine { runtime, socket });
        }
    };
    let configured = |variable| environment(variable).filter(|value| !value.is_empty());
    for (variable, runtime, usual) in [
        ("DOCKER_HOST", "docker", "/var/run/docker.sock"),
        ("CONTAINER_HOST", "podman", "/run/podman/podman.sock"),
    ] {
        match configured(variable) {
            None => add(runtime, usual.to_string()),
            Some(value) => match value.strip_prefix("unix://") {
                Some(path) => add(runtime, path.to_string()),
                None => unasked.push((
                    format!("{variable}={}", printable(&value)),
                    "only `unix://` sockets are asked: memtrace must run where the containers run"
                        .to_string(),
                )),
            },
        }
    }
    // Rootless daemons of the user who called sudo.
    if let Some(uid) = sudo_user(&environment) {
        add("docker", format!("/run/user/{uid}/docker.sock"));
        add("podman", format!("/run/user/{uid}/podman/podman.sock"));
    }
    (engines, unasked)
}

/// The user who called sudo, when that is another than root.
pub(super) fn sudo_user(environment: impl Fn(&str) -> Option<String>) -> Option<u32> {
    environment("SUDO_UID")?.parse().ok().filter(|uid| *uid != 0)
}

impl Engine {
    /// All containers, running or not.
    pub(super) async fn list(&self, timeout: Duration) -> Result<Vec<Candidate>, EngineError> {
        let body = self.get("/containers/json?all=true", timeout).await?;
        parse_list(self.runtime, &body).map_err(EngineError::Json)
    }

    /// One container by its full id; `None` when there is none.
    pub(super) async fn inspect(
        &self,
        id: &str,
        timeout: Duration,
    ) -> Result<Option<Candidate>, EngineError> {
        match self.get(&format!("/containers/{id}/json"), timeout).await {
            Ok(body) => parse_inspect(self.runtime, &body).map_err(EngineError::Json),
            Err(EngineError::Status { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn get(&self, path: &str, timeout: Duration) -> Result<bytes::Bytes, EngineError> {
        let stream = tokio::time::timeout(timeout, UnixStream::connect(&self.socket))
            .await
            .map_err(|_| EngineError::Http(HttpError::TimedOut(timeout)))?
            .map_err(EngineError::Connect)?;
        let limits = Limits { head_timeout: None, timeout, body_bytes: ANSWER_BYTES };
        let response = http::get(stream, "localhost", path, limits).await;
        let response = response.map_err(EngineError::Http)?;
        if response.status != 200 {
            let message = parse_message(&response.body);
            return Err(EngineError::Status { status: response.status, message });
        }
        Ok(response.body)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListEntry {
    id: String,
    names: Option<Vec<String>>,
    image: Option<String>,
    state: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    name: Option<String>,
    state: Option<InspectedState>,
    config: Option<InspectedConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedState {
    status: Option<String>,
    #[serde(default)]
    pid: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedConfig {
    image: Option<String>,
}

fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(body)
}

fn parse_list(runtime: &str, body: &[u8]) -> Result<Vec<Candidate>, serde_json::Error> {
    let entries: Vec<ListEntry> = from_json(body)?;
    let candidate = |entry: ListEntry| Candidate {
        id: entry.id,
        runtime: runtime.to_string(),
        names: entry.names.unwrap_or_default().iter().map(|name| clean_name(name)).collect(),
        image: entry.image.map(|image| printable(&image)),
        state: entry.state.map(|state| printable(&state)),
        ..Candidate::default()
    };
    let entries = entries.into_iter().filter(|entry| is_id(&entry.id));
    Ok(entries.map(|entry| candidate(entry).with_kubelet_name()).collect())
}

fn parse_inspect(runtime: &str, body: &[u8]) -> Result<Option<Candidate>, serde_json::Error> {
    let inspected: Inspected = from_json(body)?;
    if !is_id(&inspected.id) {
        return Ok(None);
    }
    let pid = inspected.state.as_ref().and_then(|state| u32::try_from(state.pid).ok());
    let candidate = Candidate {
        id: inspected.id,
        runtime: runtime.to_string(),
        names: inspected.name.iter().map(|name| clean_name(name)).collect(),
        image: inspected.config.and_then(|config| config.image).map(|image| printable(&image)),
        state: inspected.state.and_then(|state| state.status).map(|status| printable(&status)),
        pid: pid.filter(|pid| *pid != 0),
        ..Candidate::default()
    };
    Ok(Some(candidate.with_kubelet_name()))
}

/// `{"message": "…"}`, as errors come
fn parse_message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Message {
        message: String,
    }
    match from_json::<Message>(body) {
        Ok(answer) => printable(&answer.message),
        Err(_) => printable(&String::from_utf8_lossy(body.get(..200).unwrap_or(body))),
    }
}

pub(super) fn clean_name(name: &str) -> String {
    printable(name.strip_prefix('/').unwrap_or(name))
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
