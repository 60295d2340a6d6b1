//! The capabilities memtrace itself has, by name; for error messages and `memtrace doctor`.
//!
//! Only the effective set counts: it is what the kernel checks.

use std::fs;

/// Names by number, as in `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A set of capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// The effective set of this process; `None` when `/proc/self/status` does not tell it.
    pub fn of_self() -> Option<Self> {
        Self::from_status(&fs::read_to_string("/proc/self/status").ok()?)
    }

    /// The `CapEff` line of a status file.
    pub fn from_status(status: &str) -> Option<Self> {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok().map(Self)
    }

    /// Whether the set holds that capability; false for a name that is none.
    pub fn has(self, name: &str) -> bool {
        NAMES.iter().position(|known| *known == name).is_some_and(|bit| self.0 >> bit & 1 == 1)
    }

    /// Those of `names` that are not in the set.
    pub fn missing<'a>(self, names: &[&'a str]) -> Vec<&'a str> {
        names.iter().copied().filter(|name| !self.has(name)).collect()
    }

    /// The names of the set.
    pub fn names(self) -> Vec<&'static str> {
        NAMES
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.0 >> bit & 1 == 1)
            .map(|(_, n)| *n)
            .collect()
    }
}

/// `a`, `b`: those of the set this process lacks, for an error message.
pub fn missing_for(names: &[&str]) -> String {
    match Capabilities::of_self().unwrap_or_default().missing(names) {
        missing if missing.is_empty() => {
            "none is missing: a security module or a user namespace is in the way".to_owned()
        }
        missing => missing.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read_by_name() {
        let status = "Name:\tx\nCapPrm:\tffff\nCapEff:\t0000000000280000\nCapBnd:\t0\n";
        let set = Capabilities::from_status(status).unwrap();
        assert_eq!(set.names(), ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]);
        assert!(set.has("CAP_SYS_PTRACE"));
        assert_eq!(set.missing(&["CAP_BPF", "CAP_SYS_ADMIN"]), ["CAP_BPF"]);
        assert!(!set.has("CAP_NONSENSE"));
    }

    #[test]
    fn a_status_without_the_line_is_unknown() {
        assert_eq!(Capabilities::from_status("Name: x\n"), None);
        assert_eq!(Capabilities::from_status("CapEff:\tzz\n"), None);
    }
}
