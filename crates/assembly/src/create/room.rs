//! How the room of a new disk is made: from the wire to whoever makes it.

use drivers::file::Preallocation;
use qapi::command::PreallocMode;

/// What nobody says anything of is not preallocated.
pub fn preallocation(mode: Option<PreallocMode>) -> Preallocation {
    match mode.unwrap_or_default() {
        PreallocMode::Off => Preallocation::Off,
        PreallocMode::Metadata => Preallocation::Metadata,
        PreallocMode::Falloc => Preallocation::Falloc,
        PreallocMode::Full => Preallocation::Full,
    }
}
