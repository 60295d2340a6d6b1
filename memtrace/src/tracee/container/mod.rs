//! From a container's name or id prefix to its processes, and back.
//!
//! First the daemons' sockets are asked; what they do not know is looked for in the cgroups of all
//! processes and in the runtimes' state files. Nobody's word is taken for a pid: the process must
//! be in a cgroup that names the container. Limits: containers without a 64-digit id (LXC,
//! systemd-nspawn) are not known by name; use their pid.

pub(in crate::tracee) mod cgroup;
mod choose;
mod engine;
pub mod pod;
mod state_files;

use std::path::PathBuf;
use std::time::Duration;

pub use choose::Candidate;
pub use engine::{Engine, EngineError};
pub use state_files::StateFiles;

use crate::sanitize::visible_up_to;
use crate::snapshot::Container;
use choose::{Choice, choose, merge};

/// The processes of a cgroup, by its directory, and of all cgroups below it, in ascending order.
pub fn processes_below(directory: &std::path::Path) -> Vec<u32> {
    let mut pids = cgroup::read_processes_below(directory);
    pids.sort_unstable();
    pids.dedup();
    pids
}

const ID_DIGITS: usize = 64;
/// Most characters of a name or image that are kept.
const NAME_CHARACTERS: usize = 256;
/// How long one daemon may take for one answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// The same where the answer is only a nicety.
const QUICK_TIMEOUT: Duration = Duration::from_millis(500);

/// A running container, found.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerTarget {
    pub container: Container,
    /// The container's first process, in our pid namespace.
    pub first_pid: u32,
    /// All of its processes, those of containers inside it included; `first_pid` first.
    pub all_pids: Vec<u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error(
        "no container matches `{asked}` by name or id prefix{}{}",
        choose::candidates("; there are", known),
        unanswered(silent)
    )]
    NotFound {
        asked: String,
        /// Some of the containers there are, the most similar first.
        known: Vec<Candidate>,
        silent: Vec<Unanswered>,
    },
    #[error(
        "several containers match `{asked}`{}; give the name or more of the id",
        choose::candidates("", matches)
    )]
    Ambiguous { asked: String, matches: Vec<Candidate> },
    #[error(
        "container {candidate} is not running; start it, or trace its command with `-- COMMAND`"
    )]
    NotRunning { candidate: Box<Candidate> },
    #[error("permission to ask `{}` for container `{asked}` was denied, and no cgroup or state file tells of it{}; run memtrace as root", socket.display(), choose::candidates("; there are", known))]
    SocketDenied { asked: String, socket: PathBuf, known: Vec<Candidate> },
    #[error("container {candidate} is running, but {} here; run memtrace in the host's pid namespace (in a container: `--pid=host`), or give `--pid`", not_visible(*pid))]
    NotVisible {
        candidate: Box<Candidate>,
        /// What the runtime says is its first process.
        pid: Option<u32>,
    },
    #[error("failed to list processes in `{}`", proc.display())]
    Proc {
        proc: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Who did not help, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unanswered {
    pub who: String,
    pub why: String,
}

fn unanswered(silent: &[Unanswered]) -> String {
    if silent.is_empty() {
        return String::new();
    }
    let each: Vec<_> = silent.iter().map(|it| format!("`{}` ({})", it.who, it.why)).collect();
    format!("; not answered: {}", each.join(", "))
}

fn not_visible(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("its first process {pid} is not visible (or not in its cgroup)"),
        None => "none of its processes is visible".to_string(),
    }
}

/// Whom to ask. [`Sources::from_environment`] is what users get; tests bring their own.
#[derive(Clone, Debug)]
pub struct Sources {
    pub engines: Vec<Engine>,
    /// Daemons that are configured but cannot be asked.
    pub unasked: Vec<Unanswered>,
    pub state_files: StateFiles,
    pub proc: PathBuf,
}

impl Sources {
    /// The sockets of `DOCKER_HOST`, `CONTAINER_HOST` and convention, the usual state files.
    pub fn from_environment() -> Self {
        Self::from_variables(|variable| std::env::var(variable).ok())
    }

    /// As [`Self::from_environment`], with the environment given.
    pub fn from_variables(environment: impl Fn(&str) -> Option<String>) -> Self {
        let (engines, unasked) = engine::conventional(environment);
        let unasked = unasked.into_iter().map(|(who, why)| Unanswered { who, why }).collect();
        let state_files = StateFiles::conventional();
        Self { engines, unasked, state_files, proc: PathBuf::from("/proc") }
    }
}

/// The running container that `asked` (a name or an id prefix) means.
///
/// An exact id beats an exact name beats an id prefix. Needs a tokio runtime with I/O and time;
/// each daemon has 3 s for each of two answers.
pub async fn find_container(asked: &str) -> Result<ContainerTarget, ContainerError> {
    Sources::from_environment().find(asked).await
}

/// The container that process `pid` is in; the innermost where they are nested.
///
/// Runtime and id come from the cgroup path. Name and image are added if a daemon tells them
/// within half a second, or a state file does; not for a container inside another.
pub async fn container_of(pid: u32) -> Option<Container> {
    Sources::from_environment().container_of(pid).await
}

impl Sources {
    /// See [`find_container`].
    pub async fn find(&self, asked: &str) -> Result<ContainerTarget, ContainerError> {
        let wanted = asked.strip_prefix('/').unwrap_or(asked);
        let mut silent = self.unasked.clone();
        let mut denied = None;
        let mut known = Vec::new();
        let mut answering = Vec::new();
        for engine in &self.engines {
            match engine.list(ASK_TIMEOUT).await {
                Ok(listed) => {
                    answering.push(engine);
                    merge(&mut known, listed);
                }
                Err(error) => {
                    if error.is_denied() {
                        denied.get_or_insert_with(|| engine.socket.clone());
                    }
                    let who = engine.socket.display().to_string();
                    silent.push(Unanswered { who, why: chain(&error) });
                }
            }
        }
        // A daemon's exact match needs no second opinion; a prefix could be of another runtime's.
        let exact = |it: &Candidate| it.id == wanted || it.names.iter().any(|name| name == wanted);
        let scanned = cgroup::scan(&self.proc)
            .map_err(|source| ContainerError::Proc { proc: self.proc.clone(), source })?;
        if !known.iter().any(exact) {
            merge(&mut known, self.state_files.read());
            merge(&mut known, scanned.iter().flat_map(from_cgroup).collect());
        }
        let asked = printable(asked);
        let candidate = match choose(wanted, &known) {
            Choice::One(candidate) => candidate.clone(),
            Choice::Several(matches) => {
                let matches = matches.into_iter().cloned().collect();
                return Err(ContainerError::Ambiguous { asked, matches });
            }
            Choice::None => {
                choose::sort_by_likeness(wanted, &mut known);
                return Err(match denied {
                    Some(socket) => ContainerError::SocketDenied { asked, socket, known },
                    None => ContainerError::NotFound { asked, known, silent },
                });
            }
        };
        self.locate(candidate, &answering, &scanned).await
    }

    /// The processes of a container that was chosen.
    async fn locate(
        &self,
        mut candidate: Candidate,
        engines: &[&Engine],
        scanned: &[cgroup::Contained],
    ) -> Result<ContainerTarget, ContainerError> {
        // The list tells no pid, and its state may be of a moment ago.
        if let Some(told) = inspect(engines, &candidate.id, ASK_TIMEOUT).await {
            candidate.state = told.state.or(candidate.state);
            candidate.pid = told.pid;
        }
        let told = candidate.pid.filter(|pid| {
            let text = cgroup::read_cgroup_file(&self.proc, *pid);
            text.is_ok_and(|text| cgroup::names_id(&text, &candidate.id))
        });
        let first = told.or_else(|| cgroup::first_process(&self.proc, &candidate.id, scanned));
        let Some(first_pid) = first else {
            let candidate = Box::new(candidate);
            return Err(if candidate.is_running() {
                ContainerError::NotVisible { pid: candidate.pid, candidate }
            } else {
                ContainerError::NotRunning { candidate }
            });
        };
        let all_pids = cgroup::processes_of(&self.proc, &candidate.id, first_pid);
        Ok(ContainerTarget { container: candidate.into(), first_pid, all_pids })
    }

    /// See [`container_of`].
    pub async fn container_of(&self, pid: u32) -> Option<Container> {
        let text = cgroup::read_cgroup_file(&self.proc, pid).ok()?;
        let mut containers = cgroup::containers_of(&text);
        let named = containers.pop()?;
        // A container inside another is not this host's daemons': what they say of an id that a
        // container chose for a cgroup of its own would be somebody else's name.
        let told = if containers.is_empty() { self.told_of(&named.id).await } else { None };
        Some(match told {
            Some(told) => told.into(),
            None => Container {
                runtime: named.runtime.to_string(),
                id: named.id,
                name: None,
                image: None,
            },
        })
    }

    async fn told_of(&self, id: &str) -> Option<Candidate> {
        let engines: Vec<_> = self.engines.iter().collect();
        match inspect(&engines, id, QUICK_TIMEOUT).await {
            Some(told) => Some(told),
            None => self.state_files.read().into_iter().find(|it| it.id == id),
        }
    }
}

/// What the first daemon that knows it says of a container.
async fn inspect(engines: &[&Engine], id: &str, timeout: Duration) -> Option<Candidate> {
    for engine in engines {
        if let Ok(Some(told)) = engine.inspect(id, timeout).await
            && told.id == id
        {
            return Some(told);
        }
    }
    None
}

fn from_cgroup(process: &cgroup::Contained) -> Vec<Candidate> {
    let candidate = |named: &cgroup::Named| Candidate {
        id: named.id.clone(),
        runtime: named.runtime.to_string(),
        names: Vec::new(),
        image: None,
        state: Some("running".to_string()),
        pid: None,
    };
    process.containers.iter().map(candidate).collect()
}

/// 64 lower-case hexadecimal digits.
fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Text from outside, fit for a terminal, its length bounded.
fn printable(text: &str) -> String {
    visible_up_to(text, NAME_CHARACTERS).into_owned()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    printable(&text)
}
