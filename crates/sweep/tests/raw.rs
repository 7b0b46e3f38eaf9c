//! The project's own `raw` driver through the fault sweep: nothing is between the guest and the storage, so what is
//! found here is wrong in the sweep.

#![allow(clippy::panic, reason = "a failed test")]

use std::sync::Arc;

use block::{Node, NodeInfo};
use drivers::{Raw, RawOptions};
use standfast_sweep::{Finding, Format, Hands, SECTOR, campaign};

#[derive(Debug)]
struct RawFormat;

impl Format for RawFormat {
    fn name(&self) -> String {
        "raw".to_owned()
    }

    fn create(&self, sectors: u64) -> Vec<u8> {
        vec![0; usize::try_from(sectors).unwrap_or(0) * SECTOR]
    }

    fn open(&self, file: Arc<Node>) -> Result<Arc<Node>, String> {
        let raw = Raw::new(RawOptions {
            node_name: "raw".into(),
            file,
            offset: 0,
            size: None,
            discard: true,
            info: NodeInfo::default(),
        });
        let raw = raw.map_err(|error| error.to_string())?;
        Ok(Node::new("raw", Box::new(raw)))
    }

    fn check(&self, _disk: &[u8]) -> Vec<Finding> {
        Vec::new()
    }

    fn resizes_to(&self) -> Option<u64> {
        Some(160)
    }

    fn discards_are_private(&self) -> bool {
        false
    }
}

#[test]
fn raw_passes_everything_on() {
    let totals = campaign(&RawFormat, &mut Hands::here(), 16, 60);
    let totals = totals.unwrap_or_else(|found| panic!("{found}"));
    println!("{totals:?}");
    assert!(totals.cuts > 500 && totals.failed > 20, "{totals:?}");
}

#[test]
fn raw_passes_everything_on_between_real_iothreads() {
    let mut hands = Hands::iothreads().unwrap_or_else(|error| panic!("{error}"));
    let totals = campaign(&RawFormat, &mut hands, 4, 60);
    let totals = totals.unwrap_or_else(|found| panic!("{found}"));
    println!("{totals:?}");
    assert!(totals.cuts > 50, "{totals:?}");
}
