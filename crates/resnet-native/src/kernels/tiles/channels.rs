//! Arithmetic of a tile's halves with values of their channels.

use super::{Pair, Simd, Vector, load, padded};
use crate::kernels::{Affine, Gate};
use crate::layout::tiles::{HALF, Tiling};

/// Per-channel values, for both halves of each block of tiles.
pub struct PerChannel {
    values: Vec<f32>,
    /// From the first half's values to the second's; none where both are of the same channels.
    second: usize,
}

impl PerChannel {
    pub fn new(values: &[f32], tiling: Tiling) -> Self {
        Self { values: padded(values), second: if tiling.pixels == 2 { 0 } else { HALF } }
    }

    /// The values of both halves of a block, from channel `part` of each on.
    #[inline(always)]
    pub fn load<V: Vector>(&self, simd: Simd<V>, block: usize, part: usize) -> Pair<V> {
        let values = &self.values[block * 2 * HALF..][..2 * HALF];
        assert!(part <= HALF - V::LANES);
        // SAFETY: a block has 32 values, of which a vector's lanes from `part` on are among the first 16, or the
        // last 16.
        unsafe { (simd.load(values.as_ptr().add(part)), simd.load(values.as_ptr().add(part + self.second))) }
    }
}

/// An [`Affine`] filled up to whole tiles.
pub struct PaddedAffine {
    scale: PerChannel,
    shift: PerChannel,
}

impl PaddedAffine {
    pub fn new(affine: Affine<'_>, tiling: Tiling) -> Self {
        Self { scale: PerChannel::new(affine.scale, tiling), shift: PerChannel::new(affine.shift, tiling) }
    }

    /// Scale and shift of both halves of a block, from channel `part` of each on.
    #[inline(always)]
    pub fn load<V: Vector>(&self, simd: Simd<V>, block: usize, part: usize) -> [Pair<V>; 2] {
        [self.scale.load(simd, block, part), self.shift.load(simd, block, part)]
    }
}

/// A [`Gate`] with its channels' values filled up to whole tiles.
pub enum PaddedGate<'a> {
    Open,
    Output(&'a [f32]),
    Input(PaddedAffine),
}

impl<'a> PaddedGate<'a> {
    pub fn new(gate: Gate<'a>, tiling: Tiling) -> Self {
        match gate {
            Gate::Open => Self::Open,
            Gate::Output(rectified) => Self::Output(rectified),
            Gate::Input(affine) => Self::Input(PaddedAffine::new(affine, tiling)),
        }
    }

    /// The gate of both halves of a block, from channel `part` of each on.
    #[inline(always)]
    pub fn load<V: Vector>(&self, simd: Simd<V>, block: usize, part: usize) -> TileGate<V> {
        match self {
            Self::Open => TileGate::Open,
            Self::Output(rectified) => TileGate::Output(rectified.as_ptr()),
            Self::Input(affine) => TileGate::Input(affine.load(simd, block, part)),
        }
    }
}

/// A gate of some channels.
#[derive(Clone, Copy)]
pub enum TileGate<V> {
    Open,
    Output(*const f32),
    Input([Pair<V>; 2]),
}

impl<V: Vector> TileGate<V> {
    /// Part of a gradient, masked; `tile` and `at` are its place, `y` what the batch norm read there.
    ///
    /// # Safety
    /// The place lies inside what the gate holds.
    #[inline(always)]
    pub unsafe fn mask<const PLANES: usize>(
        self,
        simd: Simd<V>,
        g: Pair<V>,
        y: Pair<V>,
        tile: usize,
        at: usize,
    ) -> Pair<V> {
        let gates = match self {
            Self::Open => return g,
            // SAFETY: the caller's place lies inside the ReLU's output.
            Self::Output(rectified) => unsafe { load::<V, PLANES>(simd, rectified.add(tile), at) },
            Self::Input([scale, shift]) => (y.0.mul_add(scale.0, shift.0), y.1.mul_add(scale.1, shift.1)),
        };
        (g.0.where_positive(gates.0), g.1.where_positive(gates.1))
    }
}
