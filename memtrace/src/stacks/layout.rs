//! From ranges of code with their rules to the sorted rows of one object. Pure.
//!
//! A row holds up to the next row's pc: so that the end of a function does not lend its rule to
//! what follows, every gap gets a terminator, and equal neighbours are one row.

use super::rules::Rule;

/// Code that one rule covers, in the object's virtual addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Covered {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) rule: Rule,
}

/// A gap shorter than this is padding between functions and gets no row.
const SHORTEST_GAP_BYTES: u64 = 16;
/// Most rows of one object: 32 MiB; the largest object known has a quarter of it.
pub const MAX_ROWS: usize = 4 << 20;

#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) rows: Vec<u64>,
    /// Ranges left out: beyond 4 GiB from the base, or past [`MAX_ROWS`].
    pub(crate) ranges_lost: u64,
}

/// Sorts `covered`, and writes its rows. Where ranges overlap, the one that starts first wins.
pub(crate) fn write_rows(mut covered: Vec<Covered>, base_vaddr: u64, gap: Rule) -> Rows {
    covered.sort_by_key(|range| (range.start, range.end));
    let mut out = Rows { rows: Vec::with_capacity(covered.len() / 2), ranges_lost: 0 };
    let mut push = |vaddr: u64, rule: Rule| -> bool {
        let Some(pc) = vaddr.checked_sub(base_vaddr).and_then(|pc| u32::try_from(pc).ok()) else {
            return false;
        };
        // A range that starts where the last row does replaces it.
        if out.rows.last().is_some_and(|last| *last as u32 == pc) {
            out.rows.pop();
        }
        match out.rows.last() {
            Some(last) if Rule::of_row(*last) == rule => true,
            Some(_) if out.rows.len() >= MAX_ROWS => false,
            _ => {
                out.rows.push(rule.at(pc));
                true
            }
        }
    };
    let mut covered_to = base_vaddr;
    push(base_vaddr, gap);
    let mut lost = 0;
    for range in covered {
        let start = range.start.max(covered_to);
        if start >= range.end {
            continue;
        }
        if start - covered_to >= SHORTEST_GAP_BYTES {
            push(covered_to, gap);
        }
        lost += u64::from(!push(start, range.rule));
        covered_to = range.end;
    }
    // The last row must be a terminator even when the table is full.
    if !push(covered_to, gap)
        && let Some(last) = out.rows.last_mut()
    {
        *last = gap.at(*last as u32);
    }
    out.ranges_lost = lost;
    out
}

/// Lays `over` over finished rows: whatever they said in its range is replaced.
pub(crate) fn overlay(rows: &mut Vec<u64>, base_vaddr: u64, over: Covered) {
    let pc_of = |vaddr: u64| vaddr.checked_sub(base_vaddr).and_then(|pc| u32::try_from(pc).ok());
    let (Some(start), Some(end)) = (pc_of(over.start), pc_of(over.end)) else { return };
    if start >= end || rows.len() + 2 > MAX_ROWS {
        return;
    }
    let first = rows.partition_point(|row| (*row as u32) < start);
    let after = rows.partition_point(|row| (*row as u32) <= end);
    let resumed = after.checked_sub(1).map_or(Rule::NONE, |at| Rule::of_row(rows[at]));
    rows.splice(first..after, [over.rule.at(start), resumed.at(end)]);
}

/// The rule in force at a row-pc.
pub(crate) fn rule_at(rows: &[u64], pc: u32) -> Option<Rule> {
    let after = rows.partition_point(|row| (*row as u32) <= pc);
    after.checked_sub(1).map(|at| Rule::of_row(rows[at]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtrace_common::unwind::CfaKind;
    use proptest::prelude::*;

    const A: Rule = Rule::new(CfaKind::Rsp, 1, 0);
    const B: Rule = Rule::new(CfaKind::Rsp, 2, 0);

    fn range(start: u64, end: u64, rule: Rule) -> Covered {
        Covered { start, end, rule }
    }

    #[test]
    fn equal_neighbours_are_one_row_and_the_end_is_a_terminator() {
        let rows =
            write_rows(vec![range(0x120, 0x130, A), range(0x100, 0x120, A)], 0x100, Rule::NONE);
        assert_eq!(rows.rows, [A.at(0), Rule::NONE.at(0x30)]);
    }

    #[test]
    fn padding_gets_no_row_but_a_hole_gets_a_terminator() {
        let ranges = vec![range(0x100, 0x110, A), range(0x11f, 0x120, B), range(0x130, 0x140, A)];
        let rows = write_rows(ranges, 0, Rule::FRAME_POINTER);
        assert_eq!(
            rows.rows,
            [
                Rule::FRAME_POINTER.at(0),
                A.at(0x100),
                B.at(0x11f),
                Rule::FRAME_POINTER.at(0x120),
                A.at(0x130),
                Rule::FRAME_POINTER.at(0x140),
            ]
        );
    }

    #[test]
    fn a_range_beyond_the_reach_is_counted() {
        let rows = write_rows(vec![range(1 << 33, (1 << 33) + 16, A)], 0, Rule::NONE);
        assert_eq!((rows.ranges_lost, rows.rows), (1, vec![Rule::NONE.at(0)]));
    }

    proptest! {
        #[test]
        fn every_address_has_the_rule_of_the_first_range_that_covers_it(
            ranges in prop::collection::vec((0u64..400, 1u64..60, 0u8..2), 0..20),
            over in (0u64..400, 1u64..60),
        ) {
            let ranges: Vec<_> = ranges.into_iter()
                .map(|(start, length, rule)| range(start, start + length, [A, B][rule as usize]))
                .collect();
            let mut sorted = ranges.clone();
            sorted.sort_by_key(|r| (r.start, r.end));
            let mut rows = write_rows(ranges, 0, Rule::NONE).rows;
            prop_assert!(rows.is_sorted_by_key(|row| *row as u32));
            let over = range(over.0, over.0 + over.1, Rule::END);
            let before = rows.clone();
            overlay(&mut rows, 0, over);
            prop_assert!(rows.windows(2).all(|w| (w[0] as u32) < (w[1] as u32)));
            for pc in 0..470u64 {
                let rule = rule_at(&before, pc as u32);
                if let Some(covering) = sorted.iter().find(|r| (r.start..r.end).contains(&pc)) {
                    prop_assert_eq!(rule, Some(covering.rule));
                }
                let expected = if (over.start..over.end).contains(&pc) { Some(Rule::END) } else { rule };
                prop_assert_eq!(rule_at(&rows, pc as u32), expected);
            }
        }
    }
}
