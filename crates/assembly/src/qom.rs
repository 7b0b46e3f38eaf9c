//! The tree of objects, as `qom-list` and its like name what is in it. Pure.

use qapi::QmpError;

/// The name of the object that all are in which `object-add` makes.
pub const OBJECTS: &str = "objects";

/// Something in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// `/`
    Root,
    /// `/objects`
    Objects,
    /// `/objects/ID`
    Object(&'a str),
}

impl<'a> Place<'a> {
    fn child(self, name: &str, ids: &[&'a str]) -> Option<Place<'a>> {
        match self {
            Place::Root => (name == OBJECTS).then_some(Place::Objects),
            Place::Objects => ids
                .iter()
                .find(|&&id| id == name)
                .map(|id| Place::Object(id)),
            Place::Object(_) => None,
        }
    }

    fn descendant(self, names: &[&str], ids: &[&'a str]) -> Option<Place<'a>> {
        let mut names = names.iter();
        names.try_fold(self, |place, name| place.child(name, ids))
    }
}

/// What `path` names: a path from the root, or the end of one if that leads to one place only. `ids`: those
/// of all objects.
///
/// # Errors
/// If it names nothing, or several.
pub fn resolve<'a>(path: &str, ids: &[&'a str]) -> Result<Place<'a>, QmpError> {
    let not_found = || QmpError::device_not_found(format!("Device '{path}' not found"));
    let names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
    if path.starts_with('/') {
        let found = Place::Root.descendant(&names, ids);
        return found.ok_or_else(not_found);
    }
    let objects = ids.iter().map(|id| Place::Object(id));
    let beginnings = [Place::Root, Place::Objects].into_iter().chain(objects);
    let mut found = beginnings.filter_map(|place| place.descendant(&names, ids));
    match (found.next(), found.next()) {
        (Some(place), None) => Ok(place),
        (None, _) => Err(not_found()),
        (Some(_), Some(_)) => Err(QmpError::generic(format!("Path '{path}' is ambiguous"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: &[&str] = &["io1", "objects"];

    #[test]
    fn paths_from_the_root() {
        for (path, place) in [
            ("/", Place::Root),
            ("/objects", Place::Objects),
            ("/objects/", Place::Objects),
            ("//objects//io1", Place::Object("io1")),
            ("/objects/objects", Place::Object("objects")),
        ] {
            assert_eq!(resolve(path, IDS), Ok(place), "{path}");
        }
        for path in ["/nosuch", "/io1", "/objects/io2", "/objects/io1/x"] {
            let error = QmpError::device_not_found(format!("Device '{path}' not found"));
            assert_eq!(resolve(path, IDS), Err(error));
        }
    }

    #[test]
    fn ends_of_paths() {
        assert_eq!(resolve("io1", IDS), Ok(Place::Object("io1")));
        assert_eq!(resolve("objects/io1", IDS), Ok(Place::Object("io1")));
        assert_eq!(resolve("objects", &["io1"]), Ok(Place::Objects));
        for path in ["", "objects"] {
            let error = QmpError::generic(format!("Path '{path}' is ambiguous"));
            assert_eq!(resolve(path, IDS), Err(error));
        }
        assert!(resolve("io1/x", IDS).is_err());
    }
}
