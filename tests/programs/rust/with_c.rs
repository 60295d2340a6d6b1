//! Rust over a C library, with a callback: Rust calls C calls Rust, and all three allocate.

mod truth;

use std::hint::black_box;
use std::os::raw::c_void;

use truth::Site;

unsafe extern "C" {
    fn library_create(size: usize, callback: extern "C" fn(usize) -> usize) -> *mut c_void;
    fn library_destroy(library: *mut c_void);
}

#[inline(never)]
extern "C" fn leak_in_callback(size: usize) -> usize {
    let vector: Vec<u8> = Vec::with_capacity(size);
    black_box(std::mem::ManuallyDrop::new(vector)).capacity()
}

#[inline(never)]
fn leak_library(size: usize) {
    // SAFETY: the library keeps neither argument.
    black_box(unsafe { library_create(size, leak_in_callback) });
}

#[inline(never)]
fn create_and_destroy(size: usize) {
    // SAFETY: as above; what was created is destroyed once.
    unsafe { library_destroy(library_create(size, leak_in_callback)) };
}

fn main() {
    let mut created = Site::of("library_allocate");
    let mut called_back = Site::of("with_c::leak_in_callback");
    truth::ready();
    for i in 0..67 {
        leak_library(977 + i);
        created.hold(977 + i);
        create_and_destroy(3571);
        for size in [977 + i, 3571] {
            called_back.hold(size / 3);
        }
    }
    truth::end(&[created, called_back]);
}
