//! Row by row against framehop and gimli's own search table, on the objects of this machine: at
//! every boundary of a row of ours and of the object's own call frame information. What a row
//! cannot say is listed by kind, and bounded.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder};
use gimli::{BaseAddresses, EhFrame, EhFrameHdr, LittleEndian, UnwindContext, UnwindSection};
use memtrace_common::unwind::{CfaKind, UnwindMapping, WalkEnd};
use proptest::prelude::*;

use super::*;
use crate::stacks::walk::{Registers, Step, UnwindSpace, step};

const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// The C and C++ runtimes, larger and odder libraries (hand-written assembly in libcrypto, computed
/// gotos in libpython), and the project's own code: the test binary.
fn objects() -> Vec<PathBuf> {
    let listed = std::fs::read_dir(LIBRARIES).expect("the library directory can be listed");
    let mut all: Vec<PathBuf> = listed.filter_map(|entry| Some(entry.ok()?.path())).collect();
    all.sort();
    let mut found: Vec<PathBuf> = [
        "ld-linux-x86-64.so.2",
        "libc.so.6",
        "libcrypto.so.",
        "libgcc_s.so.1",
        "libm.so.6",
        "libpython3.",
        "libssl.so.",
        "libstdc++.so.6",
    ]
    .iter()
    .map(|prefix| {
        let name =
            |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let is_it = |path: &&PathBuf| {
            name(path).is_some_and(|name| {
                name.starts_with(prefix) && name.contains(".so.") && !name.ends_with(".py")
            })
        };
        let path = all.iter().find(is_it);
        path.unwrap_or_else(|| panic!("no {prefix}*: `cargo xtask setup` installs it")).clone()
    })
    .collect();
    found.push(std::env::current_exe().expect("the test binary has a path"));
    found
}

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

const STACK: u64 = 0x7ffd_0000_0000;

/// A stack where every word is different and, taken as an address, lies above all registers.
fn stack_word(address: u64) -> u64 {
    let mixed = address.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    STACK + 0x1_0000_0000 + (mixed >> 40 << 3)
}

fn section_range<S: ByteSource + ?Sized>(elf: &Elf<'_, S>, name: &str) -> Option<Range<u64>> {
    elf.section(name).map(|section| section.vaddr..section.vaddr + section.size)
}

#[derive(Debug, Default)]
pub(super) struct Agreement {
    equal: u64,
    pub(super) by_gimli_only: u64,
    /// Where the object has a description and the table none, by what it says.
    unsupported: BTreeMap<&'static str, u64>,
    uncovered: u64,
}

impl Agreement {
    fn all_unsupported(&self) -> u64 {
        self.unsupported.values().sum()
    }
}

/// What a description says that a row cannot: judged anew here, not by the table's own reasons.
fn kind_of(row: &gimli::UnwindTableRow<usize>) -> &'static str {
    use gimli::{CfaRule, RegisterRule, X86_64};
    let rbp = row.register(X86_64::RBP);
    match (row.cfa(), row.register(X86_64::RA)) {
        (CfaRule::Expression(_), _) => "CFA by expression",
        (CfaRule::RegisterAndOffset { register, .. }, _)
            if ![X86_64::RSP, X86_64::RBP].contains(register) =>
        {
            "CFA from another register"
        }
        (_, Some(RegisterRule::Offset(-8)) | None) => match (row.cfa(), rbp) {
            (_, Some(RegisterRule::Expression(_) | RegisterRule::ValExpression(_))) => {
                "RBP by expression"
            }
            (_, Some(RegisterRule::Register(_) | RegisterRule::ValOffset(_))) => {
                "RBP in another register"
            }
            (CfaRule::RegisterAndOffset { offset, .. }, _)
                if !(8..64 << 10).contains(offset) || offset % 8 != 0 =>
            {
                "CFA offset out of range"
            }
            _ => "RBP at an odd place",
        },
        _ => "return address at an odd place",
    }
}

/// The first and the last byte of every row of the object's own call frame information.
fn described_boundaries(frame: &EhFrame<Bytes<'_>>, bases: &BaseAddresses) -> Vec<u64> {
    let mut boundaries = Vec::new();
    let mut context = UnwindContext::new();
    let mut entries = frame.entries(bases);
    while let Some(entry) = entries.next().expect("the section parses") {
        let gimli::CieOrFde::Fde(partial) = entry else { continue };
        let fde = partial.parse(EhFrame::cie_from_offset).expect("the description parses");
        let mut rows = fde.rows(frame, bases, &mut context).expect("it has rows");
        while let Some(row) = rows.next_row().expect("the row parses") {
            if row.start_address() < row.end_address() {
                boundaries.extend([row.start_address(), row.end_address() - 1]);
            }
        }
    }
    boundaries
}

/// The step by gimli's own evaluation of the row, memory reads in expressions included.
fn step_by_gimli(
    frame: &EhFrame<Bytes<'_>>,
    row: &gimli::UnwindTableRow<usize>,
    at: Registers,
) -> Step {
    use gimli::{CfaRule, EvaluationResult, Location, RegisterRule, Value};
    let register = |register| match register {
        gimli::X86_64::RSP => at.sp,
        gimli::X86_64::RBP => at.bp,
        gimli::X86_64::RA => at.pc,
        other => panic!("needs {other:?}"),
    };
    let evaluate = |expression: &gimli::UnwindExpression<usize>, cfa: Option<u64>| {
        let encoding =
            gimli::Encoding { address_size: 8, format: gimli::Format::Dwarf32, version: 4 };
        let bytes = expression.get(frame).expect("the expression is in the section");
        let mut evaluation = bytes.evaluation(encoding);
        if let Some(cfa) = cfa {
            evaluation.set_initial_value(cfa);
        }
        let mut state = evaluation.evaluate().expect("it can be evaluated");
        loop {
            let value = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresRegister { register: number, .. } => {
                    state = evaluation
                        .resume_with_register(Value::Generic(register(number)))
                        .expect("it goes on");
                    continue;
                }
                EvaluationResult::RequiresMemory { address, .. } => stack_word(address),
                other => panic!("needs {other:?}"),
            };
            state = evaluation.resume_with_memory(Value::Generic(value)).expect("it goes on");
        }
        match evaluation.as_result().last().expect("it has a result").location {
            Location::Address { address } => address,
            other => panic!("its result is {other:?}"),
        }
    };
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register: number, offset } => {
            register(*number).wrapping_add_signed(*offset)
        }
        CfaRule::Expression(expression) => evaluate(expression, None),
    };
    let restore = |number, unchanged| match row.register(number) {
        None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => unchanged,
        Some(RegisterRule::Offset(offset)) => stack_word(cfa.wrapping_add_signed(offset)),
        Some(RegisterRule::Expression(expression)) => stack_word(evaluate(&expression, Some(cfa))),
        other => panic!("needs {other:?}"),
    };
    match row.register(gimli::X86_64::RA) {
        None | Some(RegisterRule::Undefined) => Step::End(WalkEnd::Complete),
        _ => Step::Caller(Registers {
            pc: restore(gimli::X86_64::RA, 0),
            sp: restore(gimli::X86_64::RSP, cfa),
            bp: restore(gimli::X86_64::RBP, at.bp),
        }),
    }
}

/// Compares at the first, the middle and the last byte of every row, and at the boundaries of the
/// object's own rows; counts what was compared. A contradiction fails.
pub(super) fn compare_with_framehop(bytes: &[u8]) -> Agreement {
    let table = build_table(bytes).expect("the object has a table");
    let elf = Elf::parse(bytes).expect("the object is ELF");
    let contents = |name| elf.section(name).and_then(|s| elf.section_bytes(s));
    let (Some(eh_frame), Some(hdr)) = (contents(".eh_frame"), contents(".eh_frame_hdr")) else {
        panic!("the object has no .eh_frame with a search table");
    };
    let bias = 0x7f00_0000_0000u64;
    let end = elf.segments.loads.iter().map(|l| l.vaddr + l.memory_size).max().unwrap_or(0);
    let mut unwinder: UnwinderX86_64<Vec<u8>> = UnwinderX86_64::new();
    unwinder.add_module(Module::new(
        "object".to_owned(),
        bias + table.base_vaddr..bias + end,
        bias,
        ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma: section_range(&elf, ".text"),
            eh_frame_svma: section_range(&elf, ".eh_frame"),
            eh_frame: Some(eh_frame.to_vec()),
            eh_frame_hdr_svma: section_range(&elf, ".eh_frame_hdr"),
            eh_frame_hdr: Some(hdr.to_vec()),
            ..Default::default()
        },
    ));
    let range_start = |name| section_range(&elf, name).map_or(0, |range| range.start);
    let bases = BaseAddresses::default()
        .set_eh_frame(range_start(".eh_frame"))
        .set_eh_frame_hdr(range_start(".eh_frame_hdr"))
        .set_text(range_start(".text"));
    let frame = EhFrame::new(&eh_frame, LittleEndian);
    let search = EhFrameHdr::new(&hdr, LittleEndian).parse(&bases, 8).expect("the header parses");
    let search = search.table().expect("the header has a search table");
    let mut context = UnwindContext::new();
    let get_cie = EhFrame::cie_from_offset;
    let mut gimli_row = |vaddr: u64| {
        search.unwind_info_for_address(&frame, &bases, &mut context, vaddr, get_cie).ok().cloned()
    };

    let mapping = UnwindMapping {
        start: bias + table.base_vaddr,
        end: bias + end,
        bias: bias + table.base_vaddr,
        first_row: 0,
        row_count: table.rows.len() as u32,
        ..UnwindMapping::default()
    };
    let space = UnwindSpace { mappings: &[mapping], rows: &table.rows };
    let mut cache = CacheX86_64::<_>::new();
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut agreement = Agreement::default();
    let mut vaddrs = described_boundaries(&frame, &bases);
    // Descriptions of functions that the linker threw away.
    vaddrs.retain(|vaddr| elf.segments.is_executable(*vaddr));
    for pair in table.rows.windows(2) {
        let (first, next) = (pair[0] as u32, pair[1] as u32);
        assert!(first < next, "rows are strictly sorted by pc");
        let pcs = [first, first + (next - first) / 2, next - 1];
        vaddrs.extend(pcs.map(|pc| table.base_vaddr + u64::from(pc)));
    }
    vaddrs.sort_unstable();
    vaddrs.dedup();
    {
        for vaddr in vaddrs {
            let sp = STACK + (random.next() % 0x10_0000) * 8;
            let registers =
                Registers { pc: bias + vaddr, sp, bp: sp + 8 + (random.next() % 0x1000) * 8 };
            let row = space.row_at(registers.pc).expect("every pc inside has a row");
            let Some(gimli_row) = gimli_row(vaddr) else {
                let follows_code =
                    (1..16).any(|back| gimli_row(vaddr.wrapping_sub(back)).is_some());
                let is_entry = (elf.entry..elf.entry + 64).contains(&vaddr);
                assert!(
                    row.kind == CfaKind::None || follows_code || is_entry,
                    "uncovered {vaddr:#x} has {row:?}"
                );
                agreement.uncovered += 1;
                continue;
            };
            let mut regs = UnwindRegsX86_64::new(registers.pc, registers.sp, registers.bp);
            let address = FrameAddress::from_return_address(registers.pc + 1).expect("not zero");
            let mut read = |address: u64| Ok(stack_word(address));
            if row.kind == CfaKind::None {
                // framehop takes a frame pointer for granted there, which would be a guess.
                *agreement.unsupported.entry(kind_of(&gimli_row)).or_default() += 1;
                continue;
            }
            let ours = match step(row, registers, |address| Some(stack_word(address))) {
                Step::Interrupted(registers) => Step::Caller(registers),
                other => other,
            };
            let by_gimli = step_by_gimli(&frame, &gimli_row, registers);
            assert_eq!(ours, by_gimli, "gimli at {vaddr:#x}, row {row:?}, {registers:x?}");
            if matches!(row.kind, CfaKind::Signal | CfaKind::DerefRbp) {
                // framehop reads no memory in expressions.
                agreement.by_gimli_only += 1;
                continue;
            }
            let theirs = match unwinder.unwind_frame(address, &mut regs, &mut cache, &mut read) {
                Ok(Some(pc)) => Step::Caller(Registers { pc, sp: regs.sp(), bp: regs.bp() }),
                Ok(None) => Step::End(WalkEnd::Complete),
                Err(error) => panic!("framehop cannot step at {vaddr:#x}: {error}"),
            };
            assert_eq!(ours, theirs, "framehop at {vaddr:#x}, row {row:?}, {registers:x?}");
            agreement.equal += 1;
        }
    }
    agreement
}

#[test]
fn every_row_steps_as_framehop_does() {
    println!(
        "{:>8} {:>7} {:>7}  {:>8} {:>6} {:>6} {:>6}  object",
        "rows", "KiB", "ms", "equal", "deref", "none", "gaps"
    );
    let mut wrong = Vec::new();
    for path in objects() {
        let bytes = std::fs::read(&path).expect("the object can be read");
        let started = Instant::now();
        let table = build_table(&bytes).expect("the object has a table");
        let elapsed = started.elapsed();
        let agreement = compare_with_framehop(&bytes);
        println!(
            "{:>8} {:>7} {:>7.1}  {:>8} {:>6} {:>6} {:>6}  {} {:?}",
            table.rows.len(),
            table.rows.len() * 8 / 1024,
            elapsed.as_secs_f64() * 1e3,
            agreement.equal,
            agreement.by_gimli_only,
            agreement.all_unsupported(),
            agreement.uncovered,
            path.display(),
            agreement.unsupported,
        );
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Small ones have fewer boundaries than that.
        let least = if table.rows.len() < 20_000 { table.rows.len() as u64 } else { 20_000 };
        if agreement.equal < least {
            wrong.push(format!("{name}: too little was compared: {agreement:?}"));
        }
        // Measured on Debian 12, and room for other builds.
        let per_mille = match &name[..] {
            _ if name.starts_with("libcrypto") => 40,
            _ if name.starts_with("ld-linux") || name.starts_with("libgcc_s") => 12,
            _ => 2,
        };
        if agreement.all_unsupported() * 1000 > agreement.equal * per_mille {
            wrong.push(format!("{name}: more than {per_mille} ‰ cannot be unwound: {agreement:?}"));
        }
        assert_eq!(table.stats.functions_malformed + table.stats.sections_cut, 0);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_object_without_section_headers_has_the_same_rows() {
    let mut bytes = std::fs::read(Path::new(LIBRARIES).join("libc.so.6")).expect("libc is there");
    let with_sections = build_table(&bytes).expect("libc has a table");
    // e_shoff, e_shnum, e_shstrndx
    bytes[40..48].fill(0);
    bytes[60..64].fill(0);
    let without = build_table(&bytes).expect("libc has a table");
    assert_eq!(without.stats.functions, with_sections.stats.functions);
    assert_eq!(without.rows, with_sections.rows);
    assert_eq!(without.build_id, with_sections.build_id);
    assert!(without.build_id.is_some_and(|id| id.len() == 40));
}

#[test]
fn a_file_read_piece_by_piece_gives_the_same_table() {
    let path = Path::new(LIBRARIES).join("libc.so.6");
    let mut whole = build_table(&std::fs::read(&path).expect("libc is there")).expect("a table");
    let mut pieces = build_table_of_file(&File::open(&path).expect("libc opens")).expect("a table");
    (whole.stats.build, pieces.stats.build) = (Duration::ZERO, Duration::ZERO);
    assert_eq!(whole, pieces);
}

#[test]
fn libc_has_the_rows_that_c_stacks_need() {
    let bytes = std::fs::read(Path::new(LIBRARIES).join("libc.so.6")).expect("libc is there");
    let table = build_table(&bytes).expect("libc has a table");
    let kinds = |kind| {
        table
            .rows
            .iter()
            .filter(|row| memtrace_common::unwind::UnwindRow::unpack(**row).kind == kind)
            .count()
    };
    assert!(kinds(CfaKind::Signal) >= 1, "__restore_rt is a signal frame");
    assert!(kinds(CfaKind::End) >= 1, "clone and clone3 end the stack");
    assert!(kinds(CfaKind::Plt) >= 1, "the procedure linkage table");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn damaged_objects_never_panic_and_rows_stay_sorted(
        which in 0usize..2,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..40),
        cut in any::<prop::sample::Index>(),
        cut_it in prop::bool::weighted(0.2),
    ) {
        let name = ["libgcc_s.so.1", "ld-linux-x86-64.so.2"][which];
        let mut bytes = std::fs::read(Path::new(LIBRARIES).join(name)).expect("it is there");
        let (frame, headers) = {
            let elf = Elf::parse(&bytes[..]).expect("it is ELF");
            let frame = elf.section(".eh_frame").expect("it has one").clone();
            let sections = u64_at_40(&bytes);
            (frame.offset as usize..(frame.offset + frame.size) as usize, sections)
        };
        for (index, value, place) in damage {
            // Mostly where it matters: headers, section headers and the frame section.
            let at = match place {
                0 => index.index(0x400),
                1 => headers + index.index(bytes.len() - headers),
                2 => frame.start + index.index(frame.len()),
                _ => index.index(bytes.len()),
            };
            bytes[at] = value;
        }
        if cut_it {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(table) = build_table(&bytes) {
            prop_assert!(table.rows.is_sorted_by_key(|row| *row as u32));
            prop_assert!(table.rows.len() <= layout::MAX_ROWS);
        }
    }
}

fn u64_at_40(bytes: &[u8]) -> usize {
    crate::stacks::elf::u64_at(bytes, 40) as usize
}
