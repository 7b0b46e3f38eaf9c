//! How far down it is copied from: the chain of images from the child to its bottom.

use std::ops::Range;
use std::sync::Arc;

use block::{Node, Origin};

/// See the [module](self).
#[derive(Debug)]
pub struct Bottom {
    /// The names of the images, without filters, from the child's to the bottom.
    chain: Vec<Arc<str>>,
}

fn is_filter(node: &Node) -> bool {
    node.driver().info().filter
}

impl Bottom {
    /// The node `name`, behind `file`, for the node `filter`.
    ///
    /// # Errors
    /// There is none, or it is a filter, in QEMU's words.
    pub fn find(filter: &str, file: &Arc<Node>, name: &str) -> Result<Self, String> {
        let found = file.chain().find(|node| **node.name() == *name);
        if filter == name || found.as_ref().is_some_and(|node| is_filter(node)) {
            return Err(format!("Bottom node '{name}' is a filter"));
        }
        found.ok_or_else(|| format!("Bottom node '{name}' not found"))?;
        let mut chain = Vec::new();
        for node in file.chain().filter(|node| !is_filter(node)) {
            chain.push(Arc::clone(node.name()));
            if **node.name() == *name {
                break;
            }
        }
        Ok(Self { chain })
    }

    /// The name of the bottom.
    pub fn name(&self) -> Arc<str> {
        self.chain.last().map_or_else(|| "".into(), Arc::clone)
    }

    /// Whether the bottom is still behind `file`.
    ///
    /// # Errors
    /// Which link is not there any more, in QEMU's words.
    pub fn check(&self, file: &Arc<Node>) -> Result<(), String> {
        let chain: Vec<_> = file.chain().filter(|node| !is_filter(node)).collect();
        let at = |name: &Arc<str>| chain.iter().position(|node| node.name() == name);
        let bottom = self.name();
        if at(&bottom).is_some() {
            return Ok(());
        }
        let links = self.chain.windows(2);
        let mut broken = links.filter_map(|link| match link {
            [above, below] if at(above).is_some() && at(below).is_none() => Some((above, below)),
            _ => None,
        });
        Err(match broken.next() {
            Some((above, below)) => {
                format!("Cannot change frozen 'backing' link from '{above}' to '{below}'")
            }
            None => format!(
                "Bottom node '{bottom}' would not be behind node '{}' any more",
                file.name()
            ),
        })
    }

    /// Where the first bytes of `range` come from: what comes from below the bottom is said to be the own of `file`.
    pub fn shown(&self, file: &Arc<Node>, range: Range<u64>) -> Option<Origin> {
        let mut origin = file.driver().origin(range.clone())?;
        if origin.own {
            return Some(origin);
        }
        let bottom = self.chain.last();
        let images = file.chain().filter(|node| !is_filter(node));
        let mut layers = images.take_while(|node| Some(node.name()) != bottom);
        // The first one is the child's, and the one behind each is looked at.
        while let Some(layer) = layers.next().and_then(|layer| layer.backing()) {
            let there = layer.driver().length().saturating_sub(range.start);
            if there == 0 {
                // What it is too short for is zeroes, whatever is below.
                return Some(origin);
            }
            let bytes = origin.bytes.min(there);
            let found = layer
                .driver()
                .origin(range.start..range.start.saturating_add(bytes))?;
            origin.bytes = bytes.min(found.bytes);
            if found.own {
                return Some(origin);
            }
        }
        Some(Origin {
            own: true,
            ..origin
        })
    }
}
