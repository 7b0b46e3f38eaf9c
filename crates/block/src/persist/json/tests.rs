use super::*;
use proptest::prelude::*;

fn time() -> impl Strategy<Value = SystemTime> {
    (0..u64::from(u32::MAX), 0..1_000_000_000_u32).prop_map(|(seconds, nanoseconds)| {
        SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds)
    })
}

fn cause() -> impl Strategy<Value = Cause> {
    (1..=ERRNO_MAX, proptest::sample::select(&ErrorKind::ALL[..]))
        .prop_map(|(errno, kind)| Cause { kind, errno })
}

fn node() -> impl Strategy<Value = Option<Arc<str>>> {
    proptest::option::of(".*".prop_map(Arc::from))
}

fn record() -> impl Strategy<Value = ErrorRecord> {
    let op = prop_oneof![
        Just(Operation::Read),
        Just(Operation::Write),
        Just(Operation::Flush),
        Just(Operation::Discard),
        any::<bool>().prop_map(|unmap| Operation::WriteZeroes { unmap }),
    ];
    let place = (any::<u16>(), any::<u16>(), any::<u64>(), any::<u64>());
    (cause(), node(), op, place, time()).prop_map(|(cause, node, op, place, at)| {
        let (queue, head, offset, bytes) = place;
        ErrorRecord {
            cause,
            node,
            request: Request {
                tag: Tag { queue, head },
                op,
                offset,
                bytes,
            },
            at,
        }
    })
}

fn class() -> impl Strategy<Value = ClassStats> {
    any::<[u64; 5]>().prop_map(
        |[bytes, operations, total_time_ns, failed, invalid]| ClassStats {
            bytes,
            operations,
            total_time_ns,
            failed,
            invalid,
        },
    )
}

fn backend() -> impl Strategy<Value = SavedBackend> {
    let status = prop_oneof![
        Just(Status::Ok),
        Just(Status::Nospace),
        Just(Status::Failed)
    ];
    let status =
        (any::<bool>(), status).prop_map(|(device, status)| IoStatus::restored(device, status));
    let why = (proptest::option::of(cause()), node());
    let incident =
        (any::<u64>(), time(), why).prop_map(|(number, since, (cause, node))| Incident {
            number,
            since,
            cause,
            node,
        });
    let stats = ([class(), class(), class(), class()], any::<[u64; 6]>()).prop_map(
        |(
            [rd, wr, flush, unmap],
            [attempts, holds, hold_time_ns, events_merged, dropped, lost],
        )| {
            BackendStats {
                rd,
                wr,
                flush,
                unmap,
                attempts,
                holds,
                hold_time_ns,
                events_merged,
                dropped,
                lost,
                idle: None,
            }
        },
    );
    let errors = (
        proptest::option::of(record()),
        proptest::option::of(record()),
    );
    let incidents = (0..u64::MAX, proptest::option::of(incident));
    let cache = proptest::sample::select(&WriteCache::ALL[..]);
    let accepted = 0..=LOSS_NUMBER_MAX;
    let image = (".{0,20}", "[0-9:]{0,20}").prop_map(|(name, object)| Image::new(&name, &object));
    let rest = (cache, accepted, proptest::option::of(image), any::<bool>());
    (".*", ".*", status, incidents, errors, stats, rest).prop_map(
        |(device, node, io_status, (incidents, incident), errors, stats, rest)| {
            let (write_cache, losses_accepted, image, connected) = rest;
            SavedBackend {
                device,
                node,
                io_status,
                incidents,
                incident,
                first_error: errors.0,
                last_error: errors.1,
                write_cache,
                image,
                connected,
                losses_accepted,
                stats,
            }
        },
    )
}

pub fn state() -> impl Strategy<Value = SavedState> {
    let run_state = prop_oneof![
        Just(RunState::Running),
        Just(RunState::Paused),
        Just(RunState::IoError)
    ];
    let backends = proptest::collection::vec(backend(), 0..4);
    let loss =
        (".*", 1..=ERRNO_MAX, 0..=LOSS_NUMBER_MAX).prop_map(|(node, errno, number)| SavedLoss {
            node,
            errno,
            number,
        });
    let losses = proptest::collection::vec(loss, 0..3);
    let vm_pause = prop_oneof![
        Just(VmPause::Nobody),
        Just(VmPause::Link),
        Just(VmPause::Other)
    ];
    (run_state, backends, losses, vm_pause).prop_map(|(run_state, backends, losses, vm_pause)| {
        SavedState {
            run_state,
            backends,
            unclaimed: Vec::new(),
            losses,
            vm_pause,
        }
    })
}

proptest! {
    #[test]
    fn what_is_saved_is_read_back(state in state(), boot_id in ".*") {
        let json = state.encode(&boot_id);
        let (decoded, boot) = SavedState::decode(&json).expect("our own");
        prop_assert_eq!((decoded, boot), (state, boot_id));
    }
}

/// As written before there was such a thing.
#[test]
fn a_state_without_write_cache() {
    let mut state = SavedState::default();
    state.backends.push(SavedBackend {
        write_cache: WriteCache::WriteThrough,
        ..SavedBackend::default()
    });
    let json = String::from_utf8(state.encode("boot")).expect("JSON is UTF-8");
    let member = ",\"write-cache\":\"write-through\"";
    assert!(json.contains(member), "{json}");
    let (old, _) = SavedState::decode(json.replace(member, "").as_bytes()).expect("it is");
    assert_eq!(old.backends[0].write_cache, WriteCache::Unknown);
}

/// As written before it was known which node had failed.
#[test]
fn a_state_without_the_nodes_that_failed() {
    let mut state = SavedState::default();
    let at = SystemTime::UNIX_EPOCH;
    let cause = Cause::of_errno(28);
    state.backends.push(SavedBackend {
        incidents: 1,
        incident: Some(Incident {
            number: 1,
            since: at,
            cause: Some(cause),
            node: Some("file0".into()),
        }),
        first_error: Some(ErrorRecord {
            cause,
            node: Some("file0".into()),
            request: Request {
                tag: Tag { queue: 0, head: 1 },
                op: Operation::Write,
                offset: 512,
                bytes: 4096,
            },
            at,
        }),
        ..SavedBackend::default()
    });
    let json = String::from_utf8(state.encode("boot")).expect("JSON is UTF-8");
    let member = ",\"node\":\"file0\"";
    assert_eq!(json.matches(member).count(), 2, "{json}");
    let (old, _) = SavedState::decode(json.replace(member, "").as_bytes()).expect("it is");
    let old = &old.backends[0];
    assert_eq!(old.incident.as_ref().expect("one").node, None);
    let error = old.first_error.as_ref().expect("one");
    assert_eq!((error.cause, &error.node), (cause, &None));
}

#[test]
fn impossible_values_are_refused() {
    let mut state = SavedState::default();
    state.losses.push(SavedLoss {
        node: "disk0".to_owned(),
        errno: 5,
        number: 0,
    });
    state.backends.push(SavedBackend {
        last_error: Some(ErrorRecord {
            cause: Cause {
                kind: ErrorKind::BackingGone,
                errno: 28,
            },
            node: Some("file0".into()),
            request: Request {
                tag: Tag { queue: 0, head: 1 },
                op: Operation::Write,
                offset: 512,
                bytes: 4096,
            },
            at: SystemTime::UNIX_EPOCH,
        }),
        ..SavedBackend::default()
    });
    let json = String::from_utf8(state.encode("boot")).expect("JSON is UTF-8");
    for (old, new, error) in [
        ("\"version\":1", "\"version\":2", "version 2"),
        ("\"running\"", "\"shutdown\"", "'run-state'"),
        ("\"nobody\"", "\"me\"", "'vm-pause'"),
        (
            "\"io-status\":\"ok\"",
            "\"io-status\":\"no\"",
            "'io-status'",
        ),
        ("\"errno\":28", "\"errno\":0", "'errno'"),
        ("\"errno\":28", "\"errno\":4096", "'errno'"),
        ("\"backing-gone\"", "\"gone\"", "'cause'"),
        ("\"errno\":5", "\"errno\":-5", "'errno'"),
        ("\"write\"", "\"scribble\"", "'operation'"),
        (
            "\"write-cache\":\"unknown\"",
            "\"write-cache\":\"\"",
            "'write-cache'",
        ),
        ("\"at\":[0,0]", "\"at\":[0,1000000000]", "'time'"),
        ("\"at\":[0,0]", "\"at\":[18446744073709551615,0]", "'time'"),
        (
            "\"incidents\":0",
            "\"incidents\":18446744073709551615",
            "'incidents'",
        ),
        ("\"bytes\":4096", "\"bytes\":-1", "invalid value"),
    ] {
        assert!(json.contains(old), "{old} is not in {json}");
        let refused = SavedState::decode(json.replace(old, new).as_bytes());
        let text = refused.expect_err(new).to_string();
        assert!(text.contains(error), "{new}: {text}");
    }
}
