//! Complete stacks without frame pointers: every frame, in order, equal to an expected list.
//!
//! Needs root, the three releases of Go and the C library's debug symbols (`cargo xtask setup`):
//! fails without, never skips.

#[path = "live_stacks/build.rs"]
mod build;
#[path = "live_stacks/expected.rs"]
mod expected;
#[path = "live_stacks/run.rs"]
mod run;

#[path = "live_stacks/c.rs"]
mod c;
#[path = "live_stacks/containers.rs"]
mod containers;
#[path = "live_stacks/go.rs"]
mod go;
#[path = "live_stacks/inlined.rs"]
mod inlined;
#[path = "live_stacks/late.rs"]
mod late;
#[path = "live_stacks/memory.rs"]
mod memory;
