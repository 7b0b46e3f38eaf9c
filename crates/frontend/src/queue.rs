//! What is outstanding on one ring: submission, completion, and what a broken device does to them.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::event::EventfdFlags;

use crate::disk::Options;
use crate::error::{FrontendError, SubmitError, Violation};
use crate::memory::{Block, GuestMemory};
use crate::protocol::{STATUS_OK, STATUS_POISON};
use crate::request::{Completion, Data, RawChain, Request, Shape, Token, header, split};
use crate::ring::{
    DESC_BYTES, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, Ring, UsedElement,
};

/// Bytes per head for header and status; the status is behind the header.
const SLOT_BYTES: u64 = 32;
const STATUS_OFFSET: u64 = 16;
/// What the buffers of dropped requests contain: a device that uses them betrays itself.
const DROPPED_POISON: u8 = 0xd5;

/// A buffer of a request.
#[derive(Debug, Clone, Copy)]
struct Piece {
    block: Block,
    address: u64,
    len: u32,
    /// Data that the device reads into, to be returned.
    returned: bool,
}

/// What is known about one head.
#[derive(Debug, Default)]
struct Slot {
    token: Option<Token>,
    /// Guest address of the status byte.
    status: Option<u64>,
    pieces: Vec<Piece>,
    /// Bytes the device may write, status included.
    writable: u64,
    /// A chain with this head has been completed in this life of the device.
    completed_before: bool,
}

/// A request that a reset has dropped; its buffers are kept out of use and watched.
#[derive(Debug)]
pub(crate) struct Dropped {
    queue: u16,
    token: Token,
    status: Option<u64>,
    pieces: Vec<Piece>,
}

/// What a stopped ring looked like.
#[derive(Debug)]
struct Stopped {
    used: u16,
    statuses: Vec<(u16, Token, u8)>,
}

#[derive(Debug)]
pub(crate) struct Queue {
    pub index: u16,
    pub ring: Ring,
    pub kick: OwnedFd,
    pub call: OwnedFd,
    pub err: OwnedFd,
    /// What SET_VRING_BASE says at the next start.
    pub base: u16,
    slots: Vec<Slot>,
    /// Headers and status bytes, by head.
    area: Block,
    outstanding: usize,
    /// Completions taken from the ring on behalf of somebody who waited for another one.
    stash: VecDeque<Completion>,
    stopped: Option<Stopped>,
    broken: bool,
    scratch: Vec<Descriptor>,
}

impl Queue {
    pub fn new(
        index: u16,
        size: u16,
        event_idx: bool,
        memory: &mut GuestMemory,
    ) -> Result<Self, FrontendError> {
        let event = || {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            rustix::event::eventfd(0, flags).map_err(FrontendError::io("eventfd"))
        };
        Ok(Self {
            index,
            ring: Ring::new(memory, size, event_idx)?,
            kick: event()?,
            call: event()?,
            err: event()?,
            base: 0,
            slots: (0..size).map(|_| Slot::default()).collect(),
            area: allocate_area(memory, size)?,
            outstanding: 0,
            stash: VecDeque::new(),
            stopped: None,
            broken: false,
            scratch: Vec::new(),
        })
    }

    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    pub fn tokens(&self) -> impl Iterator<Item = Token> {
        self.slots.iter().filter_map(|slot| slot.token)
    }

    pub fn stash(&mut self, completion: Completion) {
        self.stash.push_back(completion);
    }

    /// Makes a request available under `token`. On an error nothing has changed.
    pub fn submit(
        &mut self,
        memory: &mut GuestMemory,
        token: Token,
        request: &Request<'_>,
        shape: Shape,
        options: &Options,
    ) -> Result<(), SubmitError> {
        match request {
            Request::Raw(chain) => self.submit_raw(memory, token, chain),
            other => match other.parts() {
                Some((kind, sector, data)) => {
                    self.submit_parts(memory, token, (kind, sector, data), shape, options)
                }
                None => Err(SubmitError::EmptyChain),
            },
        }
    }

    fn submit_raw(
        &mut self,
        memory: &GuestMemory,
        token: Token,
        chain: &RawChain,
    ) -> Result<(), SubmitError> {
        if chain.descriptors.is_empty() {
            return Err(SubmitError::EmptyChain);
        }
        self.check_room(chain.descriptors.len(), chain.descriptors.len())?;
        let status = chain
            .status
            .filter(|&at| memory.fill(at, 1, STATUS_POISON).is_ok());
        let head = self
            .ring
            .add_raw(&chain.descriptors)
            .ok_or(SubmitError::QueueFull)?;
        let writable = chain
            .descriptors
            .iter()
            .filter(|descriptor| descriptor.flags & DESC_F_WRITE != 0)
            .map(|descriptor| u64::from(descriptor.len))
            .sum();
        let indirect = chain
            .descriptors
            .iter()
            .any(|d| d.flags & DESC_F_INDIRECT != 0);
        let slot = &mut self.slots[usize::from(head)];
        slot.token = Some(token);
        slot.status = status;
        // What an indirect table of the caller's makes writable is not known here.
        slot.writable = if indirect { u64::MAX } else { writable };
        self.outstanding += 1;
        Ok(())
    }

    fn submit_parts(
        &mut self,
        memory: &mut GuestMemory,
        token: Token,
        (kind, sector, data): (u32, u64, Data<'_>),
        shape: Shape,
        options: &Options,
    ) -> Result<(), SubmitError> {
        let count = 2 + split(data.len(), shape.segments).count();
        self.check_room(count, if shape.indirect { 1 } else { count })?;
        let Some(head) = self.ring.next_head() else {
            return Err(SubmitError::QueueFull);
        };
        let mut slot = std::mem::take(&mut self.slots[usize::from(head)]);
        let mut descriptors = std::mem::take(&mut self.scratch);
        let filled = self.lay_out(
            memory,
            head,
            (kind, sector, &data),
            shape,
            options,
            &mut slot,
            &mut descriptors,
        );
        let added = filled.and_then(|()| self.ring.add(&descriptors).ok_or(SubmitError::QueueFull));
        match added {
            Ok(_) => {
                slot.token = Some(token);
                self.outstanding += 1;
            }
            Err(_) => slot
                .pieces
                .drain(..)
                .for_each(|piece| memory.free(piece.block)),
        }
        descriptors.clear();
        self.scratch = descriptors;
        self.slots[usize::from(head)] = slot;
        added.map(|_| ())
    }

    fn check_room(&self, needed: usize, in_ring: usize) -> Result<(), SubmitError> {
        let max = usize::from(self.ring.size());
        if needed > max {
            Err(SubmitError::TooManyDescriptors { needed, max })
        } else if in_ring > self.ring.free_descriptors() {
            Err(SubmitError::QueueFull)
        } else {
            Ok(())
        }
    }

    /// Writes header, data and, if asked for, the indirect table into guest memory.
    #[expect(
        clippy::too_many_arguments,
        reason = "parts of one request, borrowed apart"
    )]
    fn lay_out(
        &self,
        memory: &mut GuestMemory,
        head: u16,
        (kind, sector, data): (u32, u64, &Data<'_>),
        shape: Shape,
        options: &Options,
        slot: &mut Slot,
        descriptors: &mut Vec<Descriptor>,
    ) -> Result<(), SubmitError> {
        let at = self.area.address() + SLOT_BYTES * u64::from(head);
        let status = at + STATUS_OFFSET;
        let ours = "allocated by this queue";
        memory.write(at, &header(kind, sector)).expect(ours);
        memory.fill(status, 1, STATUS_POISON).expect(ours);
        slot.status = Some(status);
        slot.writable = 1;
        descriptors.push(Descriptor {
            address: at,
            len: 16,
            ..Descriptor::default()
        });

        let returned = matches!(data, Data::In(_));
        let shift = u64::from(options.buffer_shift);
        let mut rest = data.bytes();
        for len in split(data.len(), shape.segments) {
            let len32 = u32::try_from(len).map_err(|_| SubmitError::TooLong)?;
            let block = memory
                .allocate(u64::from(len32) + shift)
                .ok_or(SubmitError::MemoryFull)?;
            let address = block.address() + shift;
            slot.pieces.push(Piece {
                block,
                address,
                len: len32,
                returned,
            });
            if returned {
                slot.writable += u64::from(len32);
                if options.keep_read_data {
                    memory
                        .fill(address, u64::from(len32), STATUS_POISON)
                        .expect(ours);
                }
            } else {
                let (now, later) = rest.split_at(len);
                memory.write(address, now).expect(ours);
                rest = later;
            }
            let flags = if returned { DESC_F_WRITE } else { 0 };
            descriptors.push(Descriptor {
                address,
                len: len32,
                flags,
                next: 0,
            });
        }
        descriptors.push(Descriptor {
            address: status,
            len: 1,
            flags: DESC_F_WRITE,
            next: 0,
        });
        if shape.indirect {
            self.make_indirect(memory, slot, descriptors)?;
        }
        Ok(())
    }

    /// Moves the descriptors into a table of their own; one that points to it remains.
    fn make_indirect(
        &self,
        memory: &mut GuestMemory,
        slot: &mut Slot,
        descriptors: &mut Vec<Descriptor>,
    ) -> Result<(), SubmitError> {
        let last = descriptors.len() - 1;
        let len =
            u32::try_from(descriptors.len() * DESC_BYTES).map_err(|_| SubmitError::TooLong)?;
        let block = memory
            .allocate(u64::from(len))
            .ok_or(SubmitError::MemoryFull)?;
        let address = block.address();
        slot.pieces.push(Piece {
            block,
            address,
            len,
            returned: false,
        });
        let mut entry = address;
        for (next, descriptor) in (1_u16..).zip(descriptors.iter_mut()) {
            if usize::from(next) <= last {
                descriptor.flags |= DESC_F_NEXT;
                descriptor.next = next;
            }
            memory
                .write(entry, &descriptor.to_bytes())
                .expect("inside the table just allocated");
            entry += DESC_BYTES as u64;
        }
        descriptors.clear();
        descriptors.push(Descriptor {
            address,
            len,
            flags: DESC_F_INDIRECT,
            next: 0,
        });
        Ok(())
    }

    /// The next completion. Used elements that are violations are recorded and skipped.
    pub fn poll(
        &mut self,
        memory: &mut GuestMemory,
        options: &Options,
        violations: &mut Vec<Violation>,
    ) -> Option<Completion> {
        if let Some(completion) = self.stash.pop_front() {
            return Some(completion);
        }
        loop {
            let pending = self.ring.used_pending();
            if self.broken || pending == 0 {
                return None;
            }
            if pending > self.ring.size() {
                self.broken = true;
                violations.push(Violation::UsedIndexJump {
                    queue: self.index,
                    expected: self.ring.consumed_index(),
                    found: self.ring.device_used_index(),
                });
                return None;
            }
            let element = self.ring.pop_used()?;
            match self.head_of(element) {
                Ok(head) => return Some(self.complete(head, element, memory, options, violations)),
                Err(violation) => violations.push(violation),
            }
        }
    }

    fn head_of(&self, element: UsedElement) -> Result<u16, Violation> {
        let queue = self.index;
        let head = match u16::try_from(element.id) {
            Ok(head) if head < self.ring.size() => head,
            _ => {
                return Err(Violation::IdOutOfRange {
                    queue,
                    id: element.id,
                });
            }
        };
        let slot = &self.slots[usize::from(head)];
        match slot.token {
            Some(_) => Ok(head),
            None if slot.completed_before => Err(Violation::CompletedTwice { queue, head }),
            None => Err(Violation::NeverSubmitted { queue, head }),
        }
    }

    /// `head` is outstanding.
    fn complete(
        &mut self,
        head: u16,
        element: UsedElement,
        memory: &mut GuestMemory,
        options: &Options,
        violations: &mut Vec<Violation>,
    ) -> Completion {
        let queue = self.index;
        let slot = &mut self.slots[usize::from(head)];
        let token = slot.token.take().expect("the head is outstanding");
        let status = match slot.status.take() {
            Some(at) => read_byte(memory, at),
            None => STATUS_OK,
        };
        if status == STATUS_POISON {
            violations.push(Violation::StatusNotWritten { queue, token });
        }
        if u64::from(element.len) > slot.writable {
            violations.push(Violation::WrittenTooLong {
                queue,
                token,
                written: element.len,
                writable: slot.writable,
            });
        }
        let mut data = Vec::new();
        for piece in slot.pieces.drain(..) {
            if piece.returned && options.keep_read_data {
                let start = data.len();
                data.resize(start + piece.len as usize, 0);
                memory
                    .read(piece.address, &mut data[start..])
                    .expect("a piece is in guest memory");
            }
            memory.free(piece.block);
        }
        slot.completed_before = true;
        self.ring.release(head);
        self.outstanding -= 1;
        Completion {
            token,
            status,
            written: element.len,
            data,
        }
    }

    /// Remembers how the ring looks now that the device must leave it alone.
    pub fn note_stopped(&mut self, memory: &GuestMemory) {
        let statuses = (0_u16..)
            .zip(&self.slots)
            .filter_map(|(head, slot)| Some((head, slot.token?, read_byte(memory, slot.status?))))
            .collect();
        self.stopped = Some(Stopped {
            used: self.ring.device_used_index(),
            statuses,
        });
    }

    /// Compares with what was remembered, once.
    pub fn check_stopped(&mut self, memory: &GuestMemory, violations: &mut Vec<Violation>) {
        let Some(stopped) = self.stopped.take() else {
            return;
        };
        let mut touched = |what: String| {
            violations.push(Violation::TouchedWhileStopped {
                queue: self.index,
                what,
            })
        };
        let used = self.ring.device_used_index();
        if used != stopped.used {
            touched(format!("used index {} -> {used}", stopped.used));
        }
        for (head, token, before) in stopped.statuses {
            let slot = &self.slots[usize::from(head)];
            let Some(at) = slot.status.filter(|_| slot.token == Some(token)) else {
                continue;
            };
            let now = read_byte(memory, at);
            if now != before {
                touched(format!("status of {token:?} {before:#04x} -> {now:#04x}"));
            }
        }
    }

    /// The ring as new; what was outstanding is handed out as dropped, its buffers poisoned and out
    /// of use until [`Dropped::forget`]. Call it only while the device must not touch the ring.
    pub fn reset(&mut self, memory: &mut GuestMemory) -> Result<Vec<Dropped>, FrontendError> {
        // Late writes to a dropped status byte must not land in the status of a new request.
        if self.outstanding > 0 {
            self.area = allocate_area(memory, self.ring.size())?;
        }
        let mut dropped = Vec::new();
        for slot in &mut self.slots {
            if let Some(token) = slot.token.take() {
                let gone = Dropped {
                    queue: self.index,
                    token,
                    status: slot.status.take(),
                    pieces: std::mem::take(&mut slot.pieces),
                };
                for (address, len) in gone.ranges() {
                    memory.fill(address, len, DROPPED_POISON)?;
                }
                dropped.push(gone);
            }
            slot.completed_before = false;
        }
        self.ring.reset();
        self.stash.clear();
        self.stopped = None;
        (self.outstanding, self.base, self.broken) = (0, 0, false);
        Ok(dropped)
    }
}

impl Dropped {
    pub fn token(&self) -> Token {
        self.token
    }

    fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        let pieces = self
            .pieces
            .iter()
            .map(|piece| (piece.address, u64::from(piece.len)));
        pieces.chain(self.status.map(|at| (at, 1)))
    }

    /// The first byte that was written after the reset, if any.
    pub fn check(&self, memory: &GuestMemory) -> Option<Violation> {
        let address = self.ranges().find_map(|(address, len)| {
            let mut bytes = vec![0; usize::try_from(len).ok()?];
            memory.read(address, &mut bytes).ok()?;
            let changed = bytes.iter().position(|&byte| byte != DROPPED_POISON)?;
            Some(address + changed as u64)
        })?;
        Some(Violation::StrayWrite {
            queue: self.queue,
            token: self.token,
            address,
        })
    }

    /// Gives the data buffers back. The few bytes of header and status stay allocated.
    pub fn forget(self, memory: &mut GuestMemory) {
        self.pieces
            .into_iter()
            .for_each(|piece| memory.free(piece.block));
    }
}

fn allocate_area(memory: &mut GuestMemory, size: u16) -> Result<Block, FrontendError> {
    let len = SLOT_BYTES * u64::from(size);
    memory.allocate(len).ok_or(FrontendError::MemoryFull {
        what: "headers and status bytes",
        len,
    })
}

fn read_byte(memory: &GuestMemory, at: u64) -> u8 {
    let mut byte = [0];
    memory
        .read(at, &mut byte)
        .expect("checked to be in guest memory at submission");
    byte[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Driver {
        queue: Queue,
        memory: GuestMemory,
        options: Options,
        violations: Vec<Violation>,
        tokens: u64,
    }

    /// A queue of 8 entries whose device is the test.
    fn driver() -> Driver {
        let mut memory = GuestMemory::new(1 << 20, 1).unwrap();
        let queue = Queue::new(0, 8, true, &mut memory).unwrap();
        let (options, violations) = (Options::default(), Vec::new());
        Driver {
            queue,
            memory,
            options,
            violations,
            tokens: 0,
        }
    }

    impl Driver {
        fn submit(&mut self, request: &Request<'_>) -> Token {
            self.tokens += 1;
            let token = Token(self.tokens);
            let Self {
                queue,
                memory,
                options,
                ..
            } = self;
            queue
                .submit(memory, token, request, Shape::default(), options)
                .unwrap();
            token
        }

        fn poll(&mut self) -> Option<Completion> {
            self.queue
                .poll(&mut self.memory, &self.options, &mut self.violations)
        }

        fn head(&self, token: Token) -> u16 {
            let at = self
                .queue
                .slots
                .iter()
                .position(|slot| slot.token == Some(token))
                .unwrap();
            u16::try_from(at).unwrap()
        }

        /// Answers as a correct device would, writing `byte` everywhere it may write.
        fn complete(&mut self, token: Token, byte: u8) -> u16 {
            let head = self.head(token);
            let slot = &self.queue.slots[usize::from(head)];
            for piece in slot.pieces.iter().filter(|piece| piece.returned) {
                self.memory
                    .fill(piece.address, u64::from(piece.len), byte)
                    .unwrap();
            }
            self.memory
                .fill(slot.status.unwrap(), 1, STATUS_OK)
                .unwrap();
            let written = u32::try_from(slot.writable).unwrap();
            self.queue.ring.complete_as_device(u32::from(head), written);
            head
        }
    }

    const READ: Request<'_> = Request::Read {
        sector: 0,
        len: 1024,
    };

    #[test]
    fn completions_out_of_order_return_their_own_data() {
        let mut driver = driver();
        let (first, second) = (driver.submit(&READ), driver.submit(&READ));
        driver.complete(second, 2);
        driver.complete(first, 1);
        for (token, byte) in [(second, 2), (first, 1)] {
            let completion = driver.poll().unwrap();
            assert_eq!((completion.token, completion.is_ok()), (token, true));
            assert_eq!(completion.data, vec![byte; 1024]);
        }
        assert_eq!((driver.poll(), driver.queue.outstanding()), (None, 0));
        assert_eq!(driver.violations, []);
    }

    #[test]
    fn a_second_completion_is_a_violation_whether_or_not_the_head_is_in_use_again() {
        let mut driver = driver();
        let token = driver.submit(&Request::Flush);
        let head = driver.complete(token, 0);
        driver.poll().unwrap();
        driver.queue.ring.complete_as_device(u32::from(head), 1);
        assert_eq!(driver.poll(), None);
        assert_eq!(
            driver.violations,
            [Violation::CompletedTwice { queue: 0, head }]
        );

        driver.violations.clear();
        let others: Vec<_> = (0..4).map(|_| driver.submit(&Request::Flush)).collect();
        let reused = *others
            .iter()
            .find(|&&other| driver.head(other) == head)
            .unwrap();
        driver.queue.ring.complete_as_device(u32::from(head), 1);
        assert_eq!(driver.poll().unwrap().status, STATUS_POISON);
        assert_eq!(
            driver.violations,
            [Violation::StatusNotWritten {
                queue: 0,
                token: reused
            }]
        );
    }

    #[test]
    fn used_elements_that_name_no_head_are_violations_and_the_next_one_counts() {
        let mut driver = driver();
        let token = driver.submit(&READ);
        let head = driver.head(token);
        driver.queue.ring.complete_as_device(u32::from(head) + 1, 0);
        driver.queue.ring.complete_as_device(8, 0);
        driver.queue.ring.complete_as_device(0x1_0000, 0);
        driver.complete(token, 7);
        assert_eq!(driver.poll().unwrap().token, token);
        assert_eq!(
            driver.violations,
            [
                Violation::NeverSubmitted {
                    queue: 0,
                    head: head + 1
                },
                Violation::IdOutOfRange { queue: 0, id: 8 },
                Violation::IdOutOfRange {
                    queue: 0,
                    id: 0x1_0000
                },
            ]
        );
    }

    #[test]
    fn a_used_index_that_runs_away_stops_the_polling() {
        let mut driver = driver();
        driver.submit(&READ);
        driver.queue.ring.set_used_index_as_device(9);
        assert_eq!((driver.poll(), driver.poll()), (None, None));
        assert_eq!(
            driver.violations,
            [Violation::UsedIndexJump {
                queue: 0,
                expected: 0,
                found: 9
            }]
        );
    }

    #[test]
    fn claiming_to_have_written_too_much_is_a_violation() {
        let mut driver = driver();
        let token = driver.submit(&READ);
        let head = driver.head(token);
        let status = driver.queue.slots[usize::from(head)].status.unwrap();
        driver.memory.fill(status, 1, STATUS_OK).unwrap();
        driver.queue.ring.complete_as_device(u32::from(head), 1026);
        assert!(driver.poll().unwrap().is_ok());
        let expected = Violation::WrittenTooLong {
            queue: 0,
            token,
            written: 1026,
            writable: 1025,
        };
        assert_eq!(driver.violations, [expected]);
    }

    #[test]
    fn touching_a_stopped_ring_is_noticed() {
        let mut driver = driver();
        let token = driver.submit(&READ);
        driver.queue.note_stopped(&driver.memory);
        driver
            .queue
            .check_stopped(&driver.memory, &mut driver.violations);
        assert_eq!(driver.violations, []);
        driver.queue.note_stopped(&driver.memory);
        driver.complete(token, 1);
        driver
            .queue
            .check_stopped(&driver.memory, &mut driver.violations);
        assert_eq!(driver.violations.len(), 2, "{:?}", driver.violations);
    }

    #[test]
    fn writes_into_dropped_buffers_are_noticed_and_new_requests_are_not_mistaken_for_them() {
        let mut driver = driver();
        driver.submit(&READ);
        let address = driver.queue.slots[0].pieces[0].address;
        let dropped = driver.queue.reset(&mut driver.memory).unwrap().remove(0);
        assert_eq!(dropped.check(&driver.memory), None);

        let new = driver.submit(&READ);
        driver.complete(new, 9);
        assert_eq!(driver.poll().unwrap().data, vec![9; 1024]);
        assert_eq!(dropped.check(&driver.memory), None);

        driver.memory.fill(address + 1000, 1, 0).unwrap();
        let token = dropped.token();
        let stray = Violation::StrayWrite {
            queue: 0,
            token,
            address: address + 1000,
        };
        assert_eq!(dropped.check(&driver.memory), Some(stray));
        assert_eq!(driver.violations, []);
    }

    #[test]
    fn a_request_that_does_not_fit_leaves_nothing_behind() {
        let mut driver = driver();
        let Driver {
            queue,
            memory,
            options,
            ..
        } = &mut driver;
        let shape = Shape {
            segments: 4,
            indirect: false,
        };
        queue
            .submit(
                memory,
                Token(1),
                &READ,
                Shape {
                    segments: 2,
                    ..shape
                },
                options,
            )
            .unwrap();
        let full = queue.submit(memory, Token(2), &READ, shape, options);
        assert_eq!(full, Err(SubmitError::QueueFull));
        let huge = Request::Read {
            sector: 0,
            len: 1 << 20,
        };
        assert_eq!(
            queue.submit(memory, Token(2), &huge, Shape::default(), options),
            Err(SubmitError::MemoryFull)
        );
        let many = Shape {
            segments: 7,
            indirect: true,
        };
        assert_eq!(
            queue.submit(memory, Token(2), &READ, many, options),
            Err(SubmitError::TooManyDescriptors { needed: 9, max: 8 })
        );
        assert_eq!((queue.outstanding(), queue.ring.free_descriptors()), (1, 4));
        queue
            .submit(
                memory,
                Token(2),
                &READ,
                Shape {
                    segments: 2,
                    ..shape
                },
                options,
            )
            .unwrap();
        assert_eq!(queue.ring.free_descriptors(), 0);
    }

    #[test]
    fn an_indirect_table_takes_one_descriptor_and_links_all() {
        let mut driver = driver();
        let Driver {
            queue,
            memory,
            options,
            ..
        } = &mut driver;
        let shape = Shape {
            segments: 3,
            indirect: true,
        };
        queue
            .submit(memory, Token(1), &READ, shape, options)
            .unwrap();
        assert_eq!(queue.ring.free_descriptors(), 7);
        let slot = &queue.slots[0];
        let table = slot.pieces.last().unwrap();
        let mut bytes = vec![0; table.len as usize];
        memory.read(table.address, &mut bytes).unwrap();
        let flags: Vec<_> = bytes.chunks(16).map(|desc| (desc[12], desc[14])).collect();
        assert_eq!(flags, [(1, 1), (3, 2), (3, 3), (3, 4), (2, 0)]);
        let lens: Vec<_> = bytes
            .chunks(16)
            .map(|d| u32::from_le_bytes(d[8..12].try_into().unwrap()))
            .collect();
        assert_eq!(lens, [16, 341, 341, 342, 1]);
        assert_eq!(slot.writable, 1025);
    }
}
