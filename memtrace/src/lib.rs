//! memtrace explains where the memory of a container is.
//!
//! Facts are gathered at one edge, everything that explains memory is pure, and one
//! [`snapshot::Snapshot`] is the wall between them:
//!
//! ```text
//! tracee ─► plan ─► kernel ═► snapshot ═► outstanding ─► verdict ─► report
//!    │ (facts) (decide) (act, aya) (the wall)   (pure)    (pure)     (pure)
//!    └──────────── stacks (names), go (the Go runtime's books) ─┘
//! ```
//!
//! Modules stand in the order in which data flows. Only [`kernel`] names aya; [`session`] is the
//! only caller of everything.

pub mod grpc;

pub mod http;

pub mod sanitize;

pub mod tracee;

pub mod plan;

pub mod kernel;

pub mod snapshot;

pub mod stacks;

pub mod debuginfo;

pub mod go;

pub mod outstanding;

pub mod account;

pub mod verdict;

pub mod report;

pub mod doctor;

pub mod cli;

pub mod session;
