//! What memtrace says on stderr. Two promises: nothing of a tracee's reaches the terminal raw, and
//! a stderr that nobody reads any more (`2>&1 | head`) ends nothing.

use std::fmt::Display;
use std::io::{Write, stderr};

use crate::report::visible_lines;

/// One message, prefixed with the program's name as a shell user expects it.
pub fn warn(message: impl Display) {
    say(format_args!("memtrace: {message}"));
}

/// One line of its own.
pub fn say(message: impl Display) {
    let message = message.to_string();
    // Nobody is left to be told that it failed.
    let _ = writeln!(stderr(), "{}", visible_lines(&message));
}
