//! A guest with its VMM, as bare as they can be: raw messages, rings laid out by hand.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use frontend::Connection;
use frontend::memory::Mapping;
use frontend::protocol::message;
use rustix::event::EventfdFlags;

use crate::echo::QUEUES;

const SECONDS: Duration = Duration::from_secs(10);
const MEMORY_BYTES: usize = 1 << 20;
/// Where the client has its memory; in the guest it begins at 0.
const USER: u64 = 0x7000_0000_0000;
const SIZE: u16 = 16;
const QUEUE_BYTES: usize = 0x2000;
const AVAIL: usize = 0x400;
const USED: usize = 0x800;
const BUFFERS: usize = 0x2_0000;
const BUFFER_BYTES: usize = 0x200;
/// VERSION_1 and protocol features; and the one of the class.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1;
/// MQ, REPLY_ACK, CONFIG, INFLIGHT_SHMFD.
const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 9 | 1 << 12;

fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

struct Queue {
    kick: OwnedFd,
    call: OwnedFd,
    avail: u16,
    /// Used elements that were looked at.
    used: u16,
    base: u32,
}

/// What survives the connection.
pub struct Guest {
    memory: Mapping,
    queues: Vec<Queue>,
    region: Option<(Vec<u8>, OwnedFd)>,
    connection: Option<Connection>,
}

impl Guest {
    pub fn new(path: &Path) -> Self {
        let queue = |_| Queue {
            kick: eventfd(),
            call: eventfd(),
            avail: 0,
            used: 0,
            base: 0,
        };
        let mut guest = Self {
            memory: Mapping::new(MEMORY_BYTES).unwrap(),
            queues: (0..QUEUES).map(queue).collect(),
            region: None,
            connection: Some(connect(path)),
        };
        guest.fresh_region();
        guest.start();
        guest
    }

    /// Comes back with its region.
    pub fn reconnect(&mut self, path: &Path) {
        // One client at a time.
        self.connection = None;
        self.connection = Some(connect(path));
        self.start();
    }

    pub fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().unwrap()
    }

    /// A reset: all is as on the first day.
    pub fn reset(&mut self) {
        self.stop();
        self.fresh_region();
        self.memory.fill(0, MEMORY_BYTES, 0);
        for queue in &mut self.queues {
            (queue.avail, queue.used, queue.base) = (0, 0, 0);
        }
        self.start();
    }

    fn fresh_region(&mut self) {
        let mut payload = [0; 20];
        payload[16..18].copy_from_slice(&QUEUES.to_ne_bytes());
        payload[18..].copy_from_slice(&SIZE.to_ne_bytes());
        let reply = self.connection().get(message::GET_INFLIGHT_FD, &payload);
        let mut reply = reply.unwrap();
        self.region = Some((reply.payload, reply.fds.remove(0)));
    }

    /// The VM runs.
    pub fn start(&mut self) {
        let connection = self.connection.as_mut().unwrap();
        let features = FEATURES.to_ne_bytes();
        connection
            .set(message::SET_FEATURES, &features, &[])
            .unwrap();
        let (payload, fd) = self.region.as_ref().unwrap();
        connection
            .set(message::SET_INFLIGHT_FD, payload, &[fd.as_fd()])
            .unwrap();
        let mut table = 1_u64.to_ne_bytes().to_vec();
        for number in [0, MEMORY_BYTES as u64, USER, 0] {
            table.extend(number.to_ne_bytes());
        }
        connection
            .set(message::SET_MEM_TABLE, &table, &[self.memory.fd()])
            .unwrap();
        for (index, queue) in (0_u32..).zip(&self.queues) {
            let state = |value: u32| [index, value].map(u32::to_ne_bytes);
            for (code, value) in [
                (message::SET_VRING_NUM, SIZE.into()),
                (message::SET_VRING_BASE, queue.base),
            ] {
                connection
                    .set(code, state(value).as_flattened(), &[])
                    .unwrap();
            }
            let at = USER + u64::from(index) * QUEUE_BYTES as u64;
            let mut address = [index, 0].map(u32::to_ne_bytes).as_flattened().to_vec();
            for number in [at, at + USED as u64, at + AVAIL as u64, 0] {
                address.extend(number.to_ne_bytes());
            }
            connection
                .set(message::SET_VRING_ADDR, &address, &[])
                .unwrap();
            let which = u64::from(index).to_ne_bytes();
            for (code, fd) in [
                (message::SET_VRING_CALL, &queue.call),
                (message::SET_VRING_KICK, &queue.kick),
            ] {
                connection.set(code, &which, &[fd.as_fd()]).unwrap();
            }
            let enable = state(1);
            connection
                .set(message::SET_VRING_ENABLE, enable.as_flattened(), &[])
                .unwrap();
        }
    }

    /// Must not wait for what is held, nor for events.
    pub fn stop(&mut self) {
        let connection = self.connection.as_mut().unwrap();
        for (index, queue) in (0_u32..).zip(&mut self.queues) {
            let state = [index, 0].map(u32::to_ne_bytes);
            let reply = connection.get(message::GET_VRING_BASE, state.as_flattened());
            queue.base = u32::from_ne_bytes(reply.unwrap().payload[4..].try_into().unwrap());
        }
    }

    fn ring(queue: u16) -> usize {
        usize::from(queue) * QUEUE_BYTES
    }

    fn buffer(queue: u16, head: u16) -> usize {
        BUFFERS + usize::from(queue * SIZE + head) * BUFFER_BYTES
    }

    fn descriptor(&self, queue: u16, index: u16, [address, len]: [usize; 2], flags: u16) {
        let mut bytes = (address as u64).to_le_bytes().to_vec();
        bytes.extend(u32::try_from(len).unwrap().to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend((index + 1).to_le_bytes());
        let at = Self::ring(queue) + 16 * usize::from(index);
        self.memory.write(at, &bytes);
    }

    /// Makes a chain of at most two buffers available; its head is an even number.
    pub fn put(&mut self, queue: u16, head: u16, readable: &[u8], writable: usize) {
        let at = Self::buffer(queue, head);
        self.memory.write(at, readable);
        let mut next = head;
        if !readable.is_empty() {
            let more = u16::from(writable > 0);
            self.descriptor(queue, next, [at, readable.len()], more);
            next += 1;
        }
        if writable > 0 {
            let behind = at + BUFFER_BYTES / 2;
            self.descriptor(queue, next, [behind, writable], 2);
        }
        let avail = Self::ring(queue) + AVAIL;
        let Queue {
            avail: index, kick, ..
        } = &mut self.queues[usize::from(queue)];
        let entry = avail + 4 + 2 * usize::from(*index % SIZE);
        self.memory.u16_at(entry).store(head, Ordering::Relaxed);
        *index = index.wrapping_add(1);
        self.memory
            .u16_at(avail + 2)
            .store(*index, Ordering::Release);
        rustix::io::write(&*kick, &1_u64.to_ne_bytes()).unwrap();
    }

    pub fn request(&mut self, queue: u16, head: u16, code: u64, argument: u64) {
        let header = [code, argument].map(u64::to_le_bytes);
        self.put(queue, head, header.as_flattened(), 16);
    }

    /// Room for an event.
    pub fn room(&mut self, queue: u16, head: u16) {
        self.put(queue, head, &[], 16);
    }

    /// The next used element: head, value and status.
    pub fn used(&mut self, queue: u16) -> Option<(u16, u64, u64)> {
        let ring = Self::ring(queue) + USED;
        let seen = &mut self.queues[usize::from(queue)].used;
        if self.memory.u16_at(ring + 2).load(Ordering::Acquire) == *seen {
            return None;
        }
        let element = ring + 4 + 8 * usize::from(*seen % SIZE);
        *seen = seen.wrapping_add(1);
        let [head, len] =
            [element, element + 4].map(|at| self.memory.u32_at(at).load(Ordering::Relaxed));
        assert_eq!(len, 16);
        let head = u16::try_from(head).unwrap();
        let mut answer = [[0; 8]; 2];
        let at = Self::buffer(queue, head) + BUFFER_BYTES / 2;
        self.memory.read(at, answer.as_flattened_mut());
        let [value, status] = answer.map(u64::from_le_bytes);
        Some((head, value, status))
    }

    /// Waits for the call that tells of the next used element.
    pub fn wait(&mut self, queue: u16) -> (u16, u64, u64) {
        let end = Instant::now() + SECONDS;
        loop {
            if let Some(used) = self.used(queue) {
                return used;
            }
            assert!(Instant::now() < end, "queue {queue} does not go on");
            let call = &self.queues[usize::from(queue)].call;
            let mut fds = [rustix::event::PollFd::new(
                call,
                rustix::event::PollFlags::IN,
            )];
            let timeout = rustix::event::Timespec::try_from(SECONDS).unwrap();
            rustix::event::poll(&mut fds, Some(&timeout)).unwrap();
            // Whoever was faster has read it.
            let _ = rustix::io::read(call, &mut [0; 8]);
        }
    }
}

fn connect(path: &Path) -> Connection {
    let mut connection = Connection::connect(path, SECONDS).unwrap();
    let offered = connection.get_u64(message::GET_FEATURES).unwrap();
    assert_eq!(offered & FEATURES, FEATURES);
    let offered = connection.get_u64(message::GET_PROTOCOL_FEATURES).unwrap();
    assert_eq!(offered & PROTOCOL, PROTOCOL);
    let protocol = PROTOCOL.to_ne_bytes();
    connection
        .set(message::SET_PROTOCOL_FEATURES, &protocol, &[])
        .unwrap();
    connection.set_reply_ack(true);
    let queues = connection.get_u64(message::GET_QUEUE_NUM).unwrap();
    assert_eq!(queues, u64::from(QUEUES));
    connection.set(message::SET_OWNER, &[], &[]).unwrap();
    connection
}
