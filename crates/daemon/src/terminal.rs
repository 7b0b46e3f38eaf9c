//! The terminal on standard input, for `--chardev stdio,signal=off`.

use std::io::{self, IsTerminal};

use assembly::SetupError;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

/// From now on Ctrl-C and its like are characters. Nothing changes unless it is a terminal. It stays
/// so until somebody sets it back; shells do.
///
/// # Errors
/// If the terminal refuses.
pub fn disable_signals() -> Result<(), SetupError> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Ok(());
    }
    let set = tcgetattr(&stdin).and_then(|mut attributes| {
        attributes.local_modes -= LocalModes::ISIG;
        tcsetattr(&stdin, OptionalActions::Now, &attributes)
    });
    set.map_err(|errno| SetupError::new(format!("cannot set signal=off for the terminal: {errno}")))
}
