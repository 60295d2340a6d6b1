//! What the host can do, as plain data: the facts that the plan and `memtrace doctor` read.
//!
//! Nothing here probes anything. The features come from whoever tried them on this kernel; which
//! instructions a uprobe emulates cannot be asked, so it is derived from the release, and nothing
//! but cost depends on it.

use serde::Serialize;

/// Something that memtrace uses, and whether this host has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    pub name: String,
    pub state: FeatureState,
    /// What uses it.
    pub needed_by: String,
    /// What happens where it is missing.
    pub without_it: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureState {
    Available,
    Missing { reason: String },
    Unknown { reason: String },
}

/// The kernel and the machine it runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// `uname -r`
    pub kernel_release: String,
    /// `uname -m`
    pub architecture: String,
    pub cpus: u32,
    pub page_size_bytes: u64,
    pub emulation: Emulation,
    pub features: Vec<Feature>,
}

/// Which instructions this kernel executes itself when a uprobe stands on them: one trap instead
/// of a trap and a single step (measured: 1 µs against 15 µs in a virtual machine).
///
/// Near `call`, `jmp`, `jcc` and one-byte `nop` have been emulated since 3.16; no flag for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Emulation {
    /// `push` of a 64-bit register: Linux 5.0.
    pub push: bool,
    /// The 5-byte `nopl 0(%rax,%rax,1)` that compilers leave for patching: Linux 6.16.
    pub nop5: bool,
}

impl Emulation {
    /// From the release, the way the upstream history has it. A distribution that carries the
    /// change in an older kernel is merely probed at a dearer site.
    pub fn of_release(release: &str) -> Self {
        let version = version_of(release);
        Self { push: version >= (5, 0), nop5: version >= (6, 16) }
    }
}

/// `"6.18.15-cloud-amd64"` → `(6, 18)`; `(0, 0)` where it is no version.
pub fn version_of(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|digits| digits.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_up_to_its_minor_number() {
        assert_eq!(version_of("6.18.15-cloud-amd64"), (6, 18));
        assert_eq!(version_of("5.10.0-30-amd64"), (5, 10));
        assert_eq!(version_of("7.3-rc1"), (7, 3));
        assert_eq!(version_of("nonsense"), (0, 0));
        assert_eq!(version_of(""), (0, 0));
    }

    #[test]
    fn an_old_kernel_emulates_no_five_byte_nop() {
        assert_eq!(Emulation::of_release("6.1.0"), Emulation { push: true, nop5: false });
        assert_eq!(Emulation::of_release("6.16.12"), Emulation { push: true, nop5: true });
        assert_eq!(Emulation::of_release("4.19.0"), Emulation { push: false, nop5: false });
    }
}
