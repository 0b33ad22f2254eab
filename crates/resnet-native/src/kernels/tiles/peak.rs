//! The most that a matrix unit can do, to measure the rest against.

use super::{TileUnit, plane_products};
use crate::layout::LANE_GROUP;
use crate::layout::tiles::HALF;

/// Keeps four tiles of sums busy; returns the multiply-adds done, each of which takes the products of all planes.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn peak<U: TileUnit, const PLANES: usize>(rounds: usize) -> u64 {
    // SAFETY: passed on from the caller; no memory is touched.
    unsafe {
        let mut unit = U::new();
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
    }
    (rounds * 4 * LANE_GROUP * HALF * 2 * HALF / plane_products(PLANES).len()) as u64
}
