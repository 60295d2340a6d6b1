//! As many stacks as fit, and more: no byte is lost, and the memory is what the manual says.

use anyhow::{Context, Result, ensure};
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::truth::{self, Truth};

use super::run::{Traced, names, trace_with_truth};

fn traced(stacks: u64, memtrace: &[&str]) -> Result<(Traced, Truth)> {
    let program = compile::program("distinct_stacks", Kind::C)?;
    trace_with_truth(&program, &[stacks.to_string()], memtrace)
}

/// The figure of docs/cost.md, of which each stack takes a part and the empty maps the rest.
const KERNEL_BYTES_OF_100_000_STACKS: u64 = 230 << 20;

#[test]
fn a_hundred_thousand_stacks_are_exact_within_the_stated_memory() -> Result<()> {
    const STACKS: u64 = 100_000;
    let (traced, truth) = traced(STACKS, &[])?;
    let last = traced.last()?;
    truth::assert_told(&truth, &last.native)?;
    traced.assert_all_complete()?;
    ensure!(last.native.stacks.len() as u64 == STACKS, "{} stacks", last.native.stacks.len());
    let kernel = last.own["kernel_memory_bytes"].as_u64().context("no kernel_memory_bytes")?;
    println!("{} MiB of kernel memory for {STACKS} stacks", kernel >> 20);
    ensure!(kernel < KERNEL_BYTES_OF_100_000_STACKS, "{} MiB of kernel memory", kernel >> 20);
    Ok(())
}

#[test]
fn a_full_stack_store_loses_no_byte_and_says_so() -> Result<()> {
    const STACKS: u64 = 20_000;
    const ROOM: u64 = 3_000;
    let (traced, truth) = traced(STACKS, &["--max-stacks", &ROOM.to_string()])?;
    let native = &traced.last()?.native;
    let expected = &truth.sites[0];
    let seen = (native.outstanding.bytes, native.outstanding.blocks);
    ensure!(seen == (expected.bytes, expected.blocks), "{seen:?}, not {expected:?}");
    let by_stack = native.stacks.iter().map(|stack| stack.bytes).sum::<u64>();
    ensure!(by_stack == expected.bytes, "the stacks sum to {by_stack}");
    let kept = native.stacks.iter().filter(|stack| stack.contains("leak_at_the_end"));
    let (kept, kept_blocks) = kept.fold((0, 0), |sum, stack| (sum.0 + 1, sum.1 + stack.blocks));
    ensure!(kept == ROOM, "{kept} stacks are kept");
    let full = native.stacks.iter().find(|stack| names(stack) == ["[stack store full]"]);
    let full = full.context("no row says that the store is full")?;
    ensure!(!full.complete && full.blocks == STACKS - kept_blocks, "{full}");
    let lost = native.losses.get("stack_store_full").copied().unwrap_or(0);
    // Mappings that the allocator makes for itself want their stacks kept as well.
    ensure!((full.blocks..full.blocks + 1_000).contains(&lost), "{lost} losses");
    let others: Vec<_> = native
        .losses
        .iter()
        .filter(|(label, count)| **count > 0 && *label != "stack_store_full")
        .collect();
    ensure!(others.is_empty(), "{others:?}");
    Ok(())
}
