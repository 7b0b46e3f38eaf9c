//! The device's queues: requests, completions, and the descriptors that tell of them.

use super::{Disk, DiskState};
use crate::error::{FrontendError, SubmitError};
use crate::event::{signal, take_event};
use crate::memory::GuestMemory;
use crate::options::Options;
use crate::protocol::feature;
use crate::queue::Queue;
use crate::request::{Completion, Request, Shape};
use crate::ring::Ring;
use crate::token::Token;

impl Disk {
    /// Makes a request available in the default shape. The device is not told: see [`Disk::kick`].
    ///
    /// # Errors
    /// [`SubmitError`]; then nothing has changed.
    pub fn submit(&mut self, queue: u16, request: Request<'_>) -> Result<Token, SubmitError> {
        let Options {
            segments, indirect, ..
        } = self.state.options;
        self.submit_shaped(queue, request, Shape { segments, indirect })
    }

    /// Makes a request available in a given shape.
    ///
    /// # Errors
    /// [`SubmitError`]; then nothing has changed.
    pub fn submit_shaped(
        &mut self,
        queue: u16,
        request: Request<'_>,
        mut shape: Shape,
    ) -> Result<Token, SubmitError> {
        let state = &mut self.state;
        shape.indirect &= state.features & feature::INDIRECT_DESC != 0;
        let token = Token(state.next_token);
        let queues = state.options.queues;
        state
            .queues
            .get_mut(usize::from(queue))
            .ok_or(SubmitError::NoSuchQueue { queue, queues })?
            .submit(&mut state.memory, token, &request, shape, &state.options)?;
        state.next_token += 1;
        Ok(token)
    }

    /// Tells the device about what was submitted, if it wants to know.
    ///
    /// # Errors
    /// [`FrontendError::Io`].
    pub fn kick(&mut self, queue: u16) -> Result<(), FrontendError> {
        let queue = self.queue_mut(queue)?;
        if queue.ring.needs_kick() {
            signal(&queue.kick)
        } else {
            Ok(())
        }
    }

    /// Kicks whether the device wants it or not.
    ///
    /// # Errors
    /// [`FrontendError::Io`].
    pub fn kick_always(&mut self, queue: u16) -> Result<(), FrontendError> {
        signal(&self.queue_mut(queue)?.kick)
    }

    /// The next completion of a queue, if there is one. Does not block.
    pub fn poll(&mut self, queue: u16) -> Option<Completion> {
        let DiskState {
            queues,
            memory,
            options,
            violations,
            ..
        } = &mut self.state;
        queues
            .get_mut(usize::from(queue))?
            .poll(memory, options, violations)
    }

    /// Whether the back end has signalled an error of the ring since the last call.
    ///
    /// # Errors
    /// [`FrontendError::Io`].
    pub fn take_queue_error(&mut self, queue: u16) -> Result<bool, FrontendError> {
        take_event(&self.queue_mut(queue)?.err)
    }

    /// Whether the back end has called for this queue since the last call or wait.
    ///
    /// # Errors
    /// [`FrontendError::Io`].
    pub fn take_queue_call(&mut self, queue: u16) -> Result<bool, FrontendError> {
        take_event(&self.queue_mut(queue)?.call)
    }

    /// Number of queues.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.state.options.queues
    }

    /// Number of requests of a queue that have not been completed; 0 if there is no such queue.
    #[must_use]
    pub fn outstanding(&self, queue: u16) -> usize {
        self.state
            .queues
            .get(usize::from(queue))
            .map_or(0, Queue::outstanding)
    }

    /// All requests that have not been completed, in no particular order.
    #[must_use]
    pub fn outstanding_tokens(&self) -> Vec<Token> {
        self.state.outstanding_tokens()
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.state.memory
    }

    /// Guest memory, to allocate the buffers of raw chains.
    pub fn memory_mut(&mut self) -> &mut GuestMemory {
        &mut self.state.memory
    }

    /// A queue's ring, for tests that damage it.
    ///
    /// # Errors
    /// [`FrontendError::Options`] if there is no such queue.
    pub fn ring_mut(&mut self, queue: u16) -> Result<&mut Ring, FrontendError> {
        Ok(&mut self.queue_mut(queue)?.ring)
    }

    pub(crate) fn memory_and_queue(
        &mut self,
        queue: u16,
    ) -> Result<(&mut GuestMemory, &mut Queue), FrontendError> {
        self.queue_mut(queue)?;
        let state = &mut self.state;
        Ok((&mut state.memory, &mut state.queues[usize::from(queue)]))
    }

    pub(crate) fn queue_mut(&mut self, queue: u16) -> Result<&mut Queue, FrontendError> {
        let queues = self.state.options.queues;
        self.state
            .queues
            .get_mut(usize::from(queue))
            .ok_or_else(|| {
                FrontendError::Options(format!("queue {queue}, the device has {queues}"))
            })
    }
}
