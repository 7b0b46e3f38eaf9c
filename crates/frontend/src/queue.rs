//! What is outstanding on one ring: submission, completion, and what a broken device does to them.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::event::EventfdFlags;

use crate::error::{FrontendError, SubmitError, Violation};
use crate::memory::{Block, GuestMemory};
use crate::options::Options;
use crate::protocol::{STATUS_OK, STATUS_POISON};
use crate::request::{Completion, Data, RawChain, Request, Shape, header, split};
use crate::ring::{
    DESC_BYTES, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, Ring, UsedElement,
};
use crate::token::Token;

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
mod tests;
