//! From a container's name or id prefix to its processes, and back.
//!
//! The daemons' sockets are asked (Docker's API, Kubernetes' CRI), the runtimes' state files and the
//! cgroups of all processes are read, and what they tell of one container is put together. Nobody's
//! word is taken for a pid: the process must be in a cgroup that names the container. Limits: containers without a 64-digit id (LXC,
//! systemd-nspawn) are not known by name; use their pid.

pub(in crate::tracee) mod cgroup;
mod choose;
pub mod cri;
mod engine;
pub mod pod;
mod shims;
mod state_files;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use choose::{Candidate, PodName};
pub use cri::CriSocket;
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
    #[error(
        "no container of pod {pod} matches `{asked}` by name or id prefix{}",
        choose::candidates("; there are", known)
    )]
    NotInPod { asked: String, pod: String, known: Vec<Candidate> },
    #[error(transparent)]
    Pod(#[from] pod::PodError),
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
    pub cri: Vec<CriSocket>,
    /// Daemons that are configured but cannot be asked.
    pub unasked: Vec<Unanswered>,
    pub state_files: StateFiles,
    pub proc: PathBuf,
}

impl Sources {
    /// The sockets of `DOCKER_HOST`, `CONTAINER_HOST`, `CONTAINER_RUNTIME_ENDPOINT` and convention, the
    /// usual state files, and both of every containerd whose shims run here.
    pub fn from_environment() -> Self {
        Self::from_variables(|variable| std::env::var(variable).ok())
    }

    /// As [`Self::from_environment`], with the environment given.
    pub fn from_variables(environment: impl Fn(&str) -> Option<String>) -> Self {
        let (engines, mut unasked) = engine::conventional(&environment);
        let (mut cri, not_unix) = cri::conventional(&environment);
        unasked.extend(not_unix);
        let unasked = unasked.into_iter().map(|(who, why)| Unanswered { who, why }).collect();
        let proc = PathBuf::from("/proc");
        let mut state_files = StateFiles::conventional();
        let shims = shims::find(&proc);
        state_files.containerd.extend(shims.tasks);
        if environment(cri::VARIABLE).is_none_or(|value| value.is_empty()) {
            let more = shims.sockets.into_iter().map(|path| CriSocket { path });
            let more: Vec<_> = more.filter(|socket| !cri.contains(socket)).collect();
            cri.extend(more);
        }
        if let Some(uid) = engine::sudo_user(&environment)
            && let Ok(Some(user)) = nix::unistd::User::from_uid(uid.into())
        {
            let runtime_directory = format!("/run/user/{uid}");
            state_files.add_rootless(&user.dir, Path::new(&runtime_directory));
        }
        Self { engines, cri, unasked, state_files, proc }
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
        let Told { mut known, scanned, answering, denied, silent } = self.gather().await?;
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

    /// Everything that anybody tells, the daemons first.
    async fn gather(&self) -> Result<Told<'_>, ContainerError> {
        let mut told = Told { silent: self.unasked.clone(), ..Told::default() };
        for engine in &self.engines {
            match engine.list(ASK_TIMEOUT).await {
                Ok(listed) => {
                    told.answering.push(engine);
                    merge(&mut told.known, listed);
                }
                Err(error) => told.add_silent(&engine.socket, error.is_denied(), &error),
            }
        }
        for socket in &self.cri {
            match socket.list(ASK_TIMEOUT).await {
                Ok(listed) => merge(&mut told.known, listed),
                Err(error) if error.is_without_cri() => {}
                Err(error) => told.add_silent(&socket.path, error.is_denied(), &error),
            }
        }
        told.scanned = cgroup::scan(&self.proc)
            .map_err(|source| ContainerError::Proc { proc: self.proc.clone(), source })?;
        merge(&mut told.known, self.state_files.read());
        merge(&mut told.known, told.scanned.iter().flat_map(from_cgroup).collect());
        Ok(told)
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
        if let Some(told) = inspect(&engines, id, QUICK_TIMEOUT).await {
            return Some(told);
        }
        if let Some(told) = self.state_files.read().into_iter().find(|it| it.id == id)
            && !told.names.is_empty()
        {
            return Some(told);
        }
        for socket in &self.cri {
            let listed = socket.list(QUICK_TIMEOUT).await.unwrap_or_default();
            if let Some(told) = listed.into_iter().find(|it| it.id == id) {
                return Some(told);
            }
        }
        None
    }
}

/// What everybody told, put together.
#[derive(Default)]
struct Told<'a> {
    known: Vec<Candidate>,
    scanned: Vec<cgroup::Contained>,
    /// Engines that can be asked again.
    answering: Vec<&'a Engine>,
    /// The first socket that is there, but not for us.
    denied: Option<PathBuf>,
    silent: Vec<Unanswered>,
}

impl Told<'_> {
    fn add_silent(&mut self, socket: &Path, denied: bool, error: &dyn std::error::Error) {
        if denied {
            self.denied.get_or_insert_with(|| socket.to_path_buf());
        }
        let who = printable(&socket.display().to_string());
        self.silent.push(Unanswered { who, why: chain(error) });
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
        state: Some("running".to_string()),
        ..Candidate::default()
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
