//! The algorithms on tiles of bf16 (see `layout`), generic over what multiplies tiles.

mod conv;
mod conv_weights;
mod normalize;
mod patches;
mod resample;
mod software;
mod spin;
mod weights;

use super::Vector;
use crate::layout::{HALF, TILE};

pub use conv::conv;
pub use conv_weights::conv_weights;
pub use normalize::{normalize, normalize_backward, normalize_reduce};
pub use patches::load_images;
pub use resample::{pad, pad_backward, pool, pool_backward};
pub use software::Software;
pub use spin::spin;
pub use weights::{gradient_len, pack_weights, packed_len, unpack_gradient};

/// Eight registers, each a tile of 16 rows of 16 words.
///
/// # Safety
/// Every method needs a machine that has the unit's instructions; pointers are to whole tiles.
pub trait TileUnit {
    /// The vectors that go with it.
    type Vector: Vector;

    /// The unit, ready to use on this thread.
    unsafe fn new() -> Self;
    /// Sets a register to zero.
    unsafe fn zero<const T: usize>(&mut self);
    /// Loads a register.
    unsafe fn load<const T: usize>(&mut self, from: *const f32);
    /// Loads a register from rows that are `step` bytes apart.
    unsafe fn load_rows<const T: usize>(&mut self, from: *const f32, step: usize);
    /// Stores a register.
    unsafe fn store<const T: usize>(&mut self, to: *mut f32);
    /// `D[m][n] += sum over i of A[m][i] * B[i][n]`: words of `D` are floats, those of `A` and `B` two
    /// values in bf16 whose products are added.
    unsafe fn dot<const D: usize, const A: usize, const B: usize>(&mut self);
    /// [`Vector::narrow`], by the unit's own instruction where it has one.
    unsafe fn narrow(low: Self::Vector, high: Self::Vector) -> Self::Vector;
    /// [`Vector::store_bf16`] for two vectors, the second 16 values after the first; likewise.
    unsafe fn store_halves(values: [Self::Vector; 2], to: *mut u16);
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
}

/// What lies beyond the borders.
static ZERO: Tile = Tile::ZERO;

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
