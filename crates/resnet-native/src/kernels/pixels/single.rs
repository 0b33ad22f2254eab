//! Convolution in single precision: sums of some pixels by some vectors of channels stay in
//! registers while the taps and the channels read go by.

use crate::kernels::PixelConv;
use crate::kernels::vector::{Simd, Vector};
use crate::layout::{Format, PixelTile, Windows};

/// Channels read without a branch in between.
const CHANNELS: usize = 4;

/// Computes some blocks with `K` vectors by `P` pixels or, where it has only one vector, that by
/// `M` pixels.
#[inline(always)]
pub fn conv<V: Vector, const K: usize, const P: usize, const M: usize>(simd: Simd<V>, mut band: PixelConv<'_>) {
    band.check(Format::Single);
    let to = &band.windows.to;
    for index in 0..band.output.len() / to.block_len() {
        let block = Block::new(simd, &mut band, index);
        for part in (0..to.block).step_by(K.min(to.block / V::LANES) * V::LANES) {
            // SAFETY: the band's lengths are checked, and a part is as many vectors of its blocks.
            unsafe {
                if to.block / V::LANES < K {
                    block.part::<1, M>(part);
                } else {
                    block.part::<K, P>(part);
                }
            }
        }
    }
}

/// A block on its way.
struct Block<'a, V> {
    simd: Simd<V>,
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

impl<'a, V: Vector> Block<'a, V> {
    fn new(simd: Simd<V>, band: &mut PixelConv<'a>, index: usize) -> Self {
        let to = &band.windows.to;
        let first = index * to.block_len();
        Self {
            simd,
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
    /// The band's lengths are checked, and its blocks have the vectors.
    #[inline(always)]
    unsafe fn part<const K: usize, const P: usize>(&self, part: usize) {
        for tile in &self.windows.tiles {
            let count = tile.valid[0].count_ones() as usize;
            let mut done = 0;
            while done < count {
                // SAFETY: the caller's vectors exist, and the tile has as many pixels as are left.
                done += unsafe {
                    match count - done {
                        left if left >= P => self.pixels::<K, P>(tile, done, part),
                        left if left >= 4 => self.pixels::<K, 4>(tile, done, part),
                        2 | 3 => self.pixels::<K, 2>(tile, done, part),
                        _ => self.pixels::<K, 1>(tile, done, part),
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
    unsafe fn pixels<const K: usize, const P: usize>(&self, tile: &PixelTile, first: usize, part: usize) -> usize {
        let (simd, block) = (self.simd, self.windows.to.block);
        // SAFETY: the caller's pixels and vectors; the tiles and windows of `Windows` lie inside
        // the layouts, whose lengths are checked.
        unsafe {
            let from = self.input.offset(tile.from).add(first * self.step);
            let to = tile.to + first * block + part;
            // Neighbours at a distance known to the compiler are cheaper to address.
            let mut sums = match self.step {
                16 => self.multiply::<K, P>(from, 16, part),
                32 => self.multiply::<K, P>(from, 32, part),
                step => self.multiply::<K, P>(from, step, part),
            };
            // Each loop is short enough to be unrolled, which keeps the sums in registers.
            if let Some(residual) = self.residual {
                for p in 0..P {
                    for k in 0..K {
                        sums[p][k] = sums[p][k].add(simd.load(residual.add(to + p * block + k * V::LANES)));
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
    unsafe fn multiply<const K: usize, const P: usize>(
        &self,
        from: *const f32,
        step: usize,
        part: usize,
    ) -> [[V; K]; P] {
        let (simd, block) = (self.simd, self.windows.to.block);
        // SAFETY: the caller's pixels; weights hold a row of the block for each window's channels.
        unsafe {
            let mut sums = [[simd.zero(); K]; P];
            for k in 0..K {
                let bias = simd.load(self.bias.add(part + k * V::LANES));
                for p in 0..P {
                    sums[p][k] = bias;
                }
            }
            let mut weights = self.weights.add(part);
            for window in &self.windows.reads {
                let mut input = from.offset(window.from);
                // A few channels at a time: the end of a short loop is foreseen, that of a long one
                // is not.
                for _ in 0..window.channels / CHANNELS {
                    for channel in 0..CHANNELS {
                        let row = weights.add(channel * block);
                        multiply_add(simd, &mut sums, input.add(channel), step, row);
                    }
                    input = input.add(CHANNELS);
                    weights = weights.add(CHANNELS * block);
                }
                for _ in 0..window.channels % CHANNELS {
                    multiply_add(simd, &mut sums, input, step, weights);
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
/// There are `P` values `step` apart from `input` on, and `K` vectors from `weights` on.
#[inline(always)]
unsafe fn multiply_add<V: Vector, const K: usize, const P: usize>(
    simd: Simd<V>,
    sums: &mut [[V; K]; P],
    input: *const f32,
    step: usize,
    weights: *const f32,
) {
    // SAFETY: the caller's values and weights.
    unsafe {
        let mut row = [simd.zero(); K];
        for k in 0..K {
            row[k] = simd.load(weights.add(k * V::LANES));
        }
        for p in 0..P {
            let value = simd.splat(*input.add(p * step));
            for k in 0..K {
                sums[p][k] = value.mul_add(row[k], sums[p][k]);
            }
        }
    }
}
