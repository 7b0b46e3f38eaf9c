//! A piece of guest memory, as a descriptor names it.

/// A buffer in guest memory. Nothing is known about it until it is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub address: u64,
    /// Length in bytes, not 0.
    pub len: u32,
}

/// Bytes in `buffers`.
pub fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.len)).sum()
}
