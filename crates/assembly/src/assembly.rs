//! The assembly: all of it under one name.

use std::sync::Arc;
use std::time::Duration;

use block::{BoxFuture, Registry, RegistryError};
use qapi::QmpError;
use qapi::options::{BlockdevOptions, ExportOptions, ObjectOptions};

use crate::blocking::tidy_up;
use crate::closing::{self, CLOSE_TIME_MAX};
use crate::objects::Objects;
use crate::opening::Names;
use crate::setup_error::SetupError;
use crate::unmake::{self, Settled};
use crate::{exports, nodes};

/// Objects, nodes and exports of a daemon. The command line and monitors share it.
///
/// The way down is [`Self::settle`], [`Self::close_exports`], [`Self::close_nodes`], and then its drop.
#[derive(Debug)]
pub struct Assembly {
    registry: Arc<Registry>,
    objects: Objects,
    names: Names,
    exports: Names,
}

impl Assembly {
    /// Nothing yet.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self {
            objects: Objects::new(Arc::clone(&registry)),
            registry,
            names: Names::default(),
            exports: Names::default(),
        }
    }

    /// Nodes and exports by name.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
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

    /// Executes `--blockdev`: opens what `options` define and puts it into the graph. `limit`: how long
    /// the storage may take for that; none: for ever. Whoever drops the future cancels it, at any moment.
    ///
    /// # Errors
    /// In QEMU's words, and when the limit is over; nothing is added then.
    pub async fn add_node(
        &self,
        options: BlockdevOptions,
        limit: Option<Duration>,
    ) -> Result<(), SetupError> {
        nodes::add(&self.registry, &self.names, options, limit).await
    }

    /// Executes `blockdev-del`: closes a node that nothing uses, with what was defined in it. If the storage
    /// does not answer, that goes on when this has returned ([`CLOSE_TIME_MAX`]).
    ///
    /// # Errors
    /// In QEMU's words; nothing has changed then.
    pub async fn delete_node(&self, name: &str) -> Result<(), SetupError> {
        let closing = self.registry.remove_node(name).await?;
        closing::wait(closing, CLOSE_TIME_MAX).await;
        Ok(())
    }

    /// All that uses node `from` uses `to` from now on. Whoever drops the future may cancel it.
    ///
    /// # Errors
    /// See [`Registry::prepare_replace`] and [`Registry::commit`]; nothing has changed then.
    pub async fn replace_node(&self, from: &str, to: &str) -> Result<(), SetupError> {
        let prepared = self.registry.prepare_replace(from, to).await?;
        let closing = nodes::commit(&self.registry, prepared).await?;
        closing::wait(closing, CLOSE_TIME_MAX).await;
        Ok(())
    }

    /// Executes `blockdev-reopen` for one node: opens it anew, with all of `options` or their defaults; the
    /// driver and the file name have to be the same. What finds something else under that name uses it
    /// from then on. `limit`: how long the storage, and what is in flight, may take until then; none: for
    /// ever. Whoever drops the future may cancel it.
    ///
    /// # Errors
    /// In QEMU's words, and when the limit is over; nothing has changed then.
    pub async fn reopen_node(
        &self,
        options: BlockdevOptions,
        limit: Option<Duration>,
    ) -> Result<(), SetupError> {
        let closing = nodes::reopen(&self.registry, options, limit).await?;
        closing::wait(closing, CLOSE_TIME_MAX).await;
        Ok(())
    }

    /// Executes `block-export-del`: ends an export. With `force` ("hard") its client is disconnected.
    ///
    /// # Errors
    /// In QEMU's words; nothing has changed then.
    pub async fn delete_export(&self, id: &str, force: bool) -> Result<(), SetupError> {
        Ok(self.registry.remove_export(id, force).await?)
    }

    /// Executes `--export`: makes the export and its backend. Others come and go meanwhile: it may have to
    /// wait for the lock of an image.
    ///
    /// # Errors
    /// In QEMU's words; nothing is added then.
    pub async fn add_export(&self, options: ExportOptions) -> Result<(), SetupError> {
        let mut reserved = self.exports.reserve();
        if !reserved.add(&options.base.id) {
            return Err(RegistryError::DuplicateExport(options.base.id).into());
        }
        exports::add(&self.registry, &self.objects, options).await
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

impl monitor::Objects for Assembly {
    fn add(&self, options: ObjectOptions) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async { Ok(self.add_object(options).await?) })
    }

    fn delete(&self, id: String) -> BoxFuture<'_, Result<(), QmpError>> {
        Box::pin(async move { Ok(self.delete_object(&id).await?) })
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
