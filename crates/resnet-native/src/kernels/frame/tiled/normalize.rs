//! Batch norm's passes over tiles, with the shortcut and the rectifier taken along.

use super::{Pair, TileUnit, Vector, load, padded, store};
use crate::kernels::{Affine, Gate, Normalize, NormalizeBackward, NormalizeReduce};
use crate::layout::{HALF, TILE, Tiling};

/// Per-channel values, for both halves of each block of tiles.
struct PerChannel {
    values: Vec<f32>,
    /// From the first half's values to the second's; none where both are of the same channels.
    second: usize,
}

impl PerChannel {
    fn new(values: &[f32], tiling: Tiling) -> Self {
        Self { values: padded(values), second: if tiling.pixels == 2 { 0 } else { HALF } }
    }

    /// # Safety
    /// The block exists.
    #[inline(always)]
    unsafe fn load<V: Vector>(&self, block: usize, part: usize) -> Pair<V> {
        let at = block * 2 * HALF + part;
        // SAFETY: passed on from the caller; values are filled up to whole blocks.
        unsafe { (V::load(self.values.as_ptr().add(at)), V::load(self.values.as_ptr().add(at + self.second))) }
    }
}

/// An [`Affine`] filled up to whole tiles.
struct PaddedAffine {
    scale: PerChannel,
    shift: PerChannel,
}

impl PaddedAffine {
    fn new(affine: Affine<'_>, tiling: Tiling) -> Self {
        Self { scale: PerChannel::new(affine.scale, tiling), shift: PerChannel::new(affine.shift, tiling) }
    }
}

/// Scale and shift of a block.
///
/// # Safety
/// The block exists.
#[inline(always)]
unsafe fn load_affine<V: Vector>(affine: Option<&PaddedAffine>, block: usize, part: usize) -> Option<[Pair<V>; 2]> {
    let affine = affine?;
    // SAFETY: passed on from the caller.
    unsafe { Some([affine.scale.load(block, part), affine.shift.load(block, part)]) }
}

/// A gradient where `scale * y + shift` is positive, else zero.
///
/// # Safety
/// The machine has the vector's instructions.
#[inline(always)]
unsafe fn masked<V: Vector>(g: Pair<V>, [scale, shift]: [Pair<V>; 2], y: Pair<V>) -> Pair<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let gates = (y.0.mul_add(scale.0, shift.0), y.1.mul_add(scale.1, shift.1));
        (g.0.where_positive(gates.0), g.1.where_positive(gates.1))
    }
}

/// Every tile of some rows: its place, its block of channels and how many of its halves exist.
fn tiles<const PLANES: usize>(len: usize, tiling: Tiling, width: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..len / (PLANES * TILE)).map(move |tile| {
        let (column, block) = (tile / tiling.blocks % tiling.columns, tile % tiling.blocks);
        let halves = if (column + 1) * tiling.pixels > width { 1 } else { 2 };
        (tile * PLANES * TILE, block, halves)
    })
}

/// Stores part of a tile's row; a half without a pixel becomes zero.
///
/// # Safety
/// As [`store`].
#[inline(always)]
unsafe fn store_halves<U: TileUnit, const PLANES: usize>(value: Pair<U::Vector>, halves: usize, output: *mut f32) {
    // SAFETY: passed on from the caller.
    unsafe {
        let high = if halves == 2 { value.1 } else { U::Vector::splat(0.0) };
        store::<U, PLANES>((value.0, high), output);
    }
}

/// Sets the rows of a tile that belong to no image to zero.
///
/// # Safety
/// `output` is a tile.
#[inline(always)]
unsafe fn clear_rows<V: Vector, const PLANES: usize>(output: *mut f32, images: usize) {
    for plane in (0..PLANES * TILE).step_by(TILE) {
        for at in (plane + images * HALF..plane + TILE).step_by(V::LANES) {
            // SAFETY: inside the tile.
            unsafe { V::splat(0.0).store(output.add(at)) };
        }
    }
}

/// `output = relu(scale * input + shift + residual)`.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn normalize<U: TileUnit, const PLANES: usize>(band: Normalize<'_>) {
    let tiling = Tiling::new(band.shape);
    let (scale, shift) = (PerChannel::new(band.scale, tiling), PerChannel::new(band.shift, tiling));
    for (tile, block, halves) in tiles::<PLANES>(band.input.len(), tiling, band.shape.width) {
        for part in (0..HALF).step_by(U::Vector::LANES) {
            // SAFETY: tiles lie inside all slices, which are of one length.
            unsafe {
                let scale: Pair<U::Vector> = scale.load(block, part);
                let shift: Pair<U::Vector> = shift.load(block, part);
                for at in (tile + part..tile + band.images * HALF).step_by(HALF) {
                    let (low, high) = load::<U::Vector, PLANES>(band.input.as_ptr().add(at));
                    let mut value = (low.mul_add(scale.0, shift.0), high.mul_add(scale.1, shift.1));
                    if let Some(residual) = band.residual {
                        let (low, high) = load::<U::Vector, PLANES>(residual.as_ptr().add(at));
                        value = (value.0.add(low), value.1.add(high));
                    }
                    if band.relu {
                        value = (value.0.relu(), value.1.relu());
                    }
                    store_halves::<U, PLANES>(value, halves, band.output.as_mut_ptr().add(at));
                }
            }
        }
        // SAFETY: as above.
        unsafe { clear_rows::<U::Vector, PLANES>(band.output.as_mut_ptr().add(tile), band.images) };
    }
}

/// Tiles of a block summed in single precision before the sums move on to double.
const TILES_PER_FLUSH: usize = 16;

/// Masks the gradient by the rectifier and sums it, alone and times the normalised input.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn normalize_reduce<U: TileUnit, const PLANES: usize>(band: NormalizeReduce<'_>) {
    let tiling = Tiling::new(band.shape);
    let (mean, inv_std) = (PerChannel::new(band.mean, tiling), PerChannel::new(band.inv_std, tiling));
    let tiles = Tiles { input: band.input.as_ptr(), gate: band.gate, gradient: band.gradient.as_mut_ptr() };
    let affine = if let Gate::Input(affine) = band.gate { Some(PaddedAffine::new(affine, tiling)) } else { None };
    let columns = band.input.len() / (PLANES * TILE) / tiling.blocks;
    band.sums.fill(0.0);
    for first in (0..columns).step_by(TILES_PER_FLUSH) {
        for block in 0..tiling.blocks {
            for part in (0..HALF).step_by(U::Vector::LANES) {
                // SAFETY: tiles lie inside all slices, which are of one length.
                let sums = unsafe {
                    let values = [mean.load(block, part), inv_std.load(block, part)];
                    let affine: Option<[Pair<U::Vector>; 2]> = load_affine(affine.as_ref(), block, part);
                    let mut sums = [[U::Vector::splat(0.0); 2]; 2];
                    for column in first..columns.min(first + TILES_PER_FLUSH) {
                        let tile = (column * tiling.blocks + block) * PLANES * TILE;
                        tiles.reduce::<U, PLANES>(tile + part, values, affine, &mut sums);
                    }
                    sums
                };
                for (half, sums) in sums.iter().enumerate() {
                    let channel = block * 2 * HALF + if tiling.pixels == 2 { 0 } else { half * HALF } + part;
                    // SAFETY: passed on from the caller.
                    unsafe { move_on(sums, band.sums, channel) };
                }
            }
        }
    }
}

/// What the reduction reads and masks.
struct Tiles<'a> {
    input: *const f32,
    gate: Gate<'a>,
    gradient: *mut f32,
}

impl Tiles<'_> {
    /// Adds one tile to `[half][of g, of g * normalised]`.
    ///
    /// # Safety
    /// `at` is the place of a tile's part in all slices.
    #[inline(always)]
    unsafe fn reduce<U: TileUnit, const PLANES: usize>(
        &self,
        at: usize,
        [mean, inv_std]: [Pair<U::Vector>; 2],
        affine: Option<[Pair<U::Vector>; 2]>,
        sums: &mut [[U::Vector; 2]; 2],
    ) {
        for at in (at..at + TILE).step_by(HALF) {
            // SAFETY: passed on from the caller.
            unsafe {
                let (mut low, mut high) = load::<U::Vector, PLANES>(self.gradient.add(at));
                let y = load::<U::Vector, PLANES>(self.input.add(at));
                if let Gate::Output(rectified) = self.gate {
                    let gates = load::<U::Vector, PLANES>(rectified.as_ptr().add(at));
                    (low, high) = (low.where_positive(gates.0), high.where_positive(gates.1));
                    store::<U, PLANES>((low, high), self.gradient.add(at));
                } else if let Some(affine) = affine {
                    (low, high) = masked((low, high), affine, y);
                }
                sums[0][0] = sums[0][0].add(low);
                sums[0][1] = low.mul_add(y.0.sub(mean.0).mul(inv_std.0), sums[0][1]);
                sums[1][0] = sums[1][0].add(high);
                sums[1][1] = high.mul_add(y.1.sub(mean.1).mul(inv_std.1), sums[1][1]);
            }
        }
    }
}

/// Adds vectors of sums to `[channel][2]` from `channel` on; channels that do not exist are dropped.
///
/// # Safety
/// The machine has the vector's instructions.
#[inline(always)]
unsafe fn move_on<V: Vector>(sums: &[V; 2], totals: &mut [f64], channel: usize) {
    for (which, sum) in sums.iter().enumerate() {
        let mut lanes = [0.0f32; HALF];
        // SAFETY: a vector has at most as many lanes as half a tile.
        unsafe { sum.store(lanes.as_mut_ptr()) };
        let existing = totals.get_mut(2 * channel..).unwrap_or_default();
        for (total, lane) in existing.chunks_exact_mut(2).zip(&lanes[..V::LANES]) {
            total[which] += f64::from(*lane);
        }
    }
}

/// `output = a * gradient + b * input + c`.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn normalize_backward<U: TileUnit, const PLANES: usize>(band: NormalizeBackward<'_>) {
    let tiling = Tiling::new(band.shape);
    let [a, b, c] = [band.a, band.b, band.c].map(|values| PerChannel::new(values, tiling));
    let affine = band.gate.map(|affine| PaddedAffine::new(affine, tiling));
    for (tile, block, halves) in tiles::<PLANES>(band.input.len(), tiling, band.shape.width) {
        for part in (0..HALF).step_by(U::Vector::LANES) {
            // SAFETY: tiles lie inside all slices, which are of one length.
            unsafe {
                let a: Pair<U::Vector> = a.load(block, part);
                let b: Pair<U::Vector> = b.load(block, part);
                let c: Pair<U::Vector> = c.load(block, part);
                let affine: Option<[Pair<U::Vector>; 2]> = load_affine(affine.as_ref(), block, part);
                for at in (tile + part..tile + band.images * HALF).step_by(HALF) {
                    let mut g = load::<U::Vector, PLANES>(band.gradient.as_ptr().add(at));
                    let y = load::<U::Vector, PLANES>(band.input.as_ptr().add(at));
                    if let Some(affine) = affine {
                        g = masked(g, affine, y);
                    }
                    let low = g.0.mul_add(a.0, y.0.mul_add(b.0, c.0));
                    let high = g.1.mul_add(a.1, y.1.mul_add(b.1, c.1));
                    store_halves::<U, PLANES>((low, high), halves, band.output.as_mut_ptr().add(at));
                }
            }
        }
        // SAFETY: as above.
        unsafe { clear_rows::<U::Vector, PLANES>(band.output.as_mut_ptr().add(tile), band.images) };
    }
}
