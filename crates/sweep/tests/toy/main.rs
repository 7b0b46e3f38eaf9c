//! The fault sweep can find something: a toy format goes through it, and each of its mutants, which have one mistake each
//! that image formats have been seen to make, is found.

#![allow(clippy::panic, reason = "a failed test")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of the toy are small"
)]

mod driver;
mod layout;
mod stories;

use standfast_sweep::{Failure, Hands, Size, Totals, campaign, sweep_seed};

use driver::{Mutant, ToyFormat};

#[test]
fn the_correct_one_goes_through() {
    let totals = campaign(&ToyFormat(Mutant::None), &mut Hands::here(), 14, 60);
    let totals = totals.unwrap_or_else(|found| panic!("{found}"));
    println!("{totals:?}");
    assert!(totals.cuts > 200 && totals.failed > 10, "{totals:?}");
}

#[test]
fn the_correct_one_goes_through_between_real_iothreads() {
    let mut hands = Hands::iothreads().unwrap_or_else(|error| panic!("{error}"));
    let totals = campaign(&ToyFormat(Mutant::None), &mut hands, 3, 60);
    println!("{:?}", totals.unwrap_or_else(|found| panic!("{found}")));
}

/// Seeds that a mutant may take to be found.
const SEEDS: u64 = 150;

fn found(mutant: Mutant) -> Box<Failure> {
    let mut totals = Totals::default();
    let size = Size {
        shorten: 0,
        ..Size::SMALL
    };
    for seed in 0..SEEDS {
        let swept = sweep_seed(
            &ToyFormat(mutant),
            &mut Hands::here(),
            seed,
            &size,
            &mut totals,
        );
        if let Err(failure) = swept {
            println!(
                "{mutant:?} is found by seed {seed} ({totals:?}): {}",
                failure.what
            );
            return failure;
        }
    }
    panic!("{mutant:?} is not found: {totals:?}")
}

/// What is found is told with few steps, and found again by the seed that it names.
#[test]
fn what_is_found_is_made_shorter() {
    let format = ToyFormat(Mutant::FlushSkipsMetadata);
    let mut totals = Totals::default();
    let mut hands = Hands::here();
    let mut found = || sweep_seed(&format, &mut hands, 1, &Size::SMALL, &mut totals);
    let Err(first) = found() else {
        panic!("nothing is found");
    };
    assert!(first.plan.steps.len() <= 4, "{first}");
    let again = found().err().map(|failure| failure.to_string());
    assert_eq!(again, Some(first.to_string()));
}

macro_rules! finds {
    ($($name:ident: $mutant:ident,)*) => {$(
        #[test]
        fn $name() {
            let failure = found(Mutant::$mutant);
            assert!(!failure.plan.steps.is_empty() || failure.plan.fault.is_some());
        }
    )*};
}

finds! {
    finds_an_entry_before_its_data: EntryBeforeData,
    finds_a_flush_that_is_missing_before_the_entry: NoFlushBeforeEntry,
    finds_a_count_after_the_pointer: CountAfterPointer,
    finds_reuse_before_the_discard_is_durable: ReuseAtOnce,
    finds_a_discard_after_reuse: DiscardAfterReuse,
    finds_a_flush_that_skips_metadata: FlushSkipsMetadata,
    finds_a_failed_flush_that_counts_as_clean: FailedFlushIsClean,
    finds_an_undo_that_is_missing: NoUndo,
    finds_an_entry_that_outlives_its_cluster: EntryStays,
    finds_a_switch_in_two_sectors: SwitchInTwoSectors,
    finds_the_old_content_around_a_first_write: StaleRest,
    finds_a_write_and_a_zeroing_that_do_not_know_of_each_other: NoLock,
    finds_a_stop_that_skips_metadata: StopSkipsMetadata,
    finds_an_old_map_that_is_freed_early: OldMapFreedEarly,
    finds_a_durable_write_that_skips_metadata: FuaSkipsMetadata,
}
