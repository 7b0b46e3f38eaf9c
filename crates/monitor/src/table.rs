//! The table of commands.

use std::future::Future;
use std::pin::Pin;
use std::sync::LazyLock;

use qapi::command::NoArguments;
use qapi::de::{self, Mode};
use qapi::event::Event;
use qapi::introspect::Schema;
use qapi::types::{CommandInfo, SchemaInfo};
use qapi::{Object, QmpError, Value};

use serde::de::DeserializeOwned;

use crate::commands::{
    block, chardev, debug, descriptor, graph, job, misc, object, run, stats, transaction,
};
use crate::context::Context;
use crate::framing::value_of;
use crate::hmp;

type Reply<'a> = Pin<Box<dyn Future<Output = Result<Value, QmpError>> + Send + 'a>>;

struct Command {
    name: &'static str,
    run: for<'a> fn(&'a Context, Object) -> Reply<'a>,
    describe: fn(&mut Schema) -> Result<(), QmpError>,
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
                describe: |schema| describe(schema, $name, $handler),
            },)+
        ];
    };
}

commands! {
    "qmp_capabilities" => misc::qmp_capabilities,
    "query-version" => misc::query_version,
    "query-commands" => query_commands,
    "query-qmp-schema" => query_qmp_schema,
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
    "blockdev-snapshot" => transaction::blockdev_snapshot,
    "blockdev-snapshot-sync" => transaction::blockdev_snapshot_sync,
    "x-blockdev-set-iothread" => graph::blockdev_set_iothread,
    "block-export-add" => graph::block_export_add,
    "block-export-del" => graph::block_export_del,
    "block_resize" => graph::block_resize,
    "blockdev-create" => job::blockdev_create,
    "query-jobs" => job::query_jobs,
    "job-cancel" => job::cancel,
    "job-pause" => job::pause,
    "job-resume" => job::resume,
    "job-complete" => job::complete,
    "job-finalize" => job::finalize,
    "job-dismiss" => job::dismiss,
    "query-block-jobs" => job::query_block_jobs,
    "block-job-cancel" => job::block_job_cancel,
    "block-job-pause" => job::block_job,
    "block-job-resume" => job::block_job,
    "block-job-complete" => job::block_job,
    "block-job-set-speed" => job::block_job_set_speed,
    "block-job-finalize" => job::block_job_by_id,
    "block-job-dismiss" => job::block_job_by_id,
    "transaction" => transaction::transaction,
    "block-latency-histogram-set" => stats::latency_histogram_set,
    "block-set-write-threshold" => block::set_write_threshold,
    "query-chardev" => chardev::query,
    "query-chardev-backends" => chardev::backends,
    "chardev-add" => chardev::add,
    "chardev-change" => chardev::change,
    "chardev-remove" => chardev::remove,
    "chardev-send-break" => chardev::send_break,
    "ringbuf-write" => chardev::ringbuf_write,
    "ringbuf-read" => chardev::ringbuf_read,
    "add-fd" => descriptor::add_fd,
    "remove-fd" => descriptor::remove_fd,
    "query-fdsets" => descriptor::query_fdsets,
    "getfd" => descriptor::getfd,
    "closefd" => descriptor::closefd,
    "x-block-export-cont" => run::block_export_cont,
    "x-node-accept-loss" => run::node_accept_loss,
    "x-query-held" => block::query_held,
    "x-quota-set" => debug::quota_set,
    "x-blkdebug-inject" => debug::blkdebug_inject,
    "x-blkdebug-clear" => debug::blkdebug_clear,
}

/// Adds a command to a schema, with the types that its function has.
fn describe<'a, A, R, F>(
    schema: &mut Schema,
    name: &'static str,
    _: impl Fn(&'a Context, A) -> F,
) -> Result<(), QmpError>
where
    A: DeserializeOwned,
    R: DeserializeOwned,
    F: Future<Output = Result<R, QmpError>>,
{
    schema.command::<A, R>(name)
}

/// All commands, events, and the types that they are made of: what `query-qmp-schema` says.
///
/// # Errors
/// If a type is none of QAPI's constructions: a bug, which tests find.
pub fn schema() -> Result<Vec<SchemaInfo>, QmpError> {
    static SCHEMA: LazyLock<Result<Vec<SchemaInfo>, QmpError>> = LazyLock::new(|| {
        let mut schema = Schema::default();
        for command in COMMANDS {
            (command.describe)(&mut schema)?;
        }
        schema.events::<Event>()?;
        Ok(schema.infos())
    });
    SCHEMA.clone()
}

async fn query_qmp_schema(_: &Context, _: NoArguments) -> Result<Vec<SchemaInfo>, QmpError> {
    schema()
}

async fn query_commands(_: &Context, _: NoArguments) -> Result<Vec<CommandInfo>, QmpError> {
    Ok(COMMANDS
        .iter()
        .map(|command| CommandInfo {
            name: command.name.to_owned(),
        })
        .collect())
}

/// What becomes of a command that is sent out of band: none of ours can be executed so. They answer soon in
/// any case, as none waits for storage.
pub(crate) fn out_of_band(name: &str) -> QmpError {
    match COMMANDS.iter().any(|command| command.name == name) {
        true => QmpError::generic(format!("The command {name} does not support OOB")),
        false => QmpError::command_not_found(name),
    }
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
