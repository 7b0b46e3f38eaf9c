//! Whom run control's effects reach: the backends' parts on iothreads, the observers, the link to the
//! VMM, whoever saves the state.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use iothread::mailbox::Sender;

use crate::control::listeners::Observer;
use crate::control::listeners::VmLink;
use crate::control::run_control::{Effects, GateMessage, LocalMessage};
use crate::driver::loss::Loss;
use crate::driver::node::{Child, Node};
use crate::persist::changes::Changes;
use crate::words::event::Event;
use crate::words::ids::{BackendId, LocalId};
use crate::words::vm::VmOrder;

/// What a backend uses.
struct Root {
    child: Arc<Child>,
    losses_accepted: Arc<AtomicU32>,
}

/// Whom run control's effects reach.
#[derive(Default)]
pub struct Wiring {
    locals: HashMap<LocalId, Sender<LocalMessage>>,
    backends: HashMap<BackendId, Root>,
    observers: Vec<Arc<dyn Observer>>,
    saver: Option<Changes>,
    link: Option<Arc<dyn VmLink>>,
}

impl Wiring {
    /// From now on `link` is told what becomes of the VM; none: nobody is.
    pub fn set_link(&mut self, link: Option<Arc<dyn VmLink>>) {
        self.link = link;
    }

    /// From now on `saver` is told of every change that it is to save.
    pub fn save_by(&mut self, saver: Changes) {
        self.saver = Some(saver);
    }

    /// Who saves, if anybody does.
    pub fn saver(&self) -> Option<&Changes> {
        self.saver.as_ref()
    }

    /// Makes a part of a backend reachable.
    pub fn add_local(&mut self, local: LocalId, sender: Sender<LocalMessage>) {
        self.locals.insert(local, sender);
    }

    /// Forgets it: its receiver ends.
    pub fn remove_local(&mut self, local: LocalId) {
        self.locals.remove(&local);
    }

    /// Names how a backend uses its root node, and up to which number losses are void for it.
    pub fn add_backend(
        &mut self,
        backend: BackendId,
        child: Arc<Child>,
        losses_accepted: Arc<AtomicU32>,
    ) {
        let root = Root {
            child,
            losses_accepted,
        };
        self.backends.insert(backend, root);
    }

    /// Forgets it.
    pub fn remove_backend(&mut self, backend: BackendId) {
        self.backends.remove(&backend);
    }

    /// From now on `observer` gets every event.
    pub fn observe(&mut self, observer: Arc<dyn Observer>) {
        self.observers.push(observer);
    }

    /// Why a node refuses `cont`, for the nodes of one backend or of all.
    pub fn cont_blocker(&self, backend: Option<BackendId>) -> Option<String> {
        let mut ids: Vec<_> = self.backends.keys().copied().collect();
        ids.sort_unstable();
        ids.into_iter()
            .filter(|&id| backend.is_none_or(|only| only == id))
            .find_map(|id| {
                let root = &self.backends[&id];
                let accepted = root.losses_accepted.load(Ordering::SeqCst);
                let counts = |node: &Node| {
                    let loss = node.latched();
                    loss.is_none_or(|loss| loss.counts_for(accepted))
                };
                let nodes = root.child.node().subtree();
                nodes
                    .iter()
                    .filter(|node| counts(node))
                    .find_map(|node| node.cont_blocker())
            })
    }

    /// Whether a loss of `node` counts for a backend; also if no backend uses it.
    pub fn is_loss_open(&self, node: &Arc<Node>, loss: Loss) -> bool {
        let mut above = (self.backends.values())
            .filter(|root| {
                root.child
                    .node()
                    .subtree()
                    .iter()
                    .any(|below| Arc::ptr_eq(below, node))
            })
            .map(|root| root.losses_accepted.load(Ordering::SeqCst))
            .peekable();
        above.peek().is_none() || above.any(|accepted| loss.counts_for(accepted))
    }

    /// Clears what no client could have lost.
    pub fn clear_void_losses(&self) {
        let roots = self.backends.values();
        for node in roots.flat_map(|root| root.child.node().subtree()) {
            if let Some(loss) = node.latched()
                && !self.is_loss_open(&node, loss)
            {
                node.accept_loss(loss.number);
            }
        }
    }
}

impl fmt::Debug for Wiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wiring")
            .field("locals", &self.locals.len())
            .field("observers", &self.observers.len())
            .finish_non_exhaustive()
    }
}

impl Effects for Wiring {
    fn event(&mut self, event: Event) {
        self.observers.retain(|observer| observer.event(&event));
    }

    fn post(&mut self, local: LocalId, message: GateMessage) {
        if let Some(sender) = self.locals.get(&local) {
            // An error means that the part has just ended: it holds nothing any more.
            let _ = sender.send(LocalMessage::Gate(message));
        }
    }

    fn vm(&mut self, order: VmOrder) {
        if let Some(link) = &self.link {
            link.order(order);
        }
    }
}
