//! The matrices, applied to vectors.

use std::f32::consts::{FRAC_1_SQRT_2 as A, SQRT_2 as B};

use super::{KERNEL, POINTS, QUAD, WINDOW};
use crate::kernels::vector::Vector;

/// What takes pixels to the values at the points.
pub trait Transform {
    /// Pixels it takes of a window, from the first.
    const PIXELS: usize;

    /// # Safety
    /// The machine has the vector's instructions.
    unsafe fn apply<V: Vector>(window: [V; WINDOW]) -> [V; POINTS];
}

/// `B' d` of the inputs of a quad.
pub struct Input;

/// `G w` of the taps of a row of the kernel.
pub struct Filter;

/// `A g` of the gradients of its outputs.
pub struct Gradient;

impl Transform for Input {
    const PIXELS: usize = WINDOW;

    #[inline(always)]
    unsafe fn apply<V: Vector>(d: [V; WINDOW]) -> [V; POINTS] {
        // SAFETY: passed on from the caller.
        unsafe {
            let (a, b, half, two, minus) = (V::splat(A), V::splat(B), V::splat(-0.5), V::splat(-2.0), V::splat(-2.5));
            let even = [d[2].mul_add(two, d[4]), d[2].mul_add(half, d[4])];
            let odd = [d[1].mul_add(two, d[3]).mul(a), d[1].mul_add(half, d[3]).mul(b)];
            [
                d[2].mul_add(minus, d[0].add(d[4])),
                d[3].mul_add(minus, d[1].add(d[5])),
                even[0].add(odd[0]),
                even[0].sub(odd[0]),
                even[1].add(odd[1]),
                even[1].sub(odd[1]),
            ]
        }
    }
}

impl Transform for Filter {
    const PIXELS: usize = KERNEL;

    #[inline(always)]
    unsafe fn apply<V: Vector>(w: [V; WINDOW]) -> [V; POINTS] {
        // SAFETY: passed on from the caller.
        unsafe {
            let (third, sixth) = (V::splat(1.0 / 3.0), V::splat(1.0 / 6.0));
            let even = [w[0].mul(V::splat(-2.0 / 3.0)).sub(w[2].mul(third)), w[0].mul(sixth).add(w[2].mul(third))];
            let odd = [w[1].mul(V::splat(-2.0 / 3.0 * A)), w[1].mul(V::splat(B / 6.0))];
            [w[0], w[2], even[0].add(odd[0]), even[0].sub(odd[0]), even[1].add(odd[1]), even[1].sub(odd[1])]
        }
    }
}

impl Transform for Gradient {
    const PIXELS: usize = QUAD;

    #[inline(always)]
    unsafe fn apply<V: Vector>(g: [V; WINDOW]) -> [V; POINTS] {
        // SAFETY: passed on from the caller.
        unsafe {
            let (half, two) = (V::splat(0.5), V::splat(2.0));
            let even = [g[2].mul_add(half, g[0]), g[2].mul_add(two, g[0])];
            let odd = [g[3].mul_add(half, g[1]).mul(V::splat(A)), g[3].mul_add(two, g[1]).mul(V::splat(B))];
            [g[0], g[3], even[0].add(odd[0]), even[0].sub(odd[0]), even[1].add(odd[1]), even[1].sub(odd[1])]
        }
    }
}

/// `A' m`: the four outputs whose values at the points are `m`.
///
/// # Safety
/// The machine has the vector's instructions.
#[inline(always)]
pub unsafe fn output<V: Vector>(m: [V; POINTS]) -> [V; QUAD] {
    // SAFETY: passed on from the caller.
    unsafe {
        let (half, two) = (V::splat(0.5), V::splat(2.0));
        let even = [m[2].add(m[3]), m[4].add(m[5])];
        let odd = [m[2].sub(m[3]).mul(V::splat(A)), m[4].sub(m[5]).mul(V::splat(B))];
        [
            m[0].add(even[0].add(even[1])),
            odd[0].add(odd[1]),
            even[0].mul_add(half, even[1].mul(two)),
            odd[0].mul_add(half, odd[1].mul_add(two, m[1])),
        ]
    }
}
