//! To be filled.

pub mod features;
