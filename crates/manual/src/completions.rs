//! Shell completions, where the shells look for them below `share`.

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::{Shell, generate};

use crate::made::Made;
use crate::programs;

/// Those of all programs.
///
/// # Errors
/// If one is not text: a bug.
pub fn all() -> Result<Vec<Made>> {
    let mut files = Vec::new();
    for mut program in programs::all() {
        let name = program.command.get_name().to_owned();
        for (shell, path) in [
            (Shell::Bash, format!("bash-completion/completions/{name}")),
            (Shell::Zsh, format!("zsh/site-functions/_{name}")),
            (
                Shell::Fish,
                format!("fish/vendor_completions.d/{name}.fish"),
            ),
        ] {
            files.push(Made {
                path: path.into(),
                text: completion(shell, &mut program.command, &name)?,
            });
        }
    }
    Ok(files)
}

fn completion(shell: Shell, command: &mut Command, name: &str) -> Result<String> {
    let mut text = Vec::new();
    generate(shell, command, name, &mut text);
    String::from_utf8(text).with_context(|| format!("the {shell} completion of {name} is no text"))
}
