//! Secrets. Nothing here needs one yet; what is written in it is checked when it is added.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use block::strerror;
use qapi::options::SecretOptions;
use qapi::os_text;

use crate::blocking::beside;
use crate::properties::Properties;
use crate::setup_error::SetupError;

/// Longest file that a secret is read from. Bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Checks a secret that is to be added beside those `known`.
///
/// # Errors
/// In QEMU's words: if it is encrypted, or its file cannot be read.
pub async fn check(options: &SecretOptions, known: &Properties) -> Result<(), SetupError> {
    if let Some(id) = &options.keyid {
        return Err(SetupError::new(if known.has_secret(id) {
            "Encrypted secrets ('keyid') are not supported".to_owned()
        } else {
            format!("No secret with id '{id}'")
        }));
    }
    let Some(name) = options.file.clone() else {
        return Ok(());
    };
    let path = os_text::to_os(&name);
    let content = beside(move || {
        read(Path::new(&path)).map_err(|(what, error)| {
            let error = strerror(&error);
            SetupError::new(format!(
                "Unable to read {name}: {what} \u{201c}{name}\u{201d}: {error}"
            ))
        })
    });
    Ok(options.check_content(&content.await?)?)
}

/// The content of a file; what failed, if it cannot be read.
fn read(path: &Path) -> Result<Vec<u8>, (&'static str, io::Error)> {
    let file = File::open(path).map_err(|error| ("Failed to open file", error))?;
    let mut content = Vec::new();
    let all = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content);
    let all = all.map_err(|error| ("Error reading file", error));
    if u64::try_from(all?).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        let error = io::Error::from_raw_os_error(libc::EFBIG);
        return Err(("Error reading file", error));
    }
    Ok(content)
}
