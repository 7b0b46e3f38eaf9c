//! Failure stories of image formats that were told in public, as sequences: each is played in many orders, cut everywhere,
//! and operations of it fail. They know nothing of the format but its clusters, so every format can be put through them.

use standfast_sweep::stories;

use crate::driver::{Mutant, ToyFormat};

#[test]
fn the_correct_one_goes_through_every_story() {
    for story in stories::ALL {
        let totals = story.tell(&ToyFormat(Mutant::None), 3, true);
        let totals = totals.unwrap_or_else(|found| panic!("{}: {found}", story.name));
        assert!(totals.cuts > 10, "{}: {totals:?}", story.name);
    }
}

#[test]
fn what_is_retried_a_thousand_times_leaks_nothing() {
    let totals = stories::retried_often(&ToyFormat(Mutant::None));
    let totals = totals.unwrap_or_else(|found| panic!("{found}"));
    assert!(totals.retried > 100, "{totals:?}");
    assert!(stories::retried_often(&ToyFormat(Mutant::NoUndo)).is_err());
}

/// Mistakes that random sequences seldom meet: a story of their own does.
#[test]
fn stories_find_what_chance_does_not() {
    for (mutant, name) in [
        (Mutant::StaleTail, "former end"),
        (Mutant::ReadWithoutLock, "being read"),
    ] {
        let story = stories::ALL.iter().find(|story| story.name.contains(name));
        let told = story.map(|story| story.tell(&ToyFormat(mutant), 300, false));
        assert!(
            matches!(told, Some(Err(_))),
            "{mutant:?} is not found: {told:?}"
        );
    }
}
