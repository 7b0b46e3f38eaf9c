//! The second pass: what one option does.

use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::ExitCode;

use assembly::{Assembly, SetupError, TimeLimits, beside};
use qapi::options::{
    BlockdevOptions, ChardevOptions, ExportOptions, MonitorOptions, ObjectOptions,
};
use qapi::{keyval, os_text};

use super::chardevs::Chardevs;
use super::cli::{Opt, PROGRAM, Step};
use super::config::{self, Item, Options};
use super::{logging, options_help};

/// What came of an option.
pub enum Executed {
    /// It is done.
    Done,
    /// It has asked for help: this is said, and the daemon ends with that.
    Help(String, ExitCode),
}

/// What options make something in.
#[derive(Clone, Copy, Debug)]
pub struct Steps<'a> {
    /// Objects, nodes, exports.
    pub assembly: &'a Assembly,
    /// Character devices and monitors.
    pub chardevs: &'a Chardevs,
}

impl Steps<'_> {
    /// Executes an option.
    ///
    /// # Errors
    /// In QEMU's words.
    pub async fn execute(self, step: Step) -> Result<Executed, SetupError> {
        let Step { opt, arg, written } = step;
        let options = match opt {
            Opt::Object => {
                if let Some(text) = options_help::object(&arg)? {
                    return Ok(Executed::Help(text, ExitCode::SUCCESS));
                }
                Options::Object(ObjectOptions::parse(&arg)?)
            }
            Opt::Blockdev => Options::Blockdev(BlockdevOptions::parse(&arg)?),
            Opt::Export => Options::Export(ExportOptions::parse(&arg)?),
            Opt::Chardev => {
                if let Some((text, succeeds)) = options_help::chardev(&arg) {
                    let code = match succeeds {
                        true => ExitCode::SUCCESS,
                        false => ExitCode::FAILURE,
                    };
                    return Ok(Executed::Help(text, code));
                }
                let (options, warnings) = ChardevOptions::parse(&arg)?;
                for warning in warnings {
                    let line = format!("{PROGRAM}: {written}: warning: {warning}\n");
                    logging::say(&os_text::to_os(&line).into_vec());
                }
                Options::Chardev(options)
            }
            Opt::Monitor => Options::Monitor(MonitorOptions::parse(&arg)?),
            Opt::NbdServer => return Err(no_nbd(&arg)),
            Opt::Config => {
                self.execute_file(&arg).await?;
                return Ok(Executed::Done);
            }
        };
        self.make(options, &written).await?;
        Ok(Executed::Done)
    }

    /// Makes one thing; `shown` is how it was asked for.
    async fn make(self, options: Options, shown: &str) -> Result<(), SetupError> {
        match options {
            Options::Object(options) => self.assembly.add_object(options).await,
            Options::Blockdev(options) => self.assembly.add_node(options, TimeLimits::START).await,
            Options::Export(options) => self.assembly.add_export(options, TimeLimits::START).await,
            Options::Chardev(options) => self.chardevs.add_option(options, shown).await,
            Options::Monitor(options) => self.chardevs.attach(&options),
        }
    }

    async fn execute_file(self, name: &str) -> Result<(), SetupError> {
        let path = os_text::to_os(name);
        let text = beside(move || config::read(Path::new(&path)).map_err(SetupError::new)).await?;
        let items = config::parse(&text).map_err(SetupError::new)?;
        for Item { place, options } in items {
            let shown = format!("--config {name}: {place}");
            let made = self.make(options, &shown).await;
            made.map_err(|error| SetupError {
                desc: format!("{place}: {}", error.desc),
                hint: error.hint,
            })?;
        }
        Ok(())
    }
}

/// Whoever asks for help is told as by all others that there is none.
fn no_nbd(arg: &str) -> SetupError {
    if !arg.starts_with('{')
        && let Err(error) = keyval::parse(arg, None)
    {
        return error.into();
    }
    SetupError {
        desc: "an NBD server is not supported".to_owned(),
        hint: Some("Leave --nbd-server out, and export by --export vhost-user-blk,...".to_owned()),
    }
}
