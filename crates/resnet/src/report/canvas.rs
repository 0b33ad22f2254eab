//! Where figures are drawn: one canvas, saved as PNG or SVG.
//!
//! Drawing happens at [`FINE`] times the size of the picture. The bitmap backend does not smooth wide
//! lines, so a PNG is the average of `FINE x FINE` dots; an SVG has whole coordinates, so it gains
//! their precision.

use std::io::Write;
use std::path::Path;
use std::sync::LazyLock;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use crate::files::write_atomically;
use crate::{Error, Result};

/// Width and height of a picture in dots.
const SIZE: (u32, u32) = (1200, 800);

/// Dots of the canvas for one of the picture.
pub(super) const FINE: u32 = 3;

/// The canvas in its own dots.
const CANVAS: (u32, u32) = (SIZE.0 * FINE, SIZE.1 * FINE);

/// The typeface of all text: embedded in a PNG's pixels, the reader's own in an SVG.
pub(super) const TYPEFACE: &str = "sans-serif";

/// What every drawing ends with.
pub(super) type Drawn<B> = std::result::Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// Something to draw, on either backend.
pub(super) trait Drawing {
    /// Draws onto the whole canvas.
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Drawn<B>;
}

/// What a picture is saved as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Svg,
}

impl Format {
    /// The format a file's name asks for.
    pub fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().map(|extension| extension.to_ascii_lowercase());
        match extension.as_ref().and_then(|extension| extension.to_str()) {
            Some("png") => Ok(Self::Png),
            Some("svg") => Ok(Self::Svg),
            _ => Err(Error::format(path, "a plot's name ends in .png or .svg")),
        }
    }

    /// Draws and writes the picture; replaces the file whole.
    pub fn save(self, path: &Path, drawing: &impl Drawing) -> Result<()> {
        let failed = |error: &dyn std::fmt::Display| Error::format(path, format!("cannot be drawn: {error}"));
        register_typeface().map_err(|()| failed(&"the embedded font is damaged"))?;
        let bytes = match self {
            Self::Png => png(drawing).map_err(|error| failed(&error))?,
            Self::Svg => svg(drawing).map_err(|error| failed(&error))?.into_bytes(),
        };
        write_atomically(path, |file| file.write_all(&bytes))
    }
}

fn register_typeface() -> std::result::Result<(), ()> {
    static REGISTERED: LazyLock<bool> =
        LazyLock::new(|| register_font(TYPEFACE, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).is_ok());
    REGISTERED.then_some(()).ok_or(())
}

fn png(drawing: &impl Drawing) -> std::result::Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut canvas = vec![0; 3 * CANVAS.0 as usize * CANVAS.1 as usize];
    let area = BitMapBackend::with_buffer(&mut canvas, CANVAS).into_drawing_area();
    drawing.draw(&area).and_then(|()| area.present()).map_err(|error| error.to_string())?;
    drop(area);
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&shrink(&canvas))?;
    writer.finish()?;
    Ok(file)
}

/// The mean of each square of `FINE x FINE` dots.
fn shrink(canvas: &[u8]) -> Vec<u8> {
    let (fine, width) = (FINE as usize, SIZE.0 as usize);
    let mut picture = Vec::with_capacity(canvas.len() / (fine * fine));
    for rows in canvas.chunks_exact(3 * fine * width * fine) {
        let mut sums = vec![0u32; 3 * width];
        for row in rows.chunks_exact(3 * fine * width) {
            for (index, &value) in row.iter().enumerate() {
                sums[index / (3 * fine) * 3 + index % 3] += u32::from(value);
            }
        }
        let squares = FINE * FINE;
        picture.extend(sums.iter().map(|sum| ((sum + squares / 2) / squares) as u8));
    }
    picture
}

fn svg(drawing: &impl Drawing) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, CANVAS).into_drawing_area();
        drawing.draw(&area).and_then(|()| area.present()).map_err(|error| error.to_string())?;
    }
    // The canvas stays the view box; only the size to show it at is the picture's.
    let size = |(width, height): (u32, u32)| format!(r#"width="{width}" height="{height}""#);
    Ok(text.replacen(&size(CANVAS), &size(SIZE), 1))
}
