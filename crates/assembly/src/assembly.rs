//! The assembly: all of it under one name.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use block::{BoxFuture, Registry, RegistryError, Use, User};
use monitor::{ChardevObject, Descriptors};
use qapi::command::{BlockdevCreateVariant, TransactionActionVariant};
use qapi::options::{BlockdevOptions, ExportOptions, ObjectOptions};
use qapi::types::{IothreadInfo, ObjectPropertyInfo};
use qapi::{QmpError, Value};

use crate::blocking::tidy_up;
use crate::closing::{self, CLOSE_TIME_MAX};
use crate::create;
use crate::definitions::Definitions;
use crate::error_defaults::ErrorDefaults;
use crate::nodes::Means;
use crate::objects::Objects;
use crate::opening::{Names, OPEN_TIME_MAX, SNAPSHOT_TIME_MAX, TimeLimits};
use crate::setup_error::SetupError;
use crate::unmake::{self, Settled};
use crate::{adding, exports, nodes, reopen, snapshot};

/// Objects, nodes and exports of a daemon. The command line and monitors share it.
///
/// The way down is [`Self::settle`], [`Self::close_exports`], [`Self::close_nodes`], and then its drop.
#[derive(Debug)]
pub struct Assembly {
    registry: Arc<Registry>,
    objects: Objects,
    names: Names,
    definitions: Definitions,
    exports: Names,
    descriptors: Arc<Descriptors>,
    error_defaults: ErrorDefaults,
    redo_dir: OnceLock<Arc<Path>>,
}

impl Assembly {
    /// Nothing yet.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self {
            objects: Objects::new(Arc::clone(&registry)),
            registry,
            names: Names::default(),
            definitions: Definitions::default(),
            exports: Names::default(),
            descriptors: Arc::default(),
            error_defaults: ErrorDefaults::default(),
            redo_dir: OnceLock::new(),
        }
    }

    /// Nodes and exports by name.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Descriptors that clients of monitors have passed: nodes and exports are made of them, too.
    pub fn descriptors(&self) -> &Arc<Descriptors> {
        &self.descriptors
    }

    /// From now on exports that do not say what becomes of errors report them, as qemu-storage-daemon's.
    pub fn report_errors(&self) {
        self.error_defaults.report();
    }

    /// Images that are opened from now on record in `dir`, which no other process uses, what they have acknowledged and not
    /// flushed: it outlives the process.
    pub fn record_in(&self, dir: &Path) {
        // The first one counts.
        let _set = self.redo_dir.set(dir.into());
    }

    fn means(&self) -> Means<'_> {
        Means {
            groups: self.objects.groups(),
            descriptors: &self.descriptors,
            redo_dir: self.redo_dir.get(),
        }
    }

    /// Starts the iothread of exports that name none.
    ///
    /// # Errors
    /// If the kernel has no io_uring for us.
    pub async fn start_iothread(&self) -> Result<(), SetupError> {
        self.objects.iothreads().await.own().map(drop)
    }

    /// Executes `--object` and `object-add`.
    ///
    /// # Errors
    /// If the id is taken, there is a link to a VMM already, or the object cannot be made.
    pub async fn add_object(&self, options: ObjectOptions) -> Result<(), SetupError> {
        self.objects.add(options).await
    }

    /// Executes `object-del`.
    ///
    /// # Errors
    /// If there is no such object, or it is in use.
    pub async fn delete_object(&self, id: &str) -> Result<(), SetupError> {
        self.objects.delete(id).await
    }

    /// Executes `--blockdev` and `blockdev-add`: opens what `options` define and puts it into the graph.
    /// Whoever drops the future cancels it, at any moment.
    ///
    /// # Errors
    /// In QEMU's words, and when a limit is over; nothing is added then.
    pub async fn add_node(
        &self,
        options: BlockdevOptions,
        limits: TimeLimits,
    ) -> Result<(), SetupError> {
        let (names, definitions) = (&self.names, &self.definitions);
        adding::add(
            &self.registry,
            self.means(),
            names,
            definitions,
            options,
            limits,
        )
        .await
    }

    /// Executes `blockdev-del`: closes a node that nothing uses, with what was defined in it. If the storage
    /// does not answer, that goes on when this has returned ([`CLOSE_TIME_MAX`]).
    ///
    /// # Errors
    /// In QEMU's words; nothing has changed then.
    pub async fn delete_node(&self, name: &str) -> Result<(), SetupError> {
        let closing = self.registry.remove_node(name).await?;
        self.forget_nodes().await;
        closing::wait(closing, CLOSE_TIME_MAX).await;
        Ok(())
    }

    /// Nodes that are gone leave nothing behind for those who have their names next.
    async fn forget_nodes(&self) {
        let mut iothreads = self.objects.iothreads().await;
        let graph = self.registry.graph();
        self.definitions.retain(|name| graph.contains(name));
        iothreads.retain_homes(|name| graph.contains(name));
    }

    /// All that uses node `from` uses `to` from now on. Whoever drops the future may cancel it.
    ///
    /// # Errors
    /// See [`Registry::prepare_replace`] and [`Registry::commit`]; nothing has changed then.
    pub async fn replace_node(&self, from: &str, to: &str) -> Result<(), SetupError> {
        let prepared = self.registry.prepare_replace(from, to).await?;
        let closing = nodes::commit(&self.registry, prepared, &self.definitions, |_| ()).await?;
        closing::wait(closing, CLOSE_TIME_MAX).await;
        Ok(())
    }

    /// Executes `blockdev-reopen`: defines nodes anew, all or none of them, with all of `options` or their
    /// defaults; what a driver cannot change has to be as it was. What finds something else under the name of
    /// a file uses it from then on. `limit`: how long the storage, and what is in flight, may take until
    /// then; none: for ever. Whoever drops the future may cancel it.
    ///
    /// # Errors
    /// In QEMU's words, and when the limit is over; nothing has changed then.
    pub async fn reopen_nodes(
        &self,
        options: Vec<BlockdevOptions>,
        limit: Option<Duration>,
    ) -> Result<(), SetupError> {
        let definitions = &self.definitions;
        let closing =
            reopen::reopen(&self.registry, self.means(), definitions, options, limit).await?;
        closing::wait(closing, CLOSE_TIME_MAX).await;
        Ok(())
    }

    /// Executes `blockdev-snapshot`, `blockdev-snapshot-sync` and `transaction`: all of `actions`, or none.
    /// `limit`: how long the storage, and what is in flight, may take until then; none: for ever. Whoever drops
    /// the future may cancel it.
    ///
    /// # Errors
    /// In QEMU's words, and when the limit is over; nothing has changed then, but that files may be there.
    pub async fn transact(
        &self,
        actions: Vec<TransactionActionVariant>,
        limit: Option<Duration>,
    ) -> Result<(), SetupError> {
        let place = snapshot::Place {
            registry: &self.registry,
            means: self.means(),
            names: &self.names,
            definitions: &self.definitions,
        };
        let closing = snapshot::transact(place, actions, limit).await?;
        closing::wait(closing, CLOSE_TIME_MAX).await;
        Ok(())
    }

    /// Executes `x-blockdev-set-iothread`: says where exports of a node are that name no iothread; none: on
    /// the daemon's own. An export never leaves its iothread, so that nothing that is used can change it.
    ///
    /// # Errors
    /// In QEMU's words; nothing has changed then.
    pub async fn set_iothread(
        &self,
        node: &str,
        iothread: Option<&str>,
        force: bool,
    ) -> Result<(), SetupError> {
        let none = |_| RegistryError::NoNode(node.to_owned());
        let known = self.registry.node(node).map_err(none)?;
        let users = known.users();
        let is_root = |known: &Use| matches!(known.user, User::Export(_));
        if !force && users.iter().any(is_root) {
            return Err(SetupError::new(format!(
                "Node {node} is associated with a BlockBackend and could be in use (use force=true to \
                 override this check)"
            )));
        }
        let mut iothreads = self.objects.iothreads().await;
        if let Some(name) = iothread.filter(|name| !iothreads.contains(name)) {
            return Err(SetupError::new(format!("Cannot find iothread {name}")));
        }
        let mut exports = self.registry.exports();
        exports.retain(|export| {
            let nodes = export.backend().node().subtree();
            nodes.iter().any(|below| Arc::ptr_eq(below, &known))
        });
        let mut exports = exports.iter();
        if !exports.all(|export| iothreads.serves_alone(iothread, export)) {
            return Err(SetupError::new(
                "Cannot change iothread of active block backend",
            ));
        }
        iothreads.set_home(node, iothread);
        Ok(())
    }

    /// Executes `block-export-del`: ends an export. With `force` ("hard") its client is disconnected.
    ///
    /// # Errors
    /// In QEMU's words; nothing has changed then.
    pub async fn delete_export(&self, id: &str, force: bool) -> Result<(), SetupError> {
        self.registry.remove_export(id, force).await?;
        self.forget_nodes().await;
        Ok(())
    }

    /// Executes `--export` and `block-export-add`: makes the export and its backend. Others come and go
    /// meanwhile: it may wait for the lock of an image.
    ///
    /// # Errors
    /// In QEMU's words; nothing is added then.
    pub async fn add_export(
        &self,
        mut options: ExportOptions,
        limits: TimeLimits,
    ) -> Result<(), SetupError> {
        let mut reserved = self.exports.reserve();
        if !reserved.add(&options.base.id) {
            return Err(RegistryError::DuplicateExport(options.base.id).into());
        }
        self.error_defaults.fill(&mut options.base);
        let (objects, descriptors) = (&self.objects, &self.descriptors);
        exports::add(&self.registry, objects, descriptors, options, limits.lock).await
    }

    /// The first half of an orderly end: run control and the link to the VMM end, what is in flight
    /// does, and what is held then is warned of. What is to be saved is saved while the result exists:
    /// what becomes of requests when their exports go is another state.
    pub async fn settle(&self, reason: &'static str) -> Settled {
        unmake::settle(&self.registry, reason).await
    }

    /// What exports have in flight, for the log: one line each of those that have something.
    pub async fn in_flight(&self) -> Vec<String> {
        unmake::in_flight(&self.registry).await
    }

    /// The second half: ends all exports, and the iothreads. What a node does on its own, and storage
    /// that hangs does not end, is given up after 2 s.
    pub async fn close_exports(&self, settled: Settled) {
        drop(settled);
        self.registry.close_exports().await;
        let iothreads = std::mem::take(&mut *self.objects.iothreads().await);
        // All that clients wanted has ended.
        tidy_up("what nodes do on their own is given up", move || {
            drop(iothreads);
        })
        .await;
    }

    /// The last: closes all nodes, beside. `limit`: how long that is waited for ([`CLOSE_TIME_MAX`]); the
    /// log says what hangs on.
    pub async fn close_nodes(&self, limit: Duration) {
        closing::wait(self.registry.close_nodes(), limit).await;
    }
}

impl monitor::Graph for Assembly {
    fn add_node(&self, options: BlockdevOptions) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async { Ok(Self::add_node(self, options, TimeLimits::SERVING).await?) })
    }

    fn delete_node(&self, name: String) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async move { Ok(Self::delete_node(self, &name).await?) })
    }

    fn reopen_nodes(&self, options: Vec<BlockdevOptions>) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async { Ok(Self::reopen_nodes(self, options, Some(OPEN_TIME_MAX)).await?) })
    }

    fn add_export(&self, options: ExportOptions) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async { Ok(Self::add_export(self, options, TimeLimits::SERVING).await?) })
    }

    fn delete_export(&self, id: String, hard: bool) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async move { Ok(Self::delete_export(self, &id, hard).await?) })
    }

    fn create_image(
        &self,
        options: BlockdevCreateVariant,
        cancelled: Arc<AtomicBool>,
    ) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async {
            let place = create::Place {
                registry: &self.registry,
                means: self.means(),
                names: &self.names,
                definitions: &self.definitions,
            };
            Ok(create::image(place, options, cancelled).await?)
        })
    }

    fn transact(
        &self,
        actions: Vec<TransactionActionVariant>,
    ) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async { Ok(Self::transact(self, actions, Some(SNAPSHOT_TIME_MAX)).await?) })
    }

    fn set_iothread(
        &self,
        node: String,
        iothread: Option<String>,
        force: bool,
    ) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async move {
            let set = Self::set_iothread(self, &node, iothread.as_deref(), force);
            Ok(set.await?)
        })
    }
}

impl monitor::Objects for Assembly {
    fn add(&self, options: ObjectOptions) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async { Ok(self.add_object(options).await?) })
    }

    fn delete(&self, id: String) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async move { Ok(self.delete_object(&id).await?) })
    }

    fn iothreads(&self) -> Vec<IothreadInfo> {
        self.objects.properties().iothreads()
    }

    fn list(
        &self,
        chardevs: &[ChardevObject],
        path: &str,
    ) -> Result<Vec<ObjectPropertyInfo>, QmpError> {
        self.objects.properties().list(chardevs, path)
    }

    fn get(
        &self,
        chardevs: &[ChardevObject],
        path: &str,
        property: &str,
    ) -> Result<Value, QmpError> {
        let properties = self.objects.properties();
        properties.get(chardevs, path, property)
    }

    fn set(
        &self,
        chardevs: &[ChardevObject],
        path: &str,
        property: &str,
        value: Value,
    ) -> Result<(), QmpError> {
        self.objects.set_property(chardevs, path, property, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    use testkit::{FuseFile, FuseOp};

    /// The drop of an iothread waits for what its ring has begun: a node's own I/O to storage that hangs
    /// kept the process from ending, for ever.
    #[tokio::test]
    async fn the_end_does_not_wait_for_own_io_that_hangs() {
        let fuse = FuseFile::new(4096).expect("FUSE");
        let file = File::open(fuse.path()).expect("it is there");
        let (control, task) = block::control();
        tokio::spawn(task.run());
        let (registry, _quit) = Registry::new(control);
        let assembly = Assembly::new(registry);
        let thread = assembly.objects.iothreads().await.own().expect("io_uring");
        fuse.hang(FuseOp::Fsync, true);
        let begun = thread.spawn(move || async move {
            let _ = iothread::ops::fsync(file.as_fd(), true).await;
        });
        assert!(begun.is_ok());
        while fuse.count(FuseOp::Fsync) == 0 {
            tokio::task::yield_now().await;
        }
        let settled = assembly.settle("test").await;
        assembly.close_exports(settled).await;
        fuse.hang(FuseOp::Fsync, false);
    }
}
