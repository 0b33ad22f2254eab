//! Convolution in single precision: sums of some pixels by some vectors of channels stay in registers while the taps
//! and the channels read go by.

use crate::kernels::PixelConv;
use crate::kernels::vector::Vector;
use crate::layout::{PixelTile, Windows};

/// Channels read without a branch in between.
const CHANNELS: usize = 4;

/// Computes some blocks with `K` vectors by `P` pixels or, where it has only one vector, that by `M` pixels.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn conv<V: Vector, const K: usize, const P: usize, const M: usize>(mut band: PixelConv<'_>) {
    let to = &band.windows.to;
    for index in 0..band.output.len() / to.block_len() {
        // SAFETY: passed on from the caller.
        unsafe {
            let block = Block::new(&mut band, index);
            for part in (0..to.block).step_by(K.min(to.block / V::LANES) * V::LANES) {
                if to.block / V::LANES < K {
                    block.part::<V, 1, M>(part);
                } else {
                    block.part::<V, K, P>(part);
                }
            }
        }
    }
}

/// A block on its way.
struct Block<'a> {
    windows: &'a Windows,
    input: *const f32,
    weights: *const f32,
    bias: *const f32,
    residual: Option<*const f32>,
    output: *mut f32,
    relu: bool,
    /// Floats from pixel to pixel read.
    step: usize,
}

impl<'a> Block<'a> {
    fn new(band: &mut PixelConv<'a>, index: usize) -> Self {
        let to = &band.windows.to;
        let first = index * to.block_len();
        Self {
            windows: band.windows,
            input: band.input.as_ptr(),
            weights: band.weights[index * band.windows.packed_len..].as_ptr(),
            bias: band.bias[index * to.block..].as_ptr(),
            residual: band.residual.map(|residual| residual[first..].as_ptr()),
            output: band.output[first..].as_mut_ptr(),
            relu: band.relu,
            step: band.windows.row_step(),
        }
    }

    /// Computes the `K` vectors of channels from `part` on.
    ///
    /// # Safety
    /// The slices of the band are as long as its check demands.
    #[inline(always)]
    unsafe fn part<V: Vector, const K: usize, const P: usize>(&self, part: usize) {
        for tile in &self.windows.tiles {
            let count = tile.valid[0].count_ones() as usize;
            let mut done = 0;
            while done < count {
                // SAFETY: passed on from the caller; the windows's lists lie inside the layouts.
                done += unsafe {
                    match count - done {
                        left if left >= P => self.pixels::<V, K, P>(tile, done, part),
                        left if left >= 4 => self.pixels::<V, K, 4>(tile, done, part),
                        2 | 3 => self.pixels::<V, K, 2>(tile, done, part),
                        _ => self.pixels::<V, K, 1>(tile, done, part),
                    }
                };
            }
        }
    }

    /// Computes `P` pixels; returns how many that are.
    ///
    /// # Safety
    /// As for [`part`](Self::part); the tile has as many pixels from `first` on.
    #[inline(always)]
    unsafe fn pixels<V: Vector, const K: usize, const P: usize>(
        &self,
        tile: &PixelTile,
        first: usize,
        part: usize,
    ) -> usize {
        let block = self.windows.to.block;
        // SAFETY: passed on from the caller.
        unsafe {
            let from = self.input.offset(tile.from).add(first * self.step);
            let to = tile.to + first * block + part;
            // Neighbours at a distance known to the compiler are cheaper to address.
            let mut sums = match self.step {
                16 => self.multiply::<V, K, P>(from, 16, part),
                32 => self.multiply::<V, K, P>(from, 32, part),
                step => self.multiply::<V, K, P>(from, step, part),
            };
            // Each loop is short enough to be unrolled, which keeps the sums in registers.
            if let Some(residual) = self.residual {
                for p in 0..P {
                    for k in 0..K {
                        sums[p][k] = sums[p][k].add(V::load(residual.add(to + p * block + k * V::LANES)));
                    }
                }
            }
            if self.relu {
                for p in 0..P {
                    for k in 0..K {
                        sums[p][k] = sums[p][k].relu();
                    }
                }
            }
            for p in 0..P {
                for k in 0..K {
                    sums[p][k].store(self.output.add(to + p * block + k * V::LANES));
                }
            }
        }
        P
    }

    /// The sums of `P` pixels from `from` on, `step` apart.
    ///
    /// # Safety
    /// As for [`pixels`](Self::pixels).
    #[inline(always)]
    unsafe fn multiply<V: Vector, const K: usize, const P: usize>(
        &self,
        from: *const f32,
        step: usize,
        part: usize,
    ) -> [[V; K]; P] {
        let block = self.windows.to.block;
        // SAFETY: passed on from the caller; weights hold a row of the block for each term's channels.
        unsafe {
            let mut sums = [[V::splat(0.0); K]; P];
            for k in 0..K {
                let bias = V::load(self.bias.add(part + k * V::LANES));
                for p in 0..P {
                    sums[p][k] = bias;
                }
            }
            let mut weights = self.weights.add(part);
            for window in &self.windows.reads {
                let mut input = from.offset(window.from);
                // A few channels at a time: the end of a short loop is foreseen, that of a long one is not.
                for _ in 0..window.channels / CHANNELS {
                    for channel in 0..CHANNELS {
                        let row = weights.add(channel * block);
                        multiply_add(&mut sums, input.add(channel), step, row);
                    }
                    input = input.add(CHANNELS);
                    weights = weights.add(CHANNELS * block);
                }
                for _ in 0..window.channels % CHANNELS {
                    multiply_add(&mut sums, input, step, weights);
                    input = input.add(1);
                    weights = weights.add(block);
                }
            }
            sums
        }
    }
}

/// Adds the products of one channel of `P` pixels, `step` apart, by `K` vectors of weights.
///
/// # Safety
/// The pointers are valid for that.
#[inline(always)]
unsafe fn multiply_add<V: Vector, const K: usize, const P: usize>(
    sums: &mut [[V; K]; P],
    input: *const f32,
    step: usize,
    weights: *const f32,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        let mut row = [V::splat(0.0); K];
        for k in 0..K {
            row[k] = V::load(weights.add(k * V::LANES));
        }
        for p in 0..P {
            let value = V::splat(*input.add(p * step));
            for k in 0..K {
                sums[p][k] = value.mul_add(row[k], sums[p][k]);
            }
        }
    }
}
