//! Language runtimes that map their heaps themselves, and by which objects a process shows that it
//! runs one. That an object is mapped says what the process is, and of no mapping whose it is.

use serde::{Deserialize, Serialize};

use super::facts::MappingFacts;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    CPython,
    V8,
    Php,
    Ruby,
    Jvm,
}

impl Runtime {
    pub const ALL: [Self; 5] = [Self::CPython, Self::V8, Self::Php, Self::Ruby, Self::Jvm];

    pub fn label(self) -> &'static str {
        match self {
            Self::CPython => "CPython",
            Self::V8 => "V8",
            Self::Php => "PHP",
            Self::Ruby => "Ruby",
            Self::Jvm => "the JVM",
        }
    }

    /// By a mapped object's path: an interpreter's executable, or the library that it lives in.
    pub fn of_object(path: &str) -> Option<Self> {
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        let file = path.rsplit('/').next()?;
        let library = |name: &str| {
            file.strip_prefix(name).is_some_and(|rest| {
                rest.split_once(".so").is_some_and(|(version, after)| {
                    is_version(version) && (after.is_empty() || after.starts_with('.'))
                })
            })
        };
        let program = |name: &str| file.strip_prefix(name).is_some_and(is_version);
        if program("python") || library("libpython") {
            Some(Self::CPython)
        } else if ["node", "nodejs", "d8", "deno"].contains(&file)
            || library("libnode")
            || library("libv8")
        {
            Some(Self::V8)
        } else if ["php", "php-fpm", "php-cgi", "phpdbg"].into_iter().any(program)
            || library("libphp")
        {
            Some(Self::Php)
        } else if program("ruby") || library("libruby-") || library("libruby") {
            Some(Self::Ruby)
        } else if file == "libjvm.so" {
            Some(Self::Jvm)
        } else {
            None
        }
    }

    /// By the name that a runtime gives a mapping (`PR_SET_VMA_ANON_NAME`), without brackets:
    /// CPython's development mode, PHP since 8.3, Ruby since 3.4.
    pub fn of_name(given: &str) -> Option<Self> {
        let named = |names: &[&str]| names.iter().any(|name| given.starts_with(name));
        if named(&["cpython:"]) {
            Some(Self::CPython)
        } else if given == "v8" || named(&["v8:", "V8 "]) {
            Some(Self::V8)
        } else if named(&["zend_"]) {
            Some(Self::Php)
        } else if named(&["Ruby:"]) {
            Some(Self::Ruby)
        } else {
            None
        }
    }

    /// All whose objects have code mapped here, each once.
    pub fn of_process(mappings: &[MappingFacts]) -> Vec<Self> {
        let code = mappings.iter().filter(|it| it.executable && it.inode != 0);
        let mut found: Vec<Self> = code.filter_map(|it| Self::of_object(&it.name)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Nothing, or numbers and dots (`3.11`, `8.2`), with the letters that some builds add (`3.13t`).
fn is_version(text: &str) -> bool {
    let digits = text.trim_start_matches('-').trim_end_matches(['t', 'd', 'm']);
    text.is_empty()
        || !digits.is_empty() && digits.chars().all(|it| it.is_ascii_digit() || it == '.')
}

/// Part of a runtime's heap, as its own headers in the memory tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeRange {
    pub runtime: Runtime,
    pub start: u64,
    pub end: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_is_known_by_its_executable_or_library() {
        for (path, runtime) in [
            ("/usr/bin/python3.11", Some(Runtime::CPython)),
            ("/usr/local/bin/python3", Some(Runtime::CPython)),
            ("/usr/bin/python3.13t", Some(Runtime::CPython)),
            ("/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0", Some(Runtime::CPython)),
            ("/usr/bin/python3.11 (deleted)", Some(Runtime::CPython)),
            ("/usr/bin/node", Some(Runtime::V8)),
            ("/usr/lib/libnode.so.108", Some(Runtime::V8)),
            ("/usr/sbin/php-fpm8.2", Some(Runtime::Php)),
            ("/usr/bin/php8.2", Some(Runtime::Php)),
            ("/usr/lib/apache2/modules/libphp8.2.so", Some(Runtime::Php)),
            ("/usr/bin/ruby3.1", Some(Runtime::Ruby)),
            ("/usr/lib/x86_64-linux-gnu/libruby-3.1.so.3.1.2", Some(Runtime::Ruby)),
            ("/usr/lib/jvm/java-17/lib/server/libjvm.so", Some(Runtime::Jvm)),
            ("/usr/bin/node_exporter", None),
            ("/usr/bin/pythonic", None),
            ("/usr/lib/libpython_helper.so", None),
            ("/usr/bin/phpunit", None),
            ("/usr/lib/libjvmti.so", None),
            ("", None),
        ] {
            assert_eq!(Runtime::of_object(path), runtime, "{path}");
        }
    }

    #[test]
    fn data_files_with_a_runtime_s_name_do_not_make_a_runtime() {
        let mapping = |executable, inode| MappingFacts {
            executable,
            inode,
            name: "/usr/bin/python3.11".to_owned(),
            ..MappingFacts::default()
        };
        assert_eq!(Runtime::of_process(&[mapping(false, 1), mapping(true, 0)]), []);
        let twice = [mapping(true, 1), mapping(true, 1)];
        assert_eq!(Runtime::of_process(&twice), [Runtime::CPython]);
    }
}
