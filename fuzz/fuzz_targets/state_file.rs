//! The state file of a former daemon, which anybody may have damaged.
//!
//! The first byte says what the rest is: the beginning of a file, the JSON of a state, or two JSON
//! texts and a place in the file that is damaged.
#![no_main]

use block::run_control::{BackendConfig, Effects, GateMessage, RunControl};
use block::state_file::{SLOT_BYTES, parse, seal_slot};
use block::{Event, HoldScope, LocalId, OnError, Policy, SavedState, VmOrder};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, rest)) = bytes.split_first() else {
        return;
    };
    match kind % 3 {
        0 => {
            if let Err(corrupt) = parse(rest) {
                assert!(!corrupt.to_string().is_empty());
            }
        }
        1 => json(rest),
        _ => two_slots(rest),
    }
});

fn json(text: &[u8]) {
    let stored = parse(&seal_slot(7, text).expect("the input is short"));
    match SavedState::decode(text) {
        Ok((state, boot_id)) => {
            let again = state.encode(&boot_id);
            let same = (state.clone(), boot_id.clone());
            assert_eq!(SavedState::decode(&again).expect("it is ours"), same);
            let stored = stored.expect("it is whole").expect("it is there");
            assert_eq!((stored.generation, stored.boot_id), (7, boot_id));
            assert_eq!(stored.state, state);
            restore(state);
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            stored.expect_err("the same text");
        }
    }
}

/// What a daemon does with it.
fn restore(state: SavedState) {
    let mut control = RunControl::default();
    control.restore(state.clone());
    let policy = Policy::new(OnError::Stop, OnError::Stop);
    let mut ids = Vec::new();
    for (saved, local) in state.backends.iter().zip(1..) {
        let id = control.add_backend(BackendConfig {
            device: saved.device.as_str().into(),
            node: saved.node.as_str().into(),
            policy,
            scope: HoldScope::Device,
            image: saved.image.clone().unwrap_or_default(),
        });
        control
            .add_local(id, LocalId(local), &mut Nobody)
            .expect("it has been added");
        ids.push(id);
    }
    let again = control.save();
    assert_eq!(
        (again.run_state, again.backends),
        (state.run_state, state.backends)
    );
    for (index, id) in ids.into_iter().enumerate() {
        if index % 2 == 0 {
            control.reattach(id);
        } else {
            control.attach(id, &mut Nobody);
        }
    }
    control
        .cont(None, false, &mut Nobody)
        .expect("nothing is in the way");
}

/// One slot is damaged: the other one counts. Neither is: the newer one does.
fn two_slots(bytes: &[u8]) {
    let Some((&[at, damage], rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let (older, newer) = rest.split_at(rest.len() / 2);
    let older = seal_slot(1, older).expect("the input is short");
    let newer = seal_slot(2, newer).expect("the input is short");
    let mut content = vec![0; SLOT_BYTES + newer.len()];
    content[..older.len()].copy_from_slice(&older);
    content[SLOT_BYTES..].copy_from_slice(&newer);
    // A quarter of the inputs damages nothing, the others the older or the newer slot.
    let expected = match damage % 4 {
        0 => &newer,
        1 => {
            content[usize::from(at) % older.len()] ^= damage;
            &newer
        }
        _ => {
            content[SLOT_BYTES + usize::from(at) % newer.len()] ^= damage;
            &older
        }
    };
    match (parse(&content), parse(expected)) {
        (Ok(found), Ok(alone)) => assert_eq!(found, alone),
        (Err(_), Err(_)) => {}
        other => panic!("{other:?}"),
    }
}

/// Nobody listens.
struct Nobody;

impl Effects for Nobody {
    fn event(&mut self, _: Event) {}
    fn post(&mut self, _: LocalId, _: GateMessage) {}
    fn vm(&mut self, _: VmOrder) {}
}
