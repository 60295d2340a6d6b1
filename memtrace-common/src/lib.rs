//! What memtrace's kernel side and user side share: the rows of the BPF maps, the counters, the
//! unwind rows and the pure call-pairing rules. Nothing here allocates, does I/O or names aya.
#![no_std]

pub mod calls;
pub mod counters;
pub mod rows;
pub mod selftest;
pub mod unwind;
