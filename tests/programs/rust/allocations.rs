//! Rust's own collections over the system allocator: malloc, calloc, realloc, posix_memalign; or,
//! as `Cargo.toml` builds it, over jemalloc inside the executable: mallocx, rallocx, sdallocx.

mod truth;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static JEMALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

use std::alloc::{Layout, alloc, dealloc};
use std::hint::black_box;

use truth::Site;

#[inline(never)]
fn leak_vector(site: &mut Site, capacity: usize) {
    let vector: Vec<u8> = Vec::with_capacity(capacity);
    site.hold(vector.capacity());
    black_box(std::mem::ManuallyDrop::new(vector));
}

#[inline(never)]
fn leak_zeroed(site: &mut Site, count: usize) {
    let zeroed = vec![0u32; count];
    site.hold(zeroed.capacity() * 4);
    black_box(std::mem::ManuallyDrop::new(zeroed));
}

#[inline(never)]
fn leak_grown(site: &mut Site, pushes: usize) {
    let mut grown = Vec::new();
    for i in 0..pushes {
        grown.push(black_box(i));
    }
    site.hold(grown.capacity() * 8);
    black_box(std::mem::ManuallyDrop::new(grown));
}

#[inline(never)]
fn leak_aligned(site: &mut Site, size: usize) {
    let layout = Layout::from_size_align(size, 256).expect("a layout");
    // SAFETY: the layout's size is not zero.
    black_box(unsafe { alloc(layout) });
    site.hold(size);
}

#[inline(never)]
fn allocated_and_dropped(size: usize) {
    black_box(vec![1u8; size]);
    black_box(format!("{size:>900}"));
    let layout = Layout::from_size_align(size, 512).expect("a layout");
    // SAFETY: the layout's size is not zero, and it is the one it was allocated with.
    unsafe { dealloc(black_box(alloc(layout)), layout) };
}

fn main() {
    let mut sites = [
        Site::of("allocations::leak_vector"),
        Site::of("allocations::leak_zeroed"),
        Site::of("allocations::leak_grown"),
        Site::of("allocations::leak_aligned"),
        Site::of("allocations::allocated_and_dropped"),
    ];
    truth::ready();
    for i in 0..73 {
        let [vector, zeroed, grown, aligned, _] = &mut sites;
        leak_vector(vector, 977 + i);
        leak_zeroed(zeroed, 331 + i);
        leak_grown(grown, 41 * (i + 1));
        leak_aligned(aligned, 1409 + i);
        allocated_and_dropped(613 + i);
    }
    truth::end(&sites);
}
