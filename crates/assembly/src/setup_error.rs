//! Why something cannot be made, or unmade.

use block::{GraphError, RegistryError};
use drivers::OpenError;
use qapi::QmpError;

/// A description in QEMU's words, and a line of advice after it.
#[derive(Debug, thiserror::Error)]
#[error("{desc}")]
pub struct SetupError {
    /// What is wrong.
    pub desc: String,
    /// What to look at.
    pub hint: Option<String>,
}

impl SetupError {
    /// A description alone.
    pub fn new(desc: impl Into<String>) -> Self {
        Self {
            desc: desc.into(),
            hint: None,
        }
    }

    /// It is one of what is to be the backing file `of` an image, or a node.
    #[must_use]
    pub fn in_backing_file(self, of: &str) -> Self {
        let desc = format!("Could not open backing file of {of}: {}", self.desc);
        Self { desc, ..self }
    }

    /// It is one of `image`, whose name is told, unless that has been done.
    #[must_use]
    pub fn of(mut self, image: &str, what: impl FnOnce() -> String) -> Self {
        if !self.desc.contains(image) {
            self.desc = format!("{} ({})", self.desc, what());
        }
        self
    }

    /// What was to become a singleton of that name exists already.
    pub fn duplicate_object(id: &str) -> Self {
        Self::new(format!(
            "attempt to add duplicate property '{id}' to object (type 'container')"
        ))
    }

    /// There is no object of that name.
    pub fn no_object(id: &str) -> Self {
        Self::new(format!("object '{id}' not found"))
    }

    /// Something that exists needs it.
    pub fn object_in_use(id: &str) -> Self {
        Self::new(format!("object '{id}' is in use, can not be deleted"))
    }

    /// The daemon is told to end while it starts.
    pub fn shutting_down() -> Self {
        RegistryError::ShuttingDown.into()
    }
}

impl From<QmpError> for SetupError {
    fn from(error: QmpError) -> Self {
        Self {
            desc: error.desc,
            hint: error.hint,
        }
    }
}

impl From<SetupError> for QmpError {
    fn from(error: SetupError) -> Self {
        Self {
            hint: error.hint,
            ..Self::generic(error.desc)
        }
    }
}

impl From<OpenError> for SetupError {
    fn from(error: OpenError) -> Self {
        Self {
            desc: error.desc,
            hint: error.hint,
        }
    }
}

impl From<RegistryError> for SetupError {
    fn from(error: RegistryError) -> Self {
        let hint = match &error {
            RegistryError::Lock(error) => error.hint.clone(),
            _ => None,
        };
        Self {
            desc: error.to_string(),
            hint,
        }
    }
}

impl From<GraphError> for SetupError {
    fn from(error: GraphError) -> Self {
        RegistryError::from(error).into()
    }
}
