//! `standfast image map`.

use std::io::{self, BufWriter, Write};

use qcow2::map::{Extent, Merger, map, next_run};
use qcow2::{Image, ReadAt};

use super::opened::{Format, ImageError, Opened, Output};

/// Prints what is where, as it is found.
pub fn show(opened: &Opened, output: Output) -> Result<(), ImageError> {
    let image = match opened.format {
        Format::Raw => None,
        Format::Qcow2 => Some(opened.qcow2()?),
    };
    let info = image.as_ref().map(qcow2::info::info).transpose();
    let info = info.map_err(|error| opened.failed(error))?;
    let file = match info.and_then(|info| info.data_file) {
        Some(name) => opened.beside(&name),
        None => opened.name.clone(),
    };
    let mut table = Printer {
        out: BufWriter::new(io::stdout().lock()),
        output,
        file,
        first: true,
        failed: None,
    };
    let encrypted = image.as_ref().is_some_and(Image::is_encrypted);
    let mut tell = |extent: Extent| {
        // What is there is not what is read.
        let offset = extent.offset.filter(|_| !encrypted);
        table.row(Extent { offset, ..extent });
    };
    match &image {
        Some(image) => map(image, &mut tell).map_err(|error| opened.failed(error))?,
        None => raw(&opened.file, &mut tell).map_err(|error| opened.failed(error))?,
    }
    table.finish()
}

fn raw(file: &dyn ReadAt, tell: &mut dyn FnMut(Extent)) -> io::Result<()> {
    let size = file.length()?.next_multiple_of(512);
    let mut merger = Merger::new(tell);
    let mut start = 0;
    while start < size {
        let (length, zero) = next_run(file, start)?;
        let length = length.min(size - start);
        merger.add(Extent {
            start,
            length,
            present: true,
            zero,
            data: !zero,
            offset: Some(start),
        });
        start += length;
    }
    merger.finish();
    Ok(())
}

struct Printer<W: Write> {
    out: W,
    output: Output,
    /// Where what is stored is.
    file: String,
    first: bool,
    failed: Option<ImageError>,
}

impl<W: Write> Printer<W> {
    fn row(&mut self, extent: Extent) {
        if self.failed.is_none() {
            let row = match self.output {
                Output::Json => self.json(&extent),
                Output::Human => self.human(&extent),
            };
            self.failed = row.err();
        }
    }

    fn json(&mut self, extent: &Extent) -> Result<(), ImageError> {
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
            "{begin}{{ \"start\": {start}, \"length\": {length}, \"depth\": 0, \"present\": {present}, \
             \"zero\": {zero}, \"data\": {data}"
        )?;
        if let Some(offset) = offset {
            write!(self.out, ", \"offset\": {offset}")?;
        }
        Ok(write!(self.out, "}}")?)
    }

    fn human(&mut self, extent: &Extent) -> Result<(), ImageError> {
        self.header()?;
        if !extent.data || extent.zero {
            return Ok(());
        }
        let offset = extent.offset.ok_or(ImageError::NotPlain)?;
        let (start, length) = (hexadecimal(extent.start), hexadecimal(extent.length));
        let (offset, file) = (hexadecimal(offset), &self.file);
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
