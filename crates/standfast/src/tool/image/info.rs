//! `standfast image info`.

use std::fmt::Write;

use qcow2::ReadAt;
use qcow2::format::bitmap::{AUTO, IN_USE};
use qcow2::format::{BitmapEntry, CryptMethod, SnapshotEntry};
use qcow2::info::{Info, info};
use serde_json::{Value, json};

use super::opened::{Format, ImageError, Opened, Output};
use crate::tool::shown;
use crate::tool::size::significant;

/// What the image is, as text.
pub fn show(opened: &Opened, output: Output) -> Result<String, ImageError> {
    let (size, info) = look(opened)?;
    match output {
        Output::Json => Ok(format!("{:#}\n", object(opened, size, info.as_ref()))),
        Output::Human => Ok(human(opened, size, info.as_ref())),
    }
}

/// The same of all images of a chain.
pub fn show_all(chain: &[Opened], output: Output) -> Result<String, ImageError> {
    match output {
        Output::Human => {
            let all: Result<Vec<_>, _> = chain.iter().map(|one| show(one, output)).collect();
            Ok(all?.join("\n"))
        }
        Output::Json => {
            let one = |opened| {
                let (size, info) = look(opened)?;
                Ok(object(opened, size, info.as_ref()))
            };
            let all: Result<Vec<Value>, ImageError> = chain.iter().map(one).collect();
            Ok(format!("{:#}\n", Value::from(all?)))
        }
    }
}

/// How long the disk is, and what else is known of it.
fn look(opened: &Opened) -> Result<(u64, Option<Info>), ImageError> {
    let info = match opened.format {
        Format::Raw => None,
        Format::Qcow2 => {
            let image = opened.qcow2()?;
            Some(info(&image).map_err(|error| opened.failed(error))?)
        }
    };
    let size = match &info {
        Some(info) => info.size,
        None => opened.length()?,
    };
    Ok((size, info))
}

/// The members and their values are QEMU's `ImageInfo`.
fn object(opened: &Opened, size: u64, info: Option<&Info>) -> Value {
    let mut all = json!({
        "filename": opened.name,
        "format": opened.driver,
        "dirty-flag": info.is_some_and(|info| info.dirty),
        "virtual-size": size,
    });
    let mut put = |name: &str, value: Option<Value>| {
        if let (Some(members), Some(value)) = (all.as_object_mut(), value) {
            members.insert(name.to_owned(), value);
        }
    };
    put("actual-size", opened.file.allocated().map(Value::from));
    let Some(info) = info else {
        return all;
    };
    let encrypted = info.crypt_method != CryptMethod::None;
    put("encrypted", encrypted.then_some(true.into()));
    put("cluster-size", Some(info.cluster_size.into()));
    if let Some(name) = &info.backing_name {
        put("backing-filename", Some(name.as_str().into()));
        put("full-backing-filename", Some(opened.beside(name).into()));
    }
    put(
        "backing-filename-format",
        info.backing_format.clone().map(Value::from),
    );
    let snapshots = (!info.snapshots.is_empty()).then(|| info.snapshots.iter().map(snapshot));
    put("snapshots", snapshots.map(Iterator::collect));
    put(
        "format-specific",
        Some(json!({"type": "qcow2", "data": specific(info)})),
    );
    all
}

/// QEMU's `ImageInfoSpecificQCow2`.
fn specific(info: &Info) -> Value {
    let compression = info.compression.name();
    if info.version < 3 {
        return json!({
            "compat": "0.10",
            "compression-type": compression,
            "refcount-bits": info.refcount_bits,
        });
    }
    let mut all = json!({
        "compat": "1.1",
        "compression-type": compression,
        "lazy-refcounts": info.lazy_refcounts,
        "refcount-bits": info.refcount_bits,
        "corrupt": info.corrupt,
        "extended-l2": info.extended_l2,
    });
    if let Some(members) = all.as_object_mut() {
        if !info.bitmaps.is_empty() {
            members.insert(
                "bitmaps".to_owned(),
                info.bitmaps.iter().map(bitmap).collect(),
            );
        }
        if let Some(name) = &info.data_file {
            members.insert("data-file".to_owned(), name.as_str().into());
        }
        if let Some(raw) = info.data_file_raw {
            members.insert("data-file-raw".to_owned(), raw.into());
        }
        let encrypted = match info.crypt_method {
            CryptMethod::None => None,
            CryptMethod::Aes => Some("aes"),
            CryptMethod::Luks => Some("luks"),
        };
        if let Some(format) = encrypted {
            members.insert("encrypt".to_owned(), json!({"format": format}));
        }
    }
    all
}

fn snapshot(snapshot: &SnapshotEntry) -> Value {
    let clock = snapshot.vm_clock_nsec;
    let mut all = json!({
        "id": text(&snapshot.id),
        "name": text(&snapshot.name),
        "vm-state-size": snapshot.vm_state_size(),
        "date-sec": snapshot.date_sec,
        "date-nsec": snapshot.date_nsec,
        "vm-clock-sec": clock / NANOSECONDS,
        "vm-clock-nsec": clock % NANOSECONDS,
    });
    if let (Some(members), Some(icount)) = (all.as_object_mut(), snapshot.icount()) {
        members.insert("icount".to_owned(), icount.into());
    }
    all
}

fn bitmap(bitmap: &BitmapEntry) -> Value {
    json!({
        "flags": flags(bitmap).collect::<Vec<_>>(),
        "name": text(&bitmap.name),
        "granularity": granularity(bitmap),
    })
}

fn flags(bitmap: &BitmapEntry) -> impl Iterator<Item = &'static str> {
    let names = [(IN_USE, "in-use"), (AUTO, "auto")];
    let flags = bitmap.flags;
    let set = names.into_iter().filter(move |(bit, _)| flags & bit != 0);
    set.map(|(_, name)| name)
}

const fn granularity(bitmap: &BitmapEntry) -> u64 {
    1 << (bitmap.granularity_bits % 64)
}

const NANOSECONDS: u64 = 1_000_000_000;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn human(opened: &Opened, size: u64, info: Option<&Info>) -> String {
    let disk = opened.file.allocated();
    let mut all = format!(
        "image: {}\nfile format: {}\nvirtual size: {} ({size} bytes)\ndisk size: {}\n",
        shown::name(&opened.name),
        opened.driver,
        significant(size),
        disk.map_or_else(|| "unavailable".to_owned(), significant),
    );
    if let Some(info) = info {
        // A string takes what is written into it.
        let _ = qcow2_lines(&mut all, opened, info);
    }
    all
}

fn qcow2_lines(all: &mut String, opened: &Opened, info: &Info) -> std::fmt::Result {
    if info.crypt_method != CryptMethod::None {
        writeln!(all, "encrypted: yes")?;
    }
    writeln!(all, "cluster_size: {}", info.cluster_size)?;
    if info.dirty {
        writeln!(all, "cleanly shut down: no")?;
    }
    if let Some(name) = &info.backing_name {
        let full = opened.beside(name);
        let actual = (full != *name).then(|| format!(" (actual path: {})", shown::name(&full)));
        writeln!(
            all,
            "backing file: {}{}",
            shown::name(name),
            actual.unwrap_or_default()
        )?;
    }
    if let Some(format) = &info.backing_format {
        writeln!(all, "backing file format: {}", shown::name(format))?;
    }
    if !info.snapshots.is_empty() {
        writeln!(
            all,
            "Snapshot list:\n{:<10}{:<17}{:>8}{:>20}{:>13}{:>11}",
            "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT"
        )?;
    }
    for one in &info.snapshots {
        let clock = one.vm_clock_nsec / NANOSECONDS;
        let icount = one.icount().map(|count| count.to_string());
        writeln!(
            all,
            "{:<10}{:<17}{:>8}{:>20}{:>13}{:>11}",
            shown::name(&text(&one.id)),
            shown::name(&text(&one.name)),
            significant(one.vm_state_size()),
            date(one.date_sec),
            format!(
                "{:02}:{:02}:{:02}.{:03}",
                clock / 3600,
                clock / 60 % 60,
                clock % 60,
                one.vm_clock_nsec % NANOSECONDS / 1_000_000
            ),
            icount.unwrap_or_default(),
        )?;
    }
    writeln!(all, "Format specific information:")?;
    let old = info.version < 3;
    writeln!(all, "    compat: {}", if old { "0.10" } else { "1.1" })?;
    writeln!(all, "    compression type: {}", info.compression.name())?;
    if !old {
        writeln!(all, "    lazy refcounts: {}", info.lazy_refcounts)?;
    }
    if !info.bitmaps.is_empty() {
        writeln!(all, "    bitmaps:")?;
    }
    for (number, one) in info.bitmaps.iter().enumerate() {
        writeln!(all, "        [{number}]:")?;
        writeln!(all, "            flags:")?;
        for (flag, name) in flags(one).enumerate() {
            writeln!(all, "                [{flag}]: {name}")?;
        }
        writeln!(all, "            name: {}", shown::name(&text(&one.name)))?;
        writeln!(all, "            granularity: {}", granularity(one))?;
    }
    writeln!(all, "    refcount bits: {}", info.refcount_bits)?;
    if let Some(name) = &info.data_file {
        writeln!(all, "    data file: {}", shown::name(name))?;
    }
    if let Some(raw) = info.data_file_raw {
        writeln!(all, "    data file raw: {raw}")?;
    }
    if !old {
        writeln!(all, "    corrupt: {}", info.corrupt)?;
        writeln!(all, "    extended l2: {}", info.extended_l2)?;
    }
    Ok(())
}

/// In UTC.
fn date(seconds: u32) -> String {
    let time = jiff::Timestamp::new(i64::from(seconds), 0);
    let text = time.map(|time| time.to_string().replace('T', " ").replace('Z', ""));
    text.unwrap_or_default()
}
