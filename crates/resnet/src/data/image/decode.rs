//! PNG and JPEG files become pixels.

use std::io::Cursor;
use std::path::Path;

use resnet_graph::Shape;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::Image;
use crate::files::read_at_most;
use crate::{Error, Result};

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 28;

/// Most pixels an image may say it has; larger ones are refused before memory is taken for them.
const MAX_PIXELS: usize = 100_000_000;

/// What is wrong with an image.
type Wrong<T> = Result<T, String>;

/// Reads a PNG or JPEG file, whichever it is by its first bytes: one channel where it is grey, else
/// red, green and blue. Transparency is ignored.
///
/// # Errors
/// When the file cannot be read or decoded.
pub(crate) fn read_file(path: &Path, image: &mut Image) -> Result<()> {
    let file = read_at_most(path, MAX_FILE_BYTES)?;
    decode(&file, image).map_err(|wrong| Error::format(path, wrong))
}

fn decode(file: &[u8], image: &mut Image) -> Wrong<()> {
    match file {
        [0x89, b'P', b'N', b'G', ..] => decode_png(file, image),
        [0xff, 0xd8, ..] => decode_jpeg(file, image),
        [] => Err("expected a PNG or JPEG image, found an empty file".into()),
        _ => Err("expected a PNG or JPEG image, found something else".into()),
    }
}

fn check_size(width: usize, height: usize) -> Wrong<()> {
    match width.checked_mul(height) {
        Some(1..=MAX_PIXELS) => Ok(()),
        _ => Err(format!("expected 1 to {MAX_PIXELS} pixels, found {width}x{height}")),
    }
}

fn decode_png(file: &[u8], image: &mut Image) -> Wrong<()> {
    let wrong = |error: png::DecodingError| format!("a damaged PNG image: {error}");
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(file), png::Limits { bytes: 4 * MAX_PIXELS });
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(wrong)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    check_size(width, height)?;
    let mut pixels = vec![0; reader.output_buffer_size().ok_or("a PNG image too large for memory")?];
    let info = reader.next_frame(&mut pixels).map_err(wrong)?;
    pixels.truncate(info.buffer_size());
    separate(&pixels, info.color_type.samples(), (height, width), image);
    Ok(())
}

fn decode_jpeg(file: &[u8], image: &mut Image) -> Wrong<()> {
    let wrong = |error| format!("a damaged JPEG image: {error}");
    // Strict, or the missing part of a truncated file would silently be grey.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX));
    let mut decoder = JpegDecoder::new_with_options(Cursor::new(file), options);
    decoder.decode_headers().map_err(wrong)?;
    let (width, height) = decoder.dimensions().ok_or("a JPEG image without size")?;
    check_size(width, height)?;
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let (space, samples) = if grey { (ColorSpace::Luma, 1) } else { (ColorSpace::RGB, 3) };
    decoder.set_options(options.jpeg_set_out_colorspace(space));
    let pixels = decoder.decode().map_err(wrong)?;
    if pixels.len() != width * height * samples {
        return Err(format!("a JPEG image of {width}x{height} pixels has {} bytes", pixels.len()));
    }
    separate(&pixels, samples, (height, width), image);
    Ok(())
}

/// Takes pixels of grey (1), grey and opacity (2), colour (3), or colour and opacity (4).
fn separate(pixels: &[u8], samples: usize, (height, width): (usize, usize), image: &mut Image) {
    let channels = if samples < 3 { 1 } else { 3 };
    let planes = image.reshape(Shape::new(channels, height, width));
    for (channel, plane) in planes.chunks_exact_mut(height * width).enumerate() {
        for (value, pixel) in plane.iter_mut().zip(pixels.chunks_exact(samples)) {
            *value = pixel[channel];
        }
    }
}
