//! Event descriptors: kicks, calls and errors.

use std::os::fd::AsFd;

use crate::error::FrontendError;

/// Signals a kick descriptor.
pub(crate) fn signal(kick: &impl AsFd) -> Result<(), FrontendError> {
    match rustix::io::write(kick, &1_u64.to_ne_bytes()) {
        // A full counter means that the device has not looked for a very long time; it will see it.
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(errno) => Err(FrontendError::io("kick")(errno)),
    }
}

/// Whether the event had been signalled. It no longer is.
pub(crate) fn take_event(event: &impl AsFd) -> Result<bool, FrontendError> {
    match rustix::io::read(event, &mut [0; 8]) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::AGAIN) => Ok(false),
        Err(errno) => Err(FrontendError::io("reading an event descriptor")(errno)),
    }
}
