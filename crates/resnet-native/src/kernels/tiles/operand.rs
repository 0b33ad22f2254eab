//! The values that a convolution reads, tile by tile: as they are stored, or recomputed on load.

use super::channels::{PaddedAffine, PerChannel};
use super::{Pair, Simd, TileUnit, Vector, load, store, store_planes};
use crate::kernels::{NormValues, Operand};
use crate::layout::MAX_PLANES;
use crate::layout::tiles::{HALF, Tiling, stored_tile};
use resnet_graph::Shape;

/// An [`Operand`] with its channels' values filled up to whole tiles.
pub struct TileOperand<'a> {
    tiling: Tiling,
    /// Images there are values of; further ones are zero.
    pub images: usize,
    /// The [tensors](Operand::tensors) read.
    tensors: [&'a [f32]; 2],
    channels: TileChannels,
}

/// The variants of [`Operand`], with what they do to each channel.
enum TileChannels {
    Stored,
    Normalized(PaddedAffine),
    NormGradient([PerChannel; 3]),
}

/// Part of a row's tile: 16 images of some channels.
#[derive(Clone, Copy)]
pub struct Part {
    /// Row of pixels.
    pub row: usize,
    /// Tile of the row.
    pub tile: usize,
    /// First channel of each half.
    pub channel: usize,
}

/// What is done with a part, compiled for each variant of [`Operand`].
pub trait Visitor<V: Vector, const PLANES: usize> {
    /// Goes through the images, from the tile's place in the tensors and the part's in the tile on.
    ///
    /// # Safety
    /// The part exists in the operand it is called for.
    unsafe fn visit<O: PartOperand<V>>(self, tile: usize, at: usize, operand: O);
}

impl<'a> TileOperand<'a> {
    /// The values of an operand of this shape in a lane group of `images`.
    pub fn new(operand: Operand<&'a [f32], &NormValues>, images: usize, shape: Shape) -> Self {
        let tiling = Tiling::new(shape);
        let channels = match operand {
            Operand::Stored(_) => TileChannels::Stored,
            Operand::Normalized { norm, .. } => TileChannels::Normalized(PaddedAffine::new(norm, tiling)),
            Operand::NormGradient { norm, .. } => {
                TileChannels::NormGradient(norm.factors.each_ref().map(|values| PerChannel::new(values, tiling)))
            }
        };
        Self { tiling, images, tensors: operand.tensors(), channels }
    }

    /// The tensor, where values are what is stored.
    pub fn stored(&self) -> Option<*const f32> {
        matches!(self.channels, TileChannels::Stored).then_some(self.tensors[0].as_ptr())
    }

    /// The tensor, where nothing is to be done with it before it is multiplied in one plane.
    pub fn direct<const PLANES: usize>(&self) -> Option<*const f32> {
        self.stored().filter(|_| PLANES == 1)
    }

    /// The tensors that values are computed from.
    pub fn tensors(&self) -> [*const f32; 2] {
        self.tensors.map(<[f32]>::as_ptr)
    }

    /// Copies the values of a row's tile: split into `PLANES` planes or, if `SINGLE`, in single
    /// precision, the second half after the first. Rows of further images are left as they are.
    ///
    /// # Safety
    /// The tile exists, and `to` is valid for writing a tile for each plane or half.
    #[inline(always)]
    pub unsafe fn copy<U: TileUnit, const PLANES: usize, const SINGLE: bool>(
        &self,
        simd: Simd<U>,
        (row, tile): (usize, usize),
        to: *mut f32,
    ) {
        for channel in (0..HALF).step_by(U::Vector::LANES) {
            let to = to.wrapping_add(channel);
            let copy = CopyPart::<U, SINGLE> { simd, tensors: self.tensors(), images: self.images, to };
            // SAFETY: the caller's tile exists, and from `to` on there is room for a part of it.
            unsafe { self.visit::<_, PLANES>(simd.vector(), Part { row, tile, channel }, copy) };
        }
    }

    /// Lets `visitor` go through the images of a part.
    ///
    /// # Safety
    /// The part exists.
    #[inline(always)]
    pub unsafe fn visit<V: Vector, const PLANES: usize>(
        &self,
        simd: Simd<V>,
        part: Part,
        visitor: impl Visitor<V, PLANES>,
    ) {
        let (block, channel) = (part.tile % self.tiling.blocks, part.channel);
        let tile = (part.row * self.tiling.row_tiles() + part.tile) * stored_tile(PLANES);
        // SAFETY: the caller's part exists.
        unsafe {
            match &self.channels {
                TileChannels::Stored => visitor.visit(tile, channel, Stored(simd)),
                TileChannels::Normalized(affine) => {
                    visitor.visit(tile, channel, Normalized(simd, affine.load(simd, block, channel)));
                }
                TileChannels::NormGradient(factors) => {
                    let [a, b, c] = factors;
                    let factors =
                        [a.load(simd, block, channel), b.load(simd, block, channel), c.load(simd, block, channel)];
                    visitor.visit(tile, channel, NormGradient(simd, factors));
                }
            }
        }
    }
}

/// The variants of [`Operand`] for part of a tile, with what they do to its channels in registers.
pub trait PartOperand<V: Vector>: Copy {
    /// The values of both halves, from place `at` on of a tile of each of the
    /// [tensors](TileOperand::tensors).
    ///
    /// # Safety
    /// From the tensors' pointers on there are tiles, and a vector's lanes from `at` on lie inside
    /// a half.
    unsafe fn image<const PLANES: usize>(&self, first: *const f32, second: *const f32, at: usize) -> Pair<V>;
}

#[derive(Clone, Copy)]
struct Stored<V>(Simd<V>);

/// Scale and shift, then the ReLU.
#[derive(Clone, Copy)]
struct Normalized<V>(Simd<V>, [Pair<V>; 2]);

/// `a`, `b` and `c`.
#[derive(Clone, Copy)]
struct NormGradient<V>(Simd<V>, [Pair<V>; 3]);

impl<V: Vector> PartOperand<V> for Stored<V> {
    #[inline(always)]
    unsafe fn image<const PLANES: usize>(&self, first: *const f32, _: *const f32, at: usize) -> Pair<V> {
        // SAFETY: the caller gives a tile and a place in it.
        unsafe { load::<V, PLANES>(self.0, first, at) }
    }
}

impl<V: Vector> PartOperand<V> for Normalized<V> {
    #[inline(always)]
    unsafe fn image<const PLANES: usize>(&self, first: *const f32, _: *const f32, at: usize) -> Pair<V> {
        let Self(simd, [scale, shift]) = *self;
        // SAFETY: the caller gives a tile and a place in it.
        let y = unsafe { load::<V, PLANES>(simd, first, at) };
        (y.0.mul_add(scale.0, shift.0).relu(), y.1.mul_add(scale.1, shift.1).relu())
    }
}

impl<V: Vector> PartOperand<V> for NormGradient<V> {
    #[inline(always)]
    unsafe fn image<const PLANES: usize>(&self, first: *const f32, second: *const f32, at: usize) -> Pair<V> {
        let Self(simd, [a, b, c]) = *self;
        // SAFETY: the caller gives two tiles and a place in them.
        let (g, y) = unsafe { (load::<V, PLANES>(simd, first, at), load::<V, PLANES>(simd, second, at)) };
        (g.0.mul_add(a.0, y.0.mul_add(b.0, c.0)), g.1.mul_add(a.1, y.1.mul_add(b.1, c.1)))
    }
}

/// Copies part of a tile: see [`TileOperand::copy`].
struct CopyPart<U, const SINGLE: bool> {
    simd: Simd<U>,
    tensors: [*const f32; 2],
    images: usize,
    to: *mut f32,
}

impl<U: TileUnit, const PLANES: usize, const SINGLE: bool> Visitor<U::Vector, PLANES> for CopyPart<U, SINGLE> {
    #[inline(always)]
    unsafe fn visit<O: PartOperand<U::Vector>>(self, tile: usize, at: usize, operand: O) {
        let [first, second] = self.tensors.map(|tensor| tensor.wrapping_add(tile));
        for image in (0..self.images * HALF).step_by(HALF) {
            // SAFETY: the caller's part exists, and `to` has room for it in every plane or half.
            unsafe {
                let value = operand.image::<PLANES>(first, second, at + image);
                if SINGLE {
                    store::<U, MAX_PLANES>(self.simd, value, self.to, image);
                } else {
                    store_planes::<U, PLANES>(self.simd, value, self.to.add(image));
                }
            }
        }
    }
}
