//! Memory of the tracee as it was copied at a call: a few ranges, everything else is unknown.

/// Copied ranges: the address of the first byte, and the bytes. They may overlap.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopiedMemory<'m> {
    /// Of the stack that the call was made on, from its RSP upwards.
    pub stack: (u64, &'m [u8]),
    /// Of the stack that the walk ended on.
    pub top: (u64, &'m [u8]),
    /// The address of a single word, and the word: where a goroutine's stack ends.
    pub word: [u64; 2],
}

/// How far beyond a copied range memory is taken for the same stack.
const REACH: u64 = 8 << 20;

impl CopiedMemory<'_> {
    /// The eight bytes at an address, where all of them were copied.
    pub fn read(&self, address: u64) -> Option<u64> {
        word(self.stack, address)
            .or_else(|| word(self.top, address))
            .or_else(|| (address == self.word[0] && address != 0).then_some(self.word[1]))
    }

    /// Whether an address that was not copied is on a stack of which a part was.
    pub fn is_near(&self, address: u64) -> bool {
        let (start, bytes) = self.stack;
        let above = address.wrapping_sub(start) < bytes.len() as u64 + REACH;
        let (start, bytes) = self.top;
        let end = start.wrapping_add(bytes.len() as u64);
        let below = !bytes.is_empty() && end.wrapping_sub(address) < bytes.len() as u64 + REACH;
        above || below
    }
}

fn word((start, bytes): (u64, &[u8]), address: u64) -> Option<u64> {
    let at = usize::try_from(address.checked_sub(start)?).ok()?;
    let end = at.checked_add(8)?;
    Some(u64::from_le_bytes(bytes.get(at..end)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_read_where_all_of_it_was_copied() {
        let bytes: Vec<u8> = (0..16).collect();
        let memory =
            CopiedMemory { stack: (0x1000, &bytes), top: (0x9000, &bytes[..8]), word: [0x6008, 7] };
        assert_eq!(memory.read(0x1000), Some(0x0706_0504_0302_0100));
        assert_eq!(memory.read(0x1003), Some(0x0a09_0807_0605_0403));
        assert_eq!(memory.read(0x9000), memory.read(0x1000));
        assert_eq!((memory.read(0x6008), memory.read(0x6009)), (Some(7), None));
        for address in [0, 0xfff, 0x1009, 0x1010, 0x9001, u64::MAX] {
            assert_eq!(memory.read(address), None, "{address:#x}");
        }
    }

    #[test]
    fn what_lies_above_the_copied_stack_is_near_and_another_stack_is_not() {
        let bytes = [0; 16];
        let memory = CopiedMemory {
            stack: (0x7f00_0000_1000, &bytes),
            top: (0xc0_0000, &bytes),
            word: [0; 2],
        };
        assert!(memory.is_near(0x7f00_0000_1010));
        assert!(memory.is_near(0xbf_fff8), "a deeper frame of the other stack");
        assert!(!memory.is_near(0x7f00_0000_0ff8), "below RSP there is nothing");
        assert!(!memory.is_near(0x7e00_0000_0000));
    }
}
