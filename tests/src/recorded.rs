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
    pub snapshots: Vec<Snapshot>,
}

impl Recorded {
    /// The last snapshot: what was outstanding when the tracing ended.
    pub fn last(&self) -> anyhow::Result<&Snapshot> {
        self.snapshots.last().ok_or_else(|| anyhow::anyhow!("the JSON has no snapshot"))
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct Snapshot {
    pub native: Native,
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
