//! Arithmetic of a tile's halves with values of their channels.

use super::{Pair, Vector, load, padded};
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

    /// The gate of part of a block.
    ///
    /// # Safety
    /// The block exists.
    #[inline(always)]
    pub unsafe fn load<V: Vector>(&self, block: usize, part: usize) -> TileGate<V> {
        match self {
            Self::Open => TileGate::Open,
            Self::Output(rectified) => TileGate::Output(rectified.as_ptr()),
            // SAFETY: passed on from the caller.
            Self::Input(affine) => TileGate::Input(unsafe { affine.load(block, part) }),
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
    pub unsafe fn mask<const PLANES: usize>(self, g: Pair<V>, y: Pair<V>, tile: usize, at: usize) -> Pair<V> {
        // SAFETY: passed on from the caller.
        unsafe {
            let gates = match self {
                Self::Open => return g,
                Self::Output(rectified) => load::<V, PLANES>(rectified.add(tile), at),
                Self::Input([scale, shift]) => (y.0.mul_add(scale.0, shift.0), y.1.mul_add(scale.1, shift.1)),
            };
            (g.0.where_positive(gates.0), g.1.where_positive(gates.1))
        }
    }
}
