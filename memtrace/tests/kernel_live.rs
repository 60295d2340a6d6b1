//! The kernel edge against a live process: each pairing rule with real probes, real walks and real
//! maps. The program's allocator is its own, so what happened is known exactly.
//!
//! Needs root and a kernel with uprobes: fails without, never skips.

#[path = "kernel_live/target.rs"]
mod target;

#[path = "kernel_live/pairing.rs"]
mod pairing;

#[path = "kernel_live/ranges.rs"]
mod ranges;

#[path = "kernel_live/limits.rs"]
mod limits;

#[path = "kernel_live/features.rs"]
mod features;
#[path = "kernel_live/lifetime.rs"]
mod lifetime;
