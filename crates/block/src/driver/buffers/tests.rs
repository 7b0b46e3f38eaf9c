//! Views against what a plain vector of bytes does.

use proptest::prelude::*;
use proptest::test_runner::Config;

use super::*;

/// Fewer where each step is looked at.
const CASES: u32 = if cfg!(miri) { 16 } else { 2000 };

fn config() -> Config {
    Config {
        failure_persistence: None,
        ..Config::with_cases(CASES)
    }
}

/// Segments of these lengths, with bytes that tell where they belong.
fn segments(lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut next = 0u8;
    let mut byte = || {
        next = next.wrapping_mul(5).wrapping_add(3);
        next
    };
    let of_length = |&length: &usize| (0..length).map(|_| byte()).collect();
    lengths.iter().map(of_length).collect()
}

fn joined(segments: &mut [Vec<u8>]) -> Joined<'_> {
    let mut joined = Joined::new();
    for segment in segments {
        joined.push_own(segment);
    }
    joined
}

/// What all that can be asked of a view has to say if these are its bytes.
fn check(view: &Buffers<'_>, bytes: &[u8]) {
    assert_eq!(view.len(), bytes.len());
    assert_eq!(view.is_empty(), bytes.is_empty());
    let mut copy = vec![0; bytes.len()];
    assert_eq!(view.copy_to(&mut copy), bytes.len());
    assert_eq!(copy, bytes);

    let pieces: Vec<_> = view.iovecs().collect();
    assert!(pieces.iter().all(|one| one.iov_len > 0));
    assert_eq!(list_bytes(&pieces), bytes);
    assert!(pieces.len() <= view.segments());
    for memory in [1, 2, 4, 8] {
        for length in [1, 2, 4, 8] {
            let aligned = pieces.iter().all(|one| {
                one.iov_base.addr() % memory as usize == 0 && one.iov_len % length as usize == 0
            });
            // A segment without a byte may have any address.
            let ask = view.is_aligned(memory, length);
            assert!(ask == aligned || aligned && view.segments() > pieces.len());
        }
    }
    for max in [1, 2, view.segments(), 1024] {
        let Some(list) = view.uncut(max) else {
            assert_ne!(view.edges, Edges::WHOLE, "it needs no list of its own");
            continue;
        };
        assert!(list.len() <= max);
        let there = list_bytes(list);
        assert_eq!(there, bytes[..there.len()]);
        assert!(list.len() == max || there.len() == bytes.len());
    }
}

fn list_bytes(list: &[iovec]) -> Vec<u8> {
    let bytes = list.iter().map(|one| one.iov_len).sum();
    // SAFETY: the lists of these tests describe memory that is there.
    let view = unsafe { Buffers::from_iovecs(list, bytes) };
    let mut copy = vec![0; bytes];
    view.copy_to(&mut copy);
    copy
}

#[test]
fn every_slice_of_every_slice() {
    let mut memory = segments(&[0, 3, 0, 1, 2, 0, 0, 2, 0]);
    let model = memory.concat();
    let joined = joined(&mut memory);
    let all = joined.buffers();
    check(&all, &model);
    let total = if cfg!(miri) { 5 } else { model.len() };
    for from in 0..=total {
        for to in from..=total {
            let (view, bytes) = (all.slice(from..to), &model[from..to]);
            check(&view, bytes);
            for at in 0..=bytes.len() {
                let (before, behind) = view.split_at(at);
                check(&before, &bytes[..at]);
                check(&behind, &bytes[at..]);
                check(&view.after(at), &bytes[at..]);
                for end in at..=bytes.len() {
                    check(&view.slice(at..end), &bytes[at..end]);
                }
            }
        }
    }
}

#[test]
fn a_whole_view_needs_no_list_of_its_own() {
    let mut memory = segments(&[4, 4, 4]);
    let joined = joined(&mut memory);
    let all = joined.buffers();
    let list = |view: Buffers<'_>, max| view.uncut(max).map(<[iovec]>::len);
    assert_eq!(list(all, 1024), Some(3));
    assert_eq!(list(all, 2), Some(2), "the beginning of it");
    assert_eq!(
        list(all.after(4), 1024),
        Some(2),
        "a whole number of segments"
    );
    assert_eq!(list(all.slice(4..8), 1024), Some(1));
    assert_eq!(list(all.after(1), 1024), None);
    assert_eq!(list(all.slice(0..11), 1024), None);
    assert_eq!(
        list(all.slice(0..11), 2),
        Some(2),
        "the end is not among them"
    );
    assert_eq!(list(all.slice(4..7), 1024), None);
    assert_eq!(list(Buffers::EMPTY, 1024), Some(0));
}

#[test]
fn more_segments_than_the_kernel_takes() {
    let count = if cfg!(miri) { 1030 } else { 3000 };
    let lengths: Vec<usize> = (0..count).map(|n| n % 4).collect();
    let mut memory = segments(&lengths);
    let model = memory.concat();
    let joined = joined(&mut memory);
    let all = joined.buffers();
    assert_eq!(all.segments(), count);
    check(&all, &model);
    let mut done = 0;
    // As a leaf does it: what fits one call, then the rest.
    while done < model.len() {
        let rest = all.after(done);
        let here: usize = match rest.uncut(1024) {
            Some(list) => list.iter().map(|one| one.iov_len).sum(),
            None => rest.iovecs().take(1024).map(|one| one.iov_len).sum(),
        };
        assert!(here > 0);
        check(&rest.slice(0..here), &model[done..done + here]);
        // Not all of it was moved.
        done += here - here / 3;
    }
}

#[test]
fn alignment_looks_at_base_and_length() {
    #[repr(align(4096))]
    struct Page([u8; 8192]);
    let mut page = Page([0; 8192]);
    let mut joined = Joined::new();
    joined.push_own(&mut page.0);
    let all = joined.buffers();
    assert!(all.is_aligned(4096, 4096));
    assert!(all.slice(512..1536).is_aligned(512, 1024));
    assert!(!all.slice(512..1536).is_aligned(1024, 512));
    assert!(!all.slice(512..1535).is_aligned(512, 512));
    assert!(all.slice(3..8).is_aligned(1, 1));
    assert!(Buffers::EMPTY.is_aligned(4096, 4096));
    let mut pair = Joined::new();
    pair.push(all.slice(4096..8192));
    pair.push(all.slice(4..516));
    assert!(pair.buffers().is_aligned(4, 512));
    assert!(!pair.buffers().is_aligned(8, 512));
}

#[derive(Clone, Debug)]
enum Step {
    /// Goes on with a part of the view, in 1024ths of its length.
    Slice(usize, usize),
    /// Goes on with the view, turned round at a place, and the middle of it once more.
    Join(usize, usize),
    CopyIn(u8),
    CopyInLess(u8),
    Zero,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..=1024usize, 0..=1024usize).prop_map(|(a, b)| Step::Slice(a.min(b), a.max(b))),
        2 => (0..=1024usize, 0..=1024usize).prop_map(|(a, b)| Step::Join(a, b)),
        2 => any::<u8>().prop_map(Step::CopyIn),
        1 => any::<u8>().prop_map(Step::CopyInLess),
        1 => Just(Step::Zero),
    ]
}

/// Runs the steps on a view; `places` are the places in the model that its bytes have.
fn run(view: Buffers<'_>, places: &[usize], model: &mut Vec<u8>, steps: &[Step]) {
    let bytes: Vec<u8> = places.iter().map(|&place| model[place]).collect();
    check(&view, &bytes);
    let Some((step, rest)) = steps.split_first() else {
        return;
    };
    let at = |part: usize| places.len() * part / 1024;
    match *step {
        Step::Slice(from, to) => {
            let range = at(from)..at(to);
            run(view.slice(range.clone()), &places[range], model, rest);
        }
        Step::Join(turn, again) => {
            let (turn, again) = (at(turn), at(again));
            let (before, behind) = view.split_at(turn);
            let mut joined = Joined::default();
            joined.push(behind);
            joined.push(before);
            joined.push(view.slice(again..places.len()));
            let places = [&places[turn..], &places[..turn], &places[again..]].concat();
            run(joined.buffers(), &places, model, rest);
        }
        Step::CopyIn(seed) => {
            let data: Vec<u8> = (0..places.len())
                // A byte that is in the view twice has one value.
                .map(|n| seed.wrapping_add(places[n].to_le_bytes()[0]))
                .collect();
            assert_eq!(view.copy_from(&data), data.len());
            for (&place, &byte) in places.iter().zip(&data) {
                model[place] = byte;
            }
            run(view, places, model, rest);
        }
        Step::CopyInLess(byte) => {
            // Both may be the shorter one.
            let half = places.len() / 2;
            assert_eq!(view.copy_from(&vec![byte; half]), half);
            for &place in &places[..half] {
                model[place] = byte;
            }
            let mut short = vec![0; half];
            assert_eq!(view.copy_to(&mut short), half);
            let mut long = vec![0xa5; places.len() + 3];
            assert_eq!(view.copy_to(&mut long), places.len());
            assert_eq!(long[places.len()..], [0xa5; 3]);
            assert_eq!(view.slice(0..half).copy_from(&long), half);
            run(view, places, model, rest);
        }
        Step::Zero => {
            view.fill_zero();
            for &place in places {
                model[place] = 0;
            }
            run(view, places, model, rest);
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn does_what_a_vector_of_bytes_does(
        lengths in prop::collection::vec(
            prop_oneof![2 => Just(0usize), 6 => 1..24usize, 1 => Just(512usize)],
            0..10,
        ),
        steps in prop::collection::vec(step(), 0..8),
    ) {
        let mut memory = segments(&lengths);
        let mut model = memory.concat();
        let places: Vec<usize> = (0..model.len()).collect();
        let joined = joined(&mut memory);
        run(joined.buffers(), &places, &mut model, &steps);
        drop(joined);
        prop_assert_eq!(memory.concat(), model, "and nothing beside it");
    }
}
