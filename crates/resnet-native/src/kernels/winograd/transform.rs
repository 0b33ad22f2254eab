//! The matrices, applied to vectors.

use std::f32::consts::{FRAC_1_SQRT_2 as A, SQRT_2 as B};

use super::{KERNEL, POINTS, QUAD, WINDOW};
use crate::kernels::vector::{Simd, Vector};

/// What takes pixels to the values at the points.
pub trait Transform {
    /// Pixels it takes of a window, from the first.
    const PIXELS: usize;

    /// The values at the points.
    fn apply<V: Vector>(simd: Simd<V>, window: [V; WINDOW]) -> [V; POINTS];
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
    fn apply<V: Vector>(simd: Simd<V>, d: [V; WINDOW]) -> [V; POINTS] {
        let (a, b, half, two, minus) =
            (simd.splat(A), simd.splat(B), simd.splat(-0.5), simd.splat(-2.0), simd.splat(-2.5));
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

impl Transform for Filter {
    const PIXELS: usize = KERNEL;

    #[inline(always)]
    fn apply<V: Vector>(simd: Simd<V>, w: [V; WINDOW]) -> [V; POINTS] {
        let (third, sixth) = (simd.splat(1.0 / 3.0), simd.splat(1.0 / 6.0));
        let even = [w[0].mul(simd.splat(-2.0 / 3.0)).sub(w[2].mul(third)), w[0].mul(sixth).add(w[2].mul(third))];
        let odd = [w[1].mul(simd.splat(-2.0 / 3.0 * A)), w[1].mul(simd.splat(B / 6.0))];
        [w[0], w[2], even[0].add(odd[0]), even[0].sub(odd[0]), even[1].add(odd[1]), even[1].sub(odd[1])]
    }
}

impl Transform for Gradient {
    const PIXELS: usize = QUAD;

    #[inline(always)]
    fn apply<V: Vector>(simd: Simd<V>, g: [V; WINDOW]) -> [V; POINTS] {
        let (half, two) = (simd.splat(0.5), simd.splat(2.0));
        let even = [g[2].mul_add(half, g[0]), g[2].mul_add(two, g[0])];
        let odd = [g[3].mul_add(half, g[1]).mul(simd.splat(A)), g[3].mul_add(two, g[1]).mul(simd.splat(B))];
        [g[0], g[3], even[0].add(odd[0]), even[0].sub(odd[0]), even[1].add(odd[1]), even[1].sub(odd[1])]
    }
}

/// `A' m`: the four outputs whose values at the points are `m`.
#[inline(always)]
pub fn output<V: Vector>(simd: Simd<V>, m: [V; POINTS]) -> [V; QUAD] {
    let (half, two) = (simd.splat(0.5), simd.splat(2.0));
    let even = [m[2].add(m[3]), m[4].add(m[5])];
    let odd = [m[2].sub(m[3]).mul(simd.splat(A)), m[4].sub(m[5]).mul(simd.splat(B))];
    [
        m[0].add(even[0].add(even[1])),
        odd[0].add(odd[1]),
        even[0].mul_add(half, even[1].mul(two)),
        odd[0].mul_add(half, odd[1].mul_add(two, m[1])),
    ]
}
