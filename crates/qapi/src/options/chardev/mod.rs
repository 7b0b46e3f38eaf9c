//! Character devices: `--chardev`, `chardev-add`.
//!
//! The option's syntax is older than keyval ([`command_line`]); the types are those of QMP.

mod command_line;
mod types;

pub use command_line::{CHARDEV_BACKENDS, CHARDEV_PARAMETERS, ParameterKind};
pub use types::{
    ChardevAddress, ChardevAddressKind, ChardevAddressVariant, ChardevBackend, ChardevBackendBase,
    ChardevCommon, ChardevFile, ChardevKind, ChardevOptions, ChardevPty, ChardevRingbuf,
    ChardevSocket, ChardevStdio, ChardevVariant, Data,
};

#[cfg(test)]
mod tests;
