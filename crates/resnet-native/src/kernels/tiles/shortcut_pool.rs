//! Option A shortcut and average pooling on tiles, a pixel at a time.

use super::{TileUnit, Vector, load, store};
use crate::kernels::{AvgPool, PadShortcut};
use crate::layout::LANE_GROUP;
use crate::layout::tiles::{HALF, Tiling, stored_tile};

/// Keeps every `stride`-th pixel and puts zero channels on both sides.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn pad_shortcut<U: TileUnit, const PLANES: usize>(group: PadShortcut<'_>) {
    let (narrow, wide) = (Tiling::new(group.narrow), Tiling::new(group.wide));
    let first = group.first_channel();
    let mut values = Channels::new(wide.chunks().max(narrow.chunks() + 1 + first / HALF));
    group.output.fill(0.0);
    for (kept, pixel) in group.kept_pixels() {
        // SAFETY: pixels lie inside their groups, and the values have room for either's channels.
        unsafe {
            Pixel::<PLANES>::new(narrow, kept).read::<U::Vector>(group.input, &mut values, first);
            Pixel::<PLANES>::new(wide, pixel).write::<U>(group.output, &values, 0);
        }
    }
}

/// The reverse of [`pad_shortcut`]: what was dropped gets no gradient.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn pad_shortcut_backward<U: TileUnit, const PLANES: usize>(group: PadShortcut<'_>) {
    let (narrow, wide) = (Tiling::new(group.narrow), Tiling::new(group.wide));
    let first = group.first_channel();
    let mut values = Channels::new(wide.chunks().max(narrow.chunks() + 1 + first / HALF));
    group.output.fill(0.0);
    for (kept, pixel) in group.kept_pixels() {
        // SAFETY: as in `pad_shortcut`.
        unsafe {
            Pixel::<PLANES>::new(wide, pixel).read::<U::Vector>(group.input, &mut values, 0);
            values.clear_from(first + group.narrow.channels);
            Pixel::<PLANES>::new(narrow, kept).write::<U>(group.output, &values, first);
        }
    }
}

/// Mean over pixels, in single precision: `[channel][image]`.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn avg_pool<U: TileUnit, const PLANES: usize>(group: AvgPool<'_>) {
    let tiling = Tiling::new(group.shape);
    let pixels = group.shape.height * group.shape.width;
    let mut values = Channels::new(tiling.chunks());
    let mut totals = Channels::new(tiling.chunks());
    for pixel in 0..pixels {
        // SAFETY: the pixel lies inside the group.
        unsafe { Pixel::<PLANES>::new(tiling, pixel).read::<U::Vector>(group.input, &mut values, 0) };
        totals.values.iter_mut().zip(&values.values).for_each(|(total, value)| *total += value);
    }
    for (image, totals) in totals.values.chunks_exact(totals.count).enumerate() {
        for (channel, total) in totals.iter().enumerate().take(group.shape.channels) {
            group.output[channel * LANE_GROUP + image] = total / pixels as f32;
        }
    }
}

/// Every pixel gets its share of the mean's gradient.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn avg_pool_backward<U: TileUnit, const PLANES: usize>(group: AvgPool<'_>) {
    let tiling = Tiling::new(group.shape);
    let pixels = group.shape.height * group.shape.width;
    let mut values = Channels::new(tiling.chunks());
    for (image, values) in values.values.chunks_exact_mut(values.count).enumerate() {
        for (channel, value) in values.iter_mut().enumerate().take(group.shape.channels) {
            *value = group.input[channel * LANE_GROUP + image] / pixels as f32;
        }
    }
    group.output.fill(0.0);
    for pixel in 0..pixels {
        // SAFETY: the pixel lies inside the group.
        unsafe { Pixel::<PLANES>::new(tiling, pixel).write::<U>(group.output, &values, 0) };
    }
}

/// Values of some channels of 16 images: `[image][channel]`.
struct Channels {
    values: Vec<f32>,
    /// Channels of an image, in whole chunks.
    count: usize,
}

impl Channels {
    /// Zeros.
    fn new(chunks: usize) -> Self {
        Self { values: vec![0.0; LANE_GROUP * chunks * HALF], count: chunks * HALF }
    }

    /// Sets the channels from `first` on to zero.
    fn clear_from(&mut self, first: usize) {
        self.values.chunks_exact_mut(self.count).for_each(|values| values[first..].fill(0.0));
    }
}

/// Where a pixel's channels are.
struct Pixel<const PLANES: usize> {
    /// The first word of the first tile.
    tile: usize,
    /// Half of the tile, where it holds two pixels.
    half: usize,
    tiling: Tiling,
}

impl<const PLANES: usize> Pixel<PLANES> {
    fn new(tiling: Tiling, pixel: usize) -> Self {
        let (tile, _, half) = tiling.place(pixel, 0, 0);
        Self { tile: tile * stored_tile(PLANES), half, tiling }
    }

    /// Reads all channels of all images, filled up to whole chunks, to the places from `first` on.
    ///
    /// # Safety
    /// The pixel lies inside the group, and there is room for the channels.
    #[inline(always)]
    unsafe fn read<V: Vector>(&self, group: &[f32], values: &mut Channels, first: usize) {
        for image in 0..LANE_GROUP {
            for block in 0..self.tiling.blocks {
                let tile = group.as_ptr().wrapping_add(self.tile + block * stored_tile(PLANES));
                let to = image * values.count + first + block * 2 * HALF;
                for part in (0..HALF).step_by(V::LANES) {
                    // SAFETY: passed on from the caller.
                    unsafe {
                        let (low, high) = load::<V, PLANES>(tile, image * HALF + part);
                        let to = values.values.as_mut_ptr().add(to + part);
                        if self.tiling.pixels == 1 {
                            low.store(to);
                            high.store(to.add(HALF));
                        } else {
                            (if self.half == 0 { low } else { high }).store(to);
                        }
                    }
                }
            }
        }
    }

    /// Writes all channels of all images from the places from `first` on; leaves the other half of a tile of two
    /// pixels as it is.
    ///
    /// # Safety
    /// As [`read`](Self::read).
    #[inline(always)]
    unsafe fn write<U: TileUnit>(&self, group: &mut [f32], values: &Channels, first: usize) {
        for image in 0..LANE_GROUP {
            for block in 0..self.tiling.blocks {
                let tile = group.as_mut_ptr().wrapping_add(self.tile + block * stored_tile(PLANES));
                let from = image * values.count + first + block * 2 * HALF;
                for part in (0..HALF).step_by(U::Vector::LANES) {
                    // SAFETY: passed on from the caller.
                    unsafe {
                        let to = image * HALF + part;
                        let from = values.values.as_ptr().add(from + part);
                        let value = U::Vector::load(from);
                        let halves = if self.tiling.pixels == 1 {
                            (value, U::Vector::load(from.add(HALF)))
                        } else {
                            let (low, high) = load::<U::Vector, PLANES>(tile, to);
                            if self.half == 0 { (value, high) } else { (low, value) }
                        };
                        store::<U, PLANES>(halves, tile, to);
                    }
                }
            }
        }
    }
}
