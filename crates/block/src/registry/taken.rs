//! Locks that were taken for what is to be granted: until it is, they are given back if anybody gives up.

use iothread::mailbox::{self, Receiver, Sender};

use crate::driver::beside::{beside, drop_beside};
use crate::registry_error::RegistryError;

use super::claims::Claim;
use super::grants::Grant;

/// What is dropped without [`Self::apply`] is undone, where nobody waits.
#[derive(Debug)]
pub struct Taken(Option<Applied>);

/// What was granted is in force.
#[derive(Debug)]
pub struct Applied {
    /// What is left to do: [`Grant::settle`].
    pub grant: Grant,
    /// Nobody else changes these nodes meanwhile.
    pub claim: Claim,
}

impl Taken {
    /// Takes the locks. Nobody else changes the nodes before that has ended, even if this future is dropped.
    ///
    /// # Errors
    /// As [`Grant::take`]; all is as before then.
    pub async fn take(grant: Grant, claim: Claim) -> Result<Self, RegistryError> {
        let taken = beside(move || match grant.take() {
            Ok(()) => Ok(Self(Some(Applied { grant, claim }))),
            Err(error) => Err(error),
        });
        taken.await.map_err(|_| RegistryError::ShuttingDown)?
    }

    /// Nobody is to have it: returns when the locks have been given back.
    pub async fn undo(mut self) {
        if let Some(applied) = self.0.take() {
            applied.undo().await;
        }
    }

    /// Everybody has what was granted.
    pub fn apply(mut self) -> Applied {
        let Some(applied) = self.0.take() else {
            unreachable!("it is there until this is called or dropped");
        };
        applied.grant.apply();
        applied
    }
}

impl Applied {
    /// Gives back what nobody needs any more, where nobody waits. What is returned ends when that is done.
    pub fn settled(self) -> Receiver<()> {
        let (told, settled) = mailbox::channel();
        drop_beside(Settled {
            applied: self,
            told,
        });
        settled
    }

    /// It is not in force any more: gives back what was taken for it.
    pub async fn undo(self) {
        let undone = Undone(self);
        // If there is no thread for it, it is done here.
        let _ = beside(move || drop(undone)).await;
    }
}

/// Settled when it is dropped.
struct Settled {
    applied: Applied,
    #[expect(dead_code, reason = "dropped when that is done")]
    told: Sender<()>,
}

impl Drop for Settled {
    fn drop(&mut self) {
        self.applied.grant.settle();
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(applied) = self.0.take() {
            drop_beside(Undone(applied));
        }
    }
}

/// Undone when it is dropped.
struct Undone(Applied);

impl Drop for Undone {
    fn drop(&mut self) {
        self.0.grant.undo();
    }
}
