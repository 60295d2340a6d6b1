//! The processes of the target: whose forks are followed, and where the kernel keeps a process's id.

use std::fs::File;
use std::io::Read;

use memtrace_common::rows::{MEMBER, MEMBER_WITH_CHILDREN};

use super::load::attach_tracepoint;
use super::{Kernel, KernelError};

const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";
/// The types of a distribution's kernel take about 6 MiB.
const KERNEL_TYPES_BYTES: u64 = 256 << 20;
const BTF_MAGIC: u16 = 0xeb9f;

impl Kernel {
    /// From now on the children that members start are members, too, and a notice tells of each.
    /// Needs the kernel's own types (`/sys/kernel/btf/vmlinux`); [`Kernel::knows_forks`] says
    /// whether it has them.
    pub fn follow_forks(&mut self) -> Result<(), KernelError> {
        if self.knows_forks && !self.follows_forks {
            self.tracepoints.push(attach_tracepoint(&mut self.ebpf, "fork", "sched_process_fork")?);
            self.follows_forks = true;
        }
        Ok(())
    }

    /// Whether forks can be seen; otherwise new processes are found by looking.
    pub fn knows_forks(&self) -> bool {
        self.knows_forks
    }

    /// The process is one of the target's: a notice tells of its `exec` and of its end.
    pub fn add_member(&mut self, tgid: u32, with_children: bool) -> Result<(), KernelError> {
        let value = if with_children { MEMBER_WITH_CHILDREN } else { MEMBER };
        self.family
            .insert(&tgid, &value)
            .map_err(|source| KernelError::map("fill", "FAMILY", source))
    }

    /// Forgets a member that has ended.
    pub fn remove_member(&mut self, tgid: u32) {
        // Gone already is as good.
        let _ = self.family.remove(&tgid);
    }
}

/// Offset of `tgid` in the running kernel's `task_struct`, bytes.
pub(super) fn task_tgid_offset() -> Option<u32> {
    let mut types = Vec::new();
    File::open(KERNEL_TYPES).ok()?.take(KERNEL_TYPES_BYTES).read_to_end(&mut types).ok()?;
    member_offset(&types, "task_struct", "tgid")
}

/// The offset of a member in a structure, by BTF (Documentation/bpf/btf.rst of the kernel).
fn member_offset(btf: &[u8], structure: &str, member: &str) -> Option<u32> {
    let half = |at: usize| Some(u16::from_ne_bytes(btf.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_ne_bytes(btf.get(at..at + 4)?.try_into().ok()?));
    if half(0)? != BTF_MAGIC {
        return None;
    }
    let header = word(4)? as usize;
    let [type_at, type_bytes, string_at] = [word(8)?, word(12)?, word(16)?];
    let strings = header.checked_add(string_at as usize)?;
    let is_named = |name: u32, wanted: &str| {
        let start = strings.checked_add(name as usize);
        let text = start.and_then(|start| btf.get(start..)?.get(..=wanted.len()));
        text.is_some_and(|text| {
            &text[..wanted.len()] == wanted.as_bytes() && text[wanted.len()] == 0
        })
    };
    let mut at = header.checked_add(type_at as usize)?;
    let end = at.checked_add(type_bytes as usize)?;
    while at < end {
        let (name, info) = (word(at)?, word(at + 4)?);
        let (kind, count) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
        at += 12;
        let is_wanted = kind == KIND_STRUCT && is_named(name, structure);
        if is_wanted {
            for position in 0..count {
                let entry = at + 12 * position;
                if is_named(word(entry)?, member) {
                    let bits = word(entry + 8)?;
                    // With bit fields the upper byte is a size.
                    let bits = if info >> 31 != 0 { bits & 0x00ff_ffff } else { bits };
                    return (bits % 8 == 0).then_some(bits / 8);
                }
            }
        }
        at += match kind {
            KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
            KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
            KIND_POINTER..=LAST_KIND => 0,
            _ => return None,
        };
    }
    None
}

const KIND_INT: u32 = 1;
const KIND_POINTER: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;
const LAST_KIND: u32 = 19;

#[cfg(test)]
mod tests {
    use super::*;

    /// An integer, a structure that is another one, and `task_struct` with two members.
    fn types() -> Vec<u8> {
        let strings = b"\0int\0other\0task_struct\0pid\0tgid\0";
        let name = |wanted: &str| {
            let at = strings.windows(wanted.len() + 1).position(|text| {
                text[..wanted.len()] == *wanted.as_bytes() && text[wanted.len()] == 0
            });
            at.unwrap() as u32
        };
        let words = [
            [name("int"), KIND_INT << 24, 4].as_slice(),
            &[32],
            &[name("other"), KIND_STRUCT << 24 | 1, 4],
            &[name("tgid"), 1, 0],
            &[name("task_struct"), 1 << 31 | KIND_STRUCT << 24 | 2, 16],
            &[name("pid"), 1, 64],
            &[name("tgid"), 1, 32 << 24 | 96],
        ]
        .concat();
        let mut btf = Vec::new();
        btf.extend(BTF_MAGIC.to_ne_bytes());
        btf.extend([1, 0]);
        let size = words.len() as u32 * 4;
        for word in [24, 0, size, size, strings.len() as u32].iter().chain(&words) {
            btf.extend(word.to_ne_bytes());
        }
        btf.extend(strings);
        btf
    }

    #[test]
    fn a_member_is_found_in_the_structure_that_was_asked_for() {
        assert_eq!(member_offset(&types(), "task_struct", "tgid"), Some(12));
        assert_eq!(member_offset(&types(), "other", "tgid"), Some(0));
        assert_eq!(member_offset(&types(), "task_struct", "nothing"), None);
    }

    #[test]
    fn damaged_types_are_none() {
        let whole = types();
        for length in 0..whole.len() - 40 {
            assert_eq!(member_offset(&whole[..length], "task_struct", "tgid"), None, "{length}");
        }
        assert_eq!(member_offset(&[0xff; 64], "task_struct", "tgid"), None);
    }
}
