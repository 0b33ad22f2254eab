//! Convolutions of 3x3 with step 1 in half the products: Winograd's method F(4, 3) along the rows
//! (Lavin and Gray, arXiv:1509.09308, in one dimension).
//!
//! Four outputs `y` of a row, a *quad*, are what three taps `w` make of six inputs `d`: twelve
//! products. As the coefficients of polynomials they follow from the values at six points, which
//! take six:
//!
//! ```text
//! y  = A' (G w * B' d)     forward, and the gradient with respect to the input with the taps turned round
//! dw = G' (A dy * B' d)    the weight gradient
//! ```
//!
//! `*` multiplies point by point and is summed over kernel rows and channels, or over rows, quads
//! and images, before the matrix on its left is applied. The points are 0, infinity, a, -a, b and
//! -b with a = sqrt(1/2) and b = sqrt(2): rounding loses 1.5 to 1.7 times what it loses in the
//! plain sum, against 2.1 to 2.3 times with the usual 1 and 2.

mod filter;
pub mod transform;

pub use filter::taps;

use crate::geometry::{Conv1d, Conv2d, Direction};
use crate::layout::gather::Gather;

/// Outputs of a quad.
pub const QUAD: usize = 4;

/// Points at which the polynomials of a quad are multiplied: 0, infinity, a, -a, b, -b.
pub const POINTS: usize = 6;

/// Inputs that a quad sees.
pub const WINDOW: usize = 6;

/// Side of the kernel.
pub const KERNEL: usize = 3;

/// Channels on either side, and pixels of a row, below which the transformations take more than
/// they save.
const WORTHWHILE: (usize, usize) = (8, 4);

/// Whether a convolution is computed this way.
pub fn fits(conv: &Conv2d) -> bool {
    let (channels, width) = WORTHWHILE;
    let is_plain = |along: Conv1d| along.kernel == KERNEL && along.stride == 1;
    is_plain(conv.vertical)
        && is_plain(conv.horizontal)
        && conv.inputs.min(conv.outputs) >= channels
        && conv.horizontal.input.min(conv.horizontal.output) >= width
}

/// A row of pixels that quads are read from.
#[derive(Clone, Copy)]
pub struct Row {
    /// Its pixels.
    pub width: usize,
    /// Floats of a pixel.
    pub pixel: usize,
    /// Pixels from the first that a quad reads to its own first.
    pub padding: isize,
}

impl Row {
    /// What a convolution, or its gradient with respect to the input, reads.
    pub fn read(gather: &Gather, pixel: usize) -> Self {
        let padding = gather.conv.horizontal.padding as isize;
        let padding = match gather.direction {
            Direction::Forward => padding,
            Direction::Backward => KERNEL as isize - 1 - padding,
        };
        Self { width: gather.from.width, pixel, padding }
    }

    /// Where the pixels are that a quad reads, in a row at `row`; `zeros` has to stand for those
    /// beyond it.
    #[inline(always)]
    pub fn window(&self, quad: usize, row: *const f32, zeros: *const f32) -> [*const f32; WINDOW] {
        let first = (quad * QUAD) as isize - self.padding;
        let mut pixels = [zeros; WINDOW];
        for (x, pixel) in (first..).zip(&mut pixels) {
            if (0..self.width as isize).contains(&x) {
                *pixel = row.wrapping_add(x as usize * self.pixel);
            }
        }
        pixels
    }
}
