//! Plays a case to a program.

use crate::case::{Case, Step};
use crate::place::Place;
use crate::process::{Process, Waited};
use crate::program::Program;
use crate::schema;
use crate::talk::Talk;
use crate::transcript::Transcript;
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a program may take until it is ready, or ends on its own.
const START_MAX: Duration = Duration::from_secs(15);
/// How long a socket may take until it is there.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// The monitor of a case that just wants to talk.
const MONITOR: [&str; 4] = ["--chardev", "stdio,id=m", "--monitor", "m"];

/// Plays a case to a program, in a directory of its own.
///
/// # Errors
///
/// If the case cannot be played at all; what the program does wrong is in the transcript.
pub fn play(case: &Case, program: &Program) -> Result<Transcript> {
    let mut player = Player {
        place: Place::new(program)?,
        program,
        transcript: Transcript::default(),
        daemons: Vec::new(),
        talks: Vec::new(),
        current: 0,
        listening: None,
    };
    for step in &case.steps {
        player
            .step(step)
            .with_context(|| format!("{}: {step:?}", program.name))?;
    }
    player.finish()?;
    Ok(player.transcript)
}

struct Player<'a> {
    // First to go: they are ended before the place is.
    daemons: Vec<Process>,
    talks: Vec<Talk>,
    place: Place,
    program: &'a Program,
    transcript: Transcript,
    /// Which conversation goes on.
    current: usize,
    listening: Option<OwnedFd>,
}

impl Player<'_> {
    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::File { name, bytes } => self.place.file(name, *bytes)?,
            Step::Loop { name, file } => self.place.attach(name, file)?,
            Step::Shell(command) => self.shell(command)?,
            Step::Run(args) => self.run(args)?,
            Step::Start(args) => {
                self.launch(args)?;
            }
            Step::Talk(args) => {
                let args: Vec<String> = MONITOR
                    .iter()
                    .map(|&arg| arg.to_owned())
                    .chain(args.iter().cloned())
                    .collect();
                let process = self.spawn(&args)?;
                self.daemons.push(process);
                self.stdio()?;
                self.negotiate()?;
            }
            Step::Stdio => self.stdio()?,
            Step::Connect { path, negotiates } => self.connect(path, *negotiates)?,
            Step::Listen(path) => {
                self.listening = Some(UnixListener::bind(self.place.path(path))?.into());
            }
            Step::Close => self.talk()?.close(),
            Step::Use(number) if (1..=self.talks.len()).contains(number) => {
                self.current = number - 1;
            }
            Step::Use(number) => bail!("there is no conversation {number}"),
            Step::Ask(text) => {
                self.send(text)?;
                self.answer(&name(text))?;
            }
            Step::Send(text) => self.send(text)?,
            Step::Read => self.answer("read")?,
            Step::Hmp(line) => {
                let arguments = json!({"command-line": self.place.fill(line)});
                let message = json!({"execute": "human-monitor-command", "arguments": arguments});
                self.send(&message.to_string())?;
                let verb = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
                self.answer(&format!("hmp {verb}"))?;
            }
            Step::Fd { file, is_writable } => {
                let mut options = File::options();
                let options = options.read(true).write(*is_writable);
                let file = options.open(self.place.path(file))?;
                self.talk()?.carries(file);
            }
            Step::Wait { event, members } => {
                let value = self.talk()?.event(event, members);
                self.say(event, &value);
            }
            Step::Sleep(time) => thread::sleep(*time),
            Step::Signal(signal) => {
                let signal = match signal.as_str() {
                    "TERM" => Signal::TERM,
                    "INT" => Signal::INT,
                    "HUP" => Signal::HUP,
                    "KILL" => Signal::KILL,
                    _ => bail!("which signal?"),
                };
                let daemon = self.daemons.last().context("no daemon was started")?;
                // One that has ended tells so by its end.
                let _ = daemon.signal(signal);
            }
            Step::Exit => {
                let mut daemon = self.daemons.pop().context("no daemon was started")?;
                let end = self.end_of(&mut daemon)?;
                self.say("exit", &end);
                self.daemons.push(daemon);
            }
        }
        Ok(())
    }

    /// Ends whoever still runs, in the order of their starts.
    fn finish(&mut self) -> Result<()> {
        let has_ended = self.daemons.last().is_some_and(Process::has_ended);
        for number in 0..self.talks.len() {
            let rest = self.talks[number].rest(has_ended);
            let events: Vec<Value> = rest
                .into_iter()
                .map(|event| json!({"event": event["event"], "data": event["data"]}))
                .collect();
            self.say("events", &events.into());
        }
        for mut daemon in std::mem::take(&mut self.daemons) {
            if daemon.has_ended() {
                continue;
            }
            if daemon.wait(Duration::ZERO, || false)? != Waited::Ended {
                daemon.signal(Signal::TERM)?;
            }
            let end = self.end_of(&mut daemon)?;
            self.say("end", &end);
        }
        Ok(())
    }

    /// How a program ends: what it logs is apart from what it says to whoever started it.
    fn end_of(&self, process: &mut Process) -> Result<Value> {
        let mut end = process.end()?;
        let stderr = end["stderr"].as_str().unwrap_or_default().to_owned();
        let (log, said): (Vec<&str>, Vec<&str>) = stderr.lines().partition(|line| is_log(line));
        // QEMU names who has ended it; that is us.
        let said = said
            .iter()
            .filter(|line| !line.contains(": terminating on signal "));
        let said: Vec<&str> = said.copied().collect();
        let log: Vec<&str> = log
            .iter()
            .filter_map(|line| Some(line.split_once(' ')?.1))
            .collect();
        end["stderr"] = said.join("\n").into();
        if !log.is_empty() {
            end["log"] = log.join("\n").into();
        }
        Ok(end)
    }

    fn say(&mut self, name: &str, value: &Value) {
        let value = self.place.normal.value(value);
        self.transcript.push(name, value);
    }

    fn talk(&mut self) -> Result<&mut Talk> {
        self.talks
            .get_mut(self.current)
            .context("nobody to talk to")
    }

    fn send(&mut self, text: &str) -> Result<()> {
        let text = self.place.fill(text);
        self.talk()?.send(&text)
    }

    fn answer(&mut self, name: &str) -> Result<()> {
        let answer = self.talk()?.answer();
        if name == "quit" && answer.get("return").is_some() {
            self.talk()?.will_end();
        }
        if name == "query-qmp-schema"
            && let Some(schema) = answer["return"].as_array()
        {
            self.transcript.push(name, schema::flat(schema));
        } else {
            self.say(name, &answer);
        }
        Ok(())
    }

    fn spawn(&mut self, args: &[String]) -> Result<Process> {
        let args: Vec<String> = args.iter().map(|arg| self.place.fill(arg)).collect();
        let mut command = self.program.command(&args);
        command.current_dir(self.place.path(""));
        let stdin = match self.listening.take() {
            Some(listening) => listening.into(),
            None => Stdio::piped(),
        };
        Process::start(command, stdin)
    }

    /// Starts a daemon, and waits until it is ready or has ended. It is ready when its process id is in
    /// its pidfile: the case's own, or one before all other options.
    fn launch(&mut self, args: &[String]) -> Result<Waited> {
        let (args, ready) = match pidfile(args) {
            Some(path) => (args.to_vec(), self.place.fill(path).into()),
            None => {
                let path = self.place.beside(&format!("{}.pid", self.daemons.len()));
                let option = ["--pidfile".to_owned(), path.to_string_lossy().into_owned()];
                (
                    option.into_iter().chain(args.iter().cloned()).collect(),
                    path,
                )
            }
        };
        let mut process = self.spawn(&args)?;
        let pid = process.id().to_string();
        let is_ready = || fs::read_to_string(&ready).is_ok_and(|text| text.trim() == pid);
        let waited = process.wait(START_MAX, is_ready)?;
        self.daemons.push(process);
        Ok(waited)
    }

    /// Runs a program to its end. One that serves is ended, and that it has served is told.
    fn run(&mut self, args: &[String]) -> Result<()> {
        let waited = self.launch(args)?;
        let mut process = self.daemons.pop().context("it was just started")?;
        if waited != Waited::Ended {
            process.signal(Signal::TERM)?;
        }
        let mut end = self.end_of(&mut process)?;
        end["served"] = (waited != Waited::Ended).into();
        self.say("run", &end);
        Ok(())
    }

    fn stdio(&mut self) -> Result<()> {
        let daemon = self.daemons.last_mut().context("no daemon runs")?;
        let stdio = daemon.stdio().context("its standard input is taken")?;
        self.add(Talk::stdio(stdio));
        Ok(())
    }

    fn add(&mut self, talk: Talk) {
        self.current = self.talks.len();
        self.talks.push(talk);
    }

    fn connect(&mut self, path: &str, negotiates: bool) -> Result<()> {
        let path = self.place.path(path);
        let end = Instant::now() + CONNECT_MAX;
        let stream = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > end => {
                    self.say("connect", &error.to_string().into());
                    self.add(Talk::nobody());
                    return Ok(());
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        };
        self.add(Talk::socket(stream)?);
        if negotiates {
            self.negotiate()?;
        }
        Ok(())
    }

    /// What every client says first.
    fn negotiate(&mut self) -> Result<()> {
        self.talk()?.answer();
        self.send(r#"{"execute": "qmp_capabilities"}"#)?;
        self.talk()?.answer();
        Ok(())
    }

    fn shell(&mut self, command: &str) -> Result<()> {
        let command = self.place.fill(command);
        let output = Command::new("sh")
            .args(["-c", &command])
            .current_dir(self.place.path(""))
            .stdin(Stdio::null())
            .output()?;
        let value = json!({
            "status": output.status.code(),
            "stdout": String::from_utf8_lossy(&output.stdout),
            "stderr": String::from_utf8_lossy(&output.stderr),
        });
        self.say("sh", &value);
        Ok(())
    }
}

/// Whether a line is of a log: it begins with the time.
fn is_log(line: &str) -> bool {
    let time = line.split(' ').next().unwrap_or_default();
    time.len() > 20 && time.ends_with('Z') && time.as_bytes()[10] == b'T'
}

/// The last pidfile in a command line.
fn pidfile(args: &[String]) -> Option<&str> {
    let option = args.iter().rposition(|arg| arg.starts_with("--pid"))?;
    match args[option].split_once('=') {
        Some((_, path)) => Some(path),
        None => args.get(option + 1).map(String::as_str),
    }
}

/// What a message is called: by its command, if it has one.
fn name(text: &str) -> String {
    let message: Value = serde_json::from_str(text).unwrap_or_default();
    let execute = message.get("execute").or_else(|| message.get("exec-oob"));
    match execute.and_then(Value::as_str) {
        Some(command) if !command.is_empty() => command.to_owned(),
        _ => "message".to_owned(),
    }
}
