//! `standfast image map`.

use std::io::{self, BufWriter, Write};

use qcow2::Image;
use qcow2::map::Extent;

use super::layers::{Layer, map};
use super::opened::{Format, ImageError, Opened, Output};
use crate::tool::shown;

/// Prints what is where in a chain, as it is found.
pub fn show(chain: &[Opened], output: Output) -> Result<(), ImageError> {
    let mut images = Vec::with_capacity(chain.len());
    let mut files = Vec::with_capacity(chain.len());
    for opened in chain {
        let image = match opened.format {
            Format::Raw => None,
            Format::Qcow2 => Some(opened.qcow2()?),
        };
        let info = image.as_ref().map(qcow2::info::info).transpose();
        let info = info.map_err(|error| opened.failed(error))?;
        files.push(match info.and_then(|info| info.data_file) {
            Some(name) => opened.beside(&name),
            None => opened.name.clone(),
        });
        images.push(image);
    }
    let mut layers = Vec::with_capacity(chain.len());
    for (opened, image) in chain.iter().zip(&images) {
        let layer = match image {
            Some(image) => Layer::qcow2(image).map_err(|error| opened.failed(error))?,
            None => Layer::raw(&opened.file).map_err(|error| opened.failed(error))?,
        };
        layers.push(layer);
    }
    let mut table = Printer {
        out: BufWriter::new(io::stdout().lock()),
        output,
        files,
        first: true,
        failed: None,
    };
    let is_encrypted = |image: &Option<Image<'_>>| image.as_ref().is_some_and(Image::is_encrypted);
    let encrypted: Vec<_> = images.iter().map(is_encrypted).collect();
    let mut tell = |depth: usize, extent: Extent| {
        // What is there is not what is read.
        let is_plain = encrypted.get(depth) != Some(&true);
        let offset = extent.offset.filter(|_| is_plain);
        table.row(depth, Extent { offset, ..extent });
    };
    map(&mut layers, &mut tell).map_err(|error| match chain.get(error.depth) {
        Some(opened) => opened.failed(error.reason),
        None => ImageError::Loop(error.reason),
    })?;
    table.finish()
}

struct Printer<W: Write> {
    out: W,
    output: Output,
    /// Where what is stored is, by depth.
    files: Vec<String>,
    first: bool,
    failed: Option<ImageError>,
}

impl<W: Write> Printer<W> {
    fn row(&mut self, depth: usize, extent: Extent) {
        if self.failed.is_none() {
            let row = match self.output {
                Output::Json => self.json(depth, &extent),
                Output::Human => self.human(depth, &extent),
            };
            self.failed = row.err();
        }
    }

    fn json(&mut self, depth: usize, extent: &Extent) -> Result<(), ImageError> {
        let begin = if self.first { "[" } else { ",\n" };
        self.first = false;
        let Extent {
            start,
            length,
            present,
            zero,
            data,
            offset,
        } = extent;
        write!(
            self.out,
            "{begin}{{ \"start\": {start}, \"length\": {length}, \"depth\": {depth}, \"present\": {present}, \
             \"zero\": {zero}, \"data\": {data}"
        )?;
        if let Some(offset) = offset {
            write!(self.out, ", \"offset\": {offset}")?;
        }
        Ok(write!(self.out, "}}")?)
    }

    fn human(&mut self, depth: usize, extent: &Extent) -> Result<(), ImageError> {
        self.header()?;
        if !extent.data || extent.zero {
            return Ok(());
        }
        let offset = extent.offset.ok_or(ImageError::NotPlain)?;
        let (start, length) = (hexadecimal(extent.start), hexadecimal(extent.length));
        let offset = hexadecimal(offset);
        let file = self.files.get(depth).map(|file| shown::name(file));
        let file = file.unwrap_or_default();
        Ok(writeln!(
            self.out,
            "{start:<16}{length:<16}{offset:<16}{file}"
        )?)
    }

    fn header(&mut self) -> Result<(), ImageError> {
        if self.first {
            self.first = false;
            writeln!(
                self.out,
                "{:<16}{:<16}{:<16}File",
                "Offset", "Length", "Mapped to"
            )?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), ImageError> {
        let end = match self.output {
            Output::Json if self.first => writeln!(self.out, "[]").map_err(ImageError::from),
            Output::Json => writeln!(self.out, "]").map_err(ImageError::from),
            Output::Human => self.header(),
        };
        let flushed = self.out.flush();
        if let Some(error) = self.failed {
            return Err(error);
        }
        end?;
        Ok(flushed?)
    }
}

/// As C has it: 0 has no prefix.
fn hexadecimal(number: u64) -> String {
    match number {
        0 => "0".to_owned(),
        _ => format!("{number:#x}"),
    }
}
