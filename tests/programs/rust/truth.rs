//! The protocol of the programs (see `../c/truth.h`). Nothing in it allocates.

use std::fs::File;
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;

pub struct Site {
    function: &'static str,
    bytes: usize,
    blocks: usize,
}

impl Site {
    pub const fn of(function: &'static str) -> Self {
        Self { function, bytes: 0, blocks: 0 }
    }

    pub fn hold(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.blocks += 1;
    }
}

/// Standard input or output without the buffers that `std` allocates for them.
fn descriptor(number: i32) -> ManuallyDrop<File> {
    // SAFETY: descriptors 0 and 1 are open for the whole life of the program, and never closed.
    ManuallyDrop::new(unsafe { File::from_raw_fd(number) })
}

fn line() -> bool {
    let mut byte = [0];
    while let Ok(1) = descriptor(0).read(&mut byte) {
        if byte[0] == b'\n' {
            return true;
        }
    }
    false
}

pub fn ready() {
    descriptor(1).write_all(b"ready\n").expect("say ready");
    if !line() {
        std::process::exit(0);
    }
}

pub fn end(sites: &[Site]) -> ! {
    let mut text = [0u8; 4096];
    let mut rest = &mut text[..];
    write!(rest, "{{\"sites\":[").expect("room");
    for (i, Site { function, bytes, blocks }) in sites.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        write!(rest, "{comma}{{\"function\":\"{function}\",\"bytes\":{bytes},\"blocks\":{blocks}}}")
            .expect("room");
    }
    writeln!(rest, "]}}").expect("room");
    let unused = rest.len();
    descriptor(1).write_all(&text[..4096 - unused]).expect("tell the truth");
    while line() {}
    std::process::exit(0)
}
