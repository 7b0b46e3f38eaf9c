//! What is known of objects, and may be asked and changed while they exist: `qom-list`, `qom-get`,
//! `qom-set`, `query-iothreads`. Nobody waits here for anything.

use iothread::Handle;
use parking_lot::Mutex;
use qapi::de::{Mode, from_object};
use qapi::options::{IothreadOptions, ObjectVariant, SecretOptions, ThrottleGroupOptions};
use qapi::qom::{self, Type};
use qapi::types::{IothreadInfo, ObjectPropertyInfo};
use qapi::{Object, QmpError, Value};

use crate::iothreads;
use crate::qom::{OBJECTS, Place, resolve};
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
    pub fn list(&self, path: &str) -> Result<Vec<ObjectPropertyInfo>, QmpError> {
        let known = self.0.lock();
        let child = |name: &str, kind: &str| qom::property(name, &format!("child<{kind}>"));
        let mut list = vec![qom::property("type", "string")];
        match find(&known, path)? {
            Found::Root => list.push(child(OBJECTS, qom::CONTAINER)),
            Found::Objects => {
                let ids = known.iter();
                list.extend(ids.map(|known| child(&known.id, known.variant.kind().name())));
            }
            Found::Object(at) => {
                return Ok(known[at].described().map(Type::describe).unwrap_or(list));
            }
        }
        Ok(list)
    }

    /// `qom-get`.
    ///
    /// # Errors
    /// If `path` names nothing, or several, or there is no such property.
    pub fn get(&self, path: &str, property: &str) -> Result<Value, QmpError> {
        let known = self.0.lock();
        match find(&known, path)? {
            Found::Root | Found::Objects if property == "type" => Ok(qom::CONTAINER.into()),
            Found::Root if property == OBJECTS => Ok(format!("/{OBJECTS}").into()),
            Found::Objects if known.iter().any(|known| known.id == property) => {
                Ok(format!("/{OBJECTS}/{property}").into())
            }
            Found::Root | Found::Objects => Err(no_property(qom::CONTAINER, property)),
            Found::Object(at) => {
                let known = &known[at];
                let kind = known.variant.kind().name();
                if property == "type" {
                    return Ok(kind.into());
                }
                let described = known.described().and_then(|it| it.property(property));
                let described = described.ok_or_else(|| no_property(kind, property))?;
                Ok(known
                    .value(property)
                    .unwrap_or_else(|| described.default_value()))
            }
        }
    }

    /// `qom-set`.
    ///
    /// # Errors
    /// As [`Self::get`]; if the property cannot be changed, or not to that value.
    pub fn set(
        &self,
        groups: &Groups,
        path: &str,
        property: &str,
        value: Value,
    ) -> Result<(), QmpError> {
        let fixed =
            |kind: &str| QmpError::generic(format!("Property '{kind}.{property}' is not writable"));
        // It says whether there is such a property.
        self.get(path, property)?;
        let mut known = self.0.lock();
        let known = match find(&known, path)? {
            Found::Root | Found::Objects => return Err(fixed(qom::CONTAINER)),
            Found::Object(at) => &mut known[at],
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

/// What a path names.
enum Found {
    Root,
    Objects,
    /// The object at this place.
    Object(usize),
}

fn find(known: &[Known], path: &str) -> Result<Found, QmpError> {
    let ids: Vec<_> = known.iter().map(|known| known.id.as_str()).collect();
    let place = resolve(path, &ids)?;
    let at = match place {
        Place::Root => return Ok(Found::Root),
        Place::Objects => return Ok(Found::Objects),
        Place::Object(id) => ids.iter().position(|known| *known == id),
    };
    let no = || QmpError::device_not_found(format!("Device '{path}' not found"));
    at.map(Found::Object).ok_or_else(no)
}

fn no_property(kind: &str, property: &str) -> QmpError {
    QmpError::generic(format!("Property '{kind}.{property}' not found"))
}
