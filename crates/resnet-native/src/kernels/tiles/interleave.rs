//! Two lane groups side by side: tiles of 32 images, which are what a weight gradient sums over.

use super::operand::{Part, PartOperand, TileOperand, Visitor};
use super::{Pair, Simd, TileUnit, Vector, store_planes};
use crate::layout::LANE_GROUP;
use crate::layout::tiles::{HALF, TILE};

/// Puts a tile of one or two lane groups side by side: the first halves of both into the planes of
/// `halves[0]`, the second halves into those of `halves[1]`. A missing group is zero.
///
/// # Safety
/// The tile exists in each group, and both halves are valid for writing a tile for each plane.
#[inline(always)]
pub unsafe fn interleave<U: TileUnit, const PLANES: usize>(
    simd: Simd<U>,
    groups: &[TileOperand<'_>],
    row: usize,
    (tile, row_tiles): (usize, usize),
    halves: [*mut f32; 2],
) {
    // SAFETY: the caller's tile and planes; a tile that is read as it is stored is one of words, in
    // one plane.
    unsafe {
        match groups {
            [first, second] => match (first.direct::<PLANES>(), second.direct::<PLANES>()) {
                (Some(first), Some(second)) => {
                    let at = (row * row_tiles + tile) * TILE;
                    zip_words(simd.vector(), [first.add(at), second.add(at)], halves);
                }
                _ => zip::<U, PLANES>(simd, groups, row, tile, halves),
            },
            _ => zip::<U, PLANES>(simd, groups, row, tile, halves),
        }
    }
}

/// [`interleave`] for values that are first computed, or split into planes.
///
/// # Safety
/// As for [`interleave`].
#[inline(always)]
unsafe fn zip<U: TileUnit, const PLANES: usize>(
    simd: Simd<U>,
    groups: &[TileOperand<'_>],
    row: usize,
    tile: usize,
    halves: [*mut f32; 2],
) {
    let second = &groups[groups.len() - 1];
    let images = [groups[0].images, if groups.len() == 2 { second.images } else { 0 }];
    for channel in (0..HALF).step_by(U::Vector::LANES) {
        let halves = halves.map(|half| half.wrapping_add(channel));
        let zip = Zip { groups: [groups[0].tensors(), second.tensors()], images, halves, simd };
        // SAFETY: the caller's tile exists in both groups, and the halves have room for every
        // plane.
        unsafe { groups[0].visit::<_, PLANES>(simd.vector(), Part { row, tile, channel }, zip) };
    }
}

/// What puts part of a tile of two groups side by side.
struct Zip<U> {
    /// The tensors of each group.
    groups: [[*const f32; 2]; 2],
    images: [usize; 2],
    halves: [*mut f32; 2],
    simd: Simd<U>,
}

impl<U: TileUnit, const PLANES: usize> Visitor<U::Vector, PLANES> for Zip<U> {
    #[inline(always)]
    unsafe fn visit<O: PartOperand<U::Vector>>(self, tile: usize, at: usize, operand: O) {
        let groups = self.groups.map(|tensors| tensors.map(|tensor| tensor.wrapping_add(tile)));
        let zip = Self { groups, ..self };
        // SAFETY: the caller's part exists, and images have a row in it.
        unsafe {
            for image in 0..zip.images[0].min(zip.images[1]) {
                let (a, b) =
                    (zip.image::<O, PLANES>(0, at, image, operand), zip.image::<O, PLANES>(1, at, image, operand));
                zip.store::<PLANES>(image, a, b);
            }
            for image in zip.images[0].min(zip.images[1])..LANE_GROUP {
                let nothing = (zip.simd.vector().zero(), zip.simd.vector().zero());
                let a = if image < zip.images[0] { zip.image::<O, PLANES>(0, at, image, operand) } else { nothing };
                let b = if image < zip.images[1] { zip.image::<O, PLANES>(1, at, image, operand) } else { nothing };
                zip.store::<PLANES>(image, a, b);
            }
        }
    }
}

impl<U: TileUnit> Zip<U> {
    /// The values of an image of a group.
    ///
    /// # Safety
    /// The group's tensors have a tile at their pointers.
    #[inline(always)]
    unsafe fn image<O: PartOperand<U::Vector>, const PLANES: usize>(
        &self,
        group: usize,
        at: usize,
        image: usize,
        operand: O,
    ) -> Pair<U::Vector> {
        let [first, second] = self.groups[group];
        // SAFETY: the caller's tile has a row for each of 16 images.
        unsafe { operand.image::<PLANES>(first, second, at + image * HALF) }
    }

    /// Stores the values of an image of each group.
    ///
    /// # Safety
    /// There is room for the tiles' planes.
    #[inline(always)]
    unsafe fn store<const PLANES: usize>(&self, image: usize, a: Pair<U::Vector>, b: Pair<U::Vector>) {
        // SAFETY: the caller's planes have a row for each of 16 images.
        unsafe {
            store_planes::<U, PLANES>(self.simd, (a.0, b.0), self.halves[0].add(image * HALF));
            store_planes::<U, PLANES>(self.simd, (a.1, b.1), self.halves[1].add(image * HALF));
        }
    }
}

/// [`interleave`] for tiles whose words already hold what is multiplied, in one plane.
///
/// # Safety
/// `groups` are valid for reading a tile each, and `halves` for writing one.
#[inline(always)]
unsafe fn zip_words<V: Vector>(simd: Simd<V>, groups: [*const f32; 2], halves: [*mut f32; 2]) {
    for at in (0..TILE).step_by(V::LANES) {
        // SAFETY: the caller's tiles, of which `at` is a vector.
        unsafe {
            let (first, second) = (simd.load(groups[0].add(at)), simd.load(groups[1].add(at)));
            V::zip_low(first, second).store(halves[0].add(at));
            V::zip_high(first, second).store(halves[1].add(at));
        }
    }
}
