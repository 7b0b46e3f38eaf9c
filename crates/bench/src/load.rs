//! The load: requests that are always outstanding, what became of them, and how long they took.

use anyhow::{Context, Result, bail};
use frontend::lane::{Lane, LaneOptions};
use frontend::{Disk, Options};
use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::process::{Mark, Usage};

/// Longest latency that is told apart from longer ones, in ns.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// Longest time without any completion, in ns. A device that holds requests is no use here.
const SILENCE_NS_MAX: u64 = 30_000_000_000;
/// How long one sleep lasts at most, so that the end of the device is noticed, in ms.
const SLEEP_MS: i64 = 500;
/// Fruitless looks at the ring between two looks at the clock.
const SPINS: u32 = 256;

/// What a request does, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    /// Reads, or else writes.
    pub read: bool,
    /// Random offsets, or else one behind the other.
    pub random: bool,
    /// Bytes per request.
    pub bytes: u32,
}

/// A load.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Requests.
    pub pattern: Pattern,
    /// Requests outstanding per queue.
    pub depth: u16,
    /// Queues.
    pub queues: u16,
    /// Look at the ring all the time, or else sleep until the device calls.
    pub poll: bool,
    /// Use indirect descriptors.
    pub indirect: bool,
}

/// What came of a load.
#[derive(Debug)]
pub struct Outcome {
    /// Completed requests.
    pub requests: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// Time.
    pub elapsed: Duration,
    /// Latencies in ns; empty if they were not measured.
    pub latencies: Histogram<u64>,
    /// How often the device was kicked.
    pub kicks: u64,
    /// How often we slept.
    pub sleeps: u64,
    /// What was used meanwhile.
    pub usage: Usage,
}

/// A device under load.
#[derive(Debug)]
pub struct Loaded {
    /// Keeps the connection.
    disk: Disk,
    streams: Vec<Stream>,
    load: Load,
    origin: Instant,
    kicks: u64,
    sleeps: u64,
}

#[derive(Debug)]
struct Stream {
    lane: Lane,
    offsets: Offsets,
    /// When the request of each slot was put, in ns since the origin.
    since_ns: Vec<u64>,
    /// What the last look at the ring has found.
    done: Vec<u16>,
}

/// Where the next request goes.
#[derive(Debug)]
struct Offsets {
    random: bool,
    /// First block, and number of blocks.
    first: u64,
    count: u64,
    sectors: u64,
    state: u64,
}

impl Offsets {
    fn next(&mut self) -> u64 {
        let block = if self.random {
            // SplitMix64; the high half of the product maps it to the range.
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let product = u128::from(z ^ (z >> 31)) * u128::from(self.count);
            u64::try_from(product >> 64).unwrap_or(0)
        } else {
            let block = self.state;
            self.state = if block + 1 == self.count {
                0
            } else {
                block + 1
            };
            block
        };
        (self.first + block) * self.sectors
    }
}

impl Loaded {
    /// Connects to a device. Nothing is submitted yet.
    ///
    /// # Errors
    /// If it cannot be reached, or is not made for this load.
    pub fn connect(socket: &Path, load: Load) -> Result<Self> {
        let Load { pattern, depth, .. } = load;
        let descriptors = if load.indirect { 1 } else { 3 };
        let entries = u32::from(depth) * descriptors;
        let queue_size = u16::try_from(entries.next_power_of_two().max(128))
            .context("more requests than a queue has descriptors")?;
        let per_queue = (u64::from(depth) * u64::from(pattern.bytes.next_power_of_two()))
            .next_power_of_two()
            + (1 << 20);
        let options = Options {
            queues: load.queues,
            queue_size,
            indirect: load.indirect,
            memory_bytes: 2 * per_queue * u64::from(load.queues),
            memory_regions: 1,
            ..Options::default()
        };
        let mut disk = Disk::connect(socket, options)?;
        let sectors = u64::from(pattern.bytes / 512);
        let blocks = disk.config().capacity / sectors;
        // Sequential requests of several queues do not meet; random ones may.
        let share = if pattern.random {
            blocks
        } else {
            blocks / u64::from(load.queues)
        };
        if share == 0 {
            bail!(
                "the disk has {} sectors, too few for requests of {} bytes",
                disk.config().capacity,
                pattern.bytes
            );
        }
        let mut streams = Vec::new();
        for queue in 0..load.queues {
            let lane = disk.lane(
                queue,
                LaneOptions {
                    depth,
                    bytes: pattern.bytes,
                    read: pattern.read,
                    indirect: load.indirect,
                },
            )?;
            let first = if pattern.random {
                0
            } else {
                share * u64::from(queue)
            };
            streams.push(Stream {
                lane,
                offsets: Offsets {
                    random: pattern.random,
                    first,
                    count: share,
                    sectors,
                    state: if pattern.random {
                        u64::from(queue) << 32
                    } else {
                        0
                    },
                },
                since_ns: vec![0; usize::from(depth)],
                done: Vec::with_capacity(usize::from(depth)),
            });
        }
        Ok(Self {
            disk,
            streams,
            load,
            origin: Instant::now(),
            kicks: 0,
            sleeps: 0,
        })
    }

    /// Keeps `depth` requests outstanding on each queue: for `warm_up`, and then for `time`, which
    /// alone is measured. `pid` is the device's process.
    ///
    /// # Errors
    /// If the device or its process goes away, or is silent for too long.
    pub fn run(&mut self, warm_up: Duration, time: Duration, pid: Option<u32>) -> Result<Outcome> {
        let mut latencies = histogram()?;
        for index in 0..self.streams.len() {
            let now = self.now_ns();
            let stream = &mut self.streams[index];
            for slot in 0..self.load.depth {
                stream.lane.put(slot, stream.offsets.next());
                stream.since_ns[usize::from(slot)] = now;
            }
            stream.lane.publish();
            self.kicks += u64::from(stream.lane.kick()?);
        }
        self.drive(warm_up, &mut latencies)?;
        latencies.reset();
        let (kicks, sleeps) = (self.kicks, self.sleeps);
        let mark = Mark::now(pid)?;
        let start = Instant::now();
        let (requests, errors) = self.drive(time, &mut latencies)?;
        let elapsed = start.elapsed();
        let usage = mark.elapsed()?;
        let outcome = Outcome {
            requests,
            errors,
            elapsed,
            latencies,
            kicks: self.kicks - kicks,
            sleeps: self.sleeps - sleeps,
            usage,
        };
        self.drain()?;
        Ok(outcome)
    }

    /// In lockstep: `depth` requests on each queue at once, one kick each, and the next batch only
    /// when all are completed (and `pause` is over), until there were at least `requests`. So the
    /// device goes the same way each time.
    ///
    /// # Errors
    /// As for [`Loaded::run`].
    pub fn run_lockstep(
        &mut self,
        requests: u64,
        pause: Duration,
        pid: Option<u32>,
    ) -> Result<Outcome> {
        let mark = Mark::now(pid)?;
        let start = Instant::now();
        let (mut completed, mut errors) = (0, 0);
        while completed < requests {
            let depth = self.load.depth;
            for stream in &mut self.streams {
                if self.load.poll {
                    stream.lane.disable_calls();
                } else {
                    stream.lane.enable_calls(depth - 1);
                }
                for slot in 0..depth {
                    stream.lane.put(slot, stream.offsets.next());
                }
                stream.lane.publish();
                self.kicks += u64::from(stream.lane.kick()?);
            }
            for index in 0..self.streams.len() {
                let mut left = usize::from(depth);
                let mut watch = Watch::new(self.now_ns());
                while left > 0 {
                    let stream = &mut self.streams[index];
                    stream.done.clear();
                    errors += stream.reap()?;
                    left -= stream.done.len();
                    completed += stream.done.len() as u64;
                    if left > 0 && stream.done.is_empty() {
                        self.idle(&mut watch)?;
                    }
                }
            }
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
        Ok(Outcome {
            requests: completed,
            errors,
            elapsed: start.elapsed(),
            latencies: histogram()?,
            kicks: self.kicks,
            sleeps: self.sleeps,
            usage: mark.elapsed()?,
        })
    }

    /// Goes on for `time`, and until something has been completed: on a busy machine we may not have
    /// run at all. Returns the number of completions and of failures among them.
    fn drive(&mut self, time: Duration, latencies: &mut Histogram<u64>) -> Result<(u64, u64)> {
        let end_ns = self.now_ns() + u64::try_from(time.as_nanos())?;
        let (mut completed, mut errors) = (0, 0);
        let mut watch = Watch::new(self.now_ns());
        loop {
            let mut busy = false;
            for stream in &mut self.streams {
                if !stream.lane.has_completions() {
                    continue;
                }
                busy = true;
                stream.done.clear();
                errors += stream.reap()?;
                let now_ns = nanoseconds(self.origin);
                for &slot in &stream.done {
                    stream.lane.put(slot, stream.offsets.next());
                    stream.lane.publish();
                }
                self.kicks += u64::from(stream.lane.kick()?);
                if self.load.poll {
                    stream.lane.disable_calls();
                }
                // The device is at work again; now there is time for this.
                for &slot in &stream.done {
                    let since = &mut stream.since_ns[usize::from(slot)];
                    latencies.saturating_record(now_ns - *since);
                    *since = now_ns;
                }
                completed += stream.done.len() as u64;
                watch.seen(now_ns);
            }
            if !busy {
                self.idle(&mut watch)?;
            }
            if watch.now_ns >= end_ns && completed > 0 {
                return Ok((completed, errors));
            }
        }
    }

    /// Waits for what is outstanding.
    fn drain(&mut self) -> Result<()> {
        for index in 0..self.streams.len() {
            let mut left = usize::from(self.load.depth);
            let mut watch = Watch::new(self.now_ns());
            while left > 0 {
                let stream = &mut self.streams[index];
                stream.done.clear();
                stream.reap()?;
                left -= stream.done.len();
                if stream.done.is_empty() {
                    self.idle(&mut watch)?;
                }
            }
        }
        Ok(())
    }

    /// Nothing is completed: spins, or sleeps until a call.
    fn idle(&mut self, watch: &mut Watch) -> Result<()> {
        if self.load.poll {
            std::hint::spin_loop();
            watch.spins += 1;
            if watch.spins < SPINS {
                return Ok(());
            }
            watch.spins = 0;
        } else {
            self.sleep()?;
        }
        watch.now_ns = self.now_ns();
        if watch.now_ns - watch.seen_ns > SILENCE_NS_MAX {
            bail!(
                "no request has been completed for {} s",
                SILENCE_NS_MAX / 1_000_000_000
            );
        }
        Ok(())
    }

    /// Sleeps until a call, unless something is completed already.
    fn sleep(&mut self) -> Result<()> {
        for stream in &mut self.streams {
            stream.lane.enable_calls(0);
        }
        // Only now can nothing slip through: the wish for calls came first.
        if self.streams.iter().any(|s| s.lane.has_completions()) {
            return Ok(());
        }
        self.sleeps += 1;
        let mut fds: [_; 65] = std::array::from_fn(|index| {
            // The last one is the connection: it becomes readable when the device ends.
            let stream = self.streams.get(index);
            let fd = stream.map_or_else(|| self.disk.connection().socket(), |s| s.lane.call_fd());
            let flags = stream.map_or(PollFlags::RDHUP, |_| PollFlags::IN);
            PollFd::from_borrowed_fd(fd, flags)
        });
        let count = self.streams.len() + 1;
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: SLEEP_MS * 1_000_000,
        };
        match rustix::event::poll(&mut fds[..count], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        if !fds[count - 1].revents().is_empty() {
            bail!("the device has closed the connection");
        }
        for stream in &self.streams {
            stream.lane.take_call()?;
        }
        Ok(())
    }

    fn now_ns(&self) -> u64 {
        nanoseconds(self.origin)
    }
}

impl Stream {
    /// Takes completions into `done`; returns how many of them failed.
    fn reap(&mut self) -> Result<u64> {
        let Self { lane, done, .. } = self;
        let mut errors = 0;
        lane.reap(|slot, status| {
            errors += u64::from(status != 0);
            done.push(slot);
        })?;
        Ok(errors)
    }
}

/// When something was last completed, and what time it is, about.
#[derive(Debug)]
struct Watch {
    seen_ns: u64,
    now_ns: u64,
    spins: u32,
}

impl Watch {
    fn new(now_ns: u64) -> Self {
        Self {
            seen_ns: now_ns,
            now_ns,
            spins: 0,
        }
    }

    fn seen(&mut self, now_ns: u64) {
        (self.seen_ns, self.now_ns) = (now_ns, now_ns);
    }
}

fn nanoseconds(origin: Instant) -> u64 {
    let elapsed = origin.elapsed();
    elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos())
}

/// Three significant digits. It does not grow: recording allocates nothing.
fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).context("latency histogram")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_stay_inside_and_reach_all_blocks() {
        for random in [true, false] {
            let mut offsets = Offsets {
                random,
                first: 10,
                count: 7,
                sectors: 8,
                state: 0,
            };
            let mut seen = [0; 7];
            for _ in 0..700 {
                let sector = offsets.next();
                assert_eq!(sector % 8, 0);
                seen[usize::try_from(sector / 8 - 10).unwrap()] += 1;
            }
            assert!(seen.iter().all(|&count| count > 50), "{seen:?}");
        }
    }
}
