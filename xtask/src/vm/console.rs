//! What a guest's kernel said: its last words, and whether it complained. Pure.

/// Of the end of a console.
const SHOWN_LINES: usize = 40;
/// Of a kernel's complaints.
const SHOWN_COMPLAINTS: usize = 5;

/// How a kernel says that something is wrong with itself; `lib/bug.c`, `arch/x86/kernel/dumpstack.c`,
/// `arch/x86/mm/fault.c`.
const COMPLAINTS: [&str; 5] =
    ["Oops: ", "BUG: ", "WARNING: ", "general protection fault", "Kernel panic"];

/// What a kernel before 6.1 says once, in the line above its warning, of every tracer whose maps grow
/// as they fill; `memtrace doctor` tells that it will.
const EXPECTED: &str = "trace type BPF program uses run-time allocation";

/// The end of a console, with nothing in it that a terminal acts on.
pub fn last_lines(console: &str) -> String {
    let lines: Vec<String> = lines(console).collect();
    let skipped = lines.len().saturating_sub(SHOWN_LINES);
    let shown = lines[skipped..].iter().map(|line| format!("  | {line}"));
    shown.collect::<Vec<_>>().join("\n")
}

/// What the kernel complained of, if it did: then nothing that was seen to hold counts.
pub fn complaint(console: &str) -> Option<String> {
    let mut found = Vec::new();
    let mut above = String::new();
    for line in lines(console) {
        if COMPLAINTS.iter().any(|words| line.contains(words)) && !above.contains(EXPECTED) {
            found.push(line.clone());
        }
        above = line;
    }
    let (first, more) = (found.first()?, found.len().saturating_sub(SHOWN_COMPLAINTS));
    let rest = found.iter().skip(1).take(SHOWN_COMPLAINTS - 1);
    let mut out = format!("the kernel complained: {first}");
    for line in rest {
        out.push_str(&format!("\n  | {line}"));
    }
    if more > 0 {
        out.push_str(&format!("\n  | … and {more} more"));
    }
    Some(out)
}

fn lines(console: &str) -> impl Iterator<Item = String> {
    console
        .lines()
        .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
        .map(|line| line.trim_end().to_owned())
        .filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_console_is_shown_without_what_a_terminal_acts_on() {
        let console: String =
            (0..100).map(|line| format!("\x1b[2J[  {line}.0] line {line}\r\n\r\n")).collect();
        let shown = last_lines(&console);
        assert_eq!(shown.lines().count(), SHOWN_LINES);
        assert!(shown.ends_with("] line 99"));
        assert!(!shown.contains('\x1b'));
    }

    #[test]
    fn the_one_warning_that_is_known_is_no_complaint() {
        let known = "[ 7.4] trace type BPF program uses run-time allocation\r\n\
                     [ 7.4] WARNING: CPU: 0 PID: 96 at kernel/bpf/verifier.c:10493 bpf_check\r\n";
        assert_eq!(complaint(known), None);
        let other = "[ 9.0] WARNING: CPU: 1 PID: 97 at kernel/fork.c:1";
        assert_eq!(
            complaint(&format!("{known}{other}")),
            Some(format!("the kernel complained: {other}"))
        );
    }

    #[test]
    fn a_kernel_that_complains_is_heard() {
        let quiet = "[    0.3] LSM support for eBPF active\r\n[    5.4] reboot: Power down\r\n";
        assert_eq!(complaint(quiet), None);
        for loud in [
            "[  152.2] BUG: unable to handle page fault for address: 00ffffffffffe0e0",
            "[  152.2] Oops: Oops: 0003 [#1] SMP NOPTI",
            "[  152.3] WARNING: CPU: 0 PID: 1104 at kernel/rcu/tasks.h:1995",
            "[   22.2] WARNING: kernel/rcu/tree_plugin.h:332 at rcu_note_context_switch+0x375",
            "[  324.4] Kernel panic - not syncing: Fatal exception in interrupt",
        ] {
            let told = complaint(&format!("{quiet}{loud}\r\n{quiet}"));
            assert_eq!(told, Some(format!("the kernel complained: {loud}")));
        }
    }
}
