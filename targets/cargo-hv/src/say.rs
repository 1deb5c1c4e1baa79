//! What the tool says of its own: always on stderr, a line at a time.

use std::fmt;

/// One line of progress.
pub(crate) fn say(line: impl fmt::Display) {
    eprintln!("cargo hv: {line}");
}
