//! Which parts of the graph are being changed.
//!
//! What changes uses of nodes may wait for locks and for storage. Meanwhile nobody else changes the part of
//! the graph that it can concern, and that is all that hangs together with its nodes; what does not is
//! nobody's business. So a disk whose storage hangs keeps no other one from coming or going.

use std::collections::BTreeSet;
use std::sync::Arc;

use iothread::mailbox::{self, Sender};
use parking_lot::Mutex;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Claims(Mutex<Claimed>);

#[derive(Debug, Default)]
struct Claimed {
    names: BTreeSet<Arc<str>>,
    /// Dropped when something is given back.
    waiting: Vec<Sender<()>>,
}

/// Nobody else changes these nodes, nor who uses them, as long as this exists.
#[derive(Debug)]
#[must_use]
pub struct Claim {
    claims: Arc<Claims>,
    names: Vec<Arc<str>>,
}

impl Claims {
    /// Waits until nobody else changes any of the nodes that `part` names, which it is asked again then.
    pub async fn claim(self: &Arc<Self>, part: impl Fn() -> Vec<Arc<str>>) -> Claim {
        loop {
            let mut given_back = {
                let mut claimed = self.0.lock();
                let names = part();
                if names.iter().all(|name| !claimed.names.contains(name)) {
                    claimed.names.extend(names.iter().map(Arc::clone));
                    let claims = Arc::clone(self);
                    return Claim { claims, names };
                }
                let (waits, given_back) = mailbox::channel();
                claimed.waiting.push(waits);
                given_back
            };
            given_back.recv().await;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = self.claims.0.lock();
        for name in &self.names {
            claimed.names.remove(name);
        }
        claimed.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn a_part_is_changed_by_one_and_other_parts_beside() {
        let claims = Arc::new(Claims::default());
        let names = |names: &[&str]| names.iter().map(|&name| name.into()).collect::<Vec<_>>();
        let mut cx = Context::from_waker(Waker::noop());
        let take = |part: &'static [&'static str]| {
            let claims = Arc::clone(&claims);
            async move { claims.claim(|| names(part)).await }
        };
        let mut first = pin!(take(&["a", "b"]));
        let Poll::Ready(first) = first.as_mut().poll(&mut cx) else {
            unreachable!("nobody has it");
        };
        let mut other = pin!(take(&["c"]));
        assert!(
            other.as_mut().poll(&mut cx).is_ready(),
            "nothing to do with it"
        );
        let mut second = pin!(take(&["b", "d"]));
        let mut third = pin!(take(&["a"]));
        assert!(second.as_mut().poll(&mut cx).is_pending());
        assert!(third.as_mut().poll(&mut cx).is_pending());
        drop(first);
        let Poll::Ready(second) = second.as_mut().poll(&mut cx) else {
            unreachable!("it was given back");
        };
        let Poll::Ready(_third) = third.as_mut().poll(&mut cx) else {
            unreachable!("it is another part");
        };
        let mut fourth = pin!(take(&["d"]));
        assert!(fourth.as_mut().poll(&mut cx).is_pending());
        drop(second);
        assert!(fourth.as_mut().poll(&mut cx).is_ready());
    }
}
