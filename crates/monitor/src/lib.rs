//! The QMP server and HMP text.
