//! Jobs.

use std::sync::Arc;

use block::jobs::state::{JobError, Status, Verb};
use qapi::command::{
    BlockJobCancel, BlockJobId, BlockJobSetSpeed, BlockdevCreate, BlockdevCreateVariant, JobId,
    NoArguments,
};
use qapi::types::{BlockJobInfo, Empty, JobInfo, JobType};
use qapi::{ErrorClass, QmpError, id};

use crate::context::Context;
use crate::convert;

/// An answer comes after the events of what it answers.
async fn told(context: &Context) -> Result<Empty, QmpError> {
    context.registry.control().call(|_, _| ()).await;
    Ok(Empty {})
}

fn refused(error: JobError) -> QmpError {
    QmpError::generic(error.to_string())
}

pub(crate) async fn blockdev_create(
    context: &Context,
    arguments: BlockdevCreate,
) -> Result<Empty, QmpError> {
    let BlockdevCreate { job_id, options } = arguments;
    let image = options.variant;
    if !matches!(
        image,
        BlockdevCreateVariant::File(_) | BlockdevCreateVariant::Qcow2(_)
    ) {
        let desc = "Driver does not support blockdev-create";
        return Err(QmpError::generic(desc));
    }
    let jobs = context.registry.jobs();
    let job = jobs.begin(&job_id, id::is_wellformed(&job_id), "create");
    let job = job.map_err(refused)?;
    let graph = Arc::clone(&context.graph);
    tokio::spawn(async move {
        let made = graph.create_image(image, job.cancelled()).await;
        job.end(made.map_err(|error| error.desc));
    });
    told(context).await
}

pub(crate) async fn query_jobs(
    context: &Context,
    _: NoArguments,
) -> Result<Vec<JobInfo>, QmpError> {
    let infos = context.registry.jobs().infos();
    let infos = infos.into_iter().map(|job| JobInfo {
        id: job.id,
        r#type: JobType::Create,
        current_progress: i64::from(job.status == Status::Concluded),
        status: convert::job_status(job.status),
        total_progress: 1,
        error: job.error,
    });
    Ok(infos.collect())
}

pub(crate) async fn query_block_jobs(
    _: &Context,
    _: NoArguments,
) -> Result<Vec<BlockJobInfo>, QmpError> {
    Ok(Vec::new())
}

async fn ask(context: &Context, id: &str, verb: Verb) -> Result<Empty, QmpError> {
    context.registry.jobs().ask(id, verb).map_err(refused)?;
    told(context).await
}

pub(crate) async fn cancel(context: &Context, job: JobId) -> Result<Empty, QmpError> {
    ask(context, &job.id, Verb::Cancel).await
}

pub(crate) async fn pause(context: &Context, job: JobId) -> Result<Empty, QmpError> {
    ask(context, &job.id, Verb::Pause).await
}

pub(crate) async fn resume(context: &Context, job: JobId) -> Result<Empty, QmpError> {
    ask(context, &job.id, Verb::Resume).await
}

pub(crate) async fn complete(context: &Context, job: JobId) -> Result<Empty, QmpError> {
    ask(context, &job.id, Verb::Complete).await
}

pub(crate) async fn finalize(context: &Context, job: JobId) -> Result<Empty, QmpError> {
    ask(context, &job.id, Verb::Finalize).await
}

pub(crate) async fn dismiss(context: &Context, job: JobId) -> Result<Empty, QmpError> {
    ask(context, &job.id, Verb::Dismiss).await
}

/// None of our jobs is a block job.
fn no_block_job(id: &str) -> QmpError {
    QmpError {
        class: ErrorClass::DeviceNotActive,
        desc: format!("Block job '{id}' not found"),
        hint: None,
    }
}

pub(crate) async fn block_job(_: &Context, job: BlockJobId) -> Result<Empty, QmpError> {
    Err(no_block_job(&job.device))
}

pub(crate) async fn block_job_by_id(_: &Context, job: JobId) -> Result<Empty, QmpError> {
    Err(no_block_job(&job.id))
}

pub(crate) async fn block_job_cancel(_: &Context, job: BlockJobCancel) -> Result<Empty, QmpError> {
    Err(no_block_job(&job.device))
}

pub(crate) async fn block_job_set_speed(
    _: &Context,
    job: BlockJobSetSpeed,
) -> Result<Empty, QmpError> {
    Err(no_block_job(&job.device))
}
