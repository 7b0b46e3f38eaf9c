//! The tree of objects, as `qom-list` and its like name what is in it. Pure.

use qapi::QmpError;

/// An object that holds others, and is in the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// Always empty.
    Backend,
    /// The character devices.
    Chardevs,
    /// What `object-add` makes.
    Objects,
}

impl Container {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Backend, Self::Objects, Self::Chardevs];

    /// Its name in the root.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::Chardevs => "chardevs",
            Self::Objects => "objects",
        }
    }

    fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }
}

/// Something in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `/`
    Root,
    /// `/objects` and its like.
    Container(Container),
    /// The object at this place of [`Ids::objects`]: `/objects/ID`.
    Object(usize),
    /// The character device at this place of [`Ids::chardevs`]: `/chardevs/ID`.
    Chardev(usize),
}

/// What is in the containers.
#[derive(Clone, Copy, Debug)]
pub struct Ids<'a> {
    /// What `object-add` has made.
    pub objects: &'a [&'a str],
    /// The character devices.
    pub chardevs: &'a [&'a str],
}

/// Why a path names no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// There is nothing.
    NotFound,
    /// There are several.
    Ambiguous,
}

impl Unresolved {
    /// What `qom-list` says of `path`.
    pub fn of_list(self, path: &str) -> QmpError {
        match self {
            Self::NotFound => self.of_property(path),
            Self::Ambiguous => QmpError::generic(format!("Path '{path}' is ambiguous")),
        }
    }

    /// What `qom-get` and `qom-set` say: several are none to them.
    pub fn of_property(self, path: &str) -> QmpError {
        QmpError::device_not_found(format!("Device '{path}' not found"))
    }
}

impl Ids<'_> {
    fn child(self, of: Place, name: &str) -> Option<Place> {
        let at = |ids: &[&str]| ids.iter().position(|id| *id == name);
        match of {
            Place::Root => Container::by_name(name).map(Place::Container),
            Place::Container(Container::Objects) => at(self.objects).map(Place::Object),
            Place::Container(Container::Chardevs) => at(self.chardevs).map(Place::Chardev),
            Place::Container(Container::Backend) | Place::Object(_) | Place::Chardev(_) => None,
        }
    }

    fn descendant(self, of: Place, names: &[&str]) -> Option<Place> {
        let mut names = names.iter();
        names.try_fold(of, |place, name| self.child(place, name))
    }

    /// What `path` names: a path from the root, or the end of one if that leads to one place only.
    ///
    /// # Errors
    /// If it names nothing, or several.
    pub fn resolve(self, path: &str) -> Result<Place, Unresolved> {
        let names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
        if path.starts_with('/') {
            let found = self.descendant(Place::Root, &names);
            return found.ok_or(Unresolved::NotFound);
        }
        let beginnings = [Place::Root]
            .into_iter()
            .chain(Container::ALL.map(Place::Container))
            .chain((0..self.objects.len()).map(Place::Object))
            .chain((0..self.chardevs.len()).map(Place::Chardev));
        let mut found = beginnings.filter_map(|place| self.descendant(place, &names));
        match (found.next(), found.next()) {
            (Some(place), None) => Ok(place),
            (None, _) => Err(Unresolved::NotFound),
            (Some(_), Some(_)) => Err(Unresolved::Ambiguous),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: Ids<'_> = Ids {
        objects: &["io1", "objects"],
        chardevs: &["m", "io2", "io1"],
    };

    #[test]
    fn paths_from_the_root() {
        for (path, place) in [
            ("/", Place::Root),
            ("/objects", Place::Container(Container::Objects)),
            ("/objects/", Place::Container(Container::Objects)),
            ("/chardevs", Place::Container(Container::Chardevs)),
            ("/backend", Place::Container(Container::Backend)),
            ("//objects//io1", Place::Object(0)),
            ("/objects/objects", Place::Object(1)),
            ("/chardevs/io1", Place::Chardev(2)),
        ] {
            assert_eq!(IDS.resolve(path), Ok(place), "{path}");
        }
        for path in [
            "/nosuch",
            "/io1",
            "/objects/io2",
            "/objects/io1/x",
            "/chardevs/m/x",
        ] {
            assert_eq!(IDS.resolve(path), Err(Unresolved::NotFound), "{path}");
        }
    }

    #[test]
    fn ends_of_paths() {
        assert_eq!(IDS.resolve("objects/io1"), Ok(Place::Object(0)));
        assert_eq!(IDS.resolve("io2"), Ok(Place::Chardev(1)));
        let chardevs = Place::Container(Container::Chardevs);
        assert_eq!(IDS.resolve("chardevs"), Ok(chardevs));
        for path in ["", "objects", "io1"] {
            assert_eq!(IDS.resolve(path), Err(Unresolved::Ambiguous), "{path}");
        }
        assert_eq!(IDS.resolve("io1/x"), Err(Unresolved::NotFound));
    }

    /// `qom-list` alone tells that there are several.
    #[test]
    fn several_are_none_to_properties() {
        let error = Unresolved::Ambiguous.of_list("x");
        assert_eq!(error, QmpError::generic("Path 'x' is ambiguous"));
        let error = Unresolved::Ambiguous.of_property("x");
        assert_eq!(error, QmpError::device_not_found("Device 'x' not found"));
    }
}
