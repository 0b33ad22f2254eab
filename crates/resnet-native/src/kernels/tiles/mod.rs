//! The algorithms of training on [tiles](crate::layout::Layout::Tiles), generic over what
//! multiplies tiles and over the number of planes that a value is the sum of.
//!
//! Functions that touch a vector are `#[inline(always)]`, so that they are compiled inside the
//! `#[target_feature]` function that calls them; closures are not, so none of them touches a
//! vector. A kernel checks the lengths of its band, which its pointers rely on.

#![expect(clippy::needless_range_loop, reason = "loops over registers read better, and unroll, by index")]

mod avg_pool;
mod channels;
mod conv;
mod im2col;
mod interleave;
mod normalize;
mod operand;
mod pack;
mod pad_shortcut;
mod peak;
mod pixel;
mod rows;
mod software;
mod weight_gradient;
mod winograd;
mod writer;

use super::train::Schedule;
use super::vector::{Simd, Vector};
use crate::layout::MAX_PLANES;
use crate::layout::tiles::{HALF, TILE};

pub use avg_pool::{avg_pool, avg_pool_backward};
pub use conv::conv;
pub use im2col::load_images;
pub use normalize::{normalize, normalize_reduce};
pub use pack::{gradient_len, pack, packed_len, unpack_gradient};
pub use pad_shortcut::{pad_shortcut, pad_shortcut_backward};
pub use peak::peak;
pub use software::Software;
pub use weight_gradient::weight_gradient;

/// A product of tiles sums over 32 images; the sums of a band are as long as all weights.
pub const SCHEDULE: Schedule = Schedule { lane_groups: 2, band_pixels: 256, cuts_outputs: false };

/// Eight registers, each a tile of 16 rows of 16 words.
pub trait TileUnit: Sized {
    /// The vectors that go with it, of the same instruction set.
    type Vector: Vector;

    /// The unit, ready to use on this thread.
    fn new(simd: Simd<Self>) -> Self;
    /// Sets a register to zero.
    fn zero<const T: usize>(&mut self);
    /// Loads a register.
    ///
    /// # Safety
    /// `from` is valid for reading a tile, of any alignment.
    unsafe fn load<const T: usize>(&mut self, from: *const f32);
    /// Loads a register from rows that are `step` bytes apart.
    ///
    /// # Safety
    /// `from` is valid for reading 16 such rows of 16 words, of any alignment.
    unsafe fn load_rows<const T: usize>(&mut self, from: *const f32, step: usize);
    /// Stores a register.
    ///
    /// # Safety
    /// `to` is valid for writing a tile, of any alignment.
    unsafe fn store<const T: usize>(&mut self, to: *mut f32);
    /// `D[m][n] += sum over i of A[m][i] * B[i][n]`: words of `D` are floats, those of `A` and `B`
    /// two values in bf16 whose products are added.
    fn dot<const D: usize, const A: usize, const B: usize>(&mut self);
    /// [`Vector::narrow`], by the unit's own instruction where it has one.
    #[inline(always)]
    fn narrow(_: Simd<Self>, low: Self::Vector, high: Self::Vector) -> Self::Vector {
        Vector::narrow(low, high)
    }
    /// [`Vector::store_bf16`] for two vectors, the second 16 values after the first, by the unit's
    /// own instruction where it has one.
    ///
    /// # Safety
    /// `to` is valid for writing both.
    #[inline(always)]
    unsafe fn store_halves(_: Simd<Self>, values: [Self::Vector; 2], to: *mut u16) {
        // SAFETY: the caller gives room for a vector at `to` and for one 16 values on.
        unsafe {
            values[0].store_bf16(to);
            values[1].store_bf16(to.add(HALF));
        }
    }
}

impl<U: TileUnit> Simd<U> {
    /// The proof for the unit's vectors.
    #[inline(always)]
    pub fn vector(self) -> Simd<U::Vector> {
        // SAFETY: a unit's vectors are of its instruction set.
        unsafe { Simd::new() }
    }
}

/// The planes of two factors whose products are added up: those that are not below the last plane's
/// rounding. They stand in an order in which one goes over into the next with one factor unchanged.
pub const fn plane_products(planes: usize) -> &'static [(usize, usize)] {
    match planes {
        1 => &[(0, 0)],
        2 => &[(1, 0), (0, 0), (0, 1)],
        _ => &[(2, 0), (1, 0), (1, 1), (0, 1), (0, 2), (0, 0)],
    }
}

/// The values of a tile's two halves for some of their channels.
type Pair<V> = (V, V);

/// Loads part of a row of both halves of a stored tile, from place `at` of each on.
///
/// # Safety
/// `tile` is valid for reading a stored tile, and a vector's lanes from `at` on lie inside a half.
#[inline(always)]
unsafe fn load<V: Vector, const PLANES: usize>(simd: Simd<V>, tile: *const f32, at: usize) -> Pair<V> {
    // SAFETY: the caller's tile has a word for each place; then, with two planes, a pair of bytes
    // for each or, with three, a second word.
    unsafe {
        match PLANES {
            1 => simd.load(tile.add(at)).widen(),
            2 => V::load_24(simd, tile.add(at), tile.add(TILE).cast::<u16>().add(at)),
            _ => (simd.load(tile.add(at)), simd.load(tile.add(TILE + at))),
        }
    }
}

/// Stores part of a row of both halves of a tile, from place `at` of each on.
///
/// # Safety
/// `tile` is valid for writing a stored tile, and a vector's lanes from `at` on lie inside a half.
#[inline(always)]
unsafe fn store<U: TileUnit, const PLANES: usize>(simd: Simd<U>, value: Pair<U::Vector>, tile: *mut f32, at: usize) {
    // SAFETY: the caller's tile and place, which need no alignment.
    unsafe { store_either::<U, PLANES>(simd, value, tile, at, false) }
}

/// [`store`], with non-temporal stores if `non_temporal`.
///
/// # Safety
/// As for [`store`]; if `non_temporal`, the tile begins a line and `at` is a whole number of
/// vectors.
#[inline(always)]
unsafe fn store_either<U: TileUnit, const PLANES: usize>(
    simd: Simd<U>,
    value: Pair<U::Vector>,
    tile: *mut f32,
    at: usize,
    non_temporal: bool,
) {
    // SAFETY: the caller's tile has a word for each place; then, with two planes, a pair of bytes
    // for each or, with three, a second word.
    unsafe {
        match PLANES {
            1 => U::narrow(simd, value.0, value.1).store_either(tile.add(at), non_temporal),
            2 => U::Vector::store_24(value, tile.add(at), tile.add(TILE).cast::<u16>().add(at), non_temporal),
            _ => {
                value.0.store_either(tile.add(at), non_temporal);
                value.1.store_either(tile.add(TILE + at), non_temporal);
            }
        }
    }
}

/// Splits values into the planes that they are multiplied in.
///
/// # Safety
/// `to` is valid for a vector in each plane of the tile.
#[inline(always)]
unsafe fn store_planes<U: TileUnit, const PLANES: usize>(simd: Simd<U>, value: Pair<U::Vector>, to: *mut f32) {
    if PLANES == 1 {
        // SAFETY: the caller gives room for the only plane.
        return unsafe { U::narrow(simd, value.0, value.1).store(to) };
    }
    let (low, high) = (planes::<_, PLANES>(value.0), planes::<_, PLANES>(value.1));
    for plane in 0..PLANES {
        // SAFETY: the caller gives room in each plane.
        unsafe { U::Vector::zip_high(low[plane], high[plane]).store(to.add(plane * TILE)) };
    }
}

/// The planes of values, more than one, as floats.
#[inline(always)]
fn planes<V: Vector, const PLANES: usize>(value: V) -> [V; PLANES] {
    let mut planes = [value; PLANES];
    for plane in 1..PLANES {
        (planes[plane - 1], planes[plane]) = planes[plane - 1].split_bf16();
    }
    // What two planes leave of single precision is seven bits at most: the third takes them as they
    // are.
    if PLANES < MAX_PLANES {
        planes[PLANES - 1] = planes[PLANES - 1].split_bf16().0;
    }
    planes
}

/// A tile in memory of its own.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Tile([f32; TILE]);

impl Tile {
    const ZERO: Self = Self([0.0; TILE]);

    fn as_ptr(&self) -> *const f32 {
        self.0.as_ptr()
    }

    fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr()
    }

    /// Sets the high halves of all words to zero.
    fn clear_second_half(&mut self) {
        self.0.iter_mut().for_each(|word| *word = f32::from_bits(word.to_bits() & 0xffff));
    }
}

/// What lies beyond the borders, in every plane.
static ZERO: [Tile; MAX_PLANES] = [Tile::ZERO; MAX_PLANES];

thread_local! {
    /// Tiles that a kernel works in, kept for the next.
    static SCRATCH: std::cell::RefCell<Vec<Tile>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Values of each channel, filled up with zeros to whole tiles.
fn padded(values: &[f32]) -> Vec<f32> {
    let mut padded = values.to_vec();
    padded.resize(values.len().next_multiple_of(2 * HALF), 0.0);
    padded
}
