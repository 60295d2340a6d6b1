//! What each program was for the kernel's verifier: said under `--verbose`, because it differs by
//! an order of magnitude between kernels and must stay far below their limit (1 million).
//!
//! `cargo xtask vm` reads these lines; `docs/kernels.md` keeps the figures.

use std::time::Duration;

use aya::Ebpf;

/// Says the verified instructions of every loaded program, and how long loading them took. The
/// object holds others, for other kernels and for tests.
pub(super) fn tell(ebpf: &Ebpf, took: Duration) {
    let mut lines: Vec<String> = ebpf
        .programs()
        .filter_map(|(name, program)| {
            let verified = program.info().ok()?.verified_instruction_count();
            Some(line(name, verified))
        })
        .collect();
    lines.sort_unstable();
    for line in lines {
        log::info!("{line}");
    }
    log::info!("kernel side loaded in {} ms", took.as_millis());
}

fn line(program: &str, verified: Option<u32>) -> String {
    match verified {
        Some(count) => format!("program `{program}`: {count} instructions verified"),
        None => {
            format!("program `{program}`: loaded; this kernel does not count (Linux 5.16 does)")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uncounted_program_is_not_told_as_zero() {
        assert_eq!(line("exec", Some(12)), "program `exec`: 12 instructions verified");
        assert!(!line("exec", None).contains('0'));
    }
}
