//! Arithmetic of a tile's halves with values of their channels.

use super::{Pair, Vector, padded};
use crate::kernels::Affine;
use crate::layout::{HALF, Tiling};

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

    /// # Safety
    /// The block exists.
    #[inline(always)]
    pub unsafe fn load<V: Vector>(&self, block: usize, part: usize) -> Pair<V> {
        let at = block * 2 * HALF + part;
        // SAFETY: passed on from the caller; values are filled up to whole blocks.
        unsafe { (V::load(self.values.as_ptr().add(at)), V::load(self.values.as_ptr().add(at + self.second))) }
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

    /// Scale and shift of a block.
    ///
    /// # Safety
    /// The block exists.
    #[inline(always)]
    pub unsafe fn load<V: Vector>(&self, block: usize, part: usize) -> [Pair<V>; 2] {
        // SAFETY: passed on from the caller.
        unsafe { [self.scale.load(block, part), self.shift.load(block, part)] }
    }
}

/// A gradient where `scale * y + shift` is positive, else zero.
///
/// # Safety
/// The machine has the vector's instructions.
#[inline(always)]
pub unsafe fn masked<V: Vector>(g: Pair<V>, [scale, shift]: [Pair<V>; 2], y: Pair<V>) -> Pair<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let gates = (y.0.mul_add(scale.0, shift.0), y.1.mul_add(scale.1, shift.1));
        (g.0.where_positive(gates.0), g.1.where_positive(gates.1))
    }
}
