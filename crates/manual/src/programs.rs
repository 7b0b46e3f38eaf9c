//! The programs that are installed, as their own command lines describe them.

use clap::Command;

/// A program.
#[derive(Clone, Debug)]
pub struct Program {
    /// What describes its command line.
    pub command: Command,
    /// The section of its manual page.
    pub section: &'static str,
    /// Pages that say more.
    pub see_also: &'static [&'static str],
}

/// All of them.
pub fn all() -> Vec<Program> {
    vec![
        Program {
            command: daemon::command(),
            section: "8",
            see_also: &[
                "standfast(1)",
                "standfastd-qmp(7)",
                "standfast-vhost-user-blk(8)",
            ],
        },
        Program {
            command: daemon::vhost_user_blk_command(),
            section: "8",
            see_also: &["standfastd(8)"],
        },
        Program {
            command: visible("standfast", &standfast::tool::command()),
            section: "1",
            see_also: &["standfastd(8)", "standfastd-qmp(7)"],
        },
    ]
}

/// The same without subcommands that are nobody's to type. What makes completions does not know that they
/// are hidden.
fn visible(name: &'static str, command: &Command) -> Command {
    let mut visible = Command::new(name)
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(command.is_subcommand_required_set())
        .args(command.get_arguments().cloned())
        .subcommands(
            (command.get_subcommands())
                .filter(|subcommand| !subcommand.is_hide_set())
                .cloned(),
        );
    if let Some(about) = command.get_about() {
        visible = visible.about(about.clone());
    }
    if let Some(text) = command.get_after_help() {
        visible = visible.after_help(text.clone());
    }
    visible
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_left_out() {
        let names = |command: &Command| {
            let names = command.get_subcommands().map(|it| it.get_name().to_owned());
            names.collect::<Vec<_>>()
        };
        let whole = standfast::tool::command();
        assert!(whole.get_subcommands().any(Command::is_hide_set));
        let shown = visible("standfast", &whole);
        assert_eq!(shown.get_name(), whole.get_name());
        assert_eq!(shown.get_version(), whole.get_version());
        assert!(!shown.get_subcommands().any(Command::is_hide_set));
        assert_eq!(names(&shown).len() + 1, names(&whole).len());
    }
}
