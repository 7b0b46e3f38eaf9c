//! What is known of objects, and may be asked and changed while they exist: `qom-list`, `qom-get`,
//! `qom-set`, `query-iothreads`. Nobody waits here for anything.

use iothread::Handle;
use monitor::ChardevObject;
use parking_lot::Mutex;
use qapi::de::{Mode, from_object};
use qapi::options::{IothreadOptions, ObjectVariant, SecretOptions, ThrottleGroupOptions};
use qapi::qom::{self, Type};
use qapi::types::{IothreadInfo, ObjectPropertyInfo};
use qapi::{Object, QmpError, Value};

use crate::iothreads;
use crate::qom::{Container, Ids, Place, Unresolved};
use crate::throttle::Groups;

/// An object, as it was made and changed since.
#[derive(Debug)]
struct Known {
    id: String,
    variant: ObjectVariant,
    /// Of an iothread.
    thread: Option<Handle>,
}

impl Known {
    fn described(&self) -> Option<&'static Type> {
        Type::by_name(self.variant.kind().name())
    }

    /// The value of a property that is set; none: it is not.
    fn value(&self, property: &str) -> Option<Value> {
        let options = match &self.variant {
            ObjectVariant::Iothread(options) => serde_json::to_value(options),
            ObjectVariant::Secret(options) => serde_json::to_value(options),
            ObjectVariant::ThrottleGroup(options) => serde_json::to_value(options),
            ObjectVariant::VmmQemu(options)
            | ObjectVariant::VmmCloudHypervisor(options)
            | ObjectVariant::VmmFirecracker(options) => serde_json::to_value(options),
            ObjectVariant::VmmCommand(options) => serde_json::to_value(options),
        };
        options.ok()?.get_mut(property).map(Value::take)
    }
}

/// All objects, in the order in which they were added.
#[derive(Debug, Default)]
pub struct Properties(Mutex<Vec<Known>>);

impl Properties {
    /// An object exists; `thread`: that of an iothread.
    pub fn add(&self, id: &str, variant: ObjectVariant, thread: Option<Handle>) {
        self.0.lock().push(Known {
            id: id.to_owned(),
            variant,
            thread,
        });
    }

    /// An object does not exist any more.
    pub fn remove(&self, id: &str) {
        self.0.lock().retain(|known| known.id != id);
    }

    /// Whether there is an object of that name.
    pub fn contains(&self, id: &str) -> bool {
        self.0.lock().iter().any(|known| known.id == id)
    }

    /// Whether there is a secret of that name.
    pub fn has_secret(&self, id: &str) -> bool {
        let known = self.0.lock();
        let mut known = known.iter();
        known.any(|known| known.id == id && matches!(known.variant, ObjectVariant::Secret(_)))
    }

    /// `query-iothreads`.
    pub fn iothreads(&self) -> Vec<IothreadInfo> {
        let known = self.0.lock();
        let infos = known.iter().filter_map(|known| {
            let (ObjectVariant::Iothread(options), Some(thread)) = (&known.variant, &known.thread)
            else {
                return None;
            };
            let default = IothreadOptions::POLL_MAX_NS_DEFAULT;
            Some(IothreadInfo {
                id: known.id.clone(),
                thread_id: thread.stats().thread_id.into(),
                poll_max_ns: options.poll_max_ns.unwrap_or(default),
                poll_grow: options.poll_grow.unwrap_or(0),
                poll_shrink: options.poll_shrink.unwrap_or(0),
                aio_max_batch: options.aio_max_batch.unwrap_or(0),
                x_engine: Some(thread.engine().to_string()),
                x_engine_reason: thread.fallback().map(|why| why.to_string()),
            })
        });
        infos.collect()
    }

    /// `qom-list`.
    ///
    /// # Errors
    /// If `path` names nothing, or several.
    pub fn list(
        &self,
        chardevs: &[ChardevObject],
        path: &str,
    ) -> Result<Vec<ObjectPropertyInfo>, QmpError> {
        let known = self.0.lock();
        let child = |name: &str, kind: &str| qom::property(name, &format!("child<{kind}>"));
        let mut list = vec![qom::property("type", "string")];
        match find(&known, chardevs, path).map_err(|no| no.of_list(path))? {
            Place::Root => {
                let containers = Container::ALL.into_iter();
                list.extend(containers.map(|it| child(it.name(), qom::CONTAINER)));
            }
            Place::Container(Container::Backend) => {}
            Place::Container(Container::Objects) => {
                let ids = known.iter();
                list.extend(ids.map(|known| child(&known.id, known.variant.kind().name())));
            }
            Place::Container(Container::Chardevs) => {
                list.extend(chardevs.iter().map(|it| child(&it.id, it.r#type.name)));
            }
            Place::Object(at) => {
                return Ok(known[at].described().map(Type::describe).unwrap_or(list));
            }
            Place::Chardev(at) => return Ok(chardevs[at].r#type.describe()),
        }
        Ok(list)
    }

    /// `qom-get`.
    ///
    /// # Errors
    /// If `path` names nothing, or several, or there is no such property.
    pub fn get(
        &self,
        chardevs: &[ChardevObject],
        path: &str,
        property: &str,
    ) -> Result<Value, QmpError> {
        let known = self.0.lock();
        let place = find(&known, chardevs, path).map_err(|no| no.of_property(path))?;
        let child = match place {
            Place::Root => Container::ALL.iter().any(|it| it.name() == property),
            Place::Container(Container::Objects) => known.iter().any(|it| it.id == property),
            Place::Container(Container::Chardevs) => chardevs.iter().any(|it| it.id == property),
            _ => false,
        };
        let (kind, described, value) = match place {
            Place::Root if child => return Ok(format!("/{property}").into()),
            Place::Container(it) if child => {
                return Ok(format!("/{}/{property}", it.name()).into());
            }
            Place::Root | Place::Container(_) => (qom::CONTAINER, None, None),
            Place::Object(at) => {
                let known = &known[at];
                let kind = known.variant.kind().name();
                (kind, known.described(), known.value(property))
            }
            Place::Chardev(at) => {
                let chardev = &chardevs[at];
                let kind = chardev.r#type;
                (kind.name, Some(kind), chardev.value(property).cloned())
            }
        };
        if property == "type" {
            return Ok(kind.into());
        }
        let described = described.and_then(|it| it.property(property));
        let described = described.ok_or_else(|| no_property(kind, property))?;
        Ok(value.unwrap_or_else(|| described.default_value()))
    }

    /// `qom-set`.
    ///
    /// # Errors
    /// As [`Self::get`]; if the property cannot be changed, or not to that value.
    pub fn set(
        &self,
        groups: &Groups,
        chardevs: &[ChardevObject],
        path: &str,
        property: &str,
        value: Value,
    ) -> Result<(), QmpError> {
        let fixed =
            |kind: &str| QmpError::generic(format!("Property '{kind}.{property}' is not writable"));
        // It says whether there is such a property.
        self.get(chardevs, path, property)?;
        let mut known = self.0.lock();
        let known = match find(&known, chardevs, path).map_err(|no| no.of_property(path))? {
            Place::Root | Place::Container(_) => return Err(fixed(qom::CONTAINER)),
            Place::Chardev(at) => return Err(fixed(chardevs[at].r#type.name)),
            Place::Object(at) => &mut known[at],
        };
        let kind = known.variant.kind().name();
        if property == "type" {
            return Err(fixed(kind));
        }
        let change = Object::from_iter([(property.to_owned(), value)]);
        match &mut known.variant {
            ObjectVariant::Iothread(options) => {
                let change: IothreadOptions = from_object(&change, Mode::Json)?;
                let changed = options.changed_by(&change);
                changed.check()?;
                *options = changed;
                if let Some(thread) = &known.thread {
                    iothreads::apply(thread, options);
                }
            }
            ObjectVariant::Secret(options) => {
                let change: SecretOptions = from_object(&change, Mode::Json)?;
                *options = options.changed_by(change);
            }
            ObjectVariant::ThrottleGroup(options) if property == "limits" => {
                let change: ThrottleGroupOptions = from_object(&change, Mode::Json)?;
                if let Some(limits) = change.limits {
                    **options = groups.set_limits(&known.id, &limits)?.into();
                }
            }
            ObjectVariant::ThrottleGroup(_)
            | ObjectVariant::VmmQemu(_)
            | ObjectVariant::VmmCloudHypervisor(_)
            | ObjectVariant::VmmFirecracker(_)
            | ObjectVariant::VmmCommand(_) => {
                let desc = "Property cannot be set after initialization";
                return Err(QmpError::generic(desc));
            }
        }
        Ok(())
    }
}

fn find(known: &[Known], chardevs: &[ChardevObject], path: &str) -> Result<Place, Unresolved> {
    let objects: Vec<_> = known.iter().map(|known| &*known.id).collect();
    let chardevs: Vec<_> = chardevs.iter().map(|known| &*known.id).collect();
    let ids = Ids {
        objects: &objects,
        chardevs: &chardevs,
    };
    ids.resolve(path)
}

fn no_property(kind: &str, property: &str) -> QmpError {
    QmpError::generic(format!("Property '{kind}.{property}' not found"))
}
