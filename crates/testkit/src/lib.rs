//! Helpers of the tests: daemons as processes, QMP clients, tmpfs, loop devices, a request checker.
