//! What a server may make grow, and how long it may take.

use std::time::Duration;

use qapi::json::Limits;

/// The longest message that is taken of a server. libvirt takes 10 MiB. Tokens: what QEMU says of its
/// own schema has 52 thousand in 7.2, which is its longest answer by far, and grows with each release.
pub const ANSWER_LIMITS: Limits = Limits {
    text_bytes: 10 << 20,
    tokens: 1 << 20,
};

/// Most commands of one connection that wait for their answers; given up ones count until they are
/// answered.
pub const COMMANDS_MAX: usize = 64;

/// Most bytes that events take while nobody takes them. The connection ends beyond that.
pub const EVENTS_BYTES_MAX: usize = 16 << 20;

/// How long a server usually may take to greet, before it is taken for something else. One that serves
/// a single client at a time greets nobody else.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
