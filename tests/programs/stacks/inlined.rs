//! Functions inlined into each other; the comments mark the lines that the test looks for.

use std::hint::black_box;
use std::io::{BufRead, Write};

unsafe extern "C" {
    fn malloc(size: usize) -> *mut u8;
}

mod chain {
    use super::*;

    #[inline(always)]
    pub fn innermost(size: usize) {
        // SAFETY: any size may be asked for.
        black_box(unsafe { malloc(size) }); // in innermost
    }

    #[inline(always)]
    fn middle(size: usize) {
        innermost(size); // in middle
        black_box(size);
    }

    pub struct Outer;

    impl Outer {
        #[inline(never)]
        pub fn outer(&self, size: usize) {
            middle(size); // in outer
            black_box(size);
        }
    }
}

fn main() {
    println!("ready");
    let mut line = String::new();
    let mut input = std::io::stdin().lock();
    input.read_line(&mut line).expect("standard input can be read");
    chain::Outer.outer(1111); // in main
    println!("{{\"sites\":[]}}");
    std::io::stdout().flush().expect("standard output can be written");
    while input.read_line(&mut line).expect("standard input can be read") > 0 {}
}
