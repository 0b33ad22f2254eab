//! Image files: PNG and JPEG, decoded and scaled.
//!
//! Scaling is done here rather than by a crate: those that scale well compile for longer than the rest
//! of this library.

use std::io::Cursor;
use std::path::Path;

use resnet_graph::Shape;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::files::read_at_most;
use crate::{Error, Result};

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 28;

/// Most pixels an image may say it has; larger ones are refused before memory is taken for them.
const MAX_PIXELS: usize = 100_000_000;

/// Red, green and blue.
type Pixel = [u8; 3];

struct Decoded {
    width: usize,
    height: usize,
    pixels: Vec<Pixel>,
}

/// What is wrong with an image.
type Wrong<T> = Result<T, String>;

/// Reads a PNG or JPEG file, whichever it is by its first bytes, as an image of `shape` with one channel
/// (grey) or three (red, green, blue): the largest centred part of the right aspect ratio, scaled with
/// antialiasing (Pillow's bilinear filter). Transparency is ignored.
///
/// # Errors
/// When the file cannot be read or decoded.
pub(super) fn read_image(path: &Path, shape: Shape, pixels: &mut [u8]) -> Result<()> {
    let file = read_at_most(path, MAX_FILE_BYTES)?;
    let mut read = || -> Wrong<()> {
        let scaled = scale(&decode(&file)?, shape.width, shape.height);
        for (c, plane) in pixels.chunks_exact_mut(shape.height * shape.width).enumerate() {
            for (out, &pixel) in plane.iter_mut().zip(&scaled) {
                *out = if shape.channels == 1 { luma(pixel) } else { pixel[c] };
            }
        }
        Ok(())
    };
    read().map_err(|wrong| Error::format(path, wrong))
}

fn decode(file: &[u8]) -> Wrong<Decoded> {
    match file {
        [0x89, b'P', b'N', b'G', ..] => decode_png(file),
        [0xff, 0xd8, ..] => decode_jpeg(file),
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

fn decode_png(file: &[u8]) -> Wrong<Decoded> {
    let wrong = |error: png::DecodingError| format!("a damaged PNG image: {error}");
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(file), png::Limits { bytes: 4 * MAX_PIXELS });
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(wrong)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    check_size(width, height)?;
    let mut pixels = vec![0; reader.output_buffer_size().ok_or("a PNG image too large for memory")?];
    let info = reader.next_frame(&mut pixels).map_err(wrong)?;
    pixels.truncate(info.buffer_size());
    Ok(Decoded { width, height, pixels: interleaved(&pixels, info.color_type.samples()) })
}

fn decode_jpeg(file: &[u8]) -> Wrong<Decoded> {
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
    let (space, channels) = if grey { (ColorSpace::Luma, 1) } else { (ColorSpace::RGB, 3) };
    decoder.set_options(options.jpeg_set_out_colorspace(space));
    let pixels = decoder.decode().map_err(wrong)?;
    if pixels.len() != width * height * channels {
        return Err(format!("a JPEG image of {width}x{height} pixels has {} bytes", pixels.len()));
    }
    Ok(Decoded { width, height, pixels: interleaved(&pixels, channels) })
}

/// Takes pixels of grey (1), grey and opacity (2), colour (3), or colour and opacity (4).
fn interleaved(bytes: &[u8], channels: usize) -> Vec<Pixel> {
    let pixels = bytes.chunks_exact(channels);
    if channels < 3 {
        pixels.map(|pixel| [pixel[0]; 3]).collect()
    } else {
        pixels.map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect()
    }
}

/// ITU-R BT.601, as Pillow's conversion to grey.
fn luma(pixel: Pixel) -> u8 {
    let weighted = [19595, 38470, 7471].iter().zip(pixel).map(|(weight, value)| weight * u32::from(value));
    ((weighted.sum::<u32>() + 0x8000) >> 16) as u8
}

/// Scales the largest centred part of the aspect ratio of the target: along rows, then along columns.
fn scale(image: &Decoded, width: usize, height: usize) -> Vec<Pixel> {
    let ratio = (image.width as f64 / width as f64).min(image.height as f64 / height as f64);
    let across = taps(image.width, width, ratio);
    let down = taps(image.height, height, ratio);
    let mut narrow = Vec::with_capacity(image.height * width);
    for row in image.pixels.chunks_exact(image.width) {
        narrow.extend(across.iter().map(|taps| taps.mix(|x| row[x].map(f32::from))));
    }
    let column = |taps: &Taps, x| taps.mix(|y| narrow[y * width + x]).map(|value| value.round() as u8);
    down.iter().flat_map(|taps| (0..width).map(move |x| column(taps, x))).collect()
}

/// The input pixels that make one output pixel.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

impl Taps {
    fn mix(&self, input: impl Fn(usize) -> [f32; 3]) -> [f32; 3] {
        let mut sum = [0.0; 3];
        for (offset, weight) in self.weights.iter().enumerate() {
            for (sum, value) in sum.iter_mut().zip(input(self.first + offset)) {
                *sum += weight * value;
            }
        }
        sum
    }
}

/// The weights of a triangle that is as wide as two output pixels (or two input pixels, when enlarging),
/// for `outputs` pixels of `ratio` input pixels each from the middle of `inputs`.
fn taps(inputs: usize, outputs: usize, ratio: f64) -> Vec<Taps> {
    let start = (inputs as f64 - ratio * outputs as f64) / 2.0;
    let support = ratio.max(1.0);
    let tap = |output: usize| {
        let centre = start + (output as f64 + 0.5) * ratio;
        let first = ((centre - support).floor().max(0.0) as usize).min(inputs - 1);
        let end = ((centre + support).ceil().max(0.0) as usize).clamp(first + 1, inputs);
        let weight = |input: usize| (1.0 - (input as f64 + 0.5 - centre).abs() / support).max(0.0);
        let total: f64 = (first..end).map(weight).sum();
        Taps { first, weights: (first..end).map(|input| (weight(input) / total) as f32).collect() }
    };
    (0..outputs).map(tap).collect()
}
