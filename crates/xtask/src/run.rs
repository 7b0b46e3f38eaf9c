//! Running other programs: what is run is shown, and a failure names it.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the workspace.
pub fn root() -> PathBuf {
    // cargo says which checkout it runs; where we were built may be another that shares the target
    // directory.
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.ancestors()
        .nth(2)
        .expect("this crate is two directories below the root")
        .to_owned()
}

/// The cargo that runs us, in the root of the workspace.
pub fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    command
}

/// Runs a command to its end; an error if it does not succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let line = show(command);
    println!("$ {line}");
    let status = command
        .status()
        .with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}`: {status}");
    }
    Ok(())
}

/// Runs a command and returns what it wrote to standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let line = show(command);
    let output = command
        .output()
        .with_context(|| format!("cannot run `{line}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}`: {}: {}", output.status, stderr.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` did not write UTF-8"))
}

/// Whether a program is in one of the directories where programs are. Those of the
/// administrator count even if the user's `PATH` lacks them.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|directory| directory.join(program).is_file())
}

/// The command as one would type it: the variables set for it, then the program by its name.
pub fn show(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            // Encoded flags are separated by a control character.
            let value = value.to_string_lossy().replace('\x1f', " ");
            words.push(format!("{}={}", name.to_string_lossy(), quote(&value)));
        }
    }
    let program = Path::new(command.get_program());
    let name = match program.file_name() {
        Some(name) if name == "cargo" => Path::new(name),
        _ => program,
    };
    words.push(quote(&name.to_string_lossy()));
    words.extend(command.get_args().map(|arg| quote(&arg.to_string_lossy())));
    words.join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_name_the_command() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "`sh -c 'exit 3'`: exit status: 3");
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 4"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`sh -c 'echo why >&2; exit 4'`: exit status: 4: why"
        );
        let error = run(&mut Command::new("/nonexistent/program")).unwrap_err();
        assert_eq!(error.to_string(), "cannot run `/nonexistent/program`");
    }

    #[test]
    fn shows_variables_and_quotes() {
        let mut command = Command::new("/opt/bin/cargo");
        command.env("FLAGS", "-a\x1f-b").args(["test", "it's", ""]);
        assert_eq!(show(&command), r"FLAGS='-a -b' cargo test 'it'\''s' ''");
    }

    #[test]
    fn root_is_the_workspace() {
        assert!(root().join("crates/xtask/Cargo.toml").is_file());
    }
}
