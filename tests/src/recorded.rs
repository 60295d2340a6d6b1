//! The part of the JSON contract that the tests read. Written anew from `docs/json.md`, not taken
//! from memtrace's own types: a test that shares the writer's types cannot see it break the
//! contract.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

#[derive(Clone, Debug, Deserialize)]
pub struct Recorded {
    pub schema: Value,
    pub tracee: Value,
    pub probes: Value,
    #[serde(default)]
    pub processes: Vec<Process>,
    pub snapshots: Vec<Snapshot>,
}

/// One program that a process of the target ran.
#[derive(Clone, Debug, Deserialize)]
pub struct Process {
    pub process: u32,
    pub pid: u32,
    pub comm: String,
    pub executable: String,
    pub came: String,
    pub came_from: Option<u32>,
    pub unseen_ns: Option<u64>,
    pub totals: Option<Totals>,
    pub closed: Option<Closed>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Totals {
    pub outstanding: Outstanding,
    pub allocated: Outstanding,
    pub freed: Outstanding,
}

/// The last state of a program that ended while others went on.
#[derive(Clone, Debug, Deserialize)]
pub struct Closed {
    pub how: String,
    pub stacks: Vec<Stack>,
}

impl Closed {
    /// As books of their own, with the counters of the whole recording.
    pub fn native(&self, whole: &Native) -> Native {
        let sum = |of: fn(&Stack) -> u64| self.stacks.iter().map(of).sum();
        Native {
            outstanding: Outstanding {
                bytes: sum(|stack| stack.bytes),
                blocks: sum(|stack| stack.blocks),
            },
            stacks: self.stacks.clone(),
            ..whole.clone()
        }
    }
}

/// The figures of one program at one snapshot.
#[derive(Clone, Debug, Deserialize)]
pub struct ProcessBooks {
    pub process: u32,
    pub ended: bool,
    pub totals: Totals,
}

/// Processes of the target whose calls were not seen.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Untraced {
    pub came_and_went: u64,
    pub running: u64,
    #[serde(default)]
    pub some: Vec<UntracedProcess>,
}

/// One of them that runs, and why it is not traced.
#[derive(Clone, Debug, Deserialize)]
pub struct UntracedProcess {
    pub pid: u32,
    pub comm: String,
    pub reason: String,
}

impl Recorded {
    /// The books of the first program when it executed another one. Where the recording ended at
    /// once they were still open.
    pub fn until_exec(&self) -> anyhow::Result<Native> {
        let whole = &self.last()?.native;
        let closed = self.processes.first().and_then(|process| process.closed.as_ref());
        Ok(closed.map_or_else(|| whole.clone(), |closed| closed.native(whole)))
    }

    /// The last snapshot: what was outstanding when the tracing ended.
    pub fn last(&self) -> anyhow::Result<&Snapshot> {
        self.snapshots.last().ok_or_else(|| anyhow::anyhow!("the JSON has no snapshot"))
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct Snapshot {
    pub native: Native,
    #[serde(default)]
    pub processes: Vec<ProcessBooks>,
    #[serde(default)]
    pub untraced: Untraced,
    /// Null, or an object with a reason, when the target has no Go heap.
    pub go: Value,
    #[serde(rename = "self")]
    pub own: Value,
    /// The ledger, as `memtrace explain` tells it.
    #[serde(default)]
    pub memory: Value,
    /// The laws that memtrace checks on its own books.
    pub checks: Vec<Check>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Check {
    pub name: String,
    pub holds: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Native {
    pub outstanding: Outstanding,
    /// By the program's own call nearest to the allocator, as it stands in the JSON.
    #[serde(default)]
    pub callers: Value,
    pub stacks: Vec<Stack>,
    pub ranges: Ranges,
    pub losses: BTreeMap<String, u64>,
    #[serde(default)]
    pub tallies: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Outstanding {
    pub bytes: u64,
    pub blocks: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Ranges {
    pub bytes: u64,
    #[serde(default)]
    pub stacks: Vec<RangeStack>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct RangeStack {
    pub owner: String,
    pub bytes: u64,
    pub frames: Vec<Frame>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Stack {
    pub bytes: u64,
    pub blocks: u64,
    #[serde(default)]
    pub complete: bool,
    pub frames: Vec<Frame>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Frame {
    #[serde(default)]
    pub function: Option<String>,
    #[serde(default)]
    pub module: Option<String>,
    #[serde(default)]
    pub file: Option<String>,
    #[serde(default)]
    pub line: Option<u32>,
    /// Into the next frame.
    #[serde(default)]
    pub inlined: bool,
    /// `native`, `go`, `glue` or `note`.
    #[serde(default)]
    pub kind: String,
}

impl Stack {
    /// Whether `function` is one of the frames; parameters of C++ names do not matter.
    pub fn contains(&self, function: &str) -> bool {
        self.frames.iter().any(|frame| frame.is(function))
    }

    /// Whether the frames name `functions` in this order from the leaf outwards, others between.
    pub fn contains_in_order(&self, functions: &[&str]) -> bool {
        let mut wanted = functions.iter().peekable();
        for frame in &self.frames {
            wanted.next_if(|function| frame.is(function));
        }
        wanted.peek().is_none()
    }
}

impl Frame {
    fn is(&self, function: &str) -> bool {
        self.function.as_deref().is_some_and(|name| {
            name.strip_prefix(function)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['(', '<', '@']))
        })
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} blocks by", self.bytes, self.blocks)?;
        for frame in self.frames.iter().take(12) {
            write!(f, " < {}", frame.function.as_deref().unwrap_or("?"))?;
        }
        Ok(())
    }
}
