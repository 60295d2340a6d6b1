//! From what the kernel side saw of the mmap family to what the interval map understands. Pure.

use memtrace_common::calls::Signature;

use crate::kernel::RangeEvent as Seen;
use crate::outstanding::ranges::{RangeEvent, RangeOp};

/// `MAP_ANONYMOUS` of `<asm-generic/mman-common.h>`.
const MAP_ANONYMOUS: u64 = 0x20;

/// `None` for a signature that maps nothing.
pub fn range_event(seen: &Seen) -> Option<RangeEvent> {
    let [first, second, third, fourth, ..] = seen.args;
    let op = match seen.signature {
        Signature::Mmap => RangeOp::Map {
            address: seen.result,
            length: second,
            prot: third as u32,
            flags: fourth as u32,
            is_file: fourth & MAP_ANONYMOUS == 0,
        },
        Signature::Munmap => RangeOp::Unmap { address: first, length: second },
        Signature::Mremap => RangeOp::Remap {
            old_address: first,
            old_length: second,
            new_address: seen.result,
            new_length: third,
            flags: fourth as u32,
        },
        Signature::Brk => RangeOp::Brk { old_break: None, new_break: first },
        // It tells the break as it is then; asked for 0, it only tells.
        Signature::BrkCall => {
            RangeOp::Brk { old_break: (first == 0).then_some(seen.result), new_break: seen.result }
        }
        // It returns the break before; the increment is signed.
        Signature::Sbrk => RangeOp::Brk {
            old_break: Some(seen.result),
            new_break: seen.result.wrapping_add(first),
        },
        Signature::Mprotect => {
            RangeOp::Protect { address: first, length: second, prot: third as u32 }
        }
        _ => return None,
    };
    Some(RangeEvent {
        time_ns: seen.effective_ns(),
        op,
        stack: seen.stack,
        allocator_internal: seen.allocator_internal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(signature: Signature, args: [u64; 6], result: u64) -> Seen {
        Seen {
            signature,
            tgid: 1,
            tid: 1,
            image: 1,
            entry_ns: 10,
            return_ns: 20,
            stack: 7,
            allocator_internal: false,
            args,
            result,
        }
    }

    #[test]
    fn a_mapping_without_map_anonymous_is_a_files() {
        let of_file = range_event(&seen(Signature::Mmap, [0, 4096, 1, 2, 3, 0], 0x1000));
        assert!(matches!(of_file.map(|e| e.op), Some(RangeOp::Map { is_file: true, .. })));
        let anonymous =
            range_event(&seen(Signature::Mmap, [0, 4096, 3, 0x22, u64::MAX, 0], 0x1000));
        assert!(matches!(anonymous.map(|e| e.op), Some(RangeOp::Map { is_file: false, .. })));
    }

    #[test]
    fn sbrk_tells_both_breaks() {
        let shrunk =
            range_event(&seen(Signature::Sbrk, [(-4096i64) as u64, 0, 0, 0, 0, 0], 0x9000));
        let expected = RangeOp::Brk { old_break: Some(0x9000), new_break: 0x8000 };
        assert_eq!(shrunk.map(|event| event.op), Some(expected));
    }

    #[test]
    fn the_brk_system_call_tells_where_the_break_is_then() {
        let asked = range_event(&seen(Signature::BrkCall, [0; 6], 0x9000));
        let expected = RangeOp::Brk { old_break: Some(0x9000), new_break: 0x9000 };
        assert_eq!(asked.map(|event| event.op), Some(expected));
        // Refused: it stays where it is.
        let refused = range_event(&seen(Signature::BrkCall, [0xa000, 0, 0, 0, 0, 0], 0x9000));
        let expected = RangeOp::Brk { old_break: None, new_break: 0x9000 };
        assert_eq!(refused.map(|event| event.op), Some(expected));
    }

    #[test]
    fn an_unmapping_counts_from_its_entry() {
        let unmapped = range_event(&seen(Signature::Munmap, [0x1000, 4096, 0, 0, 0, 0], 0));
        assert_eq!(unmapped.map(|event| event.time_ns), Some(10));
    }

    #[test]
    fn a_malloc_is_no_range_event() {
        assert_eq!(range_event(&seen(Signature::Malloc, [1, 0, 0, 0, 0, 0], 0x1000)), None);
    }
}
