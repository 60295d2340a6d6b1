//! The Go runtime's own books: its heap profile and its memory statistics, over HTTP or from a file.
//!
//! Whatever a tracee serves is hostile: bounded in time and size, checked against the runtime's own
//! invariants. What cannot be read is `Unknown` with what was tried.

pub mod profile_proto;
