use super::*;
use crate::driver::future::IoFuture;
use crate::driver::io::Io;
use crate::driver::limits::NodeInfo;
use crate::driver::node::Driver;

#[derive(Debug)]
struct Fake(Option<Child>);

impl Fake {
    fn node(name: &str, child: Option<(&'static str, &Arc<Node>)>) -> Arc<Node> {
        let child = child.map(|(role, node)| Child::of(&name.into(), role, Arc::clone(node)));
        Node::new(name, Box::new(Self(child)))
    }
}

impl Driver for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo {
            child_offset: Some(512),
            ..NodeInfo::default()
        }
    }

    fn length(&self) -> u64 {
        0
    }

    fn children(&self) -> Vec<&Child> {
        self.0.iter().collect()
    }

    fn submit<'a>(&'a self, _: Io<'a>) -> IoFuture<'a> {
        IoFuture::ready(Ok(()))
    }
}

fn names(graph: &Graph) -> Vec<String> {
    graph.nodes().map(|node| node.name().to_string()).collect()
}

/// They came sorted by name; QEMU's tools take the first one for the newest.
#[test]
fn nodes_are_in_the_order_in_which_they_came() {
    let mut graph = Graph::default();
    let z = Fake::node("z", None);
    graph.add(&z).unwrap();
    let file = Fake::node("b-file", None);
    graph.add(&Fake::node("c", Some(("file", &file)))).unwrap();
    let image = Fake::node("a-image", None);
    let debug = Fake::node("d", Some(("image", &image)));
    graph.add(&debug).unwrap();
    assert_eq!(names(&graph), ["z", "b-file", "c", "d", "a-image"]);
    // What takes a place has it; who comes again is the newest.
    let other = Fake::node("z", None);
    let replaced = graph.replace([(&z, &other)].into_iter(), &[]).unwrap();
    assert!(Arc::ptr_eq(&replaced[0], &z));
    assert_eq!(names(&graph), ["z", "b-file", "c", "d", "a-image"]);
    graph.remove(&other);
    graph.add(&z).unwrap();
    assert_eq!(names(&graph), ["b-file", "c", "d", "a-image", "z"]);
}

#[test]
fn what_a_node_has_written_below_stays_when_it_goes() {
    let mut graph = Graph::default();
    let file = Fake::node("file", None);
    graph.add(&file).unwrap();
    for (written, expected) in [(0, 0), (4096, 4608), (1024, 4608), (8192, 8704)] {
        let above = Fake::node("above", Some(("file", &file)));
        graph.add(&above).unwrap();
        above.wrote(written);
        graph.remove(&above);
        assert_eq!(file.wr_highest_offset(), expected);
    }
}
