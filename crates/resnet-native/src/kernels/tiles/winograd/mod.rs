//! [`winograd`](plain)'s method on tiles: where a value is multiplied in more than one plane,
//! products are most of the work. In one plane it is not used, for what is rounded to bf16 at the
//! points is rounded once more.
//!
//! At a point, a *quad* (four outputs of a row) is what a pixel is elsewhere: a tile holds 32
//! channels of one quad in one plane. Of layers of up to 16 channels it holds two planes of the
//! same channels, so that one product of tiles is two products of planes:
//!
//! ```text
//! (x0, x1) (w0, w0) + (x0, x1) (w1, w1) + (x2, x0) (w0, w2)
//! ```
//!
//! are all six of three planes, where a tile of two pixels takes twelve for both of them.

mod conv;
mod pack;
mod points;

use super::plane_products;
use crate::geometry::Conv2d;
use crate::kernels::winograd as plain;
use crate::layout::tiles::tile_pixels;

pub use conv::conv;
pub use pack::{pack, packed_len};

/// Whether a convolution in some planes is computed this way.
pub fn fits(conv: &Conv2d, planes: usize) -> bool {
    planes > 1 && plain::fits(conv)
}

/// The values of a window's pixels, or at the points.
type Window<V> = [V; plain::WINDOW];

/// Whether tiles at a point hold two planes of these channels.
const fn is_narrow(channels: usize) -> bool {
    tile_pixels(channels) == 2
}

/// Tiles that a block of the input's channels takes at a point.
const fn input_tiles(planes: usize, narrow: bool) -> usize {
    if narrow { planes - 1 } else { planes }
}

/// Which tiles of the input and of the weights are multiplied, in the order of [`plane_products`].
const fn products(planes: usize, narrow: bool) -> &'static [(usize, usize)] {
    match (planes, narrow) {
        (2, true) => &[(0, 1), (0, 0)],
        (_, true) => &[(1, 2), (0, 1), (0, 0)],
        _ => plane_products(planes),
    }
}
