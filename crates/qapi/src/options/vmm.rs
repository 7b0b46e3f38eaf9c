//! Links to VMMs: the properties of the objects `vmm-*`.

use serde::{Deserialize, Serialize};

use crate::{QmpError, Value, json, os_text};

/// Longest path of a unix socket, in bytes (`sun_path` without its final NUL).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Properties of `vmm-qemu`, `vmm-cloud-hypervisor`, `vmm-firecracker`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmmSocketOptions {
    /// The socket on which the VMM listens: a QMP monitor of QEMU, the API socket of others. It need
    /// not be there yet.
    pub path: String,
}

/// Properties of `vmm-command`: programs that are run, without a shell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmmCommandOptions {
    /// Pauses the VM. Must succeed if it is paused already.
    pub pause: VmmArgv,
    /// Resumes the VM. Must succeed if it runs already.
    pub resume: VmmArgv,
    /// Prints `running`, `paused` or `absent`. Default: the VM's state is not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<VmmArgv>,
}

/// A program and its arguments: a list, or a text that is one in JSON. The latter is for the command
/// line, where commas are doubled: `pause=["crosvm",,"suspend",,"/run/vm.sock"]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub enum VmmArgv {
    /// A list in JSON.
    #[serde(rename = "@string")]
    Text(String),
    /// A list.
    #[serde(rename = "@array")]
    List(Vec<String>),
}

impl Serialize for VmmArgv {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => text.serialize(serializer),
            Self::List(list) => list.serialize(serializer),
        }
    }
}

impl VmmSocketOptions {
    pub(super) fn check(&self) -> Result<(), QmpError> {
        let path = &self.path;
        if path.is_empty() {
            return Err(QmpError::generic(
                "Parameter 'path' expects the path of the VMM's socket",
            ));
        }
        if path.contains('\0') {
            return Err(QmpError::generic("Parameter 'path' contains a NUL byte"));
        }
        if os_text::to_os(path).len() > SOCKET_PATH_BYTES_MAX {
            let error = QmpError::generic(format!("UNIX socket path '{path}' is too long"));
            let bytes = SOCKET_PATH_BYTES_MAX + 1;
            return Err(error.with_hint(format!("Path must be less than {bytes} bytes")));
        }
        Ok(())
    }
}

impl VmmCommandOptions {
    pub(super) fn check(&self) -> Result<(), QmpError> {
        self.pause.words("pause")?;
        self.resume.words("resume")?;
        self.state
            .as_ref()
            .map_or(Ok(()), |state| state.words("state").map(drop))
    }
}

impl VmmArgv {
    /// The program and its arguments, at least one word. `name` is the property's, for errors.
    ///
    /// # Errors
    /// If there is no program, or a word cannot be an argument.
    pub fn words(&self, name: &str) -> Result<Vec<String>, QmpError> {
        let words = match self {
            Self::List(words) => words.clone(),
            Self::Text(text) => parse(text).ok_or_else(|| {
                QmpError::generic(format!(
                    "Parameter '{name}' expects a program and its arguments as a JSON list of \
                     strings, such as [\"/bin/vm-{name}\", \"vm0\"]; in key=value options each \
                     comma of it is doubled"
                ))
            })?,
        };
        match words.first().map(String::as_str) {
            None => Err(QmpError::generic(format!(
                "Parameter '{name}' is an empty list: its first element must be the program"
            ))),
            Some("") => Err(QmpError::generic(format!(
                "Parameter '{name}' begins with an empty text: its first element must be the \
                 program"
            ))),
            Some(_) if words.iter().any(|word| word.contains('\0')) => Err(QmpError::generic(
                format!("Parameter '{name}' contains a NUL byte"),
            )),
            Some(_) => Ok(words),
        }
    }
}

fn parse(text: &str) -> Option<Vec<String>> {
    let Ok(Value::Array(items)) = json::parse(text) else {
        return None;
    };
    let words = items.into_iter().map(|item| match item {
        Value::String(word) => Some(word),
        _ => None,
    });
    words.collect()
}

#[cfg(test)]
mod tests;
