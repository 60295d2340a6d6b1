//! The processes of the target: those that are there, those that come, and which of them are ready
//! to be traced. Decides; attaches nothing.
//!
//! A process that was just forked is left alone for [`SETTLE`]: most of those that live shorter would
//! be gone before their probes are armed, and detaching costs more than attaching. They are counted.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::snapshot::{Came, UntracedProcess};
use crate::tracee::container::processes_below;

/// How old a forked process must be before it is traced.
const SETTLE: Duration = Duration::from_millis(100);
/// How long a new program may take until it has an allocator mapped.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many untraced processes are named.
const NAMED: usize = 16;

/// Which processes belong to the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One process, whatever it executes.
    One,
    /// It, and what it and its children start.
    Children,
    /// Everything in this cgroup and below it.
    Cgroup(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Not looked at yet, or not ready.
    Waiting,
    /// Image of this number.
    Traced(u32),
    Refused(String),
}

#[derive(Clone, Debug)]
struct Member {
    state: State,
    came: Came,
    /// When it was forked or executed, as far as known; of `CLOCK_MONOTONIC`.
    since_ns: Option<u64>,
    seen: Instant,
    comm: String,
}

/// A process that is ready to be traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    pub pid: u32,
    pub came: Came,
    pub since_ns: Option<u64>,
}

pub struct Family {
    pub scope: Scope,
    members: BTreeMap<u32, Member>,
    came_and_went: u64,
}

impl Family {
    pub fn new(scope: Scope) -> Self {
        Self { scope, members: BTreeMap::new(), came_and_went: 0 }
    }

    pub fn follows_children(&self) -> bool {
        self.scope != Scope::One
    }

    /// A process of the target; nothing where it is known already.
    pub fn add(&mut self, pid: u32, came: Came, since_ns: Option<u64>) -> bool {
        let is_new = !self.members.contains_key(&pid);
        if is_new {
            let member = Member {
                state: State::Waiting,
                came,
                since_ns,
                seen: Instant::now(),
                comm: String::new(),
            };
            self.members.insert(pid, member);
        }
        is_new
    }

    pub fn traced(&mut self, pid: u32, image: u32) {
        if let Some(member) = self.members.get_mut(&pid) {
            member.state = State::Traced(image);
        }
    }

    /// The process runs another program since then. The image that was traced in it.
    pub fn executed(&mut self, pid: u32, time_ns: u64) -> Option<u32> {
        let member = self.members.get_mut(&pid)?;
        let before = match member.state {
            State::Traced(image) => Some(image),
            _ => None,
        };
        if let Some(before) = before {
            member.came = Came::Executed { before };
        }
        member.state = State::Waiting;
        member.since_ns = Some(time_ns);
        member.seen = Instant::now();
        before
    }

    /// The process has ended. The image that was traced in it.
    pub fn ended(&mut self, pid: u32) -> Option<u32> {
        match self.members.remove(&pid)?.state {
            State::Traced(image) => Some(image),
            // One that was named as running untraced is named no more.
            State::Waiting | State::Refused(_) => {
                self.came_and_went += 1;
                None
            }
        }
    }

    /// Not now. It is tried again while it is young: a new program has nothing mapped at first.
    pub fn refuse(&mut self, pid: u32, comm: String, reason: String) {
        if let Some(member) = self.members.get_mut(&pid) {
            member.comm = comm;
            if member.seen.elapsed() > PATIENCE || member.came == Came::AtStart {
                member.state = State::Refused(reason);
            }
        }
    }

    /// Who may be traced now.
    pub fn ready(&self) -> Vec<Ready> {
        let settled = |member: &Member| match member.came {
            Came::Forked { .. } | Came::Found => member.seen.elapsed() >= SETTLE,
            Came::AtStart | Came::Executed { .. } => true,
        };
        let waiting =
            self.members.iter().filter(|(_, it)| it.state == State::Waiting && settled(it));
        waiting.map(|(&pid, it)| Ready { pid, came: it.came, since_ns: it.since_ns }).collect()
    }

    /// The processes of the scope's cgroup, as they are now.
    pub fn look(&self) -> Vec<u32> {
        match &self.scope {
            Scope::Cgroup(directory) => processes_below(directory),
            Scope::One | Scope::Children => Vec::new(),
        }
    }

    /// Members that are not traced.
    pub fn untraced_pids(&self) -> Vec<u32> {
        let others = self.members.iter().filter(|(_, it)| !matches!(it.state, State::Traced(_)));
        others.map(|(pid, _)| *pid).collect()
    }

    pub fn untraced(&self) -> crate::snapshot::Untraced {
        let refused = self.members.iter().filter_map(|(&pid, member)| match &member.state {
            State::Refused(reason) => {
                Some(UntracedProcess { pid, comm: member.comm.clone(), reason: reason.clone() })
            }
            State::Waiting => Some(UntracedProcess {
                pid,
                comm: member.comm.clone(),
                reason: "it has just started".to_owned(),
            }),
            State::Traced(_) => None,
        });
        let all: Vec<_> = refused.collect();
        crate::snapshot::Untraced {
            came_and_went: self.came_and_went,
            running: all.len() as u64,
            some: all.into_iter().take(NAMED).collect(),
        }
    }

    /// Whether a process is still to be traced.
    pub fn has_waiting(&self) -> bool {
        self.members.values().any(|member| member.state == State::Waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family() -> Family {
        Family::new(Scope::Children)
    }

    #[test]
    fn a_forked_process_settles_before_it_is_traced() {
        let mut family = family();
        family.add(7, Came::AtStart, None);
        assert!(family.add(8, Came::Forked { parent: 1 }, Some(5)));
        let ready: Vec<_> = family.ready().iter().map(|it| it.pid).collect();
        assert_eq!(ready, [7]);
        family.members.get_mut(&8).unwrap().seen -= SETTLE;
        let ready = family.ready();
        let expected = Ready { pid: 8, came: Came::Forked { parent: 1 }, since_ns: Some(5) };
        assert_eq!(ready[1], expected);
    }

    #[test]
    fn one_that_ends_before_it_was_traced_is_counted() {
        let mut family = family();
        family.add(8, Came::Found, None);
        family.add(9, Came::AtStart, None);
        family.traced(9, 1);
        assert_eq!(family.ended(8), None);
        assert_eq!(family.ended(9), Some(1));
        assert_eq!(family.ended(9), None, "it is told once");
        assert_eq!(family.untraced().came_and_went, 1);
        assert!(!family.has_waiting());
    }

    #[test]
    fn one_that_was_refused_and_ends_is_counted() {
        let mut family = family();
        family.add(8, Came::Found, None);
        family.members.get_mut(&8).unwrap().seen -= PATIENCE * 2;
        family.refuse(8, String::new(), "it has gone".into());
        assert_eq!((family.untraced().running, family.untraced().came_and_went), (1, 0));
        assert_eq!(family.ended(8), None);
        assert_eq!((family.untraced().running, family.untraced().came_and_went), (0, 1));
    }

    #[test]
    fn exec_makes_a_traced_process_ready_again_at_once() {
        let mut family = family();
        family.add(7, Came::AtStart, None);
        family.traced(7, 3);
        assert!(family.ready().is_empty());
        assert_eq!(family.executed(7, 99), Some(3));
        let expected = Ready { pid: 7, came: Came::Executed { before: 3 }, since_ns: Some(99) };
        assert_eq!(family.ready(), [expected]);
    }

    #[test]
    fn a_young_program_without_an_allocator_is_tried_again_and_an_old_one_is_named() {
        let mut family = family();
        family.add(7, Came::Executed { before: 1 }, Some(1));
        family.refuse(7, "sh".into(), "nothing to probe".into());
        assert_eq!(family.ready().len(), 1);
        family.members.get_mut(&7).unwrap().seen -= PATIENCE * 2;
        family.refuse(7, "sh".into(), "nothing to probe".into());
        assert!(family.ready().is_empty());
        let untraced = family.untraced();
        assert_eq!((untraced.running, untraced.some[0].comm.as_str()), (1, "sh"));
    }
}
