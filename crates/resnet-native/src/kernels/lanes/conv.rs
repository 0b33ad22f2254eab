//! Convolution: a tile of output channels by output pixels stays in registers while the taps and
//! the input channels go by. For each, the images of a pixel are one vector and a weight is one
//! scalar.

use super::pack::packed_len;
use super::rows::Rows;
use super::{Simd, Vector, winograd};
use crate::geometry::{Run, Tap};
use crate::kernels::train::MAX_KERNEL;
use crate::kernels::winograd::fits;
use crate::kernels::{ConvBand, Epilogue};
use crate::layout::{LANE_GROUP, Layout, lane_mask};

/// Taps of the largest kernel.
const MAX_TAPS: usize = MAX_KERNEL * MAX_KERNEL;

/// Where a tap reads for the first pixel of a tile, and where its weights are, in floats.
#[derive(Clone, Copy, Default)]
pub struct Offsets {
    pub input: usize,
    pub weights: usize,
}

/// Computes a band with `K` channels by `P` pixels in registers, or by `Q` quads at a point of
/// [`winograd`].
#[inline(always)]
pub fn conv<V: Vector, const K: usize, const P: usize, const Q: usize>(simd: Simd<V>, band: ConvBand<'_>) {
    if fits(&band.gather.conv) {
        winograd::conv::<V, K, Q>(simd, band);
    } else {
        direct::<V, K, P>(simd, band);
    }
}

/// Computes a band with `K` channels by `P` pixels in registers.
#[inline(always)]
fn direct<V: Vector, const K: usize, const P: usize>(simd: Simd<V>, band: ConvBand<'_>) {
    const { assert!(P <= 3, "tiles are at most three pixels wide") };
    band.check(Layout::Lanes, packed_len(band.gather, K));
    let gather = band.gather;
    let (in_channels, out_channels) = (gather.from.channels, gather.to.channels);
    let pixel = in_channels * LANE_GROUP;
    let rows = Rows::new(simd, band.input, band.images, gather.rows_read(band.rows.clone()), gather.from.width * pixel);
    let block_len = gather.kernel * gather.kernel * in_channels * K;
    let non_temporal = band.non_temporal();
    let epilogue = band.epilogue;
    for first in (0..out_channels).step_by(K) {
        let mut tile = Tile::<'_, V, K> {
            input: rows.group(),
            in_channels,
            weights: band.weights[first / K * block_len..].as_ptr(),
            channels: K.min(out_channels - first),
            accumulate: band.accumulate,
            simd,
            sums: [[simd.zero(); 2]; K],
            pivot: [0.0; K],
            mask: lane_mask(band.images),
            output: band.output.as_mut_ptr(),
            first,
            epilogue,
            non_temporal,
        };
        let mut totals = [[0.0f64; 2]; K];
        if epilogue.sums_up() {
            tile.pivot[..tile.channels].copy_from_slice(&epilogue.pivot()[first..first + tile.channels]);
        }
        for (index, row) in band.rows.clone().enumerate() {
            for run in &gather.columns {
                let mut offsets = [Offsets::default(); MAX_TAPS];
                let count =
                    list_offsets(&gather.rows[row], run, gather.kernel, gather.from.width, pixel, K, &mut offsets);
                let offsets = &offsets[..count];
                let mut done = 0;
                while done < run.count {
                    let pixels = P.min(run.count - done);
                    let at =
                        ((index * gather.to.width + run.start + done * run.step) * out_channels + first) * LANE_GROUP;
                    let steps = Steps {
                        input: done * run.from_step * pixel,
                        input_step: run.from_step * pixel,
                        output_step: run.step * out_channels * LANE_GROUP,
                    };
                    // SAFETY: a run's pixels lie inside the rows of the output, whose length is
                    // checked, and its taps inside the rows read; weights have a block for each tap
                    // and channel read.
                    unsafe {
                        match pixels {
                            1 => tile.run::<1>(offsets, steps, at),
                            2 => tile.run::<2>(offsets, steps, at),
                            _ => tile.run::<3>(offsets, steps, at),
                        }
                    }
                    done += pixels;
                }
            }
            if epilogue.sums_up() {
                tile.flush_sums(&mut totals);
            }
        }
        if epilogue.sums_up() {
            band.sums[2 * first..][..2 * tile.channels].copy_from_slice(totals[..tile.channels].as_flattened());
        }
    }
    epilogue.finish(band.sums);
    V::fence(simd);
}

/// Lists the offsets of the taps of a row and a run; returns how many there are.
#[inline(always)]
fn list_offsets(
    rows: &[Tap],
    run: &Run,
    kernel: usize,
    from_width: usize,
    pixel: usize,
    block: usize,
    offsets: &mut [Offsets; MAX_TAPS],
) -> usize {
    let mut count = 0;
    for row in rows {
        for column in &run.taps {
            offsets[count] = Offsets {
                input: (row.from * from_width + column.from) * pixel,
                weights: (row.kernel * kernel + column.kernel) * (pixel / LANE_GROUP) * block,
            };
            count += 1;
        }
    }
    count
}

/// Distances between the pixels of a tile, in floats.
#[derive(Clone, Copy)]
struct Steps {
    /// From the first pixel of the run read to that of the tile.
    input: usize,
    /// From pixel to pixel read.
    input_step: usize,
    /// From pixel to pixel written.
    output_step: usize,
}

/// Sums over some taps and all channels read, for `K` channels written of `P` pixels, or quads,
/// `step` floats apart.
///
/// # Safety
/// The taps, for all `P`, lie inside `input`; `weights` hold `K` values for each tap and channel.
#[inline(always)]
pub unsafe fn multiply<V: Vector, const K: usize, const P: usize>(
    simd: Simd<V>,
    offsets: &[Offsets],
    (input, step): (*const f32, usize),
    weights: *const f32,
    channels: usize,
) -> [[V; P]; K] {
    // SAFETY: the caller's taps lie inside the input, and there are weights for each tap and
    // channel.
    unsafe {
        let mut sums = [[simd.zero(); P]; K];
        for at in offsets {
            let mut input = input.add(at.input);
            let mut weights = weights.add(at.weights);
            for _ in 0..channels {
                let mut pixels = [simd.zero(); P];
                for p in 0..P {
                    pixels[p] = simd.load(input.add(p * step));
                }
                for k in 0..K {
                    let weight = simd.splat(*weights.add(k));
                    for p in 0..P {
                        sums[k][p] = pixels[p].mul_add(weight, sums[k][p]);
                    }
                }
                input = input.add(LANE_GROUP);
                weights = weights.add(K);
            }
        }
        sums
    }
}

/// `K` output channels of a band.
struct Tile<'a, V, const K: usize> {
    simd: Simd<V>,
    input: *const f32,
    in_channels: usize,
    weights: *const f32,
    /// How many of the `K` channels exist.
    channels: usize,
    accumulate: bool,
    /// For each channel, sums over the current row.
    sums: [[V; 2]; K],
    pivot: [f32; K],
    mask: [f32; LANE_GROUP],
    output: *mut f32,
    /// The first channel.
    first: usize,
    epilogue: Epilogue<'a>,
    /// Whether the output is written with non-temporal stores.
    non_temporal: bool,
}

impl<V: Vector, const K: usize> Tile<'_, V, K> {
    /// Computes `P` pixels.
    ///
    /// # Safety
    /// The taps, moved by the steps, lie inside the input, and the pixels inside the output.
    #[inline(always)]
    unsafe fn run<const P: usize>(&mut self, offsets: &[Offsets], steps: Steps, at: usize) {
        for part in (0..LANE_GROUP).step_by(V::LANES) {
            // SAFETY: the caller's taps and pixels exist, and a part is a vector of their 16 lanes.
            unsafe {
                let input = self.input.add(steps.input + part);
                let accumulators =
                    multiply::<V, K, P>(self.simd, offsets, (input, steps.input_step), self.weights, self.in_channels);
                self.store::<P>(&accumulators, part, at + part, steps.output_step);
            }
        }
    }

    /// # Safety
    /// As for [`run`](Self::run).
    #[inline(always)]
    unsafe fn store<const P: usize>(&mut self, accumulators: &[[V; P]; K], part: usize, at: usize, step: usize) {
        let simd = self.simd;
        // SAFETY: the caller's pixels lie inside the output, and only channels that exist are
        // written.
        unsafe {
            let mask = simd.load(self.mask.as_ptr().add(part));
            for k in 0..K {
                if k >= self.channels {
                    break;
                }
                let factors = [simd.splat(self.pivot[k]), mask];
                for p in 0..P {
                    let at = at + p * step + k * LANE_GROUP;
                    let mut value = accumulators[k][p];
                    if self.accumulate {
                        value = value.add(simd.load(self.output.add(at)));
                    }
                    let value = self.epilogue.apply(simd, value, at, self.first + k, factors, &mut self.sums[k]);
                    value.store_either(self.output.add(at), self.non_temporal);
                }
            }
        }
    }

    /// Moves the sums of a row on to double precision.
    #[inline(always)]
    fn flush_sums(&mut self, totals: &mut [[f64; 2]; K]) {
        for (sums, totals) in self.sums.iter_mut().zip(totals) {
            for (sum, total) in sums.iter_mut().zip(totals) {
                *total += f64::from(sum.sum());
                *sum = self.simd.zero();
            }
        }
    }
}
