//! What the users of nodes hold and share, from the top of the graph down, and who is in whose way. Pure.
//!
//! A node's users together have one [`Access`]: all that any of them holds, and what all of them share. From
//! that its driver derives what it needs of its children ([`crate::Driver::child_access`]), and so on
//! downwards. Two users of one node get along if neither holds what the other does not share.

use std::sync::Arc;

use crate::driver::users::{EdgeId, Use, User};
use crate::words::permissions::{Access, Permissions};

/// A node, as far as this is concerned.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it refuses to be changed.
    pub read_only: bool,
    /// Its users. What a node holds that is in the plan, too, is not asked for here but of its driver.
    pub users: Vec<Use>,
}

/// What comes out: in the order of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// What the users of each node have together.
    pub nodes: Vec<Access>,
    /// What each has: in the order of the users.
    pub users: Vec<Vec<Access>>,
    /// The numbers of the nodes, each behind all of its users.
    pub order: Vec<usize>,
}

/// Two users of a node who do not get along.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Permission conflict on node '{node}': permissions '{permissions}' are both required by {by} (uses \
     node '{node}' as '{role}' child) and unshared by {against} (uses node '{node}' as \
     '{against_role}' child)."
)]
pub struct Conflict {
    /// The node.
    pub node: Arc<str>,
    /// What is in dispute.
    pub permissions: Permissions,
    /// Who wants that.
    pub by: User,
    /// What the node is to it.
    pub role: &'static str,
    /// Who does not share it.
    pub against: User,
    /// What the node is to that one.
    pub against_role: &'static str,
}

/// Why a use is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SharingError {
    /// Another user is in the way.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// Somebody wants to write where nobody can.
    #[error("Block node is read-only")]
    ReadOnly(Arc<str>),
    /// A node would be below itself.
    #[error("Making '{0}' a child of a node below it would create a cycle")]
    Cycle(Arc<str>),
}

/// What everybody gets, if all get along. `rule` says what the driver of a node (by its number) does with a
/// child (by its edge) if its own users together have that access.
///
/// # Errors
/// The first that do not get along, from the top.
pub fn share(
    nodes: &[Shared],
    rule: impl Fn(usize, EdgeId, Access) -> Access,
) -> Result<Granted, SharingError> {
    let order = from_the_top(nodes)?;
    let mut granted = Granted {
        nodes: vec![Access::NONE; nodes.len()],
        users: vec![Vec::new(); nodes.len()],
        order: order.clone(),
    };
    for at in order {
        let node = &nodes[at];
        let access = |known: &Use| match parent(nodes, known) {
            Some(parent) => rule(parent, known.edge, granted.nodes[parent]),
            None => known.access,
        };
        let users: Vec<Access> = node.users.iter().map(access).collect();
        check(node, &users)?;
        granted.nodes[at] = users.iter().fold(Access::NONE, |all, one| all.and(*one));
        granted.users[at] = users;
    }
    Ok(granted)
}

fn check(node: &Shared, access: &[Access]) -> Result<(), SharingError> {
    let writing = Permissions::WRITE.and(Permissions::WRITE_UNCHANGED);
    if node.read_only && access.iter().any(|one| !one.held.both(writing).is_empty()) {
        return Err(SharingError::ReadOnly(Arc::clone(&node.name)));
    }
    // The newest is the one that is to be refused.
    for (by, wants) in node.users.iter().zip(access).rev() {
        for (against, has) in node.users.iter().zip(access) {
            let permissions = has.refuses(*wants);
            if by.edge != against.edge && !permissions.is_empty() {
                return Err(SharingError::Conflict(Conflict {
                    node: Arc::clone(&node.name),
                    permissions,
                    by: by.user.clone(),
                    role: by.role,
                    against: against.user.clone(),
                    against_role: against.role,
                }));
            }
        }
    }
    Ok(())
}

fn parent(nodes: &[Shared], known: &Use) -> Option<usize> {
    match &known.user {
        User::Node(name) => nodes.iter().position(|node| node.name == *name),
        User::Export(_) | User::Unnamed => None,
    }
}

/// The numbers of all nodes, each behind its parents.
fn from_the_top(nodes: &[Shared]) -> Result<Vec<usize>, SharingError> {
    let parents: Vec<Vec<usize>> = nodes
        .iter()
        .map(|node| {
            let of_node = node.users.iter();
            of_node.filter_map(|known| parent(nodes, known)).collect()
        })
        .collect();
    let mut order: Vec<usize> = Vec::with_capacity(nodes.len());
    while order.len() < nodes.len() {
        let is_next = |at: &usize| {
            !order.contains(at) && parents[*at].iter().all(|parent| order.contains(parent))
        };
        match (0..nodes.len()).find(is_next) {
            Some(next) => order.push(next),
            None => {
                let left = (0..nodes.len()).find(|at| !order.contains(at));
                let name = left.map_or_else(|| "".into(), |at| Arc::clone(&nodes[at].name));
                return Err(SharingError::Cycle(name));
            }
        }
    }
    Ok(order)
}

/// What drivers do with their children, by what these are to them: QEMU's rules, for
/// [`crate::Driver::child_access`].
pub mod rules {
    use crate::words::permissions::{Access, Permissions};

    const MODIFIES: Permissions = Permissions::WRITE.and(Permissions::RESIZE);

    /// What a format keeps its metadata in, and maybe data: it writes there whether its users do or not
    /// (if `writable`), reads what is there, and nobody else changes it.
    pub const fn metadata(above: Access, writable: bool) -> Access {
        let own = match writable {
            true => MODIFIES.and(Permissions::CONSISTENT_READ),
            false => Permissions::CONSISTENT_READ,
        };
        Access {
            held: above.held.and(own),
            shared: above.shared.without(MODIFIES),
        }
    }

    /// A child with data alone, which a format makes longer while its users write. What does not change for them (a copy of what
    /// is behind) is written there, too.
    pub const fn data(above: Access) -> Access {
        let writing = Permissions::WRITE.and(Permissions::WRITE_UNCHANGED);
        let own = match above.held.both(writing).is_empty() {
            false => MODIFIES.and(Permissions::CONSISTENT_READ),
            true => Permissions::CONSISTENT_READ,
        };
        Access {
            held: above.held.and(own),
            shared: above.shared.without(Permissions::RESIZE),
        }
    }

    /// What is read where a format has nothing of its own. It is not written, and may only change under
    /// users that do not mind.
    pub const fn backing(above: Access) -> Access {
        let always = Permissions::CONSISTENT_READ.and(Permissions::WRITE_UNCHANGED);
        let shared = match above.shared.contains(Permissions::WRITE) {
            true => always.and(MODIFIES),
            false => always,
        };
        Access {
            held: above.held.both(Permissions::CONSISTENT_READ),
            shared,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const READ: Permissions = Permissions::CONSISTENT_READ;
    const WRITE: Permissions = Permissions::CONSISTENT_READ.and(Permissions::WRITE);

    fn access(held: Permissions, shared: Permissions) -> Access {
        Access { held, shared }
    }

    /// A graph in the making: the numbers of edges are the order in which they are added.
    #[derive(Debug, Default)]
    struct Plan {
        nodes: Vec<Shared>,
        /// What the driver of the parent does, by edge.
        rules: Vec<(EdgeId, Rule)>,
    }

    #[derive(Clone, Copy, Debug)]
    enum Rule {
        Filter,
        Quota,
        Metadata,
        Data,
        Backing,
    }

    impl Rule {
        const ALL: [Self; 5] = [
            Self::Filter,
            Self::Quota,
            Self::Metadata,
            Self::Data,
            Self::Backing,
        ];

        fn apply(self, above: Access) -> Access {
            match self {
                Self::Filter => above,
                Self::Quota => Access {
                    shared: above.shared.without(Permissions::RESIZE),
                    ..above
                },
                Self::Metadata => rules::metadata(above, true),
                Self::Data => rules::data(above),
                Self::Backing => rules::backing(above),
            }
        }
    }

    impl Plan {
        fn node(&mut self, name: &str) -> usize {
            self.nodes.push(Shared {
                name: name.into(),
                read_only: false,
                users: Vec::new(),
            });
            self.nodes.len() - 1
        }

        fn add(&mut self, node: usize, user: User, role: &'static str, access: Access) -> EdgeId {
            let edge = EdgeId::fresh();
            self.nodes[node].users.push(Use {
                edge,
                user,
                role,
                access,
            });
            edge
        }

        fn export(&mut self, id: &str, node: usize, access: Access) {
            self.add(node, User::Export(id.into()), "root", access);
        }

        fn child(&mut self, parent: usize, node: usize, rule: Rule) {
            let user = User::Node(Arc::clone(&self.nodes[parent].name));
            let edge = self.add(node, user, "file", Access::NONE);
            self.rules.push((edge, rule));
        }

        fn share(&self) -> Result<Granted, SharingError> {
            share(&self.nodes, |_, edge, above| {
                let (_, rule) = self.rules.iter().find(|(of, _)| *of == edge).unwrap();
                rule.apply(above)
            })
        }

        fn refusal(&self) -> String {
            self.share().unwrap_err().to_string()
        }
    }

    #[test]
    fn what_drivers_need_of_their_children() {
        let all = Permissions::ALL;
        let reader = access(READ, all);
        let writer = access(WRITE, all);
        let exclusive = access(WRITE, READ);
        let unchanged = READ.and(Permissions::WRITE_UNCHANGED);
        let resize = Permissions::RESIZE;
        for (rule, above, expected) in [
            (Rule::Filter, writer, writer),
            (Rule::Filter, exclusive, exclusive),
            (Rule::Quota, writer, access(WRITE, all.without(resize))),
            (
                Rule::Metadata,
                Access::NONE,
                access(WRITE.and(resize), unchanged),
            ),
            (Rule::Metadata, exclusive, access(WRITE.and(resize), READ)),
            (Rule::Data, reader, access(READ, all.without(resize))),
            (
                Rule::Data,
                writer,
                access(WRITE.and(resize), all.without(resize)),
            ),
            (
                Rule::Data,
                access(unchanged, all),
                access(WRITE.and(resize).and(unchanged), all.without(resize)),
            ),
            (Rule::Backing, writer, reader),
            (Rule::Backing, exclusive, access(READ, unchanged)),
            (Rule::Backing, Access::NONE, Access::NONE),
        ] {
            assert_eq!(rule.apply(above), expected, "{rule:?} {above:?}");
        }
        let read_only = rules::metadata(reader, false);
        assert_eq!(read_only, access(READ, unchanged));
    }

    #[test]
    fn refusals_are_in_qemus_words() {
        let mut plan = Plan::default();
        let disk = plan.node("disk0");
        plan.export(
            "vda",
            disk,
            access(READ, Permissions::ALL.without(Permissions::WRITE)),
        );
        plan.export("vdb", disk, access(WRITE, Permissions::ALL));
        assert_eq!(
            plan.refusal(),
            "Permission conflict on node 'disk0': permissions 'write' are both required by block export \
             'vdb' (uses node 'disk0' as 'root' child) and unshared by block export 'vda' (uses node \
             'disk0' as 'root' child)."
        );

        let mut plan = Plan::default();
        let (file, format) = (plan.node("file0"), plan.node("disk0"));
        plan.child(format, file, Rule::Metadata);
        plan.export(
            "vda",
            file,
            access(WRITE.and(Permissions::RESIZE), Permissions::ALL),
        );
        assert_eq!(
            plan.refusal(),
            "Permission conflict on node 'file0': permissions 'write, resize' are both required by block \
             export 'vda' (uses node 'file0' as 'root' child) and unshared by node 'disk0' (uses node \
             'file0' as 'file' child)."
        );

        let mut plan = Plan::default();
        let (file, filter) = (plan.node("file0"), plan.node("filter0"));
        plan.nodes[file].read_only = true;
        plan.child(filter, file, Rule::Filter);
        plan.export("vda", filter, access(READ, Permissions::ALL));
        assert!(plan.share().is_ok());
        plan.export("vdb", filter, access(WRITE, Permissions::ALL));
        assert_eq!(plan.refusal(), "Block node is read-only");
    }

    #[test]
    fn a_node_is_not_below_itself() {
        let mut plan = Plan::default();
        let (one, other) = (plan.node("one"), plan.node("other"));
        plan.child(one, other, Rule::Filter);
        assert!(plan.share().is_ok());
        plan.child(other, one, Rule::Filter);
        assert!(matches!(plan.share(), Err(SharingError::Cycle(_))));
    }

    fn any_access() -> impl Strategy<Value = Access> {
        let set = || proptest::sample::subsequence(vec![0u8, 1, 2, 3], 0..=4);
        let to_set = |bits: Vec<u8>| {
            let one = |bit: u8| match bit {
                0 => Permissions::CONSISTENT_READ,
                1 => Permissions::WRITE,
                2 => Permissions::WRITE_UNCHANGED,
                _ => Permissions::RESIZE,
            };
            let bits = bits.into_iter().map(one);
            bits.fold(Permissions::NONE, Permissions::and)
        };
        (set(), set()).prop_map(move |(held, shared)| access(to_set(held), to_set(shared)))
    }

    /// Node numbers descend: a child has a smaller one than its parent.
    fn any_plan() -> impl Strategy<Value = Plan> {
        let children = proptest::collection::vec((0..6usize, 0..6usize, 0..5usize), 0..8);
        let exports = proptest::collection::vec((0..6usize, any_access()), 0..5);
        (children, exports).prop_map(|(children, exports)| {
            let mut plan = Plan::default();
            for number in 0..6 {
                plan.node(&format!("node{number}"));
            }
            for (one, other, rule) in children {
                if one != other {
                    plan.child(one.max(other), one.min(other), Rule::ALL[rule]);
                }
            }
            for (number, (node, access)) in exports.into_iter().enumerate() {
                plan.export(&format!("vd{number}"), node, access);
            }
            plan
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// What is granted is what the rules say, and nobody is in anybody's way; what is refused has
        /// two who are. Nobody who leaves is in the way of those that stay.
        #[test]
        fn all_get_along_or_two_do_not(plan in any_plan(), leaves in any::<prop::sample::Index>()) {
            let conflict = |node: &Shared, users: &[Access]| {
                (0..users.len()).any(|one| {
                    (0..users.len()).any(|other| {
                        one != other && !users[one].refuses(users[other]).is_empty()
                            && node.users[one].edge != node.users[other].edge
                    })
                })
            };
            match plan.share() {
                Ok(granted) => {
                    for (at, node) in plan.nodes.iter().enumerate() {
                        prop_assert!(!conflict(node, &granted.users[at]));
                        for (known, has) in node.users.iter().zip(&granted.users[at]) {
                            prop_assert_eq!(has.held.without(granted.nodes[at].held), Permissions::NONE);
                            prop_assert!(has.shared.contains(granted.nodes[at].shared));
                            match parent(&plan.nodes, known) {
                                None => prop_assert_eq!(*has, known.access),
                                Some(parent) => {
                                    let rule = plan.rules.iter().find(|(edge, _)| *edge == known.edge);
                                    let expected = rule.unwrap().1.apply(granted.nodes[parent]);
                                    prop_assert_eq!(*has, expected);
                                }
                            }
                        }
                    }
                    let mut fewer = Plan { nodes: plan.nodes.clone(), rules: plan.rules.clone() };
                    let with_exports: Vec<_> = (0..fewer.nodes.len())
                        .filter(|&at| fewer.nodes[at].users.iter().any(|known| known.role == "root"))
                        .collect();
                    if !with_exports.is_empty() {
                        let at = with_exports[leaves.index(with_exports.len())];
                        let users = &mut fewer.nodes[at].users;
                        let export = users.iter().position(|known| known.role == "root").unwrap();
                        users.remove(export);
                        let after = fewer.share();
                        prop_assert!(after.is_ok(), "{:?}", after);
                    }
                }
                Err(SharingError::Conflict(conflict)) => {
                    prop_assert!(!conflict.permissions.is_empty());
                    prop_assert!(conflict.by != conflict.against || conflict.role == conflict.against_role);
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
