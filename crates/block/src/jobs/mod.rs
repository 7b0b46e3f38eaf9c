//! Jobs: work that a monitor begins and does not wait for. Who does the work has a [`JobAtWork`], and tells
//! of its end; whatever becomes of that, nobody else waits.

pub mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use self::state::{JobError, State, Status, Verb};
use crate::control::task::Control;
use crate::words::event::EventKind;

/// Most jobs, those that have concluded and were not dismissed included.
const JOBS_MAX: usize = 1024;

#[derive(Debug)]
struct Job {
    id: String,
    kind: &'static str,
    state: State,
    cancelled: Arc<AtomicBool>,
}

/// What is known of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobInfo {
    /// Its name.
    pub id: String,
    /// QEMU's name for what it does.
    pub kind: &'static str,
    /// Where it is.
    pub status: Status,
    /// Why it has failed.
    pub error: Option<String>,
}

/// All jobs, the newest first.
#[derive(Debug)]
pub struct Jobs {
    control: Control,
    /// Events are posted while it is locked, which waits for nothing: so they come in the order of states.
    jobs: Mutex<Vec<Job>>,
}

impl Jobs {
    pub(crate) fn new(control: Control) -> Arc<Self> {
        Arc::new(Jobs {
            control,
            jobs: Mutex::default(),
        })
    }

    fn tell(&self, id: &str, through: Vec<Status>) {
        for status in through {
            let id = id.to_owned();
            self.control
                .announce(EventKind::JobStatusChange { id, status });
        }
    }

    /// A job begins. `is_wellformed`: whether its name is one.
    ///
    /// # Errors
    /// If it is not, the name is taken, or there are too many.
    pub fn begin(
        self: &Arc<Self>,
        id: &str,
        is_wellformed: bool,
        kind: &'static str,
    ) -> Result<JobAtWork, JobError> {
        let mut jobs = self.jobs.lock();
        if !is_wellformed {
            return Err(JobError::BadId(id.to_owned()));
        }
        if jobs.iter().any(|job| job.id == id) {
            return Err(JobError::Duplicate(id.to_owned()));
        }
        if jobs.len() >= JOBS_MAX {
            return Err(JobError::TooMany(JOBS_MAX));
        }
        let mut state = State::default();
        self.tell(id, vec![state.status()]);
        self.tell(id, state.begins());
        let cancelled = Arc::new(AtomicBool::new(false));
        let job = Job {
            id: id.to_owned(),
            kind,
            state,
            cancelled: Arc::clone(&cancelled),
        };
        jobs.insert(0, job);
        Ok(JobAtWork {
            jobs: Arc::clone(self),
            id: id.to_owned(),
            cancelled,
            ended: false,
        })
    }

    fn end(&self, id: &str, result: Result<(), String>) {
        let mut jobs = self.jobs.lock();
        // One at work cannot be dismissed.
        if let Some(job) = jobs.iter_mut().find(|job| job.id == id) {
            let through = job.state.ends(result);
            self.tell(id, through);
        }
    }

    /// Asks a job for something.
    ///
    /// # Errors
    /// If there is none of that name, or it cannot do that where it is now.
    pub fn ask(&self, id: &str, verb: Verb) -> Result<(), JobError> {
        let mut jobs = self.jobs.lock();
        let at = jobs.iter().position(|job| job.id == id);
        let at = at.ok_or(JobError::NotFound)?;
        let job = &mut jobs[at];
        let through = job.state.asked(id, verb)?;
        (job.cancelled).store(job.state.is_cancelled(), Ordering::Relaxed);
        if job.state.status() == Status::Null {
            jobs.remove(at);
        }
        self.tell(id, through);
        Ok(())
    }

    /// The daemon ends: nobody wants any of it any more. They end when their work sees that.
    pub fn give_up(&self) {
        for job in &*self.jobs.lock() {
            job.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// All there are.
    pub fn infos(&self) -> Vec<JobInfo> {
        let jobs = self.jobs.lock();
        let infos = jobs.iter().map(|job| JobInfo {
            id: job.id.clone(),
            kind: job.kind,
            status: job.state.status(),
            error: job.state.error().map(str::to_owned),
        });
        infos.collect()
    }
}

/// A job whose work goes on. If it is dropped the work was given up.
#[derive(Debug)]
pub struct JobAtWork {
    jobs: Arc<Jobs>,
    id: String,
    cancelled: Arc<AtomicBool>,
    ended: bool,
}

impl JobAtWork {
    /// Becomes true when nobody wants the work any more.
    pub fn cancelled(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    /// The work has ended.
    pub fn end(mut self, result: Result<(), String>) {
        self.ended = true;
        self.jobs.end(&self.id, result);
    }
}

impl Drop for JobAtWork {
    fn drop(&mut self) {
        if !self.ended {
            self.jobs.end(&self.id, Err("it was given up".to_owned()));
        }
    }
}
