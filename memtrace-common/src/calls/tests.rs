//! One test per pairing rule.

use super::*;

const TRAMPOLINE: u64 = 0x7fff_ffff_e000;
const RETURN: u64 = 0x5555_0000_1234;
const SP: u64 = 0x7ffe_0000_1000;

fn malloc_in_progress() -> Frame {
    Frame { sp: SP, return_address: RETURN, cookie: Cookie::new(3, Signature::Malloc).0 }
}

fn never_read(_: u64) -> Option<u64> {
    panic!("read without need")
}

#[test]
fn the_first_call_of_a_thread_is_outermost() {
    assert_eq!(standing(&Frame::default(), SP, never_read), Standing::Idle);
}

#[test]
fn a_call_below_one_in_progress_is_part_of_it() {
    let found = standing(&malloc_in_progress(), SP - 64, |at| {
        assert_eq!(at, SP);
        Some(TRAMPOLINE)
    });
    assert_eq!(found, Standing::InProgress);
}

#[test]
fn a_tail_call_arrives_at_the_same_stack_pointer_and_is_part_of_the_outer_call() {
    assert_eq!(standing(&malloc_in_progress(), SP, |_| Some(TRAMPOLINE)), Standing::InProgress);
}

#[test]
fn a_second_call_at_the_same_stack_pointer_with_a_fresh_return_address_is_a_new_one() {
    assert_eq!(standing(&malloc_in_progress(), SP, |_| Some(RETURN)), Standing::Stale);
    assert_eq!(standing(&malloc_in_progress(), SP, |_| Some(RETURN + 99)), Standing::Stale);
}

#[test]
fn a_call_above_the_recorded_one_means_it_never_returned() {
    assert_eq!(standing(&malloc_in_progress(), SP + 8, never_read), Standing::Stale);
}

#[test]
fn a_recorded_call_whose_return_address_was_not_replaced_is_stale() {
    assert_eq!(standing(&malloc_in_progress(), SP - 64, |_| Some(RETURN)), Standing::Stale);
}

#[test]
fn a_recorded_call_whose_slot_was_overwritten_is_stale() {
    for value in [0, 1, 0x5555_0000_9999] {
        assert_eq!(standing(&malloc_in_progress(), SP - 64, |_| Some(value)), Standing::Stale);
    }
    assert_eq!(standing(&malloc_in_progress(), SP - 64, |_| None), Standing::Stale);
}

#[test]
fn a_return_belongs_to_the_call_that_stands_there() {
    let frame = malloc_in_progress();
    assert_eq!(returning(&frame, SP + 8, Cookie(frame.cookie)), Return::Outermost);
}

#[test]
fn a_return_further_in_has_no_effect() {
    let frame = malloc_in_progress();
    assert_eq!(returning(&frame, SP - 56, Cookie(frame.cookie)), Return::Nested);
}

#[test]
fn a_tail_called_function_that_returns_first_has_no_effect() {
    let new = Frame { cookie: Cookie::new(9, Signature::Malloc).0, ..malloc_in_progress() };
    assert_eq!(returning(&new, SP + 8, Cookie::new(3, Signature::Malloc)), Return::Nested);
    assert_eq!(returning(&new, SP + 8, Cookie(new.cookie)), Return::Outermost);
}

#[test]
fn a_return_further_out_means_the_recorded_call_never_returned() {
    let frame = malloc_in_progress();
    assert_eq!(returning(&frame, SP + 16, Cookie(frame.cookie)), Return::BeyondStale);
}

#[test]
fn a_return_without_an_entry_is_known_as_such() {
    let cookie = Cookie::new(3, Signature::Malloc);
    assert_eq!(returning(&Frame::default(), SP + 8, cookie), Return::WithoutEntry);
    assert_eq!(returning(&Frame::default(), 8, Cookie(0)), Return::WithoutEntry);
}

#[test]
fn each_signature_tells_its_size_old_block_and_result_place() {
    let cases = [
        (Signature::Malloc, [13, 2, 3, 4], Request { size: 13, old: 0, out: 0 }),
        (Signature::Calloc, [13, 7, 3, 4], Request { size: 91, old: 0, out: 0 }),
        (Signature::Realloc, [0x10, 13, 3, 4], Request { size: 13, old: 0x10, out: 0 }),
        (Signature::ReallocArray, [0x10, 13, 7, 4], Request { size: 91, old: 0x10, out: 0 }),
        (Signature::PosixMemalign, [0x20, 64, 13, 4], Request { size: 13, old: 0, out: 0x20 }),
        (Signature::AlignedAlloc, [64, 13, 3, 4], Request { size: 13, old: 0, out: 0 }),
        (Signature::Xallocx, [0x10, 13, 3, 4], Request { size: 13, old: 0x10, out: 0 }),
        (Signature::HeapCalloc, [0x90, 13, 7, 4], Request { size: 91, old: 0, out: 0 }),
        (Signature::HeapRealloc, [0x90, 0x10, 13, 4], Request { size: 13, old: 0x10, out: 0 }),
        (Signature::HeapReallocArray, [0x90, 0x10, 13, 7], Request { size: 91, old: 0x10, out: 0 }),
    ];
    for (signature, args, wanted) in cases {
        assert_eq!(request(signature, args), wanted, "{signature:?}");
    }
}

#[test]
fn an_overflowing_product_is_no_small_request() {
    let big = 1 << 33;
    assert_eq!(request(Signature::Calloc, [big, big, 0, 0]).size, u64::MAX);
    assert_eq!(request(Signature::ReallocArray, [0x10, big, big, 0]).size, u64::MAX);
    assert_eq!(request(Signature::Calloc, [u64::MAX, 1, 0, 0]).size, u64::MAX);
    assert_eq!(request(Signature::Calloc, [0, u64::MAX, 0, 0]).size, 0);
    assert_eq!(request(Signature::Calloc, [u64::MAX, 0, 0, 0]).size, 0);
    assert_eq!(
        request(Signature::Calloc, [0xffff_ffff, 0xffff_ffff, 0, 0]).size,
        0xffff_fffe_0000_0001
    );
}

#[test]
fn an_overflowing_reallocarray_fails_and_keeps_the_old_block() {
    let asked = request(Signature::ReallocArray, [0x10, 1 << 32, 1 << 32, 0]);
    assert_eq!(outcome(Signature::ReallocArray, &asked, 0, never_read), Outcome::Failed);
}

#[test]
fn a_block_exists_only_when_its_allocator_returned_one() {
    for signature in [Signature::Malloc, Signature::Calloc, Signature::AlignedAlloc] {
        let asked = request(signature, [13, 13, 13, 0]);
        assert_eq!(outcome(signature, &asked, 0, never_read), Outcome::Failed);
        assert_eq!(
            outcome(signature, &asked, 0x40, never_read),
            Outcome::Allocated { address: 0x40 }
        );
    }
}

#[test]
fn malloc_of_zero_bytes_that_returns_a_pointer_is_a_block() {
    let asked = request(Signature::Malloc, [0, 0, 0, 0]);
    assert_eq!(
        outcome(Signature::Malloc, &asked, 0x40, never_read),
        Outcome::Allocated { address: 0x40 }
    );
}

#[test]
fn failed_realloc_keeps_the_old_block() {
    let asked = request(Signature::Realloc, [0x10, 13, 0, 0]);
    assert_eq!(outcome(Signature::Realloc, &asked, 0, never_read), Outcome::Failed);
}

#[test]
fn realloc_to_zero_does_what_it_returns() {
    let asked = request(Signature::Realloc, [0x10, 0, 0, 0]);
    assert_eq!(outcome(Signature::Realloc, &asked, 0, never_read), Outcome::Released);
    assert_eq!(
        outcome(Signature::Realloc, &asked, 0x40, never_read),
        Outcome::Allocated { address: 0x40 }
    );
}

#[test]
fn realloc_of_null_is_malloc() {
    let asked = request(Signature::Realloc, [0, 13, 0, 0]);
    assert_eq!(
        outcome(Signature::Realloc, &asked, 0x40, never_read),
        Outcome::Allocated { address: 0x40 }
    );
    assert_eq!(outcome(Signature::Realloc, &asked, 0, never_read), Outcome::Failed);
    let nothing = request(Signature::Realloc, [0, 0, 0, 0]);
    assert_eq!(outcome(Signature::Realloc, &nothing, 0, never_read), Outcome::Failed);
}

#[test]
fn posix_memalign_tells_its_block_in_memory_and_only_on_success() {
    let asked = request(Signature::PosixMemalign, [0x20, 64, 13, 0]);
    let found = outcome(Signature::PosixMemalign, &asked, 0xdead_0000_0000, |at| {
        assert_eq!(at, 0x20);
        Some(0x40)
    });
    assert_eq!(found, Outcome::Allocated { address: 0x40 });
    for error in [12, 22] {
        assert_eq!(outcome(Signature::PosixMemalign, &asked, error, never_read), Outcome::Failed);
    }
    assert_eq!(outcome(Signature::PosixMemalign, &asked, 0, |_| None), Outcome::Unreadable);
}

#[test]
fn xallocx_resizes_in_place_or_not_at_all() {
    let asked = request(Signature::Xallocx, [0x10, 100, 0, 0]);
    assert_eq!(
        outcome(Signature::Xallocx, &asked, 112, never_read),
        Outcome::Allocated { address: 0x10 }
    );
    assert_eq!(outcome(Signature::Xallocx, &asked, 96, never_read), Outcome::Failed);
}

#[test]
fn a_failing_range_call_changes_nothing() {
    for signature in [Signature::Mmap, Signature::Mremap, Signature::Sbrk] {
        assert!(!range_succeeded(signature, u64::MAX), "{signature:?}");
        assert!(!range_succeeded(signature, -12_i64 as u64), "{signature:?}");
        assert!(range_succeeded(signature, 0x7f00_0000_0000), "{signature:?}");
    }
    for signature in [Signature::Munmap, Signature::Mprotect, Signature::Brk] {
        assert!(!range_succeeded(signature, u64::MAX), "{signature:?}");
        assert!(!range_succeeded(signature, 0xffff_ffff), "{signature:?}");
        assert!(range_succeeded(signature, 0xabcd_0000_0000), "{signature:?}");
    }
}

#[test]
fn a_cookie_carries_index_and_signature_and_is_never_zero() {
    for value in 0..=255u8 {
        let Some(signature) = Signature::from_u8(value) else { continue };
        assert_eq!(signature as u8, value);
        for index in [0, 1, MAX_PROBES as u16 - 1, u16::MAX] {
            let cookie = Cookie::new(index, signature);
            assert_ne!(cookie.0, 0);
            assert_eq!(cookie.index(), index as usize);
            assert_eq!(cookie.signature(), Some(signature));
        }
    }
    assert_eq!(Cookie(0).signature(), None);
}

#[test]
fn only_range_calls_work_on_ranges() {
    let ranged = (0..=255).filter_map(Signature::from_u8).filter(|s| s.is_range());
    let expected = [
        Signature::Mmap,
        Signature::Munmap,
        Signature::Mremap,
        Signature::Brk,
        Signature::Sbrk,
        Signature::Mprotect,
        Signature::BrkCall,
    ];
    assert!(ranged.eq(expected), "in the order of their numbers");
    assert!(!Signature::Xallocx.is_range() && !Signature::Free.is_range());
}

#[test]
fn a_system_call_is_known_by_its_number_at_its_place() {
    for (place, (number, _, signature)) in SYSTEM_CALLS.iter().enumerate() {
        assert_eq!(system_call(*number), Some((place as u16, *signature)));
        assert!(signature.is_range() && signature.needs_return());
        assert_eq!(Signature::from_u8(*signature as u8), Some(*signature));
    }
    let others = (0..1000).filter(|number| SYSTEM_CALLS.iter().all(|call| call.0 != *number));
    assert!(others.into_iter().all(|number| system_call(number).is_none()));
}

#[test]
fn the_brk_system_call_has_no_error_and_tells_the_break() {
    assert!(range_succeeded(Signature::BrkCall, 0x5555_0000_0000));
    assert!(!range_succeeded(Signature::BrkCall, -1i64 as u64));
}
