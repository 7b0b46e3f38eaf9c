//! From options to a character device.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use assembly::{SetupError, beside};
use block::strerror;
use monitor::{ChardevObject, Descriptors, Door};
use qapi::options::{ChardevBackend, ChardevCommon, ChardevFile, ChardevSocket, ChardevVariant};
use qapi::qom::Type;
use qapi::{Value, os_text};

use super::file::{FileReader, FileWriter};
use super::pty::Pty;
use super::ring::Ring;
use super::serve::{Dress, Served, Stdio, Way};
use super::socket;
use crate::{PROGRAM, logging, terminal};

/// What a character device is called.
#[derive(Clone, Debug)]
pub struct Shown {
    name: String,
    /// What it is.
    r#type: Option<&'static Type>,
    /// Its clients, where there may be none.
    clients: Option<Arc<AtomicUsize>>,
    /// Where the socket is.
    address: Option<Value>,
}

impl Shown {
    fn is_connected(&self) -> Option<bool> {
        let clients = self.clients.as_ref()?;
        Some(clients.load(Ordering::Relaxed) > 0)
    }

    /// QEMU's `filename`.
    pub fn text(&self) -> String {
        match self.is_connected() {
            Some(false) => format!("disconnected:{}", self.name),
            _ => self.name.clone(),
        }
    }

    /// The same, as an object `id` in the tree of all.
    pub fn object(&self, id: &str) -> Option<ChardevObject> {
        let connected = self.is_connected().map(|is| ("connected", is.into()));
        let address = self.address.clone().map(|it| ("addr", it));
        Some(ChardevObject {
            id: id.to_owned(),
            r#type: self.r#type?,
            values: connected.into_iter().chain(address).collect(),
        })
    }
}

/// A character device that was made.
#[derive(Debug)]
pub struct Made {
    pub shown: Shown,
    pub pty: Option<String>,
    pub ring: Option<Arc<Ring>>,
    pub log: Option<FileWriter>,
    pub served: Served,
    /// A client is to come before anything else happens.
    waits: bool,
}

/// Makes character devices.
#[derive(Debug)]
pub struct Maker {
    in_background: bool,
    descriptors: Arc<Descriptors>,
    /// Somebody has standard input and output.
    stdio: Arc<AtomicBool>,
}

impl Maker {
    /// See [`super::Chardevs::new`].
    pub fn new(in_background: bool, descriptors: Arc<Descriptors>) -> Self {
        Self {
            in_background,
            descriptors,
            stdio: Arc::default(),
        }
    }

    /// Makes one.
    ///
    /// # Errors
    /// In QEMU's words; nothing is left then.
    pub async fn make(&self, backend: ChardevBackend) -> Result<Made, SetupError> {
        let ChardevCommon { logfile, logappend } = backend.common();
        let log = match logfile {
            None => None,
            Some(name) => {
                Some(open_writer(name, logappend == Some(true), "Could not create").await?)
            }
        };
        let mut made = Parts {
            r#type: Type::of_chardev(backend.variant.kind().name()),
            ..Parts::default()
        };
        let way = match backend.variant {
            ChardevVariant::Null(_) => made.named("null", Way::Null),
            ChardevVariant::Stdio(stdio) => {
                let stdio = self.stdio(stdio.data.signal.unwrap_or(true))?;
                made.named("stdio", Way::Stdio(stdio))
            }
            ChardevVariant::Ringbuf(options) => made.ring("ringbuf", options.data.bytes()?),
            ChardevVariant::Memory(options) => made.ring("memory", options.data.bytes()?),
            ChardevVariant::File(options) => made.named("file", file(options.data).await?),
            ChardevVariant::Pty(options) => {
                let link = options
                    .data
                    .path
                    .map(|path| PathBuf::from(os_text::to_os(&path)));
                let (pty, name) = Pty::new(link)?;
                made.pty = Some(name.clone());
                made.named(&format!("pty:{name}"), Way::Pty(pty))
            }
            ChardevVariant::Socket(options) => self.socket(&mut made, options.data).await?,
        };
        let dress = Dress::new(log.clone(), made.clients.clone());
        Ok(Made {
            shown: Shown {
                name: made.name,
                r#type: made.r#type,
                clients: made.clients,
                address: made.address,
            },
            pty: made.pty,
            ring: made.ring,
            log,
            served: Served::new(way, dress),
            waits: made.waits,
        })
    }

    fn stdio(&self, signal: bool) -> Result<Stdio, SetupError> {
        if self.in_background {
            return Err(SetupError::new("cannot use stdio with -daemonize"));
        }
        let taken = || SetupError::new("cannot use stdio by multiple character devices");
        let stdio = Stdio::take(&self.stdio).ok_or_else(taken)?;
        if !signal {
            terminal::disable_signals()?;
        }
        Ok(stdio)
    }

    async fn socket(&self, made: &mut Parts, options: ChardevSocket) -> Result<Way, SetupError> {
        made.clients = Some(Arc::default());
        if options.is_server() {
            let listening = socket::listen(&options.addr, &self.descriptors).await?;
            let (listening, name) = listening;
            made.address = listening.address();
            made.waits = options.wait.unwrap_or(false);
            return Ok(made.named(&name, Way::Listening(listening)));
        }
        let name = socket::client_name(&options.addr);
        made.address = Some(Value::Object(options.addr.flat()));
        let delay = options.reconnects_after();
        let first = match delay {
            None => Some(socket::connect(&options.addr, &self.descriptors).await?),
            // It may come later.
            Some(_) => None,
        };
        let descriptors = Arc::clone(&self.descriptors);
        let way = Way::Client {
            address: options.addr,
            descriptors,
            first,
            delay,
        };
        Ok(made.named(&name, way))
    }
}

/// What is known of a character device before it is whole.
#[derive(Default)]
struct Parts {
    name: String,
    r#type: Option<&'static Type>,
    clients: Option<Arc<AtomicUsize>>,
    address: Option<Value>,
    pty: Option<String>,
    ring: Option<Arc<Ring>>,
    waits: bool,
}

impl Parts {
    fn named(&mut self, name: &str, way: Way) -> Way {
        self.name = name.to_owned();
        way
    }

    fn ring(&mut self, name: &str, bytes: usize) -> Way {
        let ring = Arc::new(Ring::new(bytes));
        self.ring = Some(Arc::clone(&ring));
        self.named(name, Way::Ring(ring))
    }
}

impl Made {
    /// With `wait=on` the first client comes now; `option` is how it was asked for.
    pub async fn wait_for_client(mut self, option: &str) -> Result<Self, SetupError> {
        if !self.waits {
            return Ok(self);
        }
        let Way::Listening(listening) = self.served.way() else {
            return Ok(self);
        };
        let name = self.shown.text();
        let text = format!("{PROGRAM}: {option}: info: QEMU waiting for connection on: {name}\n");
        logging::say(text.as_bytes());
        let first = listening.next().await.map_err(|error| {
            SetupError::new(format!("cannot wait for a client on {name}: {error}"))
        })?;
        self.served.came(first);
        Ok(self)
    }
}

/// What is said there is for whoever has started the daemon; nobody need read it.
pub fn say_on_stdout(text: &str) {
    use io::Write;
    let mut stdout = io::stdout();
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}

async fn file(options: ChardevFile) -> Result<Way, SetupError> {
    let reader = match options.r#in {
        None => None,
        Some(name) => Some(
            beside(move || {
                let file = File::open(Path::new(&os_text::to_os(&name)));
                let file = file.map_err(|error| open_error("Could not open", &name, &error))?;
                FileReader::start(file).map_err(|error| thread_error(&error))
            })
            .await?,
        ),
    };
    let append = options.append == Some(true);
    let writer = open_writer(options.out, append, "Could not open").await?;
    Ok(Way::File { reader, writer })
}

async fn open_writer(
    name: String,
    append: bool,
    failed: &'static str,
) -> Result<FileWriter, SetupError> {
    beside(move || {
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .append(append)
            .truncate(!append)
            .open(Path::new(&os_text::to_os(&name)));
        let file = file.map_err(|error| open_error(failed, &name, &error))?;
        FileWriter::start(file, &name).map_err(|error| thread_error(&error))
    })
    .await
}

fn open_error(failed: &str, name: &str, error: &io::Error) -> SetupError {
    SetupError::new(format!("{failed} '{name}': {}", strerror(error)))
}

fn thread_error(error: &io::Error) -> SetupError {
    SetupError::new(format!("cannot start a thread: {}", strerror(error)))
}
