//! The channels of one pixel of a lane group, taken out of tiles and put into them.

use super::{Simd, TileUnit, Vector, load, store};
use crate::layout::LANE_GROUP;
use crate::layout::tiles::{HALF, Tiling, stored_tile};

/// Values of some channels of 16 images: `[image][channel]`.
pub struct Channels {
    pub values: Vec<f32>,
    /// Channels of an image, in whole chunks.
    pub count: usize,
}

impl Channels {
    /// Zeros for some chunks of channels.
    pub fn new(chunks: usize) -> Self {
        Self { values: vec![0.0; LANE_GROUP * chunks * HALF], count: chunks * HALF }
    }

    /// Sets the channels from `first` on to zero.
    pub fn clear_from(&mut self, first: usize) {
        self.values.chunks_exact_mut(self.count).for_each(|values| values[first..].fill(0.0));
    }
}

/// Where a pixel's channels are.
pub struct Pixel<const PLANES: usize> {
    /// The first word of the first tile.
    tile: usize,
    /// Half of the tile, where it holds two pixels.
    half: usize,
    tiling: Tiling,
}

impl<const PLANES: usize> Pixel<PLANES> {
    /// A pixel of a lane group, by its index.
    pub fn new(tiling: Tiling, pixel: usize) -> Self {
        let (tile, _, half) = tiling.place(pixel, 0, 0);
        Self { tile: tile * stored_tile(PLANES), half, tiling }
    }

    /// Reads all channels of all images, filled up to whole chunks, to the places from `first` on.
    #[inline(always)]
    pub fn read<V: Vector>(&self, simd: Simd<V>, group: &[f32], values: &mut Channels, first: usize) {
        for image in 0..LANE_GROUP {
            for block in 0..self.tiling.blocks {
                let tile = &group[self.tile + block * stored_tile(PLANES)..][..stored_tile(PLANES)];
                let to = image * values.count + first + block * 2 * HALF;
                let to = &mut values.values[to..][..2 * HALF / self.tiling.pixels];
                for part in (0..HALF).step_by(V::LANES) {
                    // SAFETY: a part is a vector of the image's row in the tile, and of the 16
                    // values of each chunk.
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

    /// Writes all channels of all images from the places from `first` on; leaves the other half of
    /// a tile of two pixels as it is.
    #[inline(always)]
    pub fn write<U: TileUnit>(&self, simd: Simd<U>, group: &mut [f32], values: &Channels, first: usize) {
        for image in 0..LANE_GROUP {
            for block in 0..self.tiling.blocks {
                let tile = &mut group[self.tile + block * stored_tile(PLANES)..][..stored_tile(PLANES)];
                let from = image * values.count + first + block * 2 * HALF;
                let from = &values.values[from..][..2 * HALF / self.tiling.pixels];
                for part in (0..HALF).step_by(U::Vector::LANES) {
                    // SAFETY: a part is a vector of the image's row in the tile, and of the 16
                    // values of each chunk.
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
