//! The scripted program, running, with the kernel side attached to it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use memtrace::kernel::{ImageNumber, Kernel, KernelConfig, KernelSnapshot, StoredStack};
use memtrace::plan::{PlannedProbe, ProbePlan, Signature};
use memtrace::snapshot::StackTotals;
use memtrace_common::counters::{Loss, Tally};
use memtrace_common::unwind::{CfaKind, UnwindMapping, UnwindRow};
use object::{Object, ObjectSegment, ObjectSymbol};

pub const PROBES: [(&str, Signature); 11] = [
    ("my_malloc", Signature::Malloc),
    ("my_calloc", Signature::Calloc),
    ("my_realloc", Signature::Realloc),
    ("my_reallocarray", Signature::ReallocArray),
    ("my_posix_memalign", Signature::PosixMemalign),
    ("my_aligned_alloc", Signature::AlignedAlloc),
    ("my_new", Signature::Malloc),
    ("my_free", Signature::Free),
    ("my_mmap", Signature::Mmap),
    ("my_munmap", Signature::Munmap),
    ("my_mremap", Signature::Mremap),
];

pub struct Target {
    pub kernel: Kernel,
    pub program: Program,
}

pub struct Program {
    pub child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    _directory: tempfile::TempDir,
    pub path: PathBuf,
}

impl Program {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("scripted");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/scripted.c");
        let built = Command::new("cc")
            .args(["-O1", "-g", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"])
            .args(["-fno-builtin", "-fcf-protection=none", "-pthread", "-o"])
            .args([&path, &source])
            .status()
            .expect("cc is needed for the live tests");
        assert!(built.success(), "cc failed");
        let mut child =
            Command::new(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut program = Self { child, stdin, stdout, _directory: directory, path };
        assert_eq!(program.line(), "ready 1");
        program
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Runs one line of the script; returns the address it tells.
    pub fn run(&mut self, line: &str) -> u64 {
        self.send(line);
        let answer = self.line();
        let told = answer.strip_prefix("done ").unwrap_or_else(|| panic!("{line}: `{answer}`"));
        match told {
            "(nil)" => 0,
            hex => u64::from_str_radix(hex.trim_start_matches("0x"), 16).unwrap(),
        }
    }

    pub fn send(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
        self.stdin.flush().unwrap();
    }

    pub fn answer(&mut self) -> String {
        self.line()
    }

    pub fn plan(&self) -> ProbePlan {
        plan(&self.path)
    }

    /// How many of the probed functions begin with a breakpoint, in the program's memory.
    pub fn breakpoints(&self) -> usize {
        let path = self.path.display().to_string();
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap();
        let memory = fs::File::open(format!("/proc/{}/mem", self.pid())).unwrap();
        let mapped: Vec<(u64, u64, u64)> = maps
            .lines()
            .filter(|line| line.ends_with(&path))
            .map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let (start, end) = fields[0].split_once('-').unwrap();
                let hex = |text| u64::from_str_radix(text, 16).unwrap();
                (hex(start), hex(end), hex(fields[2]))
            })
            .collect();
        self.plan()
            .probes
            .iter()
            .filter(|probe| {
                let at = probe.function_file_offset;
                let (start, _, offset) = mapped
                    .iter()
                    .find(|(start, end, offset)| (*offset..offset + (end - start)).contains(&at))
                    .unwrap();
                let mut byte = [0];
                memory.read_exact_at(&mut byte, start + at - offset).unwrap();
                byte == [0xcc]
            })
            .count()
    }

    /// The executable mappings with their paths.
    pub fn mappings(&self) -> Vec<(u64, u64, String)> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap();
        maps.lines()
            .filter(|line| line.split_whitespace().nth(1).is_some_and(|p| p.contains('x')))
            .map(|line| {
                let range = line.split_whitespace().next().unwrap();
                let (start, end) = range.split_once('-').unwrap();
                let path = line.split_whitespace().nth(5).unwrap_or("").to_owned();
                let hex = |text| u64::from_str_radix(text, 16).unwrap();
                (hex(start), hex(end), path)
            })
            .collect()
    }
}

/// Every probed function of the program, at its entry.
pub fn plan(path: &Path) -> ProbePlan {
    let data = fs::read(path).unwrap();
    let elf = object::File::parse(&*data).unwrap();
    let probes = PROBES.map(|(name, signature)| PlannedProbe {
        signature,
        attach_path: path.to_owned(),
        object: path.display().to_string(),
        allocator: "scripted".to_owned(),
        function: name.to_owned(),
        function_file_offset: file_offset(&elf, name),
        entry_site: 0,
        entry_instruction: String::new(),
        entry_is_emulated: false,
        return_site: (signature != Signature::Free).then_some(0),
    });
    ProbePlan { probes: probes.to_vec(), ..ProbePlan::default() }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn file_offset(elf: &object::File<'_>, name: &str) -> u64 {
    let symbol = elf.symbols().find(|s| s.name() == Ok(name)).unwrap_or_else(|| panic!("{name}"));
    let address = symbol.address();
    let segment =
        elf.segments().find(|s| (s.address()..s.address() + s.size()).contains(&address)).unwrap();
    address - segment.address() + segment.file_range().0
}

pub fn small() -> KernelConfig {
    KernelConfig {
        max_blocks: 1 << 16,
        max_stacks: 1 << 10,
        max_threads: 1 << 10,
        ring_bytes: 1 << 16,
        max_unwind_rows: 1 << 12,
        ..KernelConfig::default()
    }
}

pub const IMAGE: ImageNumber = ImageNumber::first(7);

impl Target {
    pub fn start() -> Self {
        Self::start_with(&small())
    }

    pub fn start_with(config: &KernelConfig) -> Self {
        let program = Program::start();
        let kernel = Kernel::load(config).unwrap_or_else(|error| panic!("{error}"));
        let mut target = Self { kernel, program };
        target.set_mappings(|_| true);
        let plan = target.program.plan();
        let report = target.kernel.attach(target.program.pid(), &plan).unwrap();
        assert_eq!(report.attached(), plan.probes.len(), "{report:?}");
        target.kernel.arm().unwrap();
        target
    }

    /// One frame-pointer row for the program's text; libc ends the walk.
    pub fn set_mappings(&mut self, keep: impl Fn(&str) -> bool) {
        let row = |kind| UnwindRow { pc: 0, kind, offset_by_8: 0, rbp: 0 }.pack();
        let own = self.kernel.append_unwind_rows(&[row(CfaKind::FramePointer)]).unwrap();
        let other = self.kernel.append_unwind_rows(&[row(CfaKind::End)]).unwrap();
        let path = self.program.path.display().to_string();
        let mappings: Vec<UnwindMapping> = self
            .program
            .mappings()
            .into_iter()
            .filter(|(_, _, name)| keep(name) && name != "[uprobes]" && name != "[vsyscall]")
            .map(|(start, end, name)| UnwindMapping {
                start,
                end,
                bias: start,
                first_row: if name == path { own } else { other },
                row_count: 1,
                ..UnwindMapping::default()
            })
            .collect();
        self.kernel.set_process(self.program.pid(), IMAGE, &mappings).unwrap();
    }

    pub fn run(&mut self, line: &str) -> u64 {
        self.program.run(line)
    }

    /// The books after everything done so far, checked against their own laws.
    pub fn books(&mut self) -> Books {
        let snapshot = self.kernel.snapshot(Some(0)).unwrap();
        assert!(!snapshot.moving, "the program waits: nothing may move");
        let stacks: Vec<StackTotals> = snapshot
            .processes
            .iter()
            .filter(|process| process.image == IMAGE.number)
            .flat_map(|process| process.stacks.clone())
            .collect();
        for stack in &stacks {
            let live = stack.live.unwrap();
            assert_eq!(stack.allocated_bytes - stack.freed_bytes, live.bytes, "{stack:?}");
            assert_eq!(stack.allocated_blocks - stack.freed_blocks, live.blocks, "{stack:?}");
        }
        Books { snapshot, stacks }
    }
}

pub struct Books {
    pub snapshot: KernelSnapshot,
    pub stacks: Vec<StackTotals>,
}

impl Books {
    /// Outstanding (bytes, blocks).
    pub fn outstanding(&self) -> (u64, u64) {
        self.stacks.iter().fold((0, 0), |(bytes, blocks), stack| {
            (
                bytes + stack.allocated_bytes - stack.freed_bytes,
                blocks + stack.allocated_blocks - stack.freed_blocks,
            )
        })
    }

    pub fn tally(&self, tally: Tally) -> u64 {
        self.snapshot.tally(tally)
    }

    /// The losses that are not zero.
    pub fn losses(&self) -> Vec<(&'static str, u64)> {
        Loss::ALL
            .iter()
            .map(|loss| (loss.label(), self.snapshot.loss(*loss)))
            .filter(|(_, count)| *count != 0)
            .collect()
    }
}

/// The names of a stack's frames in the program's own text, leaf first.
pub fn names(program: &Program, stack: &StoredStack) -> Vec<String> {
    let data = fs::read(&program.path).unwrap();
    let elf = object::File::parse(&*data).unwrap();
    let path = program.path.display().to_string();
    let maps = fs::read_to_string(format!("/proc/{}/maps", program.pid())).unwrap();
    let base = maps.lines().find(|line| line.ends_with(&path)).unwrap();
    let base = u64::from_str_radix(base.split('-').next().unwrap(), 16).unwrap();
    stack
        .stack
        .frames
        .iter()
        .enumerate()
        .map(|(at, pc)| {
            let address = pc.wrapping_sub(base).wrapping_sub(u64::from(at > 0));
            elf.symbols()
                .filter(|s| s.is_definition() && s.size() > 0)
                .find(|s| (s.address()..s.address() + s.size()).contains(&address))
                .and_then(|s| s.name().ok())
                .unwrap_or("?")
                .to_owned()
        })
        .collect()
}
