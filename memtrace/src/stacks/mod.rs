//! Stacks: how to walk them, and how to name their frames.
//!
//! ```text
//! object's file ─► table (rows) ─┐
//!                                ├─► space (mappings of one process) ─► the walk, in the kernel
//! mapped files ──────────────────┘                                      `walk`: its reference
//! addresses of frames ─► symbolize ─► names ─► frames (what is the Go runtime's glue)
//! ```
//!
//! Address spaces are not mixed: *vaddr* is an address as the object's file tells it, *row-pc* a
//! vaddr less the object's base, *address* one of the running process. A return address is looked
//! up as the address before it; a walk always ends, with the reason.

pub mod again;
pub mod compare;
mod debug_files;
pub mod elf;
pub mod frames;
pub mod go_object;
mod go_rules;
mod image;
mod layout;
pub mod link_map;
mod musl_rules;
pub mod pclntab;
mod rules;
pub mod space;
pub mod symbolize;
pub mod table;
pub mod text;
pub mod walk;

pub use rules::Unsupported;
pub use space::{ProcessSpace, TableStore, bias};
pub use symbolize::{Symbolizer, SymbolizerStats};
pub use table::{TableError, TableStats, UnwindTable, build_table, build_table_of_file};
