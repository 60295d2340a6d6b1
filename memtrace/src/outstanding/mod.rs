//! What is allocated and not freed, by stack: blocks, ranges, totals, ages. Pure.
//!
//! Invariant: Σ by stack = Σ by block = Σ alloc − Σ free; where it does not hold, the books say so.

pub mod books;
pub mod callers;
pub mod checks;
pub mod cohorts;
pub mod diff;
pub mod doubts;
pub mod frames;
pub mod ranges;
pub mod summary;
