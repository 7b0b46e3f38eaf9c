//! The codecs against each other, and against what qemu-img makes.

mod entries;
mod headers;
mod images;

use proptest::prelude::*;

use super::Geometry;

fn geometries() -> impl Strategy<Value = Geometry> {
    (9u32..=21, 0u32..=6, any::<bool>()).prop_map(|(bits, order, extended)| {
        let extended = extended && bits >= 14;
        Geometry::new(bits, order, extended).expect("in range")
    })
}
