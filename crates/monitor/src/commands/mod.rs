//! The table of commands.

mod block;
mod debug;
mod misc;
pub(crate) mod object;
pub(crate) mod run;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use ::block::{Refusal, Registry, RegistryError};
use qapi::de::{self, Mode};
use qapi::types::VersionInfo;
use qapi::{Object, QmpError, Value};

use crate::changes::Changes;
use crate::framing::value_of;
use crate::objects::Objects;
use crate::storage::Storage;

/// What commands work on.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) registry: Arc<Registry>,
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) version: VersionInfo,
    pub(crate) storage: Storage,
    pub(crate) changes: Changes,
}

type Reply<'a> = Pin<Box<dyn Future<Output = Result<Value, QmpError>> + Send + 'a>>;

pub(crate) struct Command {
    pub(crate) name: &'static str,
    run: for<'a> fn(&'a Context, Object) -> Reply<'a>,
}

/// Each command is an async function from the context and its arguments to its result; both are
/// types of [`qapi`], so that the table is also the list of what has to be described.
macro_rules! commands {
    ($($name:literal => $handler:path,)+) => {
        /// Every command there is.
        pub(crate) static COMMANDS: &[Command] = &[
            $(Command {
                name: $name,
                run: |context, arguments| Box::pin(async move {
                    let arguments = de::from_object(&arguments, Mode::Json)?;
                    value_of($handler(context, arguments).await?)
                }),
            },)+
        ];
    };
}

commands! {
    "qmp_capabilities" => misc::qmp_capabilities,
    "query-version" => misc::query_version,
    "query-commands" => misc::query_commands,
    "human-monitor-command" => misc::human_monitor_command,
    "quit" => misc::quit,
    "query-status" => run::query_status,
    "stop" => run::stop,
    "cont" => run::cont,
    "system_reset" => run::system_reset,
    "query-block" => block::query_block,
    "query-blockstats" => block::query_blockstats,
    "query-named-block-nodes" => block::query_named_block_nodes,
    "query-block-exports" => block::query_block_exports,
    "object-add" => object::add,
    "object-del" => object::delete,
    "block_resize" => block::block_resize,
    "x-block-export-cont" => run::block_export_cont,
    "x-node-accept-loss" => run::node_accept_loss,
    "x-query-held" => block::query_held,
    "x-quota-set" => debug::quota_set,
    "x-blkdebug-inject" => debug::blkdebug_inject,
    "x-blkdebug-clear" => debug::blkdebug_clear,
}

/// Executes a command of a session that has negotiated.
pub(crate) async fn execute(
    context: &Context,
    name: &str,
    arguments: Object,
) -> Result<Value, QmpError> {
    match COMMANDS.iter().find(|command| command.name == name) {
        Some(command) => (command.run)(context, arguments).await,
        None => Err(QmpError::command_not_found(name)),
    }
}

/// Runs `f`, which may block, where it keeps nobody from anything.
async fn blocking<R: Send + 'static>(
    f: impl FnOnce() -> R + Send + 'static,
) -> Result<R, QmpError> {
    let result = tokio::task::spawn_blocking(f).await;
    result.map_err(|e| QmpError::generic(format!("Internal error: {e}")))
}

fn refused(refusal: Refusal) -> QmpError {
    QmpError::generic(refusal.to_string())
}

fn failed(error: RegistryError) -> QmpError {
    QmpError::generic(error.to_string())
}

pub(crate) use self::block::{backends, nodes, query_blockstats as blockstats};
