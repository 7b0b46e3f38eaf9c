//! A link to a VMM that does what it is told only when the test says so.

use std::sync::{Arc, Mutex};

use block::{
    BoxFuture, LinkState, LinkStatus, Registry, RegistryError, VmLink, VmOrder, VmPause, VmPending,
    VmState,
};
use qapi::options::{ObjectOptions, ObjectVariant};
use qapi::types::{IothreadInfo, ObjectPropertyInfo};
use qapi::{QmpError, Value};

use crate::{ChardevObject, Objects};

/// A link. Its VMM does nothing until [`FakeLink::act`].
#[derive(Debug)]
pub struct FakeLink {
    id: String,
    orders: Mutex<Vec<VmOrder>>,
    status: Mutex<LinkStatus>,
    resets: Mutex<u32>,
    closed: Mutex<bool>,
}

impl FakeLink {
    pub fn new(id: &str) -> Arc<Self> {
        let status = LinkStatus {
            state: LinkState::Connected,
            vm: VmState::Running,
            ..LinkStatus::default()
        };
        Arc::new(FakeLink {
            id: id.to_owned(),
            orders: Mutex::default(),
            status: Mutex::new(status),
            resets: Mutex::default(),
            closed: Mutex::default(),
        })
    }

    /// The orders so far.
    pub fn orders(&self) -> Vec<VmOrder> {
        self.orders.lock().unwrap().clone()
    }

    pub fn resets(&self) -> u32 {
        *self.resets.lock().unwrap()
    }

    pub fn is_closed(&self) -> bool {
        *self.closed.lock().unwrap()
    }

    /// The VMM cannot be reached any more.
    pub fn lose(&self, error: &str) {
        let mut status = self.status.lock().unwrap();
        status.state = LinkState::Down;
        status.error = Some(error.to_owned());
    }

    /// The VMM does what is pending.
    pub fn act(&self) {
        let mut status = self.status.lock().unwrap();
        match status.pending.take() {
            Some(VmPending::Pause) => {
                (status.vm, status.paused_by) = (VmState::Paused, VmPause::Link);
            }
            Some(VmPending::Resume) => {
                (status.vm, status.paused_by) = (VmState::Running, VmPause::Nobody);
            }
            None => {}
        }
    }
}

impl VmLink for FakeLink {
    fn id(&self) -> &str {
        &self.id
    }

    fn type_name(&self) -> &'static str {
        "vmm-qemu"
    }

    fn order(&self, order: VmOrder) {
        self.orders.lock().unwrap().push(order);
        self.status.lock().unwrap().pending = Some(match order {
            VmOrder::Pause => VmPending::Pause,
            VmOrder::Resume { .. } => VmPending::Resume,
        });
    }

    fn status(&self) -> LinkStatus {
        self.status.lock().unwrap().clone()
    }

    fn reset(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            if let Some(error) = self.status().error {
                return Err(format!("The VM cannot be reset: {error}"));
            }
            *self.resets.lock().unwrap() += 1;
            Ok(())
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { *self.closed.lock().unwrap() = true })
    }
}

/// Makes links, and refuses iothreads. `vm0` is a link that tests can steer.
#[derive(Debug)]
pub struct FakeObjects {
    pub registry: Arc<Registry>,
    pub vm0: Arc<FakeLink>,
}

fn refused(error: &RegistryError) -> QmpError {
    QmpError::generic(error.to_string())
}

impl Objects for FakeObjects {
    fn add(&self, options: ObjectOptions) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async move {
            let link = match (&options.variant, &*options.base.id) {
                (ObjectVariant::Iothread(_), _) => {
                    return Err(QmpError::generic("no more threads"));
                }
                (_, "vm0") => Arc::clone(&self.vm0),
                (_, id) => FakeLink::new(id),
            };
            self.registry.add_link(link).await.map_err(|e| refused(&e))
        })
    }

    fn delete(&self, id: String) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async move {
            match self.registry.remove_link(&id).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(QmpError::generic(format!("object '{id}' not found"))),
                Err(error) => Err(refused(&error)),
            }
        })
    }

    fn iothreads(&self) -> Vec<IothreadInfo> {
        Vec::new()
    }

    fn list(&self, _: &[ChardevObject], path: &str) -> Result<Vec<ObjectPropertyInfo>, QmpError> {
        Err(no_object(path))
    }

    fn get(&self, _: &[ChardevObject], path: &str, _: &str) -> Result<Value, QmpError> {
        Err(no_object(path))
    }

    fn set(&self, _: &[ChardevObject], path: &str, _: &str, _: Value) -> Result<(), QmpError> {
        Err(no_object(path))
    }
}

fn no_object(path: &str) -> QmpError {
    QmpError::device_not_found(format!("Device '{path}' not found"))
}
