//! `standfastd`: executes its command line, serves, and ends in order.

mod chardevs;
mod cli;
pub mod config;
mod daemonize;
mod descriptors;
mod getopt;
mod incidents;
pub mod logging;
mod options_help;
mod pidfile;
mod service;
mod shutdown;
mod state;
mod steps;
mod terminal;
mod vhost_user_program;

pub use self::cli::{PROGRAM, command};
pub use self::vhost_user_program::command as vhost_user_blk_command;

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;

use assembly::{Assembly, CLOSE_TIME_MAX, SetupError, beside, tidy_up};
use block::{Registry, Saver};
use iothread::mailbox::Receiver;
use monitor::Monitor;
use qapi::os_text;
use qapi::types::VersionInfo;

use self::chardevs::{Chardevs, say_on_stdout};
use self::cli::{CommandLine, Compat, Exit, Opt, Program, QEMU_VERSION};
use self::daemonize::{Process, Startup};
use self::incidents::IncidentLog;
use self::pidfile::Pidfile;
use self::shutdown::Signals;
use self::steps::{Executed, Steps};

/// Runs the daemon; `args` begins with the program's name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    descriptors::take_over();
    start(cli::parse(args))
}

/// Runs the back-end program of the vhost-user specification; `args` begins with its name.
pub fn vhost_user_blk_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    descriptors::take_over();
    start(vhost_user_program::parse(args))
}

fn start(line: Result<CommandLine, Exit>) -> ExitCode {
    let line = match line {
        Ok(line) => line,
        Err(Exit::Print(text)) => {
            return match io::stdout().write_all(text.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            };
        }
        Err(Exit::Error(text)) => return fail_with(&text),
    };
    let program = line.program;
    let fail = |text: &str| fail(program, text);
    // No thread is started before that.
    let startup = match line.daemonize.then(daemonize::daemonize).transpose() {
        Ok(None) => None,
        Ok(Some(Process::Daemon(startup))) => Some(startup),
        Ok(Some(Process::Ends(code))) => return code,
        Err(error) => return fail(&format!("cannot go to the background: {error}")),
    };
    if let Err(text) = logging::init() {
        return fail(&text);
    }
    shutdown::ignore_write_signals();
    if let Err(text) = descriptors::check() {
        return fail(&text);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start the control plane: {error}")),
    };
    let code = runtime.block_on(run(line, startup));
    // Neither a read from standard input nor a question to storage that hangs can be taken back.
    runtime.shutdown_background();
    logging::finish();
    code
}

fn fail(program: Program, text: &str) -> ExitCode {
    fail_with(&format!("{}: {text}", program.name()))
}

fn fail_with(text: &str) -> ExitCode {
    let mut bytes = os_text::to_os(text).into_vec();
    bytes.push(b'\n');
    // Nobody reads it: the exit status says it.
    logging::say(&bytes);
    ExitCode::FAILURE
}

/// What came of the second pass.
enum SetUp {
    /// All is there.
    Ready,
    /// An option has asked for help: this is said, and the daemon ends.
    Help(String, ExitCode),
    /// The daemon was told to end, for that reason.
    Ends(&'static str),
}

/// Everything the command line makes. Fields are dropped in order: what uses others comes first.
struct Daemon {
    monitor: Monitor,
    chardevs: Arc<Chardevs>,
    assembly: Arc<Assembly>,
    pidfile: Option<Pidfile>,
    saver: Option<Saver>,
}

async fn run(line: CommandLine, startup: Option<Startup>) -> ExitCode {
    let program = line.program;
    let fail = |text: &str| fail(program, text);
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return fail(&format!("cannot listen for signals: {error}")),
    };
    let (control, task) = block::control();
    tokio::spawn(task.run());
    let incidents = Arc::new(IncidentLog::default());
    tokio::spawn(Arc::clone(&incidents).run());
    control.observe(Arc::<IncidentLog>::clone(&incidents)).await;
    let (registry, mut quit) = Registry::new(control);
    let assembly = Arc::new(Assembly::new(Arc::clone(&registry)));
    let objects: Arc<dyn monitor::Objects> = Arc::<Assembly>::clone(&assembly);
    let graph: Arc<dyn monitor::Graph> = Arc::<Assembly>::clone(&assembly);
    let descriptors = Arc::clone(assembly.descriptors());
    let chardevs = Arc::new(Chardevs::new(startup.is_some(), Arc::clone(&descriptors)));
    let devices = Arc::<Chardevs>::clone(&chardevs);
    let monitor = Monitor::new(registry, objects, graph, devices, descriptors, version()).await;
    let mut daemon = Daemon {
        monitor,
        chardevs,
        assembly,
        pidfile: None,
        saver: None,
    };
    let ended = tokio::select! {
        result = daemon.set_up(line) => result,
        reason = shutdown::requested(&mut signals, &mut quit) => Ok(SetUp::Ends(reason)),
    };
    let ready = ended.and_then(|set_up| {
        if let (SetUp::Ready, Some(startup)) = (&set_up, startup) {
            // From then on nobody reads it.
            logging::finish();
            let ready = startup.ready();
            ready.map_err(|error| format!("cannot go to the background: {error}"))?;
        }
        Ok(set_up)
    });
    let (reason, code) = match ready {
        Err(text) => (shutdown::HOST_ERROR, fail(&text)),
        Ok(SetUp::Ends(reason)) => (reason, ExitCode::SUCCESS),
        Ok(SetUp::Help(text, code)) => {
            say_on_stdout(&text);
            (shutdown::HOST_ERROR, code)
        }
        Ok(SetUp::Ready) => (
            daemon.serve(&mut signals, &mut quit).await,
            ExitCode::SUCCESS,
        ),
    };
    let registry = Arc::clone(daemon.assembly.registry());
    // Kept when a second signal comes: dropping iothreads would wait for the storage.
    let mut closing = pin!(daemon.close(reason));
    tokio::select! {
        is_whole = &mut closing => {
            incidents.tell();
            if is_whole { code } else { ExitCode::FAILURE }
        }
        name = shutdown::insisted(&mut signals) => shutdown::abandon(name, registry.control()).await,
    }
}

fn version() -> VersionInfo {
    VersionInfo {
        qemu: QEMU_VERSION,
        package: format!("standfast-{}", env!("CARGO_PKG_VERSION")),
    }
}

impl Daemon {
    /// The second pass.
    async fn set_up(&mut self, line: CommandLine) -> Result<SetUp, String> {
        let registry = self.assembly.registry();
        if let Some(dir) = &line.state_dir {
            let restored = state::restore(dir, registry).await;
            self.saver =
                restored.map_err(|text| format!("--state-dir {}: {text}", dir.display()))?;
            if self.saver.is_some() {
                self.assembly.record_in(dir);
            }
        }
        if line.compat == Compat::Qsd {
            self.assembly.report_errors();
        }
        // Without io_uring there is no point in anything else.
        if !line.steps.iter().any(|step| step.opt == Opt::Object) {
            let started = self.assembly.start_iothread().await;
            started.map_err(|error| error.desc)?;
        }
        let steps = Steps {
            assembly: &self.assembly,
            chardevs: &self.chardevs,
        };
        for step in line.steps {
            let written = step.written.clone();
            let executed = steps.execute(step).await;
            let executed = executed.map_err(|SetupError { desc, hint }| {
                let hint = hint.map(|hint| format!("\n{hint}")).unwrap_or_default();
                format!("{written}: {desc}{hint}")
            })?;
            if let Executed::Help(text, code) = executed {
                return Ok(SetUp::Help(text, code));
            }
        }
        if self.saver.is_some() {
            state::left_over(self.assembly.registry()).await;
        }
        if let Some(path) = line.pidfile {
            self.pidfile = Some(write_pidfile(path).await?);
        }
        self.chardevs.say_names();
        Ok(SetUp::Ready)
    }

    /// Serves monitors until a signal or `quit`; returns the reason.
    async fn serve(
        &mut self,
        signals: &mut Signals,
        quit: &mut Receiver<&'static str>,
    ) -> &'static str {
        self.chardevs.serve(&self.monitor);
        tracing::info!("{PROGRAM} {} is ready", env!("CARGO_PKG_VERSION"));
        service::ready(self.assembly.registry().control()).await;
        shutdown::requested(signals, quit).await
    }

    /// Ends everything in order. False: the storage did not take all that was to be written.
    async fn close(self, reason: &'static str) -> bool {
        service::stopping().await;
        let is_whole = shutdown::close_all(&self.assembly, reason, self.saver).await;
        self.monitor.close();
        self.chardevs.ended().await;
        self.assembly.close_nodes(CLOSE_TIME_MAX).await;
        if let Some(pidfile) = self.pidfile {
            tidy_up("the pid file is left behind", move || drop(pidfile)).await;
        }
        is_whole
    }
}

async fn write_pidfile(path: PathBuf) -> Result<Pidfile, String> {
    let made = beside(move || {
        let made = Pidfile::create(&path);
        made.map_err(|error| SetupError::new(format!("cannot create PID file: {error}")))
    });
    made.await.map_err(|error| error.desc)
}
