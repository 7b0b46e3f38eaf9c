//! Everything that has a name: nodes and exports, and the operations that concern several.

mod claims;
mod corruption;
mod exports;
mod grants;
mod images;
mod lengths;
mod losses;
mod nodes;
mod reopen;
mod replace;
mod snapshot;
mod taken;
pub(crate) mod uses;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iothread::mailbox::{self, Receiver, Sender};
use parking_lot::{Mutex, MutexGuard};

use crate::backend::Backend;
use crate::control::listeners::VmLink;
use crate::control::run_control::RunControl;
use crate::control::task::Control;
use crate::driver::closing::Closing;
use crate::driver::graph::Graph;
use crate::driver::growth::Growth;
use crate::driver::loss::Loss;
use crate::driver::node::Node;
use crate::export::Export;
use crate::jobs::Jobs;
use crate::persist::saved::{SavedLoss, SavedState};
use crate::persist::saver::Saver;
use crate::persist::state_file::StateFile;
use crate::registry_error::RegistryError;
use crate::words::run_state::RunState;
use crate::words::vm::{LinkState, VmOrder, VmPause};

use self::claims::Claims;

pub use self::replace::Replacement;
pub use self::snapshot::{Openings, Overlaid, check_base, check_overlay, uppermost};
pub use self::uses::Lease;

/// Nodes, exports and run control of one daemon.
#[derive(Debug)]
pub struct Registry {
    control: Control,
    growth: Arc<Growth>,
    graph: Mutex<Graph>,
    claims: Arc<Claims>,
    exports: Mutex<Vec<Arc<dyn Export>>>,
    /// Those that are being removed.
    ending: Mutex<Vec<Arc<dyn Export>>>,
    /// No export comes any more.
    closed: AtomicBool,
    /// What nodes had lost when a former daemon ended, until they exist: what is not claimed is kept.
    losses: Mutex<Vec<SavedLoss>>,
    link: Mutex<Option<Arc<dyn VmLink>>>,
    jobs: Arc<Jobs>,
    quit: Sender<&'static str>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl Registry {
    /// An empty registry, and where [`Self::quit`] is heard.
    pub fn new(control: Control) -> (Arc<Self>, Receiver<&'static str>) {
        let (quit, heard) = mailbox::channel();
        let registry = Arc::new_cyclic(|registry| {
            let growth = Arc::new(Self::growth(registry, &control));
            Self {
                jobs: Jobs::new(control.clone()),
                control,
                graph: Mutex::new(Graph::telling(&growth)),
                growth,
                claims: Arc::default(),
                exports: Mutex::default(),
                ending: Mutex::default(),
                closed: AtomicBool::new(false),
                losses: Mutex::default(),
                link: Mutex::default(),
                quit,
            }
        });
        (registry, heard)
    }

    /// Run control.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// What goes on in the background.
    pub fn jobs(&self) -> &Arc<Jobs> {
        &self.jobs
    }

    /// Asks the daemon to end; `reason` is the one of the `SHUTDOWN` event.
    pub fn quit(&self, reason: &'static str) {
        // Nobody listens any more: it is ending already.
        let _ = self.quit.send(reason);
    }

    /// The graph, locked: keep it shortly.
    pub fn graph(&self) -> MutexGuard<'_, Graph> {
        lock(&self.graph)
    }

    /// What the next daemon has to know. Called by threads that may wait shortly.
    pub fn save(&self) -> SavedState {
        let mut state = self.control.read(RunControl::save);
        // First: what a node takes over meanwhile is found there.
        let unclaimed = self.unclaimed_losses();
        let lost = self.nodes().into_iter().filter_map(|node| {
            let Loss { number, errno } = node.latched()?;
            let node = node.name().to_string();
            Some(SavedLoss {
                node,
                errno,
                number,
            })
        });
        state.losses = lost.collect();
        for loss in unclaimed {
            if !state.losses.iter().any(|known| known.node == loss.node) {
                state.losses.push(loss);
            }
        }
        state
    }

    /// Saves the state in `file` now and from now on.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub async fn save_to(self: &Arc<Self>, file: StateFile) -> io::Result<Saver> {
        let registry = Arc::clone(self);
        let (saver, changes) = Saver::start(file, move || registry.save())?;
        // A daemon that ends already has nothing more to tell.
        let told = self.control.call(|_, wiring| wiring.save_by(changes));
        told.await;
        Ok(saver)
    }

    /// Goes on where a former daemon was. Called before the first node and the first export.
    pub async fn restore(&self, mut state: SavedState) {
        let accepted = state.backends.iter().map(|backend| backend.losses_accepted);
        let numbers = state.losses.iter().map(|loss| loss.number);
        Loss::go_on_from(accepted.chain(numbers).max().unwrap_or(0));
        for loss in &mut state.losses {
            if loss.number == 0 {
                *loss = SavedLoss {
                    number: Loss::new(loss.errno).number,
                    ..loss.clone()
                };
            }
        }
        *lock(&self.losses) = std::mem::take(&mut state.losses);
        self.control.call(|run, _| run.restore(state)).await;
    }

    /// A node.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn node(&self, name: &str) -> Result<Arc<Node>, RegistryError> {
        Ok(self.graph().get(name)?)
    }

    /// All nodes, in the order in which they came.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.graph().nodes().cloned().collect()
    }

    /// Takes an export in.
    ///
    /// # Errors
    /// If its id is taken, or the daemon ends.
    pub fn add_export(&self, export: Arc<dyn Export>) -> Result<(), RegistryError> {
        let mut exports = lock(&self.exports);
        if self.closed.load(Ordering::Relaxed) {
            return Err(RegistryError::ShuttingDown);
        }
        if exports.iter().any(|known| known.id() == export.id()) {
            return Err(RegistryError::DuplicateExport(export.id().to_owned()));
        }
        exports.push(Arc::clone(&export));
        drop(exports);
        // It was not there to hear of it if its node has become longer since it was made.
        export.tell_new_length();
        Ok(())
    }

    /// All exports, in the order of creation.
    pub fn exports(&self) -> Vec<Arc<dyn Export>> {
        lock(&self.exports).clone()
    }

    /// An export.
    ///
    /// # Errors
    /// If there is none of this id.
    pub fn export(&self, id: &str) -> Result<Arc<dyn Export>, RegistryError> {
        let exports = lock(&self.exports);
        let found = exports.iter().find(|export| export.id() == id).cloned();
        found.ok_or_else(|| RegistryError::NoExport(id.to_owned()))
    }

    /// Ends every export, in the order of creation.
    pub async fn close_exports(&self) {
        let exports = {
            let mut exports = lock(&self.exports);
            self.closed.store(true, Ordering::Relaxed);
            std::mem::take(&mut *exports)
        };
        for export in exports {
            let is_ending = {
                let ending = lock(&self.ending);
                ending.iter().any(|known| Arc::ptr_eq(known, &export))
            };
            export.close().await;
            // Its locks go with its node: whoever changes that may hang, and the end waits for nobody.
            if !is_ending {
                // What is held goes to the next daemon.
                self.tell_deleted(&export, 0).await;
            }
        }
    }

    /// Takes all nodes out because the daemon ends, and closes them. Called when no export is left.
    pub fn close_nodes(&self) -> Closing {
        let nodes = self.graph().clear();
        Closing::of(nodes)
    }

    /// The link to the VMM.
    pub fn link(&self) -> Option<Arc<dyn VmLink>> {
        lock(&self.link).clone()
    }

    /// Takes the link to the VMM in. If run control is stopped, its first order is to pause.
    ///
    /// # Errors
    /// If there is one already.
    pub async fn add_link(&self, link: Arc<dyn VmLink>) -> Result<(), RegistryError> {
        {
            let mut place = lock(&self.link);
            if let Some(existing) = &*place {
                return Err(RegistryError::SecondLink {
                    id: link.id().to_owned(),
                    existing: existing.id().to_owned(),
                });
            }
            *place = Some(Arc::clone(&link));
        }
        let told = self.control.call(move |state, wiring| {
            if matches!(state.state(), RunState::Paused | RunState::IoError) {
                link.order(VmOrder::Pause);
            }
            wiring.set_link(Some(link));
        });
        let told = told.await;
        if told.is_none() {
            lock(&self.link).take();
        }
        told.ok_or(RegistryError::ShuttingDown)
    }

    /// Takes the link to the VMM out and ends it; the VM stays as it is. False: there is none of this
    /// id.
    ///
    /// # Errors
    /// If it has paused the VM and could resume it: it is connected. If the daemon ends.
    pub async fn remove_link(&self, id: &str) -> Result<bool, RegistryError> {
        let Some(link) = self.link().filter(|link| link.id() == id) else {
            return Ok(false);
        };
        // Asked by run control, so that no order comes between the answer and the end.
        let asked = Arc::clone(&link);
        let left = self.control.call(move |_, wiring| {
            if is_needed(&*asked) {
                return Err(RegistryError::LinkInUse(asked.id().to_owned()));
            }
            wiring.set_link(None);
            Ok(())
        });
        left.await.unwrap_or(Err(RegistryError::ShuttingDown))?;
        lock(&self.link).take_if(|known| Arc::ptr_eq(known, &link));
        link.close().await;
        self.control
            .call(|state, _| state.note_vm_pause(VmPause::Nobody))
            .await;
        Ok(true)
    }

    /// Ends the link to the VMM because the daemon ends: what is saved of it stays.
    pub async fn close_link(&self) {
        let link = lock(&self.link).take();
        if let Some(link) = link {
            self.control.call(|_, wiring| wiring.set_link(None)).await;
            link.close().await;
        }
    }

    /// The backends whose requests reach `node`.
    pub fn backends_above(&self, node: &Arc<Node>) -> Vec<Arc<Backend>> {
        let reaches = |export: &&Arc<dyn Export>| {
            export
                .backend()
                .node()
                .subtree()
                .iter()
                .any(|below| Arc::ptr_eq(below, node))
        };
        let exports = lock(&self.exports);
        exports
            .iter()
            .filter(reaches)
            .map(|export| Arc::clone(export.backend()))
            .collect()
    }
}

/// Whether nobody else would resume the VM, and the link can.
fn is_needed(link: &dyn VmLink) -> bool {
    let status = link.status();
    status.state == LinkState::Connected
        && (status.paused_by == VmPause::Link || status.pending.is_some())
}
