//! What the fuzz targets share.

use qapi::QmpError;
use qapi::options::{
    BlockdevOptions, ChardevOptions, ExportOptions, MonitorOptions, ObjectOptions,
};
use serde::Serialize;
use std::fmt::Debug;

/// Gives a text to every command line option.
pub fn parse_options(text: &str) {
    // The syntax of chardevs has no JSON, so there is nothing to compare with.
    match ChardevOptions::parse(text) {
        Ok((options, _)) => assert!(qapi::id::is_wellformed(&options.id)),
        Err(error) => check_error(&error),
    }
    round_trip(text, BlockdevOptions::parse);
    round_trip(text, ExportOptions::parse);
    round_trip(text, ObjectOptions::parse);
    round_trip(text, MonitorOptions::parse);
}

/// Options that are accepted, however they were written, must mean the same as what they are in
/// JSON: management software reads back what it set.
fn round_trip<T: Debug + PartialEq + Serialize>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, QmpError>,
) {
    match parse(text) {
        Ok(options) => {
            let json = serde_json::to_string(&options).expect("options have string keys");
            assert_eq!(
                parse(&json).as_ref(),
                Ok(&options),
                "{text:?} became {json}"
            );
        }
        Err(error) => check_error(&error),
    }
}

/// An error must say something.
pub fn check_error(error: &QmpError) {
    assert!(!error.desc.is_empty());
}
