//! Option A shortcut and average pooling on tiles, a pixel at a time.

use super::{Simd, TileUnit, Vector, load, store};
use crate::kernels::{AvgPool, PadShortcut};
use crate::layout::tiles::{HALF, Tiling, stored_tile};
use crate::layout::{LANE_GROUP, Layout};

/// Keeps every `stride`-th pixel and puts zero channels on both sides.
#[inline(always)]
pub fn pad_shortcut<U: TileUnit, const PLANES: usize>(simd: Simd<U>, group: PadShortcut<'_>) {
    group.check(Layout::Tiles { planes: PLANES });
    let (narrow, wide) = (Tiling::new(group.narrow), Tiling::new(group.wide));
    let first = group.first_channel();
    let mut values = Channels::new(wide.chunks().max(narrow.chunks() + 1 + first / HALF));
    group.output.fill(0.0);
    for (kept, pixel) in group.kept_pixels() {
        Pixel::<PLANES>::new(narrow, kept).read(simd.vector(), group.input, &mut values, first);
        Pixel::<PLANES>::new(wide, pixel).write(simd, group.output, &values, 0);
    }
}

/// The reverse of [`pad_shortcut`]: what was dropped gets no gradient.
#[inline(always)]
pub fn pad_shortcut_backward<U: TileUnit, const PLANES: usize>(simd: Simd<U>, group: PadShortcut<'_>) {
    group.check(Layout::Tiles { planes: PLANES });
    let (narrow, wide) = (Tiling::new(group.narrow), Tiling::new(group.wide));
    let first = group.first_channel();
    let mut values = Channels::new(wide.chunks().max(narrow.chunks() + 1 + first / HALF));
    group.output.fill(0.0);
    for (kept, pixel) in group.kept_pixels() {
        Pixel::<PLANES>::new(wide, pixel).read(simd.vector(), group.input, &mut values, 0);
        values.clear_from(first + group.narrow.channels);
        Pixel::<PLANES>::new(narrow, kept).write(simd, group.output, &values, first);
    }
}

/// Mean over pixels, in single precision: `[channel][image]`.
#[inline(always)]
pub fn avg_pool<U: TileUnit, const PLANES: usize>(simd: Simd<U>, group: AvgPool<'_>) {
    group.check(Layout::Tiles { planes: PLANES });
    let tiling = Tiling::new(group.shape);
    let pixels = group.shape.height * group.shape.width;
    let mut values = Channels::new(tiling.chunks());
    let mut totals = Channels::new(tiling.chunks());
    for pixel in 0..pixels {
        Pixel::<PLANES>::new(tiling, pixel).read(simd.vector(), group.input, &mut values, 0);
        totals.values.iter_mut().zip(&values.values).for_each(|(total, value)| *total += value);
    }
    for (image, totals) in totals.values.chunks_exact(totals.count).enumerate() {
        for (channel, total) in totals.iter().enumerate().take(group.shape.channels) {
            group.output[channel * LANE_GROUP + image] = total / pixels as f32;
        }
    }
}

/// Every pixel gets its share of the mean's gradient.
#[inline(always)]
pub fn avg_pool_backward<U: TileUnit, const PLANES: usize>(simd: Simd<U>, group: AvgPool<'_>) {
    group.check(Layout::Tiles { planes: PLANES });
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
        Pixel::<PLANES>::new(tiling, pixel).write(simd, group.output, &values, 0);
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
    #[inline(always)]
    fn read<V: Vector>(&self, simd: Simd<V>, group: &[f32], values: &mut Channels, first: usize) {
        for image in 0..LANE_GROUP {
            for block in 0..self.tiling.blocks {
                let tile = &group[self.tile + block * stored_tile(PLANES)..][..stored_tile(PLANES)];
                let to = image * values.count + first + block * 2 * HALF;
                let to = &mut values.values[to..][..2 * HALF / self.tiling.pixels];
                for part in (0..HALF).step_by(V::LANES) {
                    // SAFETY: a part is a vector of the image's row in the tile, and of the 16 values of each chunk.
                    unsafe {
                        let (low, high) = load::<V, PLANES>(simd, tile.as_ptr(), image * HALF + part);
                        let to = to.as_mut_ptr().add(part);
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
    #[inline(always)]
    fn write<U: TileUnit>(&self, simd: Simd<U>, group: &mut [f32], values: &Channels, first: usize) {
        for image in 0..LANE_GROUP {
            for block in 0..self.tiling.blocks {
                let tile = &mut group[self.tile + block * stored_tile(PLANES)..][..stored_tile(PLANES)];
                let from = image * values.count + first + block * 2 * HALF;
                let from = &values.values[from..][..2 * HALF / self.tiling.pixels];
                for part in (0..HALF).step_by(U::Vector::LANES) {
                    // SAFETY: a part is a vector of the image's row in the tile, and of the 16 values of each chunk.
                    unsafe {
                        let to = image * HALF + part;
                        let value = simd.vector().load(from.as_ptr().add(part));
                        let halves = if self.tiling.pixels == 1 {
                            (value, simd.vector().load(from.as_ptr().add(HALF + part)))
                        } else {
                            let (low, high) = load::<U::Vector, PLANES>(simd.vector(), tile.as_ptr(), to);
                            if self.half == 0 { (value, high) } else { (low, value) }
                        };
                        store::<U, PLANES>(simd, halves, tile.as_mut_ptr(), to);
                    }
                }
            }
        }
    }
}
