//! What becomes of a convolution's sums: tiles of its output, and sums over that for a batch norm.

use super::channels::{PaddedReluMask, PerChannel};
use super::{Pair, Simd, TileUnit, Vector, ZERO, load, padded, store_either};
use crate::kernels::{ConvBand, Epilogue};
use crate::layout::tiles::{HALF, TILE, Tiling, stored_tile};

/// Tiles that are summed in single precision before the sums move on to double.
const TILES_PER_FLUSH: usize = 16;

/// Writes a band, block by block.
pub struct Writer<'a, const PLANES: usize> {
    output: &'a mut [f32],
    tiling: Tiling,
    accumulate: bool,
    /// Whether tiles are written with non-temporal stores.
    non_temporal: bool,
    sums: BandSums<'a>,
}

/// A tile of a band.
#[derive(Clone, Copy)]
pub struct Place {
    /// Row of pixels.
    pub row: usize,
    /// Column of tiles.
    pub column: usize,
    /// Block of channels.
    pub block: usize,
}

impl<'a, const PLANES: usize> Writer<'a, PLANES> {
    /// Writes a band's output, and takes its sums.
    pub fn new(band: ConvBand<'a>) -> Self {
        let (tiling, non_temporal) = (Tiling::new(band.gather.to), band.non_temporal());
        let ConvBand { output, accumulate, epilogue, images, sums, .. } = band;
        let sums = BandSums::new(epilogue, images, tiling, sums);
        Self { output, tiling, accumulate, non_temporal, sums }
    }

    /// Writes a tile, given as floats half by half; a half without a pixel becomes zero.
    ///
    /// # Safety
    /// The place lies inside the band, and `values` are tiles.
    #[inline(always)]
    pub unsafe fn write<U: TileUnit>(&mut self, simd: Simd<U>, place: Place, values: [*const f32; 2]) {
        let tile = (place.row * self.tiling.columns + place.column) * self.tiling.blocks + place.block;
        let at = tile * stored_tile(PLANES);
        let halves = self.tiling.halves(place.column);
        let filled = if halves == 2 { values } else { [values[0], ZERO[0].as_ptr()] };
        // SAFETY: the caller's place and tiles.
        unsafe {
            if let TileEpilogue::NormReduction { .. } = self.sums.epilogue {
                self.store_masked(simd, filled, at, place.block);
            } else {
                self.store(simd, filled, at);
                self.sums.add_moments(simd.vector(), values, place.block, halves);
            }
        }
    }

    /// Ends a row of a block.
    pub fn end_row(&mut self, block: usize) {
        self.sums.end_row(block);
    }

    /// Ends a block, to which the band may come back.
    pub fn end_block(&mut self, block: usize) {
        self.sums.flush(block);
    }

    /// Gives the sums out.
    #[inline(always)]
    pub fn finish<V: Vector>(mut self, simd: Simd<V>) {
        V::fence(simd);
        self.sums.finish();
    }

    /// Rounds values to their tile.
    ///
    /// # Safety
    /// `low` and `high` are tiles, and the band has a tile at word `at`.
    #[inline(always)]
    unsafe fn store<U: TileUnit>(&mut self, simd: Simd<U>, [low, high]: [*const f32; 2], at: usize) {
        let vector = simd.vector();
        let output = self.output.as_mut_ptr().wrapping_add(at);
        for part in (0..TILE).step_by(U::Vector::LANES) {
            // SAFETY: the caller's tiles, of which `part` is a vector; where stores are
            // non-temporal the band begins a line, and tiles are whole lines.
            unsafe {
                let (mut low, mut high) = (vector.load(low.add(part)), vector.load(high.add(part)));
                if self.accumulate {
                    let before = load::<U::Vector, PLANES>(vector, output, part);
                    (low, high) = (low.add(before.0), high.add(before.1));
                }
                store_either::<U, PLANES>(simd, (low, high), output, part, self.non_temporal);
            }
        }
    }

    /// Masks values by the ReLU, rounds them to their tile and sums them for a batch norm's
    /// gradient.
    ///
    /// # Safety
    /// As for [`store`](Self::store).
    #[inline(always)]
    unsafe fn store_masked<U: TileUnit>(
        &mut self,
        simd: Simd<U>,
        [low, high]: [*const f32; 2],
        at: usize,
        block: usize,
    ) {
        let vector = simd.vector();
        let output = self.output.as_mut_ptr().wrapping_add(at);
        let BandSums { epilogue: TileEpilogue::NormReduction { mean, mask, input }, block: totals, .. } =
            &mut self.sums
        else {
            return;
        };
        for part in (0..HALF).step_by(U::Vector::LANES) {
            let mean: Pair<U::Vector> = mean.load(vector, block, part);
            let mask = mask.load(vector, block, part);
            let mut sums = [vector.zero(); 4];
            // SAFETY: as in `store`; the batch norm's input, and the ReLU's output where there is
            // one, have a tile where the band has one, and the totals have 16 channels for each
            // sum.
            unsafe {
                for image in (part..TILE).step_by(HALF) {
                    let mut g = (vector.load(low.add(image)), vector.load(high.add(image)));
                    if self.accumulate {
                        let before = load::<U::Vector, PLANES>(vector, output, image);
                        g = (g.0.add(before.0), g.1.add(before.1));
                    }
                    let y = load::<U::Vector, PLANES>(vector, input.add(at), image);
                    let g = mask.mask::<PLANES>(vector, g, y, at, image);
                    store_either::<U, PLANES>(simd, g, output, image, self.non_temporal);
                    sums[0] = sums[0].add(g.0);
                    sums[1] = g.0.mul_add(y.0.sub(mean.0), sums[1]);
                    sums[2] = sums[2].add(g.1);
                    sums[3] = g.1.mul_add(y.1.sub(mean.1), sums[3]);
                }
                for which in 0..4 {
                    let total = totals.0.as_mut_ptr().add(which * HALF + part);
                    vector.load(total).add(sums[which]).store(total);
                }
            }
        }
    }
}

/// What an [`Epilogue`] sums over a band's output, added up block by block.
struct BandSums<'a> {
    epilogue: TileEpilogue<'a>,
    tiling: Tiling,
    /// Of the current block.
    block: BlockSums,
    /// `[block][half][2][channel]`.
    totals: Vec<f64>,
    /// Tiles since the sums moved on.
    tiles: usize,
    /// The epilogue as the band has it.
    given: Epilogue<'a>,
    /// Where the sums go, `[channel][2]`.
    sums: &'a mut [f64],
}

/// An [`Epilogue`] with its channels' values filled up to whole tiles.
enum TileEpilogue<'a> {
    None,
    /// `y - pivot` and its square, over some images.
    Moments {
        pivot: Vec<f32>,
        images: usize,
    },
    /// `g`, masked, and `g * (input - mean)`.
    NormReduction {
        mean: PerChannel,
        mask: PaddedReluMask<'a>,
        input: *const f32,
    },
}

impl<'a> BandSums<'a> {
    fn new(given: Epilogue<'a>, images: usize, tiling: Tiling, sums: &'a mut [f64]) -> Self {
        let epilogue = match given {
            Epilogue::None => TileEpilogue::None,
            Epilogue::Moments { pivot } => TileEpilogue::Moments { pivot: padded(pivot), images },
            Epilogue::NormReduction(reduction) => TileEpilogue::NormReduction {
                mean: PerChannel::new(&reduction.norm.mean, tiling),
                mask: PaddedReluMask::new(reduction, tiling),
                input: reduction.input.as_ptr(),
            },
        };
        let totals = vec![0.0; if given.sums_up() { 4 * HALF * tiling.blocks } else { 0 }];
        Self { epilogue, tiling, block: BlockSums([0.0; 4 * HALF]), totals, tiles: 0, given, sums }
    }

    /// Adds the moments of a tile of the current block.
    ///
    /// # Safety
    /// `values` are tiles of floats.
    #[inline(always)]
    unsafe fn add_moments<V: Vector>(&mut self, simd: Simd<V>, values: [*const f32; 2], block: usize, halves: usize) {
        let TileEpilogue::Moments { pivot, images } = &self.epilogue else { return };
        for (half, &values) in values.iter().enumerate().take(halves) {
            let chunk = if self.tiling.pixels == 2 { 0 } else { 2 * block + half };
            let pivot = &pivot[chunk * HALF..][..HALF];
            // SAFETY: the caller's tiles.
            unsafe { self.block.add(simd, half, values, pivot, *images) };
        }
    }

    fn end_row(&mut self, block: usize) {
        self.tiles += self.tiling.columns;
        if self.tiles >= TILES_PER_FLUSH {
            self.flush(block);
        }
    }

    /// Moves the sums on to double precision.
    fn flush(&mut self, block: usize) {
        self.tiles = 0;
        let totals = self.totals.chunks_exact_mut(4 * HALF).nth(block).unwrap_or_default();
        for (sum, total) in self.block.0.iter_mut().zip(totals) {
            *total += f64::from(std::mem::take(sum));
        }
    }

    /// Gives the sums out as `[channel][2]`; both halves belong to the same channels where a tile
    /// holds two pixels.
    fn finish(&mut self) {
        let of = |chunk: usize, which: usize, lane: usize| self.totals[(chunk * 2 + which) * HALF + lane];
        for (channel, sums) in self.sums.chunks_exact_mut(2).enumerate() {
            let (chunk, lane) = (channel / HALF, channel % HALF);
            for (which, sum) in sums.iter_mut().enumerate() {
                *sum = of(chunk, which, lane) + if self.tiling.pixels == 2 { of(chunk + 1, which, lane) } else { 0.0 };
            }
        }
        self.given.finish(self.sums);
    }
}

/// Sums over images and pixels of a block's channels: `[half][2][channel]`.
#[repr(align(64))]
struct BlockSums([f32; 4 * HALF]);

impl BlockSums {
    /// Adds the moments of half a tile's images, four at a time: a single sum would wait for
    /// itself.
    ///
    /// # Safety
    /// `values` is a tile of floats, and `images` at most 16.
    #[inline(always)]
    unsafe fn add<V: Vector>(&mut self, simd: Simd<V>, half: usize, values: *const f32, pivot: &[f32], images: usize) {
        for part in (0..HALF).step_by(V::LANES) {
            // SAFETY: a part is a vector of the 16 pivots, of an image's row in the caller's tile
            // and of each sum.
            unsafe {
                let pivot = simd.load(pivot.as_ptr().add(part));
                let mut sums = [[simd.zero(); 2]; 4];
                for first in (0..images).step_by(4) {
                    for which in 0..4 {
                        if first + which < images {
                            let centred = simd.load(values.add((first + which) * HALF + part)).sub(pivot);
                            sums[which][0] = sums[which][0].add(centred);
                            sums[which][1] = centred.mul_add(centred, sums[which][1]);
                        }
                    }
                }
                for which in 0..2 {
                    let sum = sums[0][which].add(sums[1][which]).add(sums[2][which].add(sums[3][which]));
                    let total = self.0.as_mut_ptr().add((2 * half + which) * HALF + part);
                    simd.load(total).add(sum).store(total);
                }
            }
        }
    }
}
