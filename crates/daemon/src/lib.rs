//! `standfastd`: executes its command line, serves, and ends in order.

mod chardevs;
mod cli;
mod descriptors;
mod incidents;
pub mod logging;
mod pidfile;
mod service;
mod shutdown;
mod state;
mod terminal;

pub use self::cli::PROGRAM;

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;

use assembly::{Assembly, CLOSE_TIME_MAX, SetupError, TimeLimits, beside, tidy_up};
use block::{Registry, Saver};
use iothread::mailbox::Receiver;
use monitor::Monitor;
use qapi::options::{
    BlockdevOptions, ChardevOptions, ExportOptions, MonitorOptions, ObjectOptions,
};
use qapi::os_text;
use qapi::types::{VersionInfo, VersionTriple};

use self::chardevs::Chardevs;
use self::cli::{CommandLine, Exit, Opt, Step};
use self::incidents::IncidentLog;
use self::pidfile::Pidfile;
use self::shutdown::Signals;

/// The version of QEMU whose monitor ours follows.
const QEMU_VERSION: VersionTriple = VersionTriple {
    major: 7,
    minor: 2,
    micro: 0,
};

/// Runs the daemon; `args` begins with the program's name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    descriptors::take_over();
    let line = match cli::parse(args) {
        Ok(line) => line,
        Err(Exit::Print(text)) => {
            return match io::stdout().write_all(text.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            };
        }
        Err(Exit::Error(text)) => return fail_with(&text),
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
    let code = runtime.block_on(run(line));
    // Neither a read from standard input nor a question to storage that hangs can be taken back.
    runtime.shutdown_background();
    logging::finish();
    code
}

fn fail(text: &str) -> ExitCode {
    fail_with(&format!("{PROGRAM}: {text}"))
}

fn fail_with(text: &str) -> ExitCode {
    let mut bytes = os_text::to_os(text).into_vec();
    bytes.push(b'\n');
    // Nobody reads it: the exit status says it.
    logging::say(&bytes);
    ExitCode::FAILURE
}

/// Everything the command line makes. Fields are dropped in order: what uses others comes first.
struct Daemon {
    monitor: Monitor,
    chardevs: Chardevs,
    assembly: Arc<Assembly>,
    pidfile: Option<Pidfile>,
    saver: Option<Saver>,
}

async fn run(line: CommandLine) -> ExitCode {
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
    let mut daemon = Daemon {
        monitor: Monitor::new(registry, objects, graph, version()).await,
        chardevs: Chardevs::default(),
        assembly,
        pidfile: None,
        saver: None,
    };
    let ended = tokio::select! {
        result = daemon.set_up(line) => result.map(|()| None),
        reason = shutdown::requested(&mut signals, &mut quit) => Ok(Some(reason)),
    };
    let (reason, code) = match ended {
        Err(text) => (shutdown::HOST_ERROR, fail(&text)),
        Ok(Some(reason)) => (reason, ExitCode::SUCCESS),
        Ok(None) => (
            daemon.serve(&mut signals, &mut quit).await,
            ExitCode::SUCCESS,
        ),
    };
    // Kept when a second signal comes: dropping iothreads would wait for the storage.
    let mut closing = pin!(daemon.close(reason));
    tokio::select! {
        () = &mut closing => {
            incidents.tell();
            code
        }
        name = signals.next() => shutdown::abandon(name),
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
    async fn set_up(&mut self, line: CommandLine) -> Result<(), String> {
        let registry = self.assembly.registry();
        if let Some(dir) = &line.state_dir {
            let restored = state::restore(dir, registry).await;
            self.saver =
                restored.map_err(|text| format!("--state-dir {}: {text}", dir.display()))?;
        }
        // Without io_uring there is no point in anything else.
        if !line.steps.iter().any(|step| step.opt == Opt::Object) {
            let started = self.assembly.start_iothread().await;
            started.map_err(|error| error.desc)?;
        }
        for step in line.steps {
            let (name, arg) = (step.opt.name(), step.arg.clone());
            self.execute(step)
                .await
                .map_err(|SetupError { desc, hint }| {
                    let hint = hint.map(|hint| format!("\n{hint}")).unwrap_or_default();
                    format!("--{name} {arg}: {desc}{hint}")
                })?;
        }
        if self.saver.is_some() {
            state::left_over(self.assembly.registry()).await;
        }
        if let Some(path) = line.pidfile {
            self.pidfile = Some(write_pidfile(path).await?);
        }
        Ok(())
    }

    async fn execute(&mut self, Step { opt, arg }: Step) -> Result<(), SetupError> {
        match opt {
            Opt::Object => {
                let options = ObjectOptions::parse(&arg)?;
                self.assembly.add_object(options).await
            }
            Opt::Blockdev => {
                let options = BlockdevOptions::parse(&arg)?;
                self.assembly.add_node(options, TimeLimits::START).await
            }
            Opt::Export => {
                let options = ExportOptions::parse(&arg)?;
                self.assembly.add_export(options, TimeLimits::START).await
            }
            Opt::Chardev => self.chardevs.add(ChardevOptions::parse(&arg)?).await,
            Opt::Monitor => self.chardevs.attach(&MonitorOptions::parse(&arg)?),
        }
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

    /// Ends everything in order.
    async fn close(self, reason: &'static str) {
        service::stopping().await;
        shutdown::close_all(&self.assembly, reason, self.saver).await;
        self.monitor.close();
        self.chardevs.ended().await;
        self.assembly.close_nodes(CLOSE_TIME_MAX).await;
        if let Some(pidfile) = self.pidfile {
            tidy_up("the pid file is left behind", move || drop(pidfile)).await;
        }
    }
}

async fn write_pidfile(path: PathBuf) -> Result<Pidfile, String> {
    let made = beside(move || {
        let made = Pidfile::create(&path);
        made.map_err(|error| SetupError::new(format!("cannot create PID file: {error}")))
    });
    made.await.map_err(|error| error.desc)
}
