//! The part of `docs/qmp.md` that comes from the types.

use anyhow::{Context, Result};

use crate::schema::{Entity, Schema};

/// Where it stands.
pub const DOCUMENT: &str = "docs/qmp.md";

const BEGIN: &str = "<!-- from the types -->\n";
const END: &str = "<!-- end -->\n";

/// The document with the part as the types have it.
///
/// # Errors
/// If the document does not have the marks, or does not tell of each command and event elsewhere.
pub fn with_types(document: &str) -> Result<String> {
    let marks = "the marks of what comes from the types are not there";
    let (before, rest) = document.split_once(BEGIN).context(marks)?;
    let (_, after) = rest.split_once(END).context(marks)?;
    let schema = Schema::new()?;
    let (commands, events) = (schema.commands()?, schema.events()?);
    let prose = format!("{before}{after}");
    let missing: Vec<_> = (commands.iter().chain(&events))
        .map(|entity| entity.name.as_str())
        .filter(|name| !tells_of(&prose, name))
        .collect();
    anyhow::ensure!(
        missing.is_empty(),
        "{DOCUMENT} does not tell of {}",
        missing.join(", ")
    );
    Ok(format!(
        "{before}{BEGIN}{}{END}{after}",
        part(&commands, &events)
    ))
}

/// Whether a text in which code stands between backquotes has that name in it, at the beginning of code;
/// `block-job-*` is all that begin like that.
fn tells_of(text: &str, name: &str) -> bool {
    let mut codes = text.split('`').skip(1).step_by(2);
    codes.any(|code| {
        let word = code.split([' ', '{']).next().unwrap_or_default();
        match word.strip_suffix('*') {
            Some(begin) => !begin.is_empty() && name.starts_with(begin),
            None => word == name,
        }
    })
}

fn part(commands: &[Entity], events: &[Entity]) -> String {
    let mut text = "| command | arguments | result |\n|---|---|---|\n".to_owned();
    for command in commands {
        let result = command.returns.as_deref().unwrap_or_default();
        let result = if result == "{}" { "" } else { result };
        text += &format!(
            "| `{}` | {} | {} |\n",
            command.name,
            code(&command.data.in_short()),
            code(result)
        );
    }
    text += "\n| event | data |\n|---|---|\n";
    for event in events {
        text += &format!("| `{}` | {} |\n", event.name, code(&event.data.in_short()));
    }
    text
}

fn code(text: &str) -> String {
    match text.is_empty() {
        true => String::new(),
        false => format!("`{}`", text.replace('|', "\\|")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_at_the_beginning_of_code() {
        let text = "a `stop`, b `cont {x-force?}` c `block-job-*` d `x quit`";
        for name in ["stop", "cont", "block-job-cancel"] {
            assert!(tells_of(text, name), "{name}");
        }
        for name in ["sto", "quit", "b", "block-jo"] {
            assert!(!tells_of(text, name), "{name}");
        }
    }

    #[test]
    fn a_command_that_is_nowhere_told_of_is_named() {
        let error = with_types(&format!("`stop`\n{BEGIN}{END}")).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("docs/qmp.md does not tell of "), "{error}");
        assert!(
            error.contains(" cont,") && !error.contains(" stop,"),
            "{error}"
        );
        with_types("no marks").unwrap_err();
    }
}
