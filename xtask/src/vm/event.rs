//! What a guest tells, line by line, and what it adds up to. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

/// One line of the guest; `tests/src/bin/vm-guest/event.rs` writes them.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    Booted {
        release: String,
        seconds: f64,
    },
    Started {
        name: String,
    },
    Checked {
        name: String,
        seconds: f64,
        error: Option<String>,
    },
    Text {
        name: String,
        text: String,
    },
    Loaded {
        milliseconds: u64,
        programs: BTreeMap<String, u64>,
    },
    /// Each character of `bytes` is a byte.
    Output {
        stream: Stream,
        bytes: String,
    },
    Exited {
        code: i32,
    },
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    pub name: String,
    pub seconds: f64,
    pub error: Option<String>,
}

/// What the verifier and the loading took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    pub milliseconds: u64,
    /// Verified instructions.
    pub programs: BTreeMap<String, u64>,
}

/// All that one guest told.
#[derive(Debug, Default, PartialEq)]
pub struct Told {
    pub release: Option<String>,
    pub boot_seconds: Option<f64>,
    pub checks: Vec<Check>,
    /// Started and not yet checked.
    pub running: Option<String>,
    pub loaded: Option<Loaded>,
    pub texts: Vec<(String, String)>,
    pub exit_code: Option<i32>,
    /// Nothing was cut off.
    pub done: bool,
}

impl Told {
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Booted { release, seconds } => {
                self.release = Some(release);
                self.boot_seconds = Some(seconds);
            }
            Event::Started { name } => self.running = Some(name),
            Event::Checked { name, seconds, error } => {
                self.running = None;
                self.checks.push(Check { name, seconds, error });
            }
            Event::Text { name, text } => self.texts.push((name, text)),
            Event::Loaded { milliseconds, programs } => {
                // The first is what users get; others are other programs of the same object.
                let loaded = self
                    .loaded
                    .get_or_insert_with(|| Loaded { milliseconds, programs: BTreeMap::new() });
                for (program, count) in programs {
                    loaded.programs.entry(program).or_insert(count);
                }
            }
            // Passed on as it comes.
            Event::Output { .. } => {}
            Event::Exited { code } => self.exit_code = Some(code),
            Event::Done => self.done = true,
        }
    }
}

/// The bytes that a guest's output stands for.
pub fn bytes(latin1: &str) -> Vec<u8> {
    latin1.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &[&str]) -> Told {
        let mut told = Told::default();
        for line in lines {
            told.take(serde_json::from_str(line).unwrap());
        }
        told
    }

    #[test]
    fn what_a_guest_tells_adds_up() {
        let told = told(&[
            r#"{"event":"booted","release":"6.1.0-50-cloud-amd64","seconds":2.4}"#,
            r#"{"event":"started","name":"load"}"#,
            r#"{"event":"loaded","milliseconds":812,"programs":{"exec":77}}"#,
            r#"{"event":"checked","name":"load","seconds":1.5,"error":null}"#,
            r#"{"event":"started","name":"c/malloc"}"#,
            r#"{"event":"checked","name":"c/malloc","seconds":3.0,"error":"differs"}"#,
            r#"{"event":"done"}"#,
        ]);
        assert_eq!(told.boot_seconds, Some(2.4));
        assert_eq!(told.loaded.map(|loaded| loaded.programs["exec"]), Some(77));
        assert_eq!(told.checks.len(), 2);
        assert_eq!(told.checks[1].error.as_deref(), Some("differs"));
        assert!(told.done && told.running.is_none());
    }

    #[test]
    fn a_guest_that_stops_says_in_what() {
        let told = told(&[r#"{"event":"started","name":"c/fork"}"#]);
        assert_eq!(told.running.as_deref(), Some("c/fork"));
        assert!(!told.done);
    }

    #[test]
    fn any_byte_of_a_commands_output_comes_through() {
        let all: Vec<u8> = (0..=255).collect();
        let latin1: String = all.iter().map(|&byte| char::from(byte)).collect();
        assert_eq!(bytes(&latin1), all);
    }
}
