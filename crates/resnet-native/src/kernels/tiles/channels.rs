//! Arithmetic of a tile's halves with values of their channels.

use super::{Pair, Simd, Vector, load, padded};
use crate::kernels::{NormReduction, NormValues, ReluMask};
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
        // SAFETY: a block has 32 values, of which a vector's lanes from `part` on are among the
        // first 16, or the last 16.
        unsafe { (simd.load(values.as_ptr().add(part)), simd.load(values.as_ptr().add(part + self.second))) }
    }
}

/// Scale and shift of a batch norm, filled up to whole tiles.
pub struct PaddedAffine {
    scale: PerChannel,
    shift: PerChannel,
}

impl PaddedAffine {
    pub fn new(norm: &NormValues, tiling: Tiling) -> Self {
        Self { scale: PerChannel::new(&norm.scale, tiling), shift: PerChannel::new(&norm.shift, tiling) }
    }

    /// Scale and shift of both halves of a block, from channel `part` of each on.
    #[inline(always)]
    pub fn load<V: Vector>(&self, simd: Simd<V>, block: usize, part: usize) -> [Pair<V>; 2] {
        [self.scale.load(simd, block, part), self.shift.load(simd, block, part)]
    }
}

/// A [`ReluMask`] with the values of its batch norm filled up to whole tiles.
pub enum PaddedReluMask<'a> {
    None,
    Input(PaddedAffine),
    Output(&'a [f32]),
}

impl<'a> PaddedReluMask<'a> {
    pub fn new(reduction: NormReduction<&'a [f32], &NormValues>, tiling: Tiling) -> Self {
        match reduction.mask {
            ReluMask::None => Self::None,
            ReluMask::Input => Self::Input(PaddedAffine::new(reduction.norm, tiling)),
            ReluMask::Output(output) => Self::Output(output),
        }
    }

    /// The mask of both halves of a block, from channel `part` of each on.
    #[inline(always)]
    pub fn load<V: Vector>(&self, simd: Simd<V>, block: usize, part: usize) -> PartReluMask<V> {
        match self {
            Self::None => PartReluMask::None,
            Self::Input(affine) => PartReluMask::Input(affine.load(simd, block, part)),
            Self::Output(output) => PartReluMask::Output(output.as_ptr()),
        }
    }
}

/// A [`ReluMask`] of part of a block, with scale and shift of its channels in registers.
#[derive(Clone, Copy)]
pub enum PartReluMask<V> {
    None,
    Input([Pair<V>; 2]),
    Output(*const f32),
}

impl<V: Vector> PartReluMask<V> {
    /// Part of a gradient, masked; `tile` and `at` are its place, `y` what the batch norm read
    /// there.
    ///
    /// # Safety
    /// The place lies inside the ReLU's output.
    #[inline(always)]
    pub unsafe fn mask<const PLANES: usize>(
        self,
        simd: Simd<V>,
        g: Pair<V>,
        y: Pair<V>,
        tile: usize,
        at: usize,
    ) -> Pair<V> {
        let conditions = match self {
            Self::None => return g,
            // SAFETY: the caller's place lies inside the ReLU's output.
            Self::Output(output) => unsafe { load::<V, PLANES>(simd, output.add(tile), at) },
            Self::Input([scale, shift]) => (y.0.mul_add(scale.0, shift.0), y.1.mul_add(scale.1, shift.1)),
        };
        (g.0.where_positive(conditions.0), g.1.where_positive(conditions.1))
    }
}
