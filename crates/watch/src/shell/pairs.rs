//! Two sockets of one VM: where `standfastd` has a link to the VMM, the VMM is not continued beside it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use tokio::sync::watch;

/// Which VMs are kept from running by their `standfastd`, by the sockets of their VMMs.
#[derive(Debug, Default)]
pub struct Pairs {
    held: Mutex<HashMap<PathBuf, watch::Sender<bool>>>,
}

impl Pairs {
    fn with<T>(&self, vmm: &Path, then: impl FnOnce(&watch::Sender<bool>) -> T) -> T {
        let mut held = self.held.lock();
        // Those that nobody listens to, and nothing is said of.
        held.retain(|path, sender| path == vmm || sender.receiver_count() > 0 || *sender.borrow());
        match held.get(vmm) {
            Some(sender) => then(sender),
            None => then(
                held.entry(vmm.to_owned())
                    .or_insert_with(|| watch::Sender::new(false)),
            ),
        }
    }

    /// Tells whether the VM whose VMM is behind that socket is kept from running.
    pub fn listen(&self, vmm: &Path) -> watch::Receiver<bool> {
        self.with(vmm, watch::Sender::subscribe)
    }

    /// Its `standfastd` holds something, or nothing any more.
    pub fn set(&self, vmm: &Path, held: bool) {
        self.with(vmm, |sender| {
            sender.send_if_modified(|known| std::mem::replace(known, held) != held);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_later_knows_it_too() {
        let pairs = Pairs::default();
        let vmm = Path::new("/run/vmm");
        pairs.set(vmm, true);
        let mut receiver = pairs.listen(vmm);
        assert!(*receiver.borrow_and_update());
        pairs.set(vmm, true);
        assert!(!receiver.has_changed().unwrap());
        pairs.set(vmm, false);
        assert!(receiver.has_changed().unwrap() && !*receiver.borrow());
        drop(receiver);
        // What nobody needs is forgotten.
        for number in 0..100 {
            pairs.set(Path::new(&format!("/{number}")), false);
        }
        assert!(pairs.held.lock().len() <= 1);
    }
}
