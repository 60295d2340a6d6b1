//! Which variables a function refers to: its `rip`-relative operands, by decoding its code.

use iced_x86::{Decoder, DecoderOptions, Mnemonic};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// In the same address space as the code's.
    pub target: u64,
    /// How many bytes the instruction accesses there; 0 where it only takes the address.
    pub bytes: usize,
}

/// The references of `code`, which stands at `address`. What does not decode is stepped over.
pub fn references(code: &[u8], address: u64) -> Vec<Reference> {
    let mut found = Vec::new();
    for instruction in Decoder::with_ip(64, code, address, DecoderOptions::NONE) {
        if !instruction.is_ip_rel_memory_operand() {
            continue;
        }
        let bytes = match instruction.mnemonic() {
            Mnemonic::Lea => 0,
            _ => instruction.memory_size().size(),
        };
        found.push(Reference { target: instruction.ip_rel_memory_address(), bytes });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_compares_and_addresses_are_told_apart() {
        let code = [
            &[0x48, 0x8b, 0x05, 0x10, 0, 0, 0][..], // mov rax, [rip+0x10]
            &[0x48, 0x83, 0x3d, 0x20, 0, 0, 0, 0x00][..], // cmp qword [rip+0x20], 0
            &[0x8b, 0x0d, 0x30, 0, 0, 0][..],       // mov ecx, [rip+0x30]
            &[0x48, 0x8d, 0x15, 0xf0, 0xff, 0xff, 0xff][..], // lea rdx, [rip-0x10]
            &[0x48, 0x8b, 0x42, 0x10][..],          // mov rax, [rdx+0x10]
        ]
        .concat();
        let reference = |target, bytes| Reference { target, bytes };
        assert_eq!(
            references(&code, 0x1000),
            [
                reference(0x1017, 8),
                reference(0x102f, 8),
                reference(0x1045, 4),
                reference(0x100c, 0),
            ]
        );
    }

    #[test]
    fn code_that_does_not_decode_gives_nothing() {
        assert_eq!(references(&[0x06; 64], 0), []);
        assert_eq!(references(&[0x48, 0x8b, 0x05], 0), []);
    }
}
