//! Which of the containers that are known is meant. Pure.

use std::cmp::Reverse;
use std::fmt;

use crate::snapshot::Container;

/// The shortest id prefix of a container of which nothing but its cgroup is known.
///
/// Named ones are found by any, as by Docker's own command line.
const SHORTEST_PREFIX: usize = 4;
/// How many containers an error shows.
const SHOWN: usize = 8;

/// The Kubernetes pod that a container is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    pub uid: Option<String>,
}

impl PodName {
    /// A container's name is unique only in its pod, so that `POD/NAME` and `NAMESPACE/POD/NAME` are
    /// its names too.
    pub(super) fn names_of(pod: Option<&Self>, container: String) -> Vec<String> {
        let Some(pod) = pod else { return vec![container] };
        let short = format!("{}/{container}", pod.name);
        vec![format!("{}/{short}", pod.namespace), short, container]
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

/// `k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT`, the name that CRI-O and cri-dockerd give: the container
/// (`None` for the pod's sandbox, which is called `POD`) and its pod. Names of Kubernetes have no
/// underscores.
pub(super) fn parse_kubelet_name(name: &str) -> Option<(Option<&str>, PodName)> {
    let parts: Vec<_> = name.strip_prefix("k8s_")?.split('_').collect();
    let [container, pod, namespace, uid, _attempt] = parts.as_slice() else { return None };
    let uid = Some(uid.to_string()).filter(|uid| !uid.is_empty());
    let pod = PodName { namespace: namespace.to_string(), name: pod.to_string(), uid };
    Some((Some(*container).filter(|name| *name != "POD"), pod))
}

/// A container that somebody told of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    pub id: String,
    /// As in [`Container::runtime`].
    pub runtime: String,
    /// Without leading slash; the fullest first.
    pub names: Vec<String>,
    pub image: Option<String>,
    /// "running", "exited", …; `None` when nobody told.
    pub state: Option<String>,
    /// First process, as the runtime tells it: to be checked.
    pub pid: Option<u32>,
    pub pod: Option<PodName>,
    /// What holds a pod's namespaces, and is none of its containers.
    pub is_sandbox: bool,
}

impl Candidate {
    /// Fills in the pod where a name tells it, and the names that come of it.
    pub(super) fn with_kubelet_name(mut self) -> Self {
        let told = self.names.iter().find_map(|name| parse_kubelet_name(name));
        let Some((container, pod)) = told else { return self };
        self.is_sandbox = container.is_none();
        let container = container.map(str::to_owned);
        let more = container.map(|name| PodName::names_of(Some(&pod), name)).unwrap_or_default();
        // The fullest first; the runtime's own name still leads to it.
        self.names.splice(0..0, more);
        self.pod = Some(pod);
        self
    }

    /// One of a pod's former containers: it has the name of the one that runs now.
    fn is_former(&self) -> bool {
        self.pod.is_some()
            && self.state.as_deref().is_some_and(|state| state != "created")
            && !self.is_running()
    }

    pub fn is_running(&self) -> bool {
        matches!(self.state.as_deref(), Some("running" | "paused"))
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.get(..12).unwrap_or(&self.id);
        match (self.names.first(), &self.pod) {
            (_, Some(pod)) if self.is_sandbox => {
                write!(formatter, "the sandbox of `{pod}` ({id}, {}", self.runtime)?;
            }
            (Some(name), _) => write!(formatter, "`{name}` ({id}, {}", self.runtime)?,
            (None, _) => write!(formatter, "`{id}` ({}", self.runtime)?,
        }
        match &self.state {
            Some(state) => write!(formatter, ", {state})"),
            None => formatter.write_str(")"),
        }
    }
}

impl From<Candidate> for Container {
    fn from(candidate: Candidate) -> Self {
        Self {
            runtime: candidate.runtime,
            id: candidate.id,
            name: candidate.names.into_iter().next(),
            image: candidate.image,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice<'a> {
    None,
    One(&'a Candidate),
    Several(Vec<&'a Candidate>),
}

/// An exact id beats an exact name beats an id prefix.
pub(super) fn choose<'a>(wanted: &str, known: &'a [Candidate]) -> Choice<'a> {
    let by_id = |it: &&Candidate| it.id == wanted;
    let by_name = |it: &&Candidate| it.names.iter().any(|name| name == wanted);
    let by_prefix = |it: &&Candidate| {
        let shortest = if it.names.is_empty() { SHORTEST_PREFIX } else { 1 };
        wanted.len() >= shortest && it.id.starts_with(wanted)
    };
    if wanted.is_empty() {
        return Choice::None;
    }
    let tiers: [&dyn Fn(&&Candidate) -> bool; 3] = [&by_id, &by_name, &by_prefix];
    for tier in tiers {
        let mut matches: Vec<_> = known.iter().filter(tier).collect();
        if matches.len() > 1 && matches.iter().any(|it| !it.is_former()) {
            matches.retain(|it| !it.is_former());
        }
        match matches.as_slice() {
            [] => {}
            [one] => return Choice::One(one),
            _ => return Choice::Several(matches),
        }
    }
    Choice::None
}

/// Adds what is new. What was told first stays; what it left open is filled in.
pub(super) fn merge(known: &mut Vec<Candidate>, told: Vec<Candidate>) {
    let mut places: std::collections::HashMap<String, usize> =
        known.iter().enumerate().map(|(place, it)| (it.id.clone(), place)).collect();
    for new in told {
        let Some(old) = places.get(&new.id).and_then(|place| known.get_mut(*place)) else {
            places.insert(new.id.clone(), known.len());
            known.push(new);
            continue;
        };
        if old.names.is_empty() {
            old.names = new.names;
        }
        old.image = old.image.take().or(new.image);
        old.state = old.state.take().or(new.state);
        old.pid = old.pid.or(new.pid);
        old.is_sandbox |= new.is_sandbox;
        old.pod = match (old.pod.take(), new.pod) {
            (Some(PodName { uid: None, namespace, name }), Some(new)) => {
                Some(PodName { uid: new.uid, namespace, name })
            }
            (old, new) => old.or(new),
        };
    }
}

/// Those that may have been meant first (the name is part of the other, or they begin alike), then
/// those that run, then by name.
pub(super) fn sort_by_likeness(wanted: &str, known: &mut [Candidate]) {
    let wanted = wanted.to_lowercase();
    let likeness = |name: &String| {
        let name = name.to_lowercase();
        let part = !wanted.is_empty() && (name.contains(&wanted) || wanted.contains(&name));
        let begin = name.chars().zip(wanted.chars()).take_while(|(a, b)| a == b).count();
        (part, begin)
    };
    known.sort_by_cached_key(|it| {
        let best = it.names.iter().chain([&it.id]).map(likeness).max();
        (Reverse(best), !it.is_running(), it.names.clone(), it.id.clone())
    });
}

/// `; there are A, B and 3 more`, or nothing.
pub(super) fn candidates(intro: &str, known: &[Candidate]) -> String {
    let shown: Vec<_> = known.iter().take(SHOWN).map(ToString::to_string).collect();
    if shown.is_empty() {
        return String::new();
    }
    let intro = if intro.is_empty() { ":" } else { intro };
    let more = match known.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{intro} {}{more}", shown.join(", "))
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
