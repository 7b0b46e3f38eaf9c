//! Wire types of QMP and of the command line: keyval and JSON options, error classes.
