//! Forward, and the gradient with respect to the input: one product of matrices for each point, `K` channels by `P` quads in registers.

use std::ops::Range;

use super::super::conv::{Measured, Place, multiply};
use super::super::rows::Rows;
use crate::geometry::Tap;
use crate::kernels::vector::Vector;
use crate::kernels::winograd::transform::{self, Input, Transform};
use crate::kernels::winograd::{KERNEL, POINTS, QUAD, Row, WINDOW};
use crate::kernels::{ConvBand, Source, Sums};
use crate::layout::gather::Gather;
use crate::layout::{LANE_GROUP, lane_mask};
use crate::memory::Scratch;
use resnet_graph::Shape;

/// Computes a band.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn conv<V: Vector, const K: usize, const P: usize>(band: ConvBand<'_>) {
    let gather = band.gather;
    let mut inputs = Inputs::new(gather);
    let mut sums = Scratch::take(POINTS * gather.to.channels.next_multiple_of(K) * P * LANE_GROUP);
    let (input, weights, rows) = (band.input, band.weights, band.rows.clone());
    let mut writer = Writer::new(band);
    let quads = gather.to.width.div_ceil(QUAD);
    let read = gather.rows_read(rows.clone());
    let mut prepared = read.start;
    for (index, row) in rows.enumerate() {
        let taps = &gather.rows[row];
        let needed = taps.iter().map(|tap| tap.from + 1).max().unwrap_or(prepared);
        // SAFETY: the rows lie inside the input; packed weights hold all blocks at all points.
        unsafe {
            inputs.prepare::<V>(input, prepared..needed.max(prepared));
            prepared = needed.max(prepared);
            for first in (0..quads).step_by(P) {
                let product = Product { inputs: &mut inputs, taps, weights, channels: gather.to.channels, quad: first };
                let sums = sums.all();
                match P.min(quads - first) {
                    1 => product.run::<V, K, 1>(sums),
                    2 => product.run::<V, K, 2>(sums),
                    3 => product.run::<V, K, 3>(sums),
                    _ => unreachable!("at most three quads are worked on at once"),
                }
                writer.write::<V, K>(sums, index, first..(first + P).min(quads));
            }
            writer.flush_sums::<V>();
        }
    }
    // SAFETY: passed on from the caller.
    unsafe { writer.finish::<V>() };
}

/// Rows read, at the points: `[kernel row][point][quad][channel][16 images]`, after zeros in place of a pixel. A row takes the
/// place of the one three before it.
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

    /// Works out some rows.
    ///
    /// # Safety
    /// They lie inside the source, and the machine has the vector's instructions.
    #[inline(always)]
    unsafe fn prepare<V: Vector>(&mut self, source: Source<'_>, range: Range<usize>) {
        let Row { width, pixel, .. } = self.row;
        let len = width * pixel;
        for y in range {
            // SAFETY: the row and the windows lie inside the source, or are zeros; scratch holds the row at all points.
            unsafe {
                let rows = Rows::new::<V>(source, y..y + 1, len);
                let scratch = self.scratch.all().as_mut_ptr();
                for quad in 0..self.quads {
                    let from = self.row.window(quad, rows.group().wrapping_add(y * len), scratch);
                    let (to, point_len) = (scratch.add(self.place(y, 0, quad)), self.quads * pixel);
                    for at in (0..pixel).step_by(V::LANES) {
                        let mut d = [V::splat(0.0); WINDOW];
                        for j in 0..WINDOW {
                            d[j] = V::load(from[j].add(at));
                        }
                        let points = Input::apply(d);
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
    /// The rows of the taps are prepared, the weights are packed by `K`, and the machine has the vector's instructions.
    #[inline(always)]
    unsafe fn run<V: Vector, const K: usize, const P: usize>(self, sums: &mut [f32]) {
        let inputs = self.inputs;
        let pixel = inputs.row.pixel;
        let row_len = pixel / LANE_GROUP * K;
        let mut sum = sums.as_mut_ptr();
        let mut weights = self.weights.as_ptr();
        for point in 0..POINTS {
            let mut places = [Place::default(); KERNEL];
            for (place, tap) in places.iter_mut().zip(self.taps) {
                *place = Place { input: inputs.place(tap.from, point, self.quad), weights: tap.kernel * row_len };
            }
            let places = &places[..self.taps.len()];
            for _ in 0..self.channels.div_ceil(K) {
                for part in (0..LANE_GROUP).step_by(V::LANES) {
                    // SAFETY: passed on from the caller; there is room for `K` channels of every block.
                    unsafe {
                        let input = (inputs.scratch.all().as_ptr().add(part), pixel);
                        let found = multiply::<V, K, P>(places, input, weights, pixel / LANE_GROUP);
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
    measured: Measured<'a>,
    /// One value a channel, where something is measured.
    pivot: Vec<f32>,
    mask: [f32; LANE_GROUP],
    /// Sums over a row, `[channel][2][16 images]`.
    sums: Scratch,
    totals: Sums<'a>,
}

impl<'a> Writer<'a> {
    fn new(band: ConvBand<'a>) -> Self {
        let (Shape { channels, width, .. }, non_temporal) = (band.gather.to, band.non_temporal());
        let ConvBand { output, accumulate, sums: mut totals, .. } = band;
        totals.totals().fill(0.0);
        let mut pivot = totals.pivot().to_vec();
        pivot.resize(channels, 0.0);
        let mut sums = Scratch::take(2 * channels * LANE_GROUP);
        sums.all().fill(0.0);
        let (measured, mask) = (Measured::of(&totals), lane_mask(totals.images()));
        Self { output, channels, width, accumulate, non_temporal, measured, pivot, mask, sums, totals }
    }

    /// Writes some quads of a row.
    ///
    /// # Safety
    /// `sums` holds them, `K` channels a block; the machine has the vector's instructions.
    #[inline(always)]
    unsafe fn write<V: Vector, const K: usize>(&mut self, sums: &[f32], row: usize, quads: Range<usize>) {
        let point_len = self.channels.next_multiple_of(K) * quads.len() * LANE_GROUP;
        let first = (row * self.width + quads.start * QUAD) * self.channels * LANE_GROUP;
        let pixels = (self.width - quads.start * QUAD).min(quads.len() * QUAD);
        for channel in 0..self.channels {
            for part in (0..LANE_GROUP).step_by(V::LANES) {
                let from = sums.as_ptr().wrapping_add(channel * quads.len() * LANE_GROUP + part);
                // SAFETY: pixels that lie inside the row are written.
                unsafe { self.write_channel::<V>(from, point_len, first, pixels, channel, part) };
            }
        }
    }

    /// Writes the pixels of some quads, of one channel; `first` is the place of the first pixel.
    ///
    /// # Safety
    /// As for [`write`](Self::write).
    #[inline(always)]
    unsafe fn write_channel<V: Vector>(
        &mut self,
        from: *const f32,
        point_len: usize,
        first: usize,
        pixels: usize,
        channel: usize,
        part: usize,
    ) {
        let output = self.output.as_mut_ptr();
        let first = first + channel * LANE_GROUP + part;
        // SAFETY: passed on from the caller.
        unsafe {
            let factors = [V::splat(self.pivot[channel]), V::load(self.mask.as_ptr().add(part))];
            let place = self.sums.all().as_mut_ptr().add(2 * channel * LANE_GROUP + part);
            let mut sums = [V::load(place), V::load(place.add(LANE_GROUP))];
            for quad in (0..pixels).step_by(QUAD) {
                let mut m = [V::splat(0.0); POINTS];
                for point in 0..POINTS {
                    m[point] = V::load(from.add(point * point_len + quad / QUAD * LANE_GROUP));
                }
                let y = transform::output(m);
                for j in 0..QUAD {
                    if quad + j >= pixels {
                        break;
                    }
                    let at = first + (quad + j) * self.channels * LANE_GROUP;
                    let value = if self.accumulate { y[j].add(V::load(output.add(at))) } else { y[j] };
                    let value = self.measured.add(value, at, channel, factors, &mut sums);
                    value.store_either(output.add(at), self.non_temporal);
                }
            }
            sums[0].store(place);
            sums[1].store(place.add(LANE_GROUP));
        }
    }

    /// Moves the sums of a row on to double precision.
    ///
    /// # Safety
    /// The machine has the vector's instructions.
    #[inline(always)]
    unsafe fn flush_sums<V: Vector>(&mut self) {
        for (lanes, total) in self.sums.all().chunks_exact_mut(LANE_GROUP).zip(self.totals.totals()) {
            for part in (0..LANE_GROUP).step_by(V::LANES) {
                // SAFETY: passed on from the caller.
                unsafe { *total += f64::from(V::load(lanes.as_ptr().add(part)).sum()) };
            }
            lanes.fill(0.0);
        }
    }

    /// Gives the sums out.
    ///
    /// # Safety
    /// The machine has the vector's instructions.
    unsafe fn finish<V: Vector>(mut self) {
        // SAFETY: passed on from the caller.
        unsafe { V::fence() };
        self.totals.finish();
    }
}
