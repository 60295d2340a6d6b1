//! Whether memtrace has found what was planted, and accused nobody else.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::load::Truth;
use crate::shell;

/// What the service said of itself while it was traced.
pub struct Observed {
    pub before: Truth,
    pub after: Truth,
}

struct Stack<'a> {
    bytes: u64,
    blocks: u64,
    frames: Vec<Frame<'a>>,
}

struct Frame<'a> {
    function: &'a str,
    file: &'a str,
    line: u64,
}

impl Stack<'_> {
    fn has(&self, function: &str) -> bool {
        self.frames.iter().any(|frame| frame.function == function)
    }
}

pub fn report(json: &Path, observed: &Observed) -> Result<()> {
    shell::step("checking the report against what the service knows");
    let text = std::fs::read(json).with_context(|| format!("read `{}`", json.display()))?;
    let recording: Value = serde_json::from_slice(&text).context("read memtrace's JSON")?;
    judge(&recording, observed)
}

fn judge(recording: &Value, observed: &Observed) -> Result<()> {
    let snapshot = recording["snapshots"]
        .as_array()
        .and_then(|snapshots| snapshots.last())
        .context("the JSON has no snapshot")?;
    let native = &snapshot["native"];
    let losses = native["losses"].as_object().context("the JSON has no losses")?;
    for (label, count) in losses {
        ensure!(count.as_u64() == Some(0), "`{label}` lost {count}");
    }
    let mut stacks = stacks(native)?;
    stacks.sort_by_key(|stack| std::cmp::Reverse(stack.bytes));

    documents(&stacks, observed)?;
    labels(&stacks, observed)?;
    healthy(&stacks)?;
    go_heap(snapshot, observed)?;
    verdict(&recording["verdict"], observed)
}

/// Both leaks are candidates, named by function, line and Go caller; their growth is the truth to 5 %.
fn verdict(verdict: &Value, observed: &Observed) -> Result<()> {
    let findings = verdict["findings"].as_array().context("the JSON has no verdict")?;
    let candidates: Vec<&Value> =
        findings.iter().filter(|it| it["kind"] == "leak_candidate").collect();
    let site_of = |caller: &str| {
        let names = |site: &Value| {
            let own = &site["frame"]["function"];
            *own == caller || site["go_caller"]["function"] == caller
        };
        let found = candidates.iter().map(|it| &it["site"]).find(|site| names(site));
        found.with_context(|| {
            let window = &verdict["window"];
            format!("the verdict names no leak by `{caller}` in {window}; it finds {findings:#?}")
        })
    };
    let documents = site_of("main.(*feeds).importFeed")?;
    ensure!(
        documents["frame"]["function"] == "parse_feed"
            && documents["frame"]["file"].as_str().is_some_and(|it| it.ends_with("feeds_xml.c"))
            && documents["frame"]["line"].as_u64().is_some_and(|line| line > 0),
        "the verdict places the leak at {}",
        documents["frame"]
    );
    let labels = site_of("main.(*labels).widthForgotten")?;
    let truth = observed.after.leaked_label_bytes - observed.before.leaked_label_bytes;
    let grown = labels["growth_bytes"].as_u64().context("a growth")?;
    ensure!(
        grown.abs_diff(truth) * 20 <= truth,
        "the verdict says that labels grew by {grown} bytes, the service that it leaked {truth}"
    );
    // All documents are alike: their blocks grow with their number.
    let leaked = observed.after.leaked_documents - observed.before.leaked_documents;
    let blocks = documents["growth_blocks"].as_u64().context("a growth")?;
    let each = (blocks as f64 / leaked as f64).round();
    ensure!(
        each >= 40.0 && (blocks as f64 - each * leaked as f64).abs() <= 0.05 * blocks as f64,
        "the verdict says that documents grew by {blocks} blocks, the service leaked {leaked} of them"
    );
    ensure!(candidates.len() == 2, "the verdict accuses others: {candidates:#?}");
    eprintln!(
        "verdict: leak candidates parse_feed ← main.(*feeds).importFeed ({blocks} blocks of \
         {leaked} documents) and main.(*labels).widthForgotten ({grown} of {truth} bytes)"
    );
    Ok(())
}

fn stacks(native: &Value) -> Result<Vec<Stack<'_>>> {
    let stacks = native["stacks"].as_array().context("the JSON has no stacks")?;
    stacks
        .iter()
        .map(|stack| {
            let frames = stack["frames"].as_array().context("a stack has no frames")?;
            Ok(Stack {
                bytes: stack["bytes"].as_u64().context("a stack has no bytes")?,
                blocks: stack["blocks"].as_u64().context("a stack has no blocks")?,
                frames: frames
                    .iter()
                    .map(|frame| Frame {
                        function: frame["function"].as_str().unwrap_or_default(),
                        file: frame["file"].as_str().unwrap_or_default(),
                        line: frame["line"].as_u64().unwrap_or_default(),
                    })
                    .collect(),
            })
        })
        .collect()
}

/// The documents that `importFeed` forgets: named by the C function with its line and by the Go
/// function above it, first of all.
fn documents(stacks: &[Stack], observed: &Observed) -> Result<()> {
    const C: &str = "parse_feed";
    const GO: &str = "main.(*feeds).importFeed";
    let leaked = observed.after.leaked_documents - observed.before.leaked_documents;
    ensure!(leaked > 0, "the load leaked no document");
    let held: Vec<&Stack> = stacks.iter().filter(|stack| stack.has(C)).collect();
    let (bytes, blocks) = held.iter().fold((0, 0), |s, k| (s.0 + k.bytes, s.1 + k.blocks));
    // All documents are parsed from one text: a place that allocates for one of them holds as many
    // blocks of every other. libxml2's own tables, made once, are few.
    let (by_document, once): (Vec<&Stack>, Vec<&Stack>) =
        held.iter().partition(|stack| stack.blocks >= leaked);
    for stack in &by_document {
        ensure!(
            stack.blocks.is_multiple_of(leaked),
            "the service leaked {leaked} documents, memtrace shows {} blocks of one place in `{C}`",
            stack.blocks
        );
    }
    let per_document = by_document.iter().map(|stack| stack.blocks).sum::<u64>() / leaked;
    ensure!(per_document >= 40, "a document of 40 items has {per_document} blocks");
    let once = once.iter().map(|stack| stack.blocks).sum::<u64>();
    ensure!(once < leaked / 2, "{once} blocks by `{C}` belong to no document");
    let largest = held.first().context("no stack with the leak")?;
    let here = largest.frames.iter().position(|f| f.function == C).context("its frame")?;
    let place = &largest.frames[here];
    ensure!(
        place.file.ends_with("feeds_xml.c") && place.line > 0,
        "`{C}` is placed at `{}:{}`",
        place.file,
        place.line
    );
    let Some(caller) = largest.frames[here..].iter().find(|frame| frame.function == GO) else {
        bail!("the Go caller `{GO}` is missing above `{C}`");
    };
    ensure!(stacks.first().is_some_and(|s| s.has(C)), "the greatest leak is not the first stack");
    eprintln!(
        "found: {bytes} bytes in {blocks} blocks: {per_document} of each of the {leaked} documents \
         that the service says it has leaked, and {once} made once"
    );
    eprintln!(
        "       by {C} ({}:{}), called by {GO} ({}:{})",
        place.file, place.line, caller.file, caller.line
    );
    Ok(())
}

/// The C strings of labels: the service knows every byte of them.
fn labels(stacks: &[Stack], observed: &Observed) -> Result<()> {
    const GO: &str = "main.(*labels).widthForgotten";
    let bytes = observed.after.leaked_label_bytes - observed.before.leaked_label_bytes;
    let blocks = observed.after.leaked_labels - observed.before.leaked_labels;
    ensure!(blocks > 0, "the load leaked no label");
    let seen = stacks
        .iter()
        .filter(|stack| stack.has(GO))
        .fold((0, 0), |sum, stack| (sum.0 + stack.bytes, sum.1 + stack.blocks));
    ensure!(
        seen == (bytes, blocks),
        "the service leaked {bytes} bytes in {blocks} labels, memtrace shows {} in {}",
        seen.0,
        seen.1
    );
    eprintln!("exact: {bytes} bytes in {blocks} C strings by {GO}, as the service itself counts");
    Ok(())
}

/// Notes, searches, and feeds with a title come and go: none of them is among the suspects.
fn healthy(stacks: &[Stack]) -> Result<()> {
    const HEALTHY: [&str; 3] =
        ["main.(*notes).add", "main.(*notes).search", "main.(*labels).widthFreed"];
    let leaks: u64 = stacks.iter().map(|stack| stack.bytes).sum();
    for function in HEALTHY {
        let bytes: u64 = stacks.iter().filter(|s| s.has(function)).map(|s| s.bytes).sum();
        // SQLite keeps a page cache, which is no leak, and small.
        ensure!(
            bytes * 20 < leaks,
            "healthy `{function}` is shown with {bytes} of {leaks} outstanding bytes"
        );
    }
    eprintln!("healthy work is not accused: {}", HEALTHY.join(", "));
    Ok(())
}

fn go_heap(snapshot: &Value, observed: &Observed) -> Result<()> {
    let Some(inuse) = snapshot["go"]["inuse_bytes"].as_u64() else {
        bail!("no Go heap beside the native memory: {}", snapshot["go"]);
    };
    // Sampled, and as of the last collection: of the right order is what can be asked for.
    ensure!(
        inuse * 3 > observed.after.cached_bytes,
        "the service's cache alone holds {} bytes on the Go heap, memtrace shows {inuse}",
        observed.after.cached_bytes
    );
    eprintln!(
        "beside it: {inuse} bytes of Go heap in use (the service's cache: {})",
        observed.after.cached_bytes
    );
    Ok(())
}
