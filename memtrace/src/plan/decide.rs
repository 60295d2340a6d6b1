//! tmp
pub fn decide() {}
