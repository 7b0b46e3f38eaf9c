//! The block layer: requests, error policy, I/O status, held requests, run control.
