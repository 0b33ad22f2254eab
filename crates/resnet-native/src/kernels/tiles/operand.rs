//! The values that a convolution reads, tile by tile: as they are stored, or recomputed on load.

use super::channels::{PaddedAffine, PerChannel};
use super::{Pair, Simd, Vector, load};
use crate::kernels::Source;
use crate::layout::LANE_GROUP;
use crate::layout::tiles::{Tiling, stored_tile};
use resnet_graph::Shape;

/// A [`Source`] with its channels' values filled up to whole tiles.
pub struct Values<'a> {
    tiling: Tiling,
    /// Images there are values of.
    pub images: usize,
    first: &'a [f32],
    second: &'a [f32],
    arithmetic: Arithmetic,
}

/// What is done with the stored values.
enum Arithmetic {
    Nothing,
    Normalize(PaddedAffine),
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

/// What is done with a part, compiled for each way to work its values out.
pub trait Visitor<V: Vector, const PLANES: usize> {
    /// Goes through the images, from the tile's place in the tensors and the part's in the tile on.
    ///
    /// # Safety
    /// The part exists in the values it is called for.
    unsafe fn visit<S: Steps<V>>(self, tile: usize, at: usize, steps: S);
}

impl<'a> Values<'a> {
    /// The values of `source`, of this shape.
    pub fn new(source: Source<'a>, shape: Shape) -> Self {
        let tiling = Tiling::new(shape);
        match source {
            Source::Stored(values) => {
                Self { tiling, images: LANE_GROUP, first: values, second: values, arithmetic: Arithmetic::Nothing }
            }
            Source::Normalized { input, affine, images } => {
                let arithmetic = Arithmetic::Normalize(PaddedAffine::new(affine, tiling));
                Self { tiling, images, first: input, second: input, arithmetic }
            }
            Source::NormGradient { gradient, input, factors, images } => {
                let arithmetic = Arithmetic::NormGradient(factors.map(|values| PerChannel::new(values, tiling)));
                Self { tiling, images, first: gradient, second: input, arithmetic }
            }
        }
    }

    /// The tensor, where values are what is stored.
    pub fn stored(&self) -> Option<*const f32> {
        matches!(self.arithmetic, Arithmetic::Nothing).then_some(self.first.as_ptr())
    }

    /// The tensor, where nothing is to be done with it before it is multiplied in one plane.
    pub fn direct<const PLANES: usize>(&self) -> Option<*const f32> {
        self.stored().filter(|_| PLANES == 1)
    }

    /// The tensors that values are worked out from.
    pub fn tensors(&self) -> [*const f32; 2] {
        [self.first.as_ptr(), self.second.as_ptr()]
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
            match &self.arithmetic {
                Arithmetic::Nothing => visitor.visit(tile, channel, AsStored(simd)),
                Arithmetic::Normalize(affine) => {
                    visitor.visit(tile, channel, Normalize(simd, affine.load(simd, block, channel)));
                }
                Arithmetic::NormGradient(factors) => {
                    let [a, b, c] = factors;
                    let factors =
                        [a.load(simd, block, channel), b.load(simd, block, channel), c.load(simd, block, channel)];
                    visitor.visit(tile, channel, Gradient(simd, factors));
                }
            }
        }
    }
}

/// A way to work out the values of one image.
pub trait Steps<V: Vector>: Copy {
    /// The values of both halves, from place `at` on of a tile of each of the [tensors](Values::tensors).
    ///
    /// # Safety
    /// From the tensors' pointers on there are tiles, and a vector's lanes from `at` on lie inside a half.
    unsafe fn image<const PLANES: usize>(&self, first: *const f32, second: *const f32, at: usize) -> Pair<V>;
}

#[derive(Clone, Copy)]
struct AsStored<V>(Simd<V>);

/// Scale and shift, then the ReLU.
#[derive(Clone, Copy)]
struct Normalize<V>(Simd<V>, [Pair<V>; 2]);

/// `a`, `b` and `c`.
#[derive(Clone, Copy)]
struct Gradient<V>(Simd<V>, [Pair<V>; 3]);

impl<V: Vector> Steps<V> for AsStored<V> {
    #[inline(always)]
    unsafe fn image<const PLANES: usize>(&self, first: *const f32, _: *const f32, at: usize) -> Pair<V> {
        // SAFETY: the caller gives a tile and a place in it.
        unsafe { load::<V, PLANES>(self.0, first, at) }
    }
}

impl<V: Vector> Steps<V> for Normalize<V> {
    #[inline(always)]
    unsafe fn image<const PLANES: usize>(&self, first: *const f32, _: *const f32, at: usize) -> Pair<V> {
        let Self(simd, [scale, shift]) = *self;
        // SAFETY: the caller gives a tile and a place in it.
        let y = unsafe { load::<V, PLANES>(simd, first, at) };
        (y.0.mul_add(scale.0, shift.0).relu(), y.1.mul_add(scale.1, shift.1).relu())
    }
}

impl<V: Vector> Steps<V> for Gradient<V> {
    #[inline(always)]
    unsafe fn image<const PLANES: usize>(&self, first: *const f32, second: *const f32, at: usize) -> Pair<V> {
        let Self(simd, [a, b, c]) = *self;
        // SAFETY: the caller gives two tiles and a place in them.
        let (g, y) = unsafe { (load::<V, PLANES>(simd, first, at), load::<V, PLANES>(simd, second, at)) };
        (g.0.mul_add(a.0, y.0.mul_add(b.0, c.0)), g.1.mul_add(a.1, y.1.mul_add(b.1, c.1)))
    }
}
