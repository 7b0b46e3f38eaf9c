//! The demonstration of the README, run as a test of the release build.

use crate::metadata::Metadata;
use crate::run::{cargo, run as run_command, show};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The demonstration takes seconds; beyond this it hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// Builds a release and runs `standfast demo --json`: it must succeed, and write JSON.
pub fn run(metadata: &Metadata) -> Result<()> {
    run_command(&mut cargo(["build", "--release"]))?;
    let mut command = Command::new(metadata.target_directory.join("release/standfast"));
    command.args(["demo", "--json"]);
    let text = output_within(&mut command, LIMIT)?;
    print!("{text}");
    check_json(&text).with_context(|| format!("`{}` did not write JSON", show(&command)))
}

/// Runs a command that must succeed in time; returns what it wrote to standard output.
fn output_within(command: &mut Command, limit: Duration) -> Result<String> {
    let line = show(command);
    println!("$ {line}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{line}`"))?;
    let mut stdout = child.stdout.take().expect("it is piped");
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let result = stdout.read_to_string(&mut text).map(|_| text);
        // Nobody listens any more once the limit is over.
        let _ = send.send(result);
    });
    let Ok(text) = receive.recv_timeout(limit) else {
        child
            .kill()
            .with_context(|| format!("cannot kill `{line}`"))?;
        child.wait()?;
        bail!("`{line}` did not end within {} s", limit.as_secs_f64());
    };
    let status = child.wait()?;
    let text = text.with_context(|| format!("cannot read what `{line}` wrote"))?;
    if !status.success() {
        bail!("`{line}`: {status}; it wrote:\n{text}");
    }
    Ok(text)
}

/// One or more JSON values and nothing else.
fn check_json(text: &str) -> Result<()> {
    let values = serde_json::Deserializer::from_str(text)
        .into_iter::<Value>()
        .collect::<Result<Vec<_>, _>>()?;
    if values.is_empty() {
        bail!("the output is empty");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn status_and_time_count() {
        assert_eq!(output_within(&mut sh("echo '{}'"), LIMIT).unwrap(), "{}\n");
        let error = output_within(&mut sh("echo partial; exit 1"), LIMIT)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exit status: 1") && error.contains("partial"),
            "{error}"
        );
        let error = output_within(&mut sh("exec sleep 60"), Duration::from_millis(50));
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("did not end within 0.05 s")
        );
    }

    #[test]
    fn output_is_json() {
        check_json("{\"a\": 1}\n{\"b\": 2}\n").unwrap();
        check_json("").unwrap_err();
        check_json("{\"a\": 1} done").unwrap_err();
    }
}
