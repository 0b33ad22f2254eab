//! Forward, and the gradient with respect to the input: one product of matrices for each point, `K`
//! channels by `P` quads in registers.

use std::ops::Range;

use super::super::conv::{Offsets, multiply};
use super::super::rows::Rows;
use super::super::{Simd, Vector};
use super::pack::packed_len;
use crate::geometry::Tap;
use crate::kernels::winograd::transform::{self, Input, Transform};
use crate::kernels::winograd::{KERNEL, POINTS, QUAD, Row, WINDOW};
use crate::kernels::{ConvBand, Epilogue, NormValues, Operand};
use crate::layout::gather::Gather;
use crate::layout::{LANE_GROUP, Layout, lane_mask};
use crate::memory::Scratch;
use resnet_graph::Shape;

/// Computes a band.
#[inline(always)]
pub fn conv<V: Vector, const K: usize, const P: usize>(simd: Simd<V>, band: ConvBand<'_>) {
    const { assert!(P <= 3, "at most three quads are worked on at once") };
    band.check(Layout::Lanes, packed_len(band.gather, K));
    let gather = band.gather;
    let mut inputs = Inputs::new(gather);
    let mut sums = Scratch::take(POINTS * gather.to.channels.next_multiple_of(K) * P * LANE_GROUP);
    let (input, images, weights, rows) = (band.input, band.images, band.weights, band.rows.clone());
    let mut writer = Writer::new(band);
    let quads = gather.to.width.div_ceil(QUAD);
    let read = gather.rows_read(rows.clone());
    let mut prepared = read.start;
    for (index, row) in rows.enumerate() {
        let taps = &gather.rows[row];
        let needed = taps.iter().map(|tap| tap.from + 1).max().unwrap_or(prepared);
        inputs.prepare(simd, (input, images), prepared..needed.max(prepared));
        prepared = needed.max(prepared);
        for first in (0..quads).step_by(P) {
            let product = Product { inputs: &mut inputs, taps, weights, channels: gather.to.channels, quad: first };
            let sums = sums.all();
            // SAFETY: the taps' rows are prepared, packed weights hold all blocks at all points,
            // and the sums have room for `P` quads of all channels; the row lies inside the band.
            unsafe {
                match P.min(quads - first) {
                    1 => product.run::<V, K, 1>(simd, sums),
                    2 => product.run::<V, K, 2>(simd, sums),
                    _ => product.run::<V, K, 3>(simd, sums),
                }
                writer.write::<V, K>(simd, sums, index, first..(first + P).min(quads));
            }
        }
        writer.flush_sums(simd);
    }
    V::fence(simd);
    writer.epilogue.finish(writer.totals);
}

/// Rows read, at the points: `[kernel row][point][quad][channel][16 images]`, after zeros in place
/// of a pixel. A row takes the place of the one three before it.
struct Inputs {
    row: Row,
    quads: usize,
    scratch: Scratch,
}

impl Inputs {
    fn new(gather: &Gather) -> Self {
        let row = Row::read(gather, gather.from.channels * LANE_GROUP);
        let quads = gather.to.width.div_ceil(QUAD);
        let mut scratch = Scratch::take((1 + KERNEL * POINTS * quads) * row.pixel);
        scratch.all()[..row.pixel].fill(0.0);
        Self { row, quads, scratch }
    }

    /// Where a quad of a row is at a point, in floats.
    fn place(&self, y: usize, point: usize, quad: usize) -> usize {
        (1 + (y % KERNEL * POINTS + point) * self.quads + quad) * self.row.pixel
    }

    /// Transforms some rows of an operand in a lane group of some images.
    #[inline(always)]
    fn prepare<V: Vector>(
        &mut self,
        simd: Simd<V>,
        (operand, images): (Operand<&[f32], &NormValues>, usize),
        range: Range<usize>,
    ) {
        let Row { width, pixel, .. } = self.row;
        let len = width * pixel;
        for y in range {
            let rows = Rows::new(simd, operand, images, y..y + 1, len);
            let scratch = self.scratch.all().as_mut_ptr();
            for quad in 0..self.quads {
                let from = self.row.window(quad, rows.group().wrapping_add(y * len), scratch);
                let (to, point_len) = (scratch.wrapping_add(self.place(y, 0, quad)), self.quads * pixel);
                for at in (0..pixel).step_by(V::LANES) {
                    // SAFETY: a window is made of pixels of the row or of zeros, and scratch holds
                    // a pixel for the quad at every point.
                    unsafe {
                        let mut d = [simd.zero(); WINDOW];
                        for j in 0..WINDOW {
                            d[j] = simd.load(from[j].add(at));
                        }
                        let points = Input::apply(simd, d);
                        for point in 0..POINTS {
                            points[point].store(to.add(point * point_len + at));
                        }
                    }
                }
            }
        }
    }
}

/// What some quads of a row add up at each point.
struct Product<'a> {
    inputs: &'a mut Inputs,
    taps: &'a [Tap],
    weights: &'a [f32],
    /// Channels written.
    channels: usize,
    /// The first quad.
    quad: usize,
}

impl Product<'_> {
    /// Writes the sums of `P` quads: `[point][channel][quad][16 images]`.
    ///
    /// # Safety
    /// The rows of the taps are prepared, the weights are packed by `K`, and `sums` has room for
    /// the quads.
    #[inline(always)]
    unsafe fn run<V: Vector, const K: usize, const P: usize>(self, simd: Simd<V>, sums: &mut [f32]) {
        let inputs = self.inputs;
        let pixel = inputs.row.pixel;
        let row_len = pixel / LANE_GROUP * K;
        let mut sum = sums.as_mut_ptr();
        let mut weights = self.weights.as_ptr();
        for point in 0..POINTS {
            let mut offsets = [Offsets::default(); KERNEL];
            for (offsets, tap) in offsets.iter_mut().zip(self.taps) {
                *offsets = Offsets { input: inputs.place(tap.from, point, self.quad), weights: tap.kernel * row_len };
            }
            let offsets = &offsets[..self.taps.len()];
            for _ in 0..self.channels.div_ceil(K) {
                for part in (0..LANE_GROUP).step_by(V::LANES) {
                    // SAFETY: the caller's rows are prepared for all quads, and the sums have room
                    // for `K` channels of every block.
                    unsafe {
                        let input = (inputs.scratch.all().as_ptr().add(part), pixel);
                        let found = multiply::<V, K, P>(simd, offsets, input, weights, pixel / LANE_GROUP);
                        for k in 0..K {
                            for p in 0..P {
                                found[k][p].store(sum.add((k * P + p) * LANE_GROUP + part));
                            }
                        }
                    }
                }
                sum = sum.wrapping_add(K * P * LANE_GROUP);
                weights = weights.wrapping_add(KERNEL * row_len);
            }
        }
    }
}

/// Makes pixels of what quads add up.
struct Writer<'a> {
    output: &'a mut [f32],
    channels: usize,
    width: usize,
    accumulate: bool,
    /// Whether the output is written with non-temporal stores.
    non_temporal: bool,
    epilogue: Epilogue<'a>,
    /// One value a channel, zeros where nothing is summed.
    pivot: Vec<f32>,
    mask: [f32; LANE_GROUP],
    /// Sums over a row, `[channel][2][16 images]`.
    sums: Scratch,
    /// Sums over the band, `[channel][2]`, where the epilogue takes them.
    totals: &'a mut [f64],
}

impl<'a> Writer<'a> {
    fn new(band: ConvBand<'a>) -> Self {
        let (Shape { channels, width, .. }, non_temporal) = (band.gather.to, band.non_temporal());
        let ConvBand { output, accumulate, epilogue, sums: totals, images, .. } = band;
        totals.fill(0.0);
        let mut pivot = epilogue.pivot().to_vec();
        pivot.resize(channels, 0.0);
        let mut sums = Scratch::take(2 * channels * LANE_GROUP);
        sums.all().fill(0.0);
        let mask = lane_mask(images);
        Self { output, channels, width, accumulate, non_temporal, epilogue, pivot, mask, sums, totals }
    }

    /// Writes some quads of a row.
    ///
    /// # Safety
    /// `sums` holds them, `K` channels a block, and the row lies inside the band.
    #[inline(always)]
    unsafe fn write<V: Vector, const K: usize>(
        &mut self,
        simd: Simd<V>,
        sums: &[f32],
        row: usize,
        quads: Range<usize>,
    ) {
        let point_len = self.channels.next_multiple_of(K) * quads.len() * LANE_GROUP;
        let first = (row * self.width + quads.start * QUAD) * self.channels * LANE_GROUP;
        let pixels = (self.width - quads.start * QUAD).min(quads.len() * QUAD);
        for channel in 0..self.channels {
            for part in (0..LANE_GROUP).step_by(V::LANES) {
                let from = sums.as_ptr().wrapping_add(channel * quads.len() * LANE_GROUP + part);
                // SAFETY: `from` is the channel's part of the caller's sums, and the pixels lie
                // inside the row.
                unsafe { self.write_channel(simd, (from, point_len), first, pixels, channel, part) };
            }
        }
    }

    /// Writes the pixels of some quads, of one channel; `first` is the place of the first pixel.
    ///
    /// # Safety
    /// From `from` on there are the channel's quads at every point, `point_len` apart; the pixels
    /// lie inside the band.
    #[inline(always)]
    unsafe fn write_channel<V: Vector>(
        &mut self,
        simd: Simd<V>,
        (from, point_len): (*const f32, usize),
        first: usize,
        pixels: usize,
        channel: usize,
        part: usize,
    ) {
        let output = self.output.as_mut_ptr();
        let first = first + channel * LANE_GROUP + part;
        // SAFETY: the caller's quads and pixels exist; each channel has a pivot, and two times 16
        // lanes of sums.
        unsafe {
            let factors = [simd.splat(self.pivot[channel]), simd.load(self.mask.as_ptr().add(part))];
            let place = self.sums.all().as_mut_ptr().add(2 * channel * LANE_GROUP + part);
            let mut sums = [simd.load(place), simd.load(place.add(LANE_GROUP))];
            for quad in (0..pixels).step_by(QUAD) {
                let mut m = [simd.zero(); POINTS];
                for point in 0..POINTS {
                    m[point] = simd.load(from.add(point * point_len + quad / QUAD * LANE_GROUP));
                }
                let y = transform::output(simd, m);
                for j in 0..QUAD {
                    if quad + j >= pixels {
                        break;
                    }
                    let at = first + (quad + j) * self.channels * LANE_GROUP;
                    let value = if self.accumulate { y[j].add(simd.load(output.add(at))) } else { y[j] };
                    let value = self.epilogue.apply(simd, value, at, channel, factors, &mut sums);
                    value.store_either(output.add(at), self.non_temporal);
                }
            }
            sums[0].store(place);
            sums[1].store(place.add(LANE_GROUP));
        }
    }

    /// Moves the sums of a row on to double precision.
    #[inline(always)]
    fn flush_sums<V: Vector>(&mut self, simd: Simd<V>) {
        for (lanes, total) in self.sums.all().chunks_exact_mut(LANE_GROUP).zip(&mut *self.totals) {
            for part in lanes.chunks_exact(V::LANES) {
                // SAFETY: the part has as many floats as a vector.
                *total += f64::from(unsafe { simd.load(part.as_ptr()) }.sum());
            }
            lanes.fill(0.0);
        }
    }
}
