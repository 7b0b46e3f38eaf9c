//! Which images can be overlays.

use qapi::options::{BlockdevDriver, BlockdevOptions, Referred};

use crate::setup_error::SetupError;

/// Whether there can be something else behind an image of this format.
pub const fn can_be_overlay(driver: BlockdevDriver) -> bool {
    matches!(driver, BlockdevDriver::Qcow2)
}

/// There cannot.
pub fn no_overlay() -> SetupError {
    SetupError::new("The overlay does not support backing images")
}

/// The driver that is called `name`.
pub fn driver_of(name: &str) -> Option<BlockdevDriver> {
    let mut all = BlockdevDriver::ALL.into_iter();
    all.find(|driver| driver.name() == name)
}

/// The file of `options`, which is defined in place.
pub fn file_part(options: &BlockdevOptions) -> Option<BlockdevOptions> {
    let mut children = options.children().into_iter();
    children.find_map(|(role, child)| match child {
        Referred::Definition(child) if role == "file" => Some(child.clone()),
        _ => None,
    })
}
