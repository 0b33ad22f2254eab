//! Option A shortcut and average pooling on tiles, a pixel of an image at a time.

use super::{TileUnit, Vector, load, store};
use crate::kernels::{Pad, Pool};
use crate::layout::{GROUP, HALF, Tiling, stored_tile};

/// Keeps every `stride`-th pixel and puts zero channels on both sides.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn pad<U: TileUnit, const PLANES: usize>(group: Pad<'_>) {
    let (narrow, wide) = (Tiling::new(group.narrow), Tiling::new(group.wide));
    let first = group.first_channel();
    let mut values = vec![0.0; wide.chunks().max(narrow.chunks() + 1 + first / HALF) * HALF];
    group.output.fill(0.0);
    for (kept, pixel) in group.kept_pixels() {
        let (from, to) = (Pixel::<PLANES>::new(narrow, kept), Pixel::<PLANES>::new(wide, pixel));
        for image in 0..GROUP {
            // SAFETY: pixels lie inside their groups, and the values have room for either's channels.
            unsafe {
                from.read::<U::Vector>(group.input, image, &mut values[first..]);
                to.write::<U>(group.output, image, &values);
            }
        }
    }
}

/// The reverse of [`pad`]: what was dropped gets no gradient.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn pad_backward<U: TileUnit, const PLANES: usize>(group: Pad<'_>) {
    let (narrow, wide) = (Tiling::new(group.narrow), Tiling::new(group.wide));
    let (first, channels) = (group.first_channel(), group.narrow.channels);
    let mut values = vec![0.0; wide.chunks() * HALF];
    let mut own = vec![0.0; narrow.chunks() * HALF];
    group.output.fill(0.0);
    for (kept, pixel) in group.kept_pixels() {
        let (from, to) = (Pixel::<PLANES>::new(wide, pixel), Pixel::<PLANES>::new(narrow, kept));
        for image in 0..GROUP {
            // SAFETY: as in `pad`.
            unsafe {
                from.read::<U::Vector>(group.input, image, &mut values);
                own[..channels].copy_from_slice(&values[first..first + channels]);
                to.write::<U>(group.output, image, &own);
            }
        }
    }
}

/// Mean over pixels, in single precision: `[channel][image]`.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn pool<U: TileUnit, const PLANES: usize>(group: Pool<'_>) {
    let tiling = Tiling::new(group.shape);
    let pixels = group.shape.height * group.shape.width;
    let mut values = vec![0.0f32; tiling.chunks() * HALF];
    for image in 0..GROUP {
        let mut totals = vec![0.0f32; values.len()];
        for pixel in 0..pixels {
            // SAFETY: the pixel lies inside the group.
            unsafe { Pixel::<PLANES>::new(tiling, pixel).read::<U::Vector>(group.input, image, &mut values) };
            totals.iter_mut().zip(&values).for_each(|(total, value)| *total += value);
        }
        for (channel, total) in totals.iter().enumerate().take(group.shape.channels) {
            group.output[channel * GROUP + image] = total / pixels as f32;
        }
    }
}

/// Every pixel gets its share of the mean's gradient.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn pool_backward<U: TileUnit, const PLANES: usize>(group: Pool<'_>) {
    let tiling = Tiling::new(group.shape);
    let pixels = group.shape.height * group.shape.width;
    let mut values = vec![0.0f32; tiling.chunks() * HALF];
    group.output.fill(0.0);
    for image in 0..GROUP {
        for (channel, value) in values.iter_mut().enumerate().take(group.shape.channels) {
            *value = group.input[channel * GROUP + image] / pixels as f32;
        }
        for pixel in 0..pixels {
            // SAFETY: the pixel lies inside the group.
            unsafe { Pixel::<PLANES>::new(tiling, pixel).write::<U>(group.output, image, &values) };
        }
    }
}

/// Where a pixel's channels are.
struct Pixel<const PLANES: usize> {
    /// The first word of the first image.
    word: usize,
    /// Half of the tile, where it holds two pixels.
    half: usize,
    chunks: usize,
}

impl<const PLANES: usize> Pixel<PLANES> {
    fn new(tiling: Tiling, pixel: usize) -> Self {
        let (tile, word, half) = tiling.place(pixel, 0, 0);
        Self { word: tile * stored_tile(PLANES) + word, half, chunks: tiling.chunks() }
    }

    /// Place and half of each chunk of channels of an image.
    #[inline(always)]
    fn chunks(&self, image: usize) -> impl Iterator<Item = (usize, usize)> + use<PLANES> {
        let (word, half) = (self.word + image * HALF, self.half);
        (0..self.chunks).map(move |chunk| (word + chunk / 2 * stored_tile(PLANES), half + chunk % 2))
    }

    /// Reads all channels of an image, filled up to whole chunks.
    ///
    /// # Safety
    /// The pixel lies inside the group.
    #[inline(always)]
    unsafe fn read<V: Vector>(&self, group: &[f32], image: usize, values: &mut [f32]) {
        for ((word, half), values) in self.chunks(image).zip(values.chunks_exact_mut(HALF)) {
            for part in (0..HALF).step_by(V::LANES) {
                // SAFETY: passed on from the caller.
                unsafe {
                    let (low, high) = load::<V, PLANES>(group.as_ptr().add(word + part));
                    let value = if half == 0 { low } else { high };
                    value.store(values.as_mut_ptr().add(part));
                }
            }
        }
    }

    /// Writes all channels of an image and leaves the other half of the tile as it is.
    ///
    /// # Safety
    /// The pixel lies inside the group.
    #[inline(always)]
    unsafe fn write<U: TileUnit>(&self, group: &mut [f32], image: usize, values: &[f32]) {
        for ((word, half), values) in self.chunks(image).zip(values.chunks_exact(HALF)) {
            for part in (0..HALF).step_by(U::Vector::LANES) {
                // SAFETY: passed on from the caller.
                unsafe {
                    let to = group.as_mut_ptr().add(word + part);
                    let (low, high) = load::<U::Vector, PLANES>(to);
                    let value = U::Vector::load(values.as_ptr().add(part));
                    store::<U, PLANES>(if half == 0 { (value, high) } else { (low, value) }, to);
                }
            }
        }
    }
}
