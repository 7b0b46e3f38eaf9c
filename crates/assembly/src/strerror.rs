//! How errors of the system are put into words.

use std::io;

/// The text of a system error, as strerror(3) gives it.
pub fn strerror(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => block::Cause::of_errno(errno).reason(),
        None => error.to_string(),
    }
}
