//! Live: on each allocator of the machine, every chosen site is passed exactly once per call.
//!
//! A program calls each function a known, odd number of times. What memtrace counted for it, less
//! what it counted for the same program with all counts at zero (the start-up of the C library),
//! must be those numbers, and the books those bytes. Needs root, `cc`, `musl-gcc`, and Debian's
//! libjemalloc2, libtcmalloc-minimal4 and libmimalloc2.0.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const PROGRAM: &str = r#"
#include <malloc.h>
#include <stdlib.h>
static void *volatile kept[4096];
int main(int argc, char **argv) {
    long on = atoi(argv[1]);
    long k = 0;
    for (long i = 0; i < 101 * on; i++) kept[k++] = malloc(33 + i);
    for (long i = 0; i < 203 * on; i++) kept[k++] = calloc(3, 21 + i);
    for (long i = 0; i < 307 * on; i++) { void *p; if (!posix_memalign(&p, 64, 77 + i)) kept[k++] = p; }
    for (long i = 0; i < 41 * on; i++) kept[k++] = aligned_alloc(32, 64 * (i + 1));
    for (long i = 0; i < 101 * on; i++) kept[i] = realloc(kept[i], 5000 + i);
    for (long i = 0; i < 97 * on; i++) { free(kept[i]); kept[i] = 0; }
    for (long i = 0; i < 11 * on; i++) free(0);
    return 0;
}
"#;

/// What is left of the program's blocks: requested bytes and their number.
fn outstanding() -> (i64, i64) {
    let calloc: i64 = (0..203).map(|i| 3 * (21 + i)).sum();
    let posix_memalign: i64 = (0..307).map(|i| 77 + i).sum();
    let aligned_alloc: i64 = (0..41).map(|i| 64 * (i + 1)).sum();
    let realloc: i64 = (97..101).map(|i| 5000 + i).sum();
    (calloc + posix_memalign + aligned_alloc + realloc, 203 + 307 + 41 + 4)
}

/// What memtrace said of one run.
struct Seen {
    tallies: BTreeMap<String, i64>,
    losses: i64,
    hits: BTreeMap<String, i64>,
    bytes: i64,
    blocks: i64,
}

fn numbers(value: &Value) -> BTreeMap<String, i64> {
    let entries = value.as_object().unwrap().iter();
    entries.map(|(name, count)| (name.clone(), count.as_i64().unwrap())).collect()
}

fn record(program: &Path, on: bool, environment: &[(&str, &str)]) -> Seen {
    let json = program.with_extension("json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_memtrace"));
    command.arg("record").arg("--json").arg(&json).arg("--").arg(program);
    command.arg(if on { "1" } else { "0" });
    command.envs(environment.iter().copied());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let native = &report["snapshots"].as_array().unwrap().last().unwrap()["native"];
    let attached = report["probes"]["attached"].as_array().unwrap();
    let hits = native["hits"].as_array().unwrap();
    assert_eq!(attached.len(), hits.len());
    let mut by_function = BTreeMap::new();
    for (probe, hits) in attached.iter().zip(hits) {
        let name = probe["function"].as_str().unwrap().to_owned();
        *by_function.entry(name).or_insert(0) += hits.as_i64().unwrap();
    }
    Seen {
        tallies: numbers(&native["tallies"]),
        losses: numbers(&native["losses"]).values().sum(),
        hits: by_function,
        bytes: native["outstanding"]["bytes"].as_i64().unwrap(),
        blocks: native["outstanding"]["blocks"].as_i64().unwrap(),
    }
}

/// `exact_hits`: functions whose calls the allocator itself never makes.
fn is_counted_exactly(
    compiler: &str,
    flags: &[&str],
    preload: Option<&str>,
    exact_hits: &[(&str, i64)],
) {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("p.c"), PROGRAM).unwrap();
    let mut compile = Command::new(compiler);
    compile.args(["-O1", "-fno-builtin", "-o", "p", "p.c"]).args(flags);
    assert!(compile.current_dir(directory.path()).status().unwrap().success());
    let program = directory.path().join("p");
    let environment: Vec<_> = preload.iter().map(|library| ("LD_PRELOAD", *library)).collect();

    let idle = record(&program, false, &environment);
    let busy = record(&program, true, &environment);
    let what = format!("{compiler} {flags:?} {preload:?}");
    assert_eq!((idle.losses, busy.losses), (0, 0), "{what}");
    let more = |name: &str| busy.tallies[name] - idle.tallies[name];
    assert_eq!(more("alloc_calls"), 101 + 203 + 307 + 41, "{what}");
    assert_eq!(more("realloc_calls"), 101, "{what}");
    assert_eq!(more("free_calls"), 97, "{what}");
    assert_eq!(more("free_null"), 11, "{what}");
    assert_eq!(more("free_unknown"), 0, "{what}");
    assert_eq!((busy.bytes - idle.bytes, busy.blocks - idle.blocks), outstanding(), "{what}");
    for (name, calls) in exact_hits {
        assert_eq!(busy.hits[*name] - idle.hits[*name], *calls, "{what}: {name}");
    }
}

const PLAIN: [(&str, i64); 4] =
    [("malloc", 101), ("calloc", 203), ("realloc", 101), ("free", 97 + 11)];

#[test]
fn glibc_is_counted_exactly() {
    is_counted_exactly("cc", &[], None, &PLAIN);
    is_counted_exactly("cc", &["-static"], None, &PLAIN);
}

#[test]
fn musl_is_counted_exactly() {
    // Its calloc and realloc call its malloc and free.
    is_counted_exactly("musl-gcc", &[], None, &[("calloc", 203), ("realloc", 101)]);
    is_counted_exactly("musl-gcc", &["-static"], None, &[("calloc", 203)]);
}

#[test]
fn jemalloc_is_counted_exactly() {
    let library = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";
    // The C library stays mapped: its functions count to the same names, and are never called.
    is_counted_exactly("cc", &[], Some(library), &PLAIN);
}

#[test]
fn tcmalloc_is_counted_exactly() {
    let library = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4";
    is_counted_exactly("cc", &[], Some(library), &PLAIN);
}

#[test]
fn mimalloc_is_counted_exactly() {
    let library = "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2";
    // Its realloc calls its free.
    is_counted_exactly("cc", &[], Some(library), &PLAIN[..3]);
}
