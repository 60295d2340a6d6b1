//! What a tracer leaves behind: breakpoints in its tracee's code, programs and maps in the kernel.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result};

/// The executable bytes of a process as it would run them, by the start of their mapping.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(BTreeMap<u64, (String, Vec<u8>)>);

impl Text {
    /// Reads every executable mapping of a file. The process may run meanwhile.
    pub fn of(pid: u32) -> Result<Self> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))
            .with_context(|| format!("read `/proc/{pid}/maps`"))?;
        let mut memory = File::open(format!("/proc/{pid}/mem"))
            .with_context(|| format!("open `/proc/{pid}/mem`"))?;
        let mut text = BTreeMap::new();
        for line in maps.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [range, protection, _, _, _, path] = fields[..] else { continue };
            if !protection.contains('x') || !path.starts_with('/') {
                continue;
            }
            let (start, end) = range.split_once('-').context("a range in maps")?;
            let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
            let mut bytes = vec![0; usize::try_from(end - start)?];
            memory.seek(SeekFrom::Start(start))?;
            // The last page of a mapping may lie beyond its file's end.
            let filled = read_until_fault(&mut memory, &mut bytes);
            bytes.truncate(filled);
            text.insert(start, (path.to_owned(), bytes));
        }
        Ok(Self(text))
    }

    /// Where this differs from an earlier reading: `path+offset in the mapping: was, is`.
    /// Mappings that only one of both has are not compared.
    pub fn changes_since(&self, earlier: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        for (start, (path, now)) in &self.0 {
            let Some((_, then)) = earlier.0.get(start) else { continue };
            for (offset, (is, was)) in now.iter().zip(then).enumerate() {
                if is != was {
                    changes.push(format!("{path} mapped+{offset:#x}: was {was:#x}, is {is:#x}"));
                }
            }
        }
        changes
    }
}

fn read_until_fault(memory: &mut File, bytes: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < bytes.len() {
        match memory.read(&mut bytes[filled..]) {
            Ok(0) | Err(_) => break,
            Ok(more) => filled += more,
        }
    }
    filled
}

/// BPF objects, by the ids that the kernel gave them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfObjects {
    pub programs: Vec<u32>,
    pub maps: Vec<u32>,
    pub links: Vec<u32>,
}

impl BpfObjects {
    /// Those that a living process holds open.
    pub fn held_by(pid: u32) -> Result<Self> {
        let mut held = Self::default();
        let directory = format!("/proc/{pid}/fdinfo");
        for entry in std::fs::read_dir(&directory).with_context(|| format!("list `{directory}`"))? {
            // A descriptor may be closed while the directory is read.
            let Ok(info) = std::fs::read_to_string(entry?.path()) else { continue };
            for line in info.lines() {
                let Some((key, value)) = line.split_once(':') else { continue };
                let ids = match key {
                    "prog_id" => &mut held.programs,
                    "map_id" => &mut held.maps,
                    "link_id" => &mut held.links,
                    _ => continue,
                };
                ids.push(value.trim().parse().with_context(|| format!("read `{line}`"))?);
            }
        }
        for ids in [&mut held.programs, &mut held.maps, &mut held.links] {
            ids.sort_unstable();
            ids.dedup();
        }
        Ok(held)
    }

    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty() && self.links.is_empty()
    }

    /// Those of them that the kernel still has.
    pub fn still_there(&self) -> Result<Self> {
        // Commands of bpf(2), include/uapi/linux/bpf.h.
        const PROG_GET_NEXT_ID: i32 = 11;
        const MAP_GET_NEXT_ID: i32 = 12;
        const LINK_GET_NEXT_ID: i32 = 31;
        let existing = |command, ids: &[u32]| -> Result<Vec<u32>> {
            let mut found = Vec::new();
            for &id in ids {
                if exists(command, id)? {
                    found.push(id);
                }
            }
            Ok(found)
        };
        Ok(Self {
            programs: existing(PROG_GET_NEXT_ID, &self.programs)?,
            maps: existing(MAP_GET_NEXT_ID, &self.maps)?,
            links: existing(LINK_GET_NEXT_ID, &self.links)?,
        })
    }
}

/// Asks for the identity that follows the one before, which takes no reference: a map of programs
/// whose last descriptor is opened and closed again while the kernel is about to empty it loses a
/// reference and stays for good (`prog_array_map_clear`, seen on 6.18).
fn exists(next_id_command: i32, id: u32) -> Result<bool> {
    /// `struct { __u32 start_id; __u32 next_id; __u32 open_flags; }` of `union bpf_attr`.
    #[repr(C)]
    struct NextId {
        start_id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let before = id.checked_sub(1).context("no BPF object has the identity 0")?;
    let mut attributes = NextId { start_id: before, next_id: 0, open_flags: 0 };
    // SAFETY: bpf(2) reads and writes `size_of::<NextId>()` bytes of `attributes`, which outlives
    // the call.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, next_id_command, &raw mut attributes, size_of::<NextId>())
    };
    if answer == 0 {
        return Ok(attributes.next_id == id);
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOENT) => Ok(false),
        _ => Err(error).with_context(|| format!("ask the kernel for the BPF object {id}")),
    }
}
