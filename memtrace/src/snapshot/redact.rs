//! A recording without what it says about whose it is: for a bug report. Pure.
//!
//! Directories of all paths go, so do arguments, and the names of the process, the container, its
//! image, pod and cgroup. Figures, function names, base names of files, build ids and addresses stay,
//! unless functions are to go, too. Strings are found by walking all of the recording, not field by
//! field: a field that is added later is not forgotten.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Recording;

/// Fields that hold memtrace's own words, or what the host is: a process may be called as they are.
const UNTOUCHED: [&str; 11] = [
    "owner",
    "profile",
    "version",
    "losses",
    "tallies",
    "memtrace",
    "allocator",
    "build_id",
    "kernel_release",
    "architecture",
    "entry_instruction",
];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct What {
    /// Functions of the executable's and of other objects, and source files.
    pub functions: bool,
}

/// Replaces what is to go; an error where the recording cannot be walked.
pub fn redact(recording: &Recording, what: What) -> Result<Recording, serde_json::Error> {
    let mut rules = Rules { names: names(recording), functions: BTreeMap::new(), what };
    let mut redacted = recording.clone();
    let line = &mut redacted.header.tracee.command_line;
    let arguments = line.len().saturating_sub(1);
    line.truncate(1);
    if arguments > 0 {
        line.push(format!("[{arguments} arguments redacted]"));
    }
    let mut value = serde_json::to_value(&redacted)?;
    rules.walk(&mut value, "");
    serde_json::from_value(value)
}

/// Names that say whose it is, the longest first, each with what stands in its place.
fn names(recording: &Recording) -> Vec<(String, String)> {
    let tracee = &recording.header.tracee;
    let mut found: BTreeSet<String> = BTreeSet::from([tracee.comm.clone()]);
    let container = |found: &mut BTreeSet<String>, it: &super::Container| {
        found.insert(it.id.clone());
        // As messages shorten it.
        found.extend(it.id.get(..12).map(str::to_owned));
        found.extend(it.name.iter().chain(&it.image).cloned());
    };
    if let Some(it) = &tracee.container {
        container(&mut found, it);
    }
    let base = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    found.insert(base(&tracee.executable));
    found.extend(tracee.command_line.first().map(|path| base(path)));
    for facts in recording.snapshots.iter().filter_map(|at| at.memory.value()) {
        if let Some(it) = &facts.subject.container {
            container(&mut found, it);
        }
        found.extend(facts.subject.pod_uid.iter().cloned());
        if let Some(cgroup) = facts.cgroup.value() {
            let paths = cgroup.limits.iter().map(|it| &it.path);
            let paths = paths.chain([&cgroup.path]).chain(cgroup.nested.iter().map(|it| &it.path));
            found.extend(paths.flat_map(|path| path.split('/')).map(str::to_owned));
        }
        found.extend(facts.processes.iter().map(|it| it.comm.clone()));
        found.extend(facts.processes.iter().map(|it| base(&it.executable)));
        found.extend(facts.unread.iter().map(|it| it.comm.clone()));
        found.extend(facts.overhead.iter().map(|it| it.comm.clone()));
    }
    // Shorter ones would be found inside of words that mean nothing.
    found.retain(|name| name.len() >= 3);
    let mut names: Vec<String> = found.into_iter().collect();
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    let numbered = names.into_iter().enumerate();
    numbered.map(|(at, name)| (name, format!("name{}", at + 1))).collect()
}

struct Rules {
    names: Vec<(String, String)>,
    functions: BTreeMap<String, String>,
    what: What,
}

impl Rules {
    fn walk(&mut self, value: &mut Value, key: &str) {
        match value {
            Value::String(text) => *text = self.text(key, text),
            Value::Array(values) => values.iter_mut().for_each(|value| self.walk(value, key)),
            Value::Object(values) => {
                for (key, value) in values.iter_mut() {
                    self.walk(value, key);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn text(&mut self, key: &str, text: &str) -> String {
        if UNTOUCHED.contains(&key) {
            return text.to_owned();
        }
        if key == "function" {
            return self.function(text);
        }
        if key == "file" && self.what.functions {
            return "[redacted]".to_owned();
        }
        let without = if text.starts_with('/') || key == "file" {
            path(text)
        } else {
            // A sentence: every path in it.
            let ends = |c: char| c.is_whitespace() || "`'\"(),;".contains(c);
            text.split_inclusive(ends)
                .map(|word| {
                    let bare = word.trim_end_matches(ends);
                    let rest = &word[bare.len()..];
                    let at =
                        bare.find('/').filter(|at| *at == 0 || bare[..*at].ends_with(['=', ':']));
                    match at {
                        Some(at) => format!("{}{}{rest}", &bare[..at], path(&bare[at..])),
                        None => word.to_owned(),
                    }
                })
                .collect()
        };
        // Functions of libraries may well be called as a process is: they are no names.
        self.names.iter().fold(without, |text, (name, token)| match text.contains(name.as_str()) {
            true => text.replace(name.as_str(), token),
            false => text,
        })
    }

    fn function(&mut self, name: &str) -> String {
        if !self.what.functions {
            return name.to_owned();
        }
        let next = self.functions.len() + 1;
        let token = self.functions.entry(name.to_owned());
        token.or_insert_with(|| format!("function{next}")).clone()
    }
}

/// The directories go; what the kernel calls by a path keeps what says so.
fn path(path: &str) -> String {
    for kept in ["/dev/shm/", "/memfd:"] {
        if let Some(rest) = path.strip_prefix(kept) {
            return if rest.is_empty() { path.to_owned() } else { format!("{kept}…") };
        }
    }
    if path.starts_with("/dev/") || path.starts_with("/SYSV") || path.starts_with("/proc/") {
        return path.to_owned();
    }
    match path.rsplit_once('/') {
        Some(("", _)) | None => path.to_owned(),
        Some((_, base)) if path.starts_with('/') => format!("/…/{base}"),
        Some((_, base)) => base.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::recording;
    use super::*;

    fn shown(recording: &Recording) -> String {
        serde_json::to_string(recording).unwrap()
    }

    #[test]
    fn nothing_says_whose_it_is() {
        let original = recording();
        let before = shown(&original);
        let after = shown(&redact(&original, What::default()).unwrap());
        for secret in [
            "registry.example",
            "orders-1",
            "3f9d1c6b2a7e",
            "--listen=:8080",
            "/app/",
            "/src/",
            "/opt/vendor",
        ] {
            assert!(before.contains(secret), "{secret}");
            assert!(!after.contains(secret), "{secret}: {after}");
        }
        assert!(after.contains("main.handleOrder") && after.contains("libsqlite3.so.0.8.6"));
        assert!(after.contains("feedfacefeedface"), "build ids are gone");
    }

    #[test]
    fn figures_and_the_own_code_are_as_they_were() {
        let original = recording();
        let redacted = redact(&original, What::default()).unwrap();
        for (a, b) in original.snapshots.iter().zip(&redacted.snapshots) {
            assert_eq!(a.native, b.native);
        }
        // What is the program's own is found by its path: that must be the same in both places.
        assert_eq!(redacted.header.tracee.executable, redacted.header.tracee.objects[0].path);
    }

    #[test]
    fn a_process_called_like_a_word_of_memtraces_is_redacted_as_any() {
        let mut original = recording();
        for comm in ["native", "published", "free_calls", "file"] {
            original.header.tracee.comm = comm.to_owned();
            let redacted = redact(&original, What::default()).unwrap();
            assert_eq!(redacted.snapshots[2].native, original.snapshots[2].native);
            assert!(redacted.header.tracee.comm.starts_with("name"));
        }
    }

    #[test]
    fn functions_go_where_asked_and_stay_apart() {
        let original = recording();
        let redacted = redact(&original, What { functions: true }).unwrap();
        let after = shown(&redacted);
        assert!(!after.contains("handleOrder") && !after.contains("sqlite3MemMalloc"));
        let names = |recording: &Recording| {
            let all = recording.names.iter().flat_map(|it| &it.names);
            all.map(|it| it.function.clone()).collect::<BTreeSet<_>>().len()
        };
        assert_eq!(names(&original), names(&redacted));
    }

    #[test]
    fn paths_in_sentences_go_too() {
        let mut rules =
            Rules { names: Vec::new(), functions: BTreeMap::new(), what: What::default() };
        for (text, expected) in [
            ("failed to open `/srv/secret/x.so`: gone", "failed to open `/…/x.so`: gone"),
            ("/srv/my secret/x (deleted)", "/…/x (deleted)"),
            ("/proc/17/smaps Rss", "/proc/17/smaps Rss"),
            ("/dev/shm/secret", "/dev/shm/…"),
            ("--config=/etc/secret/a.yaml", "--config=/…/a.yaml"),
            ("memory.stat anon", "memory.stat anon"),
        ] {
            assert_eq!(rules.text("reason", text), expected);
        }
    }
}
