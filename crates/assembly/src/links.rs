//! Objects `vmm-*`: from options to the link to the VMM.

use std::sync::Arc;

use block::{Registry, RegistryError, VmLink};
use qapi::QmpError;
use qapi::options::VmmCommandOptions;
use vmm::{Link, LinkConfig, Peer, StartError};

use crate::setup_error::SetupError;

/// Starts a link to `peer` and takes it in. Run control may be stopped already: then the link pauses
/// the VM.
///
/// # Errors
/// If there is one already, or it cannot be started.
pub async fn add(registry: &Arc<Registry>, id: &str, peer: Peer) -> Result<(), SetupError> {
    if let Some(existing) = registry.link() {
        return Err(RegistryError::SecondLink {
            id: id.to_owned(),
            existing: existing.id().to_owned(),
        }
        .into());
    }
    let config = LinkConfig {
        id: id.to_owned(),
        peer,
    };
    let control = registry.control().clone();
    let inherited = control.read(|state| state.is_inherited());
    let others = Arc::downgrade(registry);
    let clients_are_back = move || {
        let exports = others.upgrade().map(|registry| registry.exports());
        exports.is_none_or(|exports| exports.iter().all(|export| export.has_client()))
    };
    let link = Link::start_with_clients(config, control, inherited, clients_are_back)?;
    let shared: Arc<dyn VmLink> = Arc::<Link>::clone(&link);
    if let Err(error) = registry.add_link(shared).await {
        link.close().await;
        return Err(error.into());
    }
    Ok(())
}

/// The VMM that is reached by programs.
///
/// # Errors
/// If one of them is no list of words.
pub fn by_command(options: &VmmCommandOptions) -> Result<Peer, QmpError> {
    let state = options.state.as_ref();
    Ok(Peer::Command {
        pause: options.pause.words("pause")?,
        resume: options.resume.words("resume")?,
        state: state.map(|state| state.words("state")).transpose()?,
    })
}

impl From<StartError> for SetupError {
    fn from(error: StartError) -> Self {
        Self::new(error.to_string())
    }
}
