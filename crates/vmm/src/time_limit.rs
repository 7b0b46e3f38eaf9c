//! How long a VMM may take.

use std::time::Duration;

/// Time limit of one request to a VMM, all that belongs to it included.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(5);
