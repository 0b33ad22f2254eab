//! Image files: PNG and JPEG, decoded and scaled.

use std::io::Cursor;
use std::path::Path;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x4;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use resnet_native::Shape;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::files::read_at_most;
use crate::{Error, Result};

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 28;

/// Most pixels an image may say it has; larger ones are refused before memory is taken for them.
const MAX_PIXELS: usize = 100_000_000;

/// Pixels of red, green, blue and a byte that nothing looks at: the scaling kernels like four.
struct Decoded {
    width: usize,
    height: usize,
    pixels: Vec<U8x4>,
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
        let scaled = scale(&decode(&file)?, shape.width, shape.height)?;
        for (c, plane) in pixels.chunks_exact_mut(shape.height * shape.width).enumerate() {
            for (out, &pixel) in plane.iter_mut().zip(scaled.pixels()) {
                *out = if shape.channels == 1 { luma(pixel) } else { pixel.0[c] };
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
fn interleaved(bytes: &[u8], channels: usize) -> Vec<U8x4> {
    let pixels = bytes.chunks_exact(channels);
    if channels < 3 {
        pixels.map(|pixel| U8x4::new([pixel[0]; 4])).collect()
    } else {
        pixels.map(|pixel| U8x4::new([pixel[0], pixel[1], pixel[2], 0])).collect()
    }
}

/// ITU-R BT.601, as Pillow's conversion to grey.
fn luma(pixel: U8x4) -> u8 {
    let weighted = [19595, 38470, 7471].iter().zip(pixel.0).map(|(weight, value)| weight * u32::from(value));
    ((weighted.sum::<u32>() + 0x8000) >> 16) as u8
}

fn scale(image: &Decoded, width: usize, height: usize) -> Wrong<TypedImage<'static, U8x4>> {
    let extent = |n: usize| u32::try_from(n).map_err(|_| format!("an extent of {n} pixels is too large"));
    let source = TypedImageRef::new(extent(image.width)?, extent(image.height)?, &image.pixels);
    let source = source.map_err(|error| error.to_string())?;
    let mut scaled = TypedImage::new(extent(width)?, extent(height)?);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
        .fit_into_destination(Some((0.5, 0.5)))
        .use_alpha(false);
    // Typed, because the untyped call compiles the kernels of all thirteen pixel types.
    Resizer::new().resize_typed(&source, &mut scaled, &options).map_err(|error| error.to_string())?;
    Ok(scaled)
}
