//! The most that a matrix unit can do, to measure the rest against.

use super::{Simd, TileUnit, plane_products};
use crate::layout::LANE_GROUP;
use crate::layout::tiles::HALF;

/// Keeps four tiles of sums busy; returns the multiply-adds done, each of which takes the products
/// of all planes.
#[inline(always)]
pub fn peak<U: TileUnit, const PLANES: usize>(simd: Simd<U>, rounds: usize) -> u64 {
    let mut unit = U::new(simd);
    unit.zero::<0>();
    unit.zero::<1>();
    unit.zero::<2>();
    unit.zero::<3>();
    unit.zero::<4>();
    unit.zero::<5>();
    for _ in 0..rounds {
        unit.dot::<0, 4, 5>();
        unit.dot::<1, 4, 5>();
        unit.dot::<2, 4, 5>();
        unit.dot::<3, 4, 5>();
    }
    (rounds * 4 * LANE_GROUP * HALF * 2 * HALF / plane_products(PLANES).len()) as u64
}
