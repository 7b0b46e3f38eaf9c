//! What a server may make grow, and how long it may take.

use std::time::Duration;

use qapi::json::Limits;

/// The longest message that is taken of a server: as long as our daemon's answers may be, so that whoever
/// asks what is held in a long incident learns of all of it; libvirt takes 10 MiB. Tokens: a held request has
/// 57 in 195 bytes or more. What QEMU says of its own schema, its longest answer by far, has 52 thousand in 7.2.
pub const ANSWER_LIMITS: Limits = Limits {
    text_bytes: 16 << 20,
    tokens: 8 << 20,
};

/// Most commands of one connection that wait for their answers; given up ones count until they are
/// answered.
pub const COMMANDS_MAX: usize = 64;

/// Most bytes that events take while nobody takes them. The connection ends beyond that.
pub const EVENTS_BYTES_MAX: usize = 16 << 20;

/// How long a server usually may take to greet, before it is taken for something else. One that serves
/// a single client at a time greets nobody else.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
