//! The table of commands.

use std::future::Future;
use std::pin::Pin;

use qapi::command::NoArguments;
use qapi::de::{self, Mode};
use qapi::types::CommandInfo;
use qapi::{Object, QmpError, Value};

use crate::commands::{block, debug, graph, misc, object, run, stats};
use crate::context::Context;
use crate::framing::value_of;
use crate::hmp;

type Reply<'a> = Pin<Box<dyn Future<Output = Result<Value, QmpError>> + Send + 'a>>;

struct Command {
    name: &'static str,
    run: for<'a> fn(&'a Context, Object) -> Reply<'a>,
}

/// Each command is an async function from the context and its arguments to its result; both are
/// types of [`qapi`], so that the table is also the list of what has to be described.
macro_rules! commands {
    ($($name:literal => $handler:path,)+) => {
        /// Every command there is.
        static COMMANDS: &[Command] = &[
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
    "query-commands" => query_commands,
    "human-monitor-command" => hmp::human_monitor_command,
    "quit" => misc::quit,
    "query-status" => run::query_status,
    "stop" => run::stop,
    "cont" => run::cont,
    "system_reset" => run::system_reset,
    "query-block" => block::query_block,
    "query-blockstats" => stats::query_blockstats,
    "query-named-block-nodes" => block::query_named_block_nodes,
    "query-block-exports" => block::query_block_exports,
    "object-add" => object::add,
    "object-del" => object::delete,
    "query-iothreads" => object::query_iothreads,
    "qom-list" => object::qom_list,
    "qom-get" => object::qom_get,
    "qom-set" => object::qom_set,
    "qom-list-types" => object::qom_list_types,
    "qom-list-properties" => object::qom_list_properties,
    "blockdev-add" => graph::blockdev_add,
    "blockdev-del" => graph::blockdev_del,
    "blockdev-reopen" => graph::blockdev_reopen,
    "x-blockdev-set-iothread" => graph::blockdev_set_iothread,
    "block-export-add" => graph::block_export_add,
    "block-export-del" => graph::block_export_del,
    "block_resize" => graph::block_resize,
    "block-latency-histogram-set" => stats::latency_histogram_set,
    "block-set-write-threshold" => block::set_write_threshold,
    "x-block-export-cont" => run::block_export_cont,
    "x-node-accept-loss" => run::node_accept_loss,
    "x-query-held" => block::query_held,
    "x-quota-set" => debug::quota_set,
    "x-blkdebug-inject" => debug::blkdebug_inject,
    "x-blkdebug-clear" => debug::blkdebug_clear,
}

async fn query_commands(_: &Context, _: NoArguments) -> Result<Vec<CommandInfo>, QmpError> {
    Ok(COMMANDS
        .iter()
        .map(|command| CommandInfo {
            name: command.name.to_owned(),
        })
        .collect())
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
