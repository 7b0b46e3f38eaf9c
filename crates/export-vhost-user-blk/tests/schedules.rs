//! Random schedules of everything that can happen at once: requests, failures, `cont`, VM stop and
//! start, pauses, memory plugging, clients that vanish, daemons that are replaced.
//!
//! Whatever happens, each request is completed exactly once and never with an error, the disk reads
//! back what was written, and the front end finds nothing to complain about.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper of tests fails as tests do"
)]

mod common;

use common::*;
use frontend::protocol::message;
use frontend::{Disk, Request, SubmitError, Token};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const SECTORS: u64 = 200;
const STEPS: u32 = 250;

/// xorshift: the same schedule for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

struct Model {
    random: Random,
    /// What each sector will contain once everything is completed.
    content: Vec<u8>,
    /// Sectors that a request in flight writes.
    writing: HashMap<Token, u64>,
    inflight: bool,
    /// Whether memory is told region by region, so that it can be moved.
    slots: bool,
    /// Whether rings may be stopped with I/O in flight.
    suspends: bool,
}

impl Model {
    fn submit(&mut self, disk: &mut Disk) {
        for _ in 0..=self.random.below(8) {
            let sector = self.random.below(SECTORS);
            // Concurrent writes of one sector would have no order, so the model avoids them.
            if self.writing.values().any(|&busy| busy == sector) {
                continue;
            }
            let byte = u8::try_from(self.random.below(256)).unwrap();
            match disk.submit(
                0,
                Request::Write {
                    sector,
                    data: &[byte; 512],
                },
            ) {
                Ok(token) => {
                    self.content[usize::try_from(sector).unwrap()] = byte;
                    self.writing.insert(token, sector);
                }
                Err(SubmitError::QueueFull) => break,
                Err(error) => panic!("{error}"),
            }
        }
        disk.kick(0).unwrap();
    }

    fn collect(&mut self, disk: &mut Disk, timeout: Duration) {
        while let Some(completion) = disk.wait(0, timeout).unwrap() {
            assert!(completion.is_ok(), "{completion:?}");
            assert!(
                self.writing.remove(&completion.token).is_some(),
                "{completion:?}"
            );
        }
    }

    /// Some regions are removed, and come back in any order; the guest goes on meanwhile.
    fn move_memory(&mut self, disk: &mut Disk) {
        let regions = disk.memory().regions();
        let mut moved: Vec<_> = regions
            .iter()
            .map(|region| {
                let user = region.mapping().address();
                let words = [0, region.guest_address(), region.len(), user, 0];
                let fd = region.mapping().fd().try_clone_to_owned().unwrap();
                (words.map(u64::to_ne_bytes).concat(), fd)
            })
            .collect();
        moved.retain(|_| self.random.below(3) > 0);
        for (region, _) in &moved {
            (disk.connection_mut())
                .set(message::REM_MEM_REG, region, &[])
                .unwrap();
            self.submit(disk);
        }
        while !moved.is_empty() {
            let next = self.random.below(moved.len() as u64);
            let (region, fd) = moved.swap_remove(usize::try_from(next).unwrap());
            (disk.connection_mut())
                .set(message::ADD_MEM_REG, &region, &[fd.as_fd()])
                .unwrap();
            self.submit(disk);
        }
    }

    /// One step; the client, and sometimes the daemon, is another one afterwards.
    fn step(&mut self, mut daemon: Daemon, mut disk: Disk) -> (Daemon, Disk) {
        match self.random.below(12) {
            0..4 => self.submit(&mut disk),
            4 => self.collect(&mut disk, Duration::ZERO),
            5 => {
                let full = self.random.below(3) == 0;
                daemon.fail_writes(if full { libc::ENOSPC } else { 0 });
            }
            6 | 7 => daemon.cont(),
            8 => {
                if self.suspends && self.random.below(2) == 0 {
                    disk.suspend().unwrap();
                } else {
                    disk.stop().unwrap();
                }
                if self.random.below(2) == 0 {
                    daemon.cont();
                }
                disk.start().unwrap();
            }
            9 => {
                disk.set_enabled(0, false).unwrap();
                self.submit(&mut disk);
                disk.set_enabled(0, true).unwrap();
            }
            11 if self.slots => self.move_memory(&mut disk),
            10 if self.inflight => {
                if self.suspends && self.random.below(2) == 0 {
                    disk.suspend().unwrap();
                }
                let state = disk.disconnect();
                if self.random.below(3) == 0 {
                    let faults = Arc::clone(&daemon.faults);
                    daemon.close();
                    daemon = Daemon::over(options_with_slots(), faults).unwrap();
                }
                disk = Disk::reconnect(state, &daemon.socket)
                    .map_err(|(error, _)| error)
                    .unwrap();
            }
            _ => {
                let latency = self.random.below(2) * 300;
                daemon.faults.latency_us.store(latency, Ordering::SeqCst);
            }
        }
        (daemon, disk)
    }
}

fn run(seed: u64, options: frontend::Options) {
    let mut model = Model {
        random: Random(seed),
        content: vec![0; usize::try_from(SECTORS).unwrap()],
        writing: HashMap::new(),
        inflight: options.inflight,
        slots: options.mem_slots,
        suspends: options.skip_drain,
    };
    let mut daemon = with_slots();
    if seed.is_multiple_of(2) {
        daemon.iothread.handle().set_poll_max_ns(0);
    }
    let mut disk = daemon.connect_with(options);
    for _ in 0..STEPS {
        (daemon, disk) = model.step(daemon, disk);
    }
    daemon.fail_writes(0);
    let deadline = Instant::now() + SECONDS;
    while !model.writing.is_empty() {
        daemon.cont();
        model.collect(&mut disk, Duration::from_millis(5));
        assert!(
            Instant::now() < deadline,
            "seed {seed}: never completed {:?}",
            model.writing
        );
    }
    for (sector, &byte) in (0..).zip(&model.content) {
        assert_eq!(
            read(&mut disk, sector, 512),
            [byte; 512],
            "seed {seed}, sector {sector}"
        );
    }
    assert_eq!(disk.violations(), [], "seed {seed}");
    assert_eq!(daemon.export.trouble(), None, "seed {seed}");
    drop(disk);
    daemon.close();
}

#[test]
fn nothing_is_lost_or_completed_twice() {
    for seed in 1..=12 {
        run(seed * 0x9e37_79b9, frontend::Options::default());
    }
}

#[test]
fn small_rings_without_event_index() {
    for seed in 1..=6 {
        let options = frontend::Options {
            queue_size: 8,
            event_idx: false,
            indirect: false,
            ..frontend::Options::default()
        };
        run(seed * 0x517c_c1b7, options);
    }
}

#[test]
fn suspended_by_skip_drain() {
    for seed in 1..=12 {
        let options = frontend::Options {
            base_inflight: true,
            skip_drain: true,
            ..frontend::Options::default()
        };
        run(seed * 0x6c07_8965, options);
    }
}

#[test]
fn memory_that_moves() {
    for seed in 1..=12 {
        let options = frontend::Options {
            mem_slots: true,
            memory_regions: 4,
            // Small enough for requests to be in all of them.
            memory_bytes: 4 << 15,
            base_inflight: true,
            skip_drain: seed % 2 == 0,
            inflight: seed % 3 > 0,
            ..frontend::Options::default()
        };
        run(seed * 0x8088_405b, options);
    }
}

#[test]
fn without_inflight_region() {
    for seed in 1..=6 {
        let options = frontend::Options {
            inflight: false,
            queue_size: 32,
            ..frontend::Options::default()
        };
        run(seed * 0x2545_f491, options);
    }
}
