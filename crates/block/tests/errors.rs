//! Policy, I/O status and cause of every errno, by the table that the whole daemon is tested with.

use standfast_block::{Action, Cause, Direction, ErrorKind, IoStatus, OnError, Operation, Policy};
use testkit::errors::{Case, Guest, Verdict};

fn policy(name: &str) -> OnError {
    let all = [
        OnError::Report,
        OnError::Ignore,
        OnError::Enospc,
        OnError::Stop,
    ];
    let found = all.into_iter().find(|policy| policy.name() == name);
    found.unwrap_or(OnError::Auto)
}

fn operations(name: &str) -> Vec<Operation> {
    let all = [
        Operation::Read,
        Operation::Write,
        Operation::Flush,
        Operation::Discard,
        Operation::WriteZeroes { unmap: false },
        Operation::WriteZeroes { unmap: true },
    ];
    let named = all.into_iter().filter(|operation| operation.name() == name);
    named.collect()
}

#[test]
fn every_errno_operation_and_policy() {
    let mut checked = 0;
    for case in Case::all() {
        let policy = Policy::new(policy(case.werror), policy(case.rerror));
        let cause = match case.vanished {
            false => Cause::of_errno(case.errno),
            true => Cause {
                kind: ErrorKind::BackingGone,
                errno: case.errno,
            },
        };
        assert_eq!(cause.kind.name(), case.cause(), "{case:?}");
        for operation in operations(case.operation) {
            let is_read = operation.direction() == Direction::Read;
            assert_eq!(is_read, case.operation == "read");
            let action = policy.action(operation.direction(), cause);
            let mut status = IoStatus::default();
            status.enable();
            if action == Action::Stop {
                status.set_err(cause);
            }
            let enabled = status.is_enabled(policy);
            let found = Verdict {
                action: action.name(),
                nospace: enabled.then_some(cause.kind == ErrorKind::NoSpace),
                io_status: enabled.then_some(status.get().name()),
                guest: match action {
                    Action::Ignore => Guest::Success,
                    Action::Report => Guest::Failure,
                    Action::Stop => Guest::Nothing,
                },
            };
            assert_eq!(found, case.verdict(), "{case:?}");
            checked += 1;
        }
    }
    assert_eq!(checked, 131 * 6 * 16 * 2);
}
