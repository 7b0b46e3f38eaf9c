//! A virtqueue whose guest writes what it likes to descriptor table, rings and inflight region, at
//! any time. The input's form is that of `export-vhost-user-blk/src/queue/hostile.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| export_vhost_user_blk::fuzz_vring(bytes));
