//! What must hold in any honest report. A law that is broken is shown, never hidden.

use crate::snapshot::{GoBooks, GoMemory, Snapshot};

/// One law, and what both sides of it came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Stable, as it stands in JSON.
    pub name: &'static str,
    /// The law as a formula.
    pub law: &'static str,
    pub holds: bool,
    pub left: i128,
    pub right: i128,
    /// What a broken law means here.
    pub hint: &'static str,
}

const MOVING: &str = "the tracee kept allocating while the snapshot was read";
const BROKEN: &str = "the books do not balance: treat the figures as approximate, and report a bug";

/// All laws that can be checked on this snapshot.
pub(crate) fn checks(snapshot: &Snapshot) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut check = |name, law, left: i128, right: i128, hint| {
        checks.push(Check { name, law, holds: left == right, left, right, hint });
    };
    let rows = &snapshot.native.stacks;
    let sum = |figure: &dyn Fn(usize) -> u64| {
        (0..rows.len()).map(|row| i128::from(figure(row))).sum::<i128>()
    };

    let overdrawn = rows.iter().filter(|row| {
        row.freed_bytes > row.allocated_bytes || row.freed_blocks > row.allocated_blocks
    });
    let overdrawn = overdrawn.count() as i128;
    check("stacks_overdrawn", "no stack freed more than it allocated", overdrawn, 0, BROKEN);

    if rows.iter().any(|row| row.live.is_some()) {
        let hint = if snapshot.moving { MOVING } else { BROKEN };
        let live = |row: usize| rows[row].live.unwrap_or_default();
        let net_bytes = sum(&|row| rows[row].allocated_bytes) - sum(&|row| rows[row].freed_bytes);
        let law = "Σ allocated − Σ freed = Σ live blocks, bytes";
        check("bytes_balance", law, net_bytes, sum(&|row| live(row).bytes), hint);
        let net_blocks =
            sum(&|row| rows[row].allocated_blocks) - sum(&|row| rows[row].freed_blocks);
        let law = "Σ allocated − Σ freed = Σ live blocks, blocks";
        check("blocks_balance", law, net_blocks, sum(&|row| live(row).blocks), hint);
        let older = rows.iter().filter(|row| {
            row.live.is_some_and(|live| {
                live.aged_bytes > live.bytes || live.youngest_age_ns > live.oldest_age_ns
            })
        });
        let law = "ages and aged bytes lie within the live blocks";
        check("ages_within", law, older.count() as i128, 0, BROKEN);
    }

    let mut spans: Vec<_> =
        snapshot.native.ranges.iter().map(|at| (at.image, at.start, at.length_bytes)).collect();
    spans.sort_unstable();
    // Each image has addresses of its own.
    let overlaps = spans.windows(2).filter(|pair| {
        let [(image, start, length), (next_image, next, _)] = [pair[0], pair[1]];
        image == next_image && i128::from(start) + i128::from(length) > i128::from(next)
    });
    check("ranges_disjoint", "no two ranges overlap", overlaps.count() as i128, 0, BROKEN);

    if !snapshot.images.is_empty() {
        let law = "Σ outstanding of the processes = outstanding, bytes";
        let of_image = |books: &crate::snapshot::ImageBooks| {
            i128::from(books.totals.allocated_bytes) - i128::from(books.totals.freed_bytes)
        };
        let net_bytes = sum(&|row| rows[row].allocated_bytes) - sum(&|row| rows[row].freed_bytes);
        check("processes_sum", law, snapshot.images.iter().map(of_image).sum(), net_bytes, BROKEN);
    }

    if let Some(go) = snapshot.go.value() {
        go_checks(go, &mut check);
    }
    checks
}

fn go_checks(
    go: &GoBooks,
    check: &mut impl FnMut(&'static str, &'static str, i128, i128, &'static str),
) {
    const HINT: &str = "the Go profile contradicts itself: treat the Go figures as approximate";
    let stacks: i128 = go.stacks.iter().map(|stack| i128::from(stack.inuse_bytes)).sum();
    let law = "Σ inuse_space of the Go stacks = inuse_space";
    check("go_profile_sum", law, stacks, i128::from(go.inuse_bytes), HINT);
    if let Some(memory) = &go.memory {
        let GoMemory { heap_sys, heap_idle, heap_inuse, heap_released, .. } = *memory;
        let parts = [
            heap_sys,
            memory.stack_sys,
            memory.mspan_sys,
            memory.mcache_sys,
            memory.buck_hash_sys,
            memory.gc_sys,
            memory.other_sys,
        ];
        let parts = parts.into_iter().map(i128::from).sum();
        let law =
            "Go's Sys = HeapSys + StackSys + MSpanSys + MCacheSys + BuckHashSys + GCSys + OtherSys";
        check("go_sys_identity", law, i128::from(memory.sys), parts, HINT);
        let law = "Go's HeapSys = HeapInuse + HeapIdle";
        let right = i128::from(heap_inuse) + i128::from(heap_idle);
        check("go_heap_identity", law, i128::from(heap_sys), right, HINT);
        let over = i128::from(heap_released) - i128::from(heap_idle);
        check("go_released_within_idle", "Go's HeapReleased ≤ HeapIdle", over.max(0), 0, HINT);
    }
}
