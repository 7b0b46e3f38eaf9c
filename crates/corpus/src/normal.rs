//! What is different in every run is made the same: versions, paths, numbers of processes, times.

use serde_json::Value;

/// Makes what one run has said comparable with what another has.
#[derive(Debug)]
pub struct Normal {
    /// What is replaced, longest first.
    replaced: Vec<(String, &'static str)>,
}

/// Members whose values are times, or numbers that nobody chose.
const VARYING: &[&str] = &[
    "idle_time_ns",
    "rd_total_time_ns",
    "wr_total_time_ns",
    "flush_total_time_ns",
    "unmap_total_time_ns",
    "zone_append_total_time_ns",
    "thread-id",
    "pid",
    "timestamp",
];

impl Normal {
    /// For a run in `directory` of a program that may call itself one of these names.
    pub fn new(directory: &str, programs: &[&str]) -> Self {
        let mut replaced = vec![(directory.to_owned(), "{dir}")];
        replaced.extend(
            programs
                .iter()
                .map(|name| ((*name).to_owned(), "{program}")),
        );
        replaced.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        Self { replaced }
    }

    /// Something else that has this place's name, as a loop device has.
    pub fn also(&mut self, text: String, name: &'static str) {
        self.replaced.insert(0, (text, name));
    }

    /// A text.
    pub fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (from, to) in &self.replaced {
            text = text.replace(from, to);
        }
        let text = numbers(&text, "#block", "#block");
        let text = numbers(&text, "/dev/pts/", "/dev/pts/N");
        let text = numbers(&text, "process id ", "process id N");
        let text = numbers(&text, "(process ", "(process N");
        text.lines().next().and_then(version).map_or_else(
            || text.clone(),
            |name| {
                // What follows says whose the program is.
                format!("{name} version {{version}}\n")
            },
        )
    }

    /// A message, all the way down.
    pub fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(elements) => elements.iter().map(|e| self.value(e)).collect(),
            Value::Object(members) => {
                let member = |(name, value): (&String, &Value)| {
                    let value = match name.as_str() {
                        name if VARYING.contains(&name) && !value.is_object() => "N".into(),
                        "version" if value.get("qemu").is_some() => "{version}".into(),
                        "qemu" if value.get("major").is_some() => "{version}".into(),
                        "package" if value.is_string() => "{version}".into(),
                        _ => self.value(value),
                    };
                    (name.clone(), value)
                };
                let members = members.iter().filter(|(name, _)| *name != "timestamp");
                Value::Object(members.map(member).collect())
            }
            _ => value.clone(),
        }
    }
}

/// The name before `version 1.2.3...`, if a line says that and no more.
fn version(line: &str) -> Option<&str> {
    let (name, version) = line.split_once(" version ")?;
    let is_version = version.starts_with(|c: char| c.is_ascii_digit());
    (is_version && name == "{program}").then_some(name)
}

/// Each place where digits follow `before` has `after` instead of both.
fn numbers(text: &str, before: &str, after: &str) -> String {
    let mut normal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(before) {
        let (head, tail) = rest.split_at(at);
        let tail = &tail[before.len()..];
        let digits = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        normal.push_str(head);
        normal.push_str(if digits == 0 { before } else { after });
        rest = &tail[digits..];
    }
    normal.push_str(rest);
    normal
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_varies_is_the_same_afterwards() {
        let normal = Normal::new("/tmp/q1", &["/usr/bin/qsd", "qsd"]);
        assert_eq!(
            normal.text("/usr/bin/qsd: qsd: /tmp/q1/a #block123 #blocks"),
            "{program}: {program}: {dir}/a #block #blocks"
        );
        assert_eq!(
            normal.text("qsd version 10.0.2 (Debian 1:10)\nCopyright\n"),
            normal.text("/usr/bin/qsd version 0.1.0\n")
        );
        assert_eq!(normal.text("qsd 0.1.0\n"), "{program} 0.1.0\n");
        let event = json!({"event": "X", "timestamp": {"seconds": 1}, "data": {"f": "/tmp/q1/a"}});
        assert_eq!(
            normal.value(&event),
            json!({"event": "X", "data": {"f": "{dir}/a"}})
        );
        let greeting = json!({"QMP": {"version": {"qemu": {"major": 7}, "package": "p"}}});
        assert_eq!(
            normal.value(&greeting),
            json!({"QMP": {"version": "{version}"}})
        );
        let version = json!({"return": {"qemu": {"major": 7}, "package": "p"}});
        assert_eq!(
            normal.value(&version),
            json!({"return": {"qemu": "{version}", "package": "{version}"}})
        );
        assert_eq!(
            normal.value(&json!({"idle_time_ns": 3})),
            json!({"idle_time_ns": "N"})
        );
    }
}
