//! How the demo is told: short lines, a progress bar on a terminal, nothing in JSON mode.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long a reader is given for a step, on a terminal.
const PACE: Duration = Duration::from_millis(700);

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// What is done, or happens.
    Plain,
    /// As it should be.
    Good,
    /// Not as anybody wants it.
    Bad,
    /// What the daemon says.
    Wire,
}

/// Tells.
#[derive(Debug)]
pub struct Narrator {
    silent: bool,
    terminal: bool,
    colour: bool,
    pace: bool,
}

impl Narrator {
    /// `silent`: tell nothing. `fast`: give no time to read.
    pub fn new(silent: bool, fast: bool) -> Self {
        let terminal = !silent && io::stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            silent,
            terminal,
            colour: terminal && !no_colour,
            pace: terminal && !fast,
        }
    }

    /// Whether a reader is given time.
    pub fn paced(&self) -> bool {
        self.pace
    }

    /// Whether bars are drawn.
    pub fn draws(&self) -> bool {
        self.terminal
    }

    /// A heading.
    pub fn heading(&self, text: &str) {
        self.line("");
        self.line(&self.paint("1", text));
    }

    /// A step: what is done.
    pub fn step(&self, text: &str) {
        self.line(&format!("  {text}"));
        if self.pace {
            std::thread::sleep(PACE);
        }
    }

    /// Something below a step: a name and what it says.
    pub fn detail(&self, tone: Tone, name: &str, text: &str) {
        let text = match tone {
            Tone::Plain => text.to_owned(),
            Tone::Good => self.paint("32", text),
            Tone::Bad => self.paint("31", text),
            Tone::Wire => self.paint("36", text),
        };
        self.line(format!("    {name:<14}{text}").trim_end());
    }

    /// Text as it is.
    pub fn line(&self, text: &str) {
        if !self.silent {
            // Whoever stops reading does not stop the demo: its exit status says how it went.
            let _ = writeln!(io::stdout(), "{text}");
        }
    }

    /// A bar of `bytes`, on a terminal; elsewhere it shows nothing.
    pub fn bar(&self, bytes: u64) -> ProgressBar {
        if !self.terminal {
            return ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::hidden());
        }
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stdout());
        let template = "    [{bar:40}] {binary_bytes} of {binary_total_bytes}";
        bar.with_style(
            ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("#>-"),
        )
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
