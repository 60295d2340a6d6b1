//! Every verdict, and that a wrong row cannot hide.

use memtrace_common::unwind::{CfaKind, UnwindMapping, UnwindRow};

use super::opinion::ReferenceWalk;
use super::summary::Compared;
use super::*;
use crate::stacks::walk::{Registers, UnwindSpace};

fn opinion(frames: &[u64], end: OpinionEnd) -> Opinion {
    Opinion { frames: frames.to_vec(), end, evaluated_steps: 0, go_steps: 0, unchecked_steps: 0 }
}

fn disagree(frame: usize, kind: ContradictionKind) -> Verdict {
    Verdict::Contradiction(Contradiction { frame, kind })
}

#[test]
fn each_relation_of_two_walks_has_its_verdict() {
    use ContradictionKind::{Frame, FramehopEnds, Registers, WalkEnds};
    let done = OpinionEnd::Complete;
    let copy_ended = OpinionEnd::Stopped(Stop::CopyEnded);
    let silent = OpinionEnd::Stopped(Stop::NoUnwindInformation);
    let (complete, no_row) = (WalkEnd::Complete, WalkEnd::NoUnwindRow);
    type Case<'f> = (&'f [u64], WalkEnd, &'f [u64], OpinionEnd, Verdict);
    let cases: [Case<'_>; 14] = [
        (&[1, 2, 3], complete, &[1, 2, 3], done, Verdict::Identical),
        (&[1, 2, 3], complete, &[1, 2, 3], silent, Verdict::Identical),
        (&[1, 2, 3], no_row, &[1, 2, 3], silent, Verdict::Identical),
        (&[1, 2, 3], no_row, &[1, 2, 3], copy_ended, Verdict::Identical),
        // The end is the walk's word alone.
        (
            &[1, 2, 3],
            complete,
            &[1, 2, 3],
            copy_ended,
            Verdict::FramehopEndedEarly(Stop::CopyEnded),
        ),
        (&[1, 2, 3], complete, &[1, 2], copy_ended, Verdict::FramehopEndedEarly(Stop::CopyEnded)),
        (&[1, 2, 3], no_row, &[1], silent, Verdict::FramehopEndedEarly(Stop::NoUnwindInformation)),
        (&[1, 2], no_row, &[1, 2, 3], done, Verdict::WalkEndedEarly(no_row)),
        (&[1, 2], complete, &[1, 2, 3], done, disagree(2, WalkEnds)),
        (&[1, 2], complete, &[1, 2, 3], copy_ended, disagree(2, WalkEnds)),
        (&[1, 2, 3], complete, &[1, 2], done, disagree(2, FramehopEnds)),
        (&[1, 2, 3], complete, &[1, 9, 3], done, disagree(1, Frame)),
        (&[1, 2, 3], no_row, &[1, 2, 9], copy_ended, disagree(2, Frame)),
        (&[1, 2, 3], complete, &[1, 2], OpinionEnd::RegistersDiffer, disagree(2, Registers)),
    ];
    for (frames, end, other, other_end, verdict) in cases {
        let other = opinion(other, other_end);
        assert_eq!(compare(frames, end, &other), verdict, "{frames:?} {end:?} and {other:?}");
    }
}

#[test]
fn the_walk_in_the_kernel_may_read_more_than_was_copied_and_nothing_else() {
    use WalkEnd::{Complete, NoUnwindRow, Unreadable};
    let kernel = |frame| Some(Contradiction { frame, kind: ContradictionKind::Kernel });
    for (frames, end, reference, reference_end, found) in [
        (&[1, 2, 3][..], Complete, &[1, 2, 3][..], Complete, None),
        (&[1, 2, 3], Complete, &[1, 2], Unreadable, None),
        (&[1, 2, 3], Unreadable, &[1, 2, 3], Unreadable, None),
        (&[1, 2, 3], Complete, &[1, 9], Unreadable, kernel(1)),
        (&[1, 2, 3], Complete, &[1, 2], NoUnwindRow, kernel(2)),
        (&[1, 2, 3], Complete, &[1, 2, 3], NoUnwindRow, kernel(3)),
        (&[1, 2], Complete, &[1, 2, 3], Complete, kernel(2)),
        (&[1, 2], Complete, &[1, 2, 3], Unreadable, kernel(2)),
    ] {
        let result = compare_with_reference(frames, end, reference, reference_end);
        assert_eq!(result, found, "{frames:?} {end:?}, {reference:?} {reference_end:?}");
    }
}

#[test]
fn sums_tell_what_was_checked_and_what_was_not() {
    let mut summary = Summary::default();
    let add = |summary: &mut Summary, verdict, walk_end, frames: &[u64], unchecked_steps| {
        let framehop = Opinion {
            frames: frames.to_vec(),
            end: OpinionEnd::Complete,
            evaluated_steps: 0,
            go_steps: 0,
            unchecked_steps,
        };
        let compared = Compared { tid: 7, verdict, walk: frames.to_vec(), walk_end, framehop };
        summary.add(compared, |last| format!("object of {last}"));
    };
    add(&mut summary, Verdict::Identical, WalkEnd::Complete, &[1, 2, 3, 4], 0);
    add(&mut summary, Verdict::Identical, WalkEnd::Complete, &[1, 2, 3, 4, 5], 3);
    let early = Verdict::WalkEndedEarly(WalkEnd::NoUnwindRow);
    add(&mut summary, early, WalkEnd::NoUnwindRow, &[1, 2], 0);
    for _ in 0..7 {
        let wrong = disagree(1, ContradictionKind::Frame);
        add(&mut summary, wrong, WalkEnd::Complete, &[1, 2], 0);
    }
    assert_eq!((summary.compared, summary.identical, summary.identical_in_part), (10, 2, 1));
    assert_eq!((summary.checked_steps, summary.unchecked_steps), (3 + 1 + 1, 3));
    assert_eq!(summary.walk_ended_early.values().sum::<u64>(), 1);
    assert_eq!((summary.contradictions, summary.disputes.len()), (7, 5));
    assert_eq!((summary.complete, summary.most_frames, summary.threads()), (9, 5, 1));
    let truncation = Truncation { reason: "no unwind row", object: "object of 2".into() };
    assert_eq!(summary.truncated.get(&truncation), Some(&1));
}

/// A stack of functions that gcc compiled, made by hand, and both walks over it.
mod compiled {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;
    use std::process::Command;
    use std::sync::Arc;

    use super::*;
    use crate::snapshot::ObjectMapping;
    use crate::stacks::table::{UnwindTable, build_table};
    use crate::tracee::MappedFile;

    const SOURCE: &str = r#"
        .text
        .globl leaf, inner, outer, bare, root
        leaf: .cfi_startproc
        nop; ret
        .cfi_endproc
        .p2align 6
        inner: .cfi_startproc
        sub $24, %rsp; .cfi_adjust_cfa_offset 24
        call leaf
        inner_returns: add $24, %rsp; .cfi_adjust_cfa_offset -24
        ret
        .cfi_endproc
        .p2align 6
        outer: .cfi_startproc
        push %rbp; .cfi_adjust_cfa_offset 8; .cfi_rel_offset %rbp, 0
        mov %rsp, %rbp; .cfi_def_cfa_register %rbp
        sub $64, %rsp
        call inner
        outer_returns: leave; .cfi_def_cfa %rsp, 8; .cfi_restore %rbp
        ret
        .cfi_endproc
        .p2align 6
        bare: call outer
        bare_returns: ret
        .p2align 6
        root: .cfi_startproc; .cfi_undefined %rip
        call bare
        root_returns: hlt
        .cfi_endproc
        .globl inner_returns, outer_returns, bare_returns, root_returns
    "#;
    const BASE: u64 = 0x7f00_0000_0000;
    const STACK: u64 = 0x7ffe_0000_0008;

    struct Subject {
        bytes: Vec<u8>,
        table: UnwindTable,
        file: MappedFile,
        _directory: tempfile::TempDir,
    }

    impl Subject {
        fn new(more: &str) -> Self {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let source = directory.path().join("a.s");
            std::fs::write(&source, format!("{SOURCE}{more}")).expect("the source is written");
            let path = directory.path().join("out.so");
            let status = Command::new("gcc")
                .args(["-shared", "-nostdlib", "-o"])
                .args([&path, &source])
                .status()
                .expect("gcc runs");
            assert!(status.success());
            let bytes = std::fs::read(&path).expect("it was built");
            let table = build_table(&bytes).expect("it has a table");
            let file = File::open(&path).expect("it opens");
            let mappings = table
                .segments
                .loads
                .iter()
                .filter(|load| load.executable)
                .map(|load| ObjectMapping {
                    start: BASE + load.vaddr,
                    end: BASE + (load.vaddr + load.memory_size).next_multiple_of(4096),
                    file_offset: load.offset,
                })
                .collect();
            let file = MappedFile {
                path: "out.so".into(),
                open_path: PathBuf::from("out.so"),
                inode: file.metadata().expect("it has metadata").ino(),
                file: Arc::new(file),
                deleted: false,
                device: (0, 0),
                mappings,
            };
            Self { bytes, table, file, _directory: directory }
        }

        fn address(&self, name: &str) -> u64 {
            let elf = crate::stacks::elf::Elf::parse(&self.bytes[..]).expect("ELF");
            let mut found = None;
            elf.for_each_symbol(|symbol| {
                if symbol.name == name.as_bytes() {
                    found = Some(symbol.vaddr);
                }
                found.is_none()
            });
            BASE + found.unwrap_or_else(|| panic!("no symbol `{name}`"))
        }

        /// The stack below `leaf`, called by `inner`, called by `outer`, called by `caller`.
        fn stack(&self, caller: &str) -> Vec<u8> {
            let mut words = vec![0x5555_u64; 64];
            words[0] = self.address("inner_returns");
            words[1 + 3] = self.address("outer_returns");
            // `outer`: 64 bytes, the caller's RBP, its return address.
            words[5 + 8] = 0xb9;
            words[5 + 9] = self.address(caller);
            words[5 + 10] = self.address("root_returns");
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        }

        /// Both walks, and what comes of comparing them.
        fn verdict(&self, rows: &[u64], caller: &str, copied: usize) -> (Vec<u64>, Verdict) {
            let stack = self.stack(caller);
            let memory =
                CopiedMemory { stack: (STACK, &stack[..copied]), top: (0, &[]), word: [0; 2] };
            let entry = Registers { pc: self.address("leaf"), sp: STACK, bp: STACK + 8 * (5 + 8) };
            let walk = self.walk(rows, entry, CopiedMemory { stack: (STACK, &stack), ..memory });
            let reference = self.walk(rows, entry, memory);
            let mut second = SecondOpinion::new();
            second.set_files(std::slice::from_ref(&self.file));
            let opinion = second.ask(&reference, memory);
            let frames = walk.frames();
            let verdict = compare(&frames, walk.end, &opinion);
            (frames, verdict)
        }

        fn walk(&self, rows: &[u64], entry: Registers, memory: CopiedMemory<'_>) -> ReferenceWalk {
            let mapping = UnwindMapping {
                start: BASE,
                end: BASE + (1 << 20),
                bias: BASE + self.table.base_vaddr,
                first_row: 0,
                row_count: rows.len() as u32,
                ..UnwindMapping::default()
            };
            ReferenceWalk::of(UnwindSpace { mappings: &[mapping], rows }, entry, memory)
        }

        /// The rows with that of an address replaced.
        fn with_row(&self, address: u64, change: impl FnOnce(&mut UnwindRow)) -> Vec<u64> {
            let pc = (address - BASE - self.table.base_vaddr) as u32;
            let mut rows = self.table.rows.clone();
            let at = rows.partition_point(|row| *row as u32 <= pc) - 1;
            let mut row = UnwindRow::unpack(rows[at]);
            change(&mut row);
            rows[at] = row.pack();
            rows
        }
    }

    #[test]
    fn right_rows_and_framehop_give_the_same_frames() {
        let subject = Subject::new("");
        let (frames, verdict) = subject.verdict(&subject.table.rows, "root_returns", 512);
        assert_eq!((frames.len(), verdict), (4, Verdict::Identical));
    }

    #[test]
    fn a_short_copy_makes_framehop_end_early() {
        let subject = Subject::new("");
        let (frames, verdict) = subject.verdict(&subject.table.rows, "root_returns", 40);
        assert_eq!(frames.len(), 4);
        assert_eq!(verdict, Verdict::FramehopEndedEarly(Stop::CopyEnded));
    }

    #[test]
    fn a_wrong_cfa_offset_is_a_contradiction_at_the_frame_it_leads_to() {
        let subject = Subject::new("");
        let wrong = subject.address("inner_returns") - 1;
        let rows = subject.with_row(wrong, |row| row.offset_by_8 += 1);
        let (_, verdict) = subject.verdict(&rows, "root_returns", 512);
        assert_eq!(verdict, disagree(2, ContradictionKind::Frame));
    }

    #[test]
    fn a_row_that_ends_the_stack_too_early_is_a_contradiction() {
        let subject = Subject::new("");
        let wrong = subject.address("outer_returns") - 1;
        let rows = subject.with_row(wrong, |row| {
            *row = UnwindRow { pc: row.pc, kind: CfaKind::End, offset_by_8: 0, rbp: 0 };
        });
        let (_, verdict) = subject.verdict(&rows, "root_returns", 512);
        assert_eq!(verdict, disagree(3, ContradictionKind::WalkEnds));
    }

    #[test]
    fn a_row_that_is_missing_lets_the_walk_end_early() {
        let subject = Subject::new("");
        let missing = subject.address("outer_returns") - 1;
        let rows = subject.with_row(missing, |row| {
            *row = UnwindRow { pc: row.pc, kind: CfaKind::None, offset_by_8: 0, rbp: 0 };
        });
        let (_, verdict) = subject.verdict(&rows, "root_returns", 512);
        assert_eq!(verdict, Verdict::WalkEndedEarly(WalkEnd::NoUnwindRow));
    }

    /// What makes the object look like Go's: text without unwind information then has a rule.
    const GO_NOTE: &str = r#"
        .section .note.go.buildid,"a",@note; .long 4, 4, 4; .asciz "Go\0"; .long 1
    "#;

    #[test]
    fn a_wrong_rbp_before_a_step_by_frame_pointer_is_a_contradiction() {
        let subject = Subject::new(GO_NOTE);
        let wrong = subject.address("outer_returns") - 1;
        let rows = subject.with_row(wrong, |row| row.rbp = -3);
        let (_, verdict) = subject.verdict(&rows, "bare_returns", 512);
        assert_eq!(verdict, disagree(4, ContradictionKind::Registers));
    }

    #[test]
    fn a_step_that_nothing_describes_is_taken_as_the_walk_takes_it() {
        let subject = Subject::new(GO_NOTE);
        let stack = {
            let mut stack = subject.stack("bare_returns");
            // `bare` keeps no frame: the frame pointer that it was called with leads to `root`.
            let frame = STACK + 8 * 20;
            stack[8 * 13..8 * 14].copy_from_slice(&frame.to_le_bytes());
            stack[8 * 21..8 * 22].copy_from_slice(&subject.address("root_returns").to_le_bytes());
            stack
        };
        let memory = CopiedMemory { stack: (STACK, &stack), top: (0, &[]), word: [0; 2] };
        let entry = Registers { pc: subject.address("leaf"), sp: STACK, bp: STACK + 8 * (5 + 8) };
        let walk = subject.walk(&subject.table.rows, entry, memory);
        let mut second = SecondOpinion::new();
        second.set_files(std::slice::from_ref(&subject.file));
        let opinion = second.ask(&walk, memory);
        assert_eq!((walk.registers.len(), opinion.unchecked_steps), (5, 1));
        assert_eq!(opinion.end, OpinionEnd::Complete);
        assert_eq!(compare(&walk.frames(), walk.end, &opinion), Verdict::Identical);
    }
}
