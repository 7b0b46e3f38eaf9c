//! A virtqueue whose guest writes what it likes to descriptor table, rings and inflight region, at
//! any time. The input's form is that of `vhost-user/src/queue/hostile.rs`;
//! bit 3 of its flags makes the disk writable.
#![no_main]

use export_vhost_user_blk::request::Rules;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let rules = |flags| Rules {
        writable: flags & 8 != 0,
        block_bytes: 512,
    };
    vhost_user::fuzz_vring(bytes, rules, |status| status);
});
