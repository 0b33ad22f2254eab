//! The images as the first convolution reads them: every pixel it writes gets the patch that it
//! sees, so that a few channels of colour fill the tiles.

use super::{Simd, Tile, TileUnit, Vector, store_either};
use crate::geometry::Conv2d;
use crate::kernels::Images;
use crate::layout::tiles::{HALF, Tiling, stored_tile};
use crate::layout::{LANE_GROUP, Layout};

/// Stores up to 16 images as patches: channel `(c * kernel + row) * kernel + column` of a pixel is
/// what that tap of the convolution reads for it.
#[inline(always)]
pub fn load_images<U: TileUnit, const PLANES: usize>(simd: Simd<U>, images: Images<'_>) {
    images.check(Layout::Tiles { planes: PLANES }, images.conv.im2col());
    let non_temporal = images.non_temporal();
    let Images { images, conv, group, .. } = images;
    let tiling = Tiling::new(conv.im2col());
    let row_len = tiling.row_tiles() * stored_tile(PLANES);
    let images: Vec<_> = images.chunks_exact(conv.input().len()).map(|image| Bordered::new(conv, image)).collect();
    let mut by_tap = [Tile::ZERO; 2];
    // Of each image, for a tile is written as a whole: with non-temporal stores lines are.
    let mut by_column = [[Tile::ZERO; 2]; LANE_GROUP];
    for (y, row) in group.chunks_exact_mut(row_len).enumerate() {
        for first in (0..tiling.columns).step_by(LANE_GROUP) {
            for block in 0..tiling.blocks {
                for (image, by_column) in images.iter().zip(&mut by_column) {
                    gather(image, tiling, (y, first, block), &mut by_tap);
                    for (by_tap, by_column) in by_tap.iter().zip(by_column) {
                        U::Vector::transpose(simd.vector(), &by_tap.0, &mut by_column.0);
                    }
                }
                for (from, column) in (first..tiling.columns.min(first + LANE_GROUP)).enumerate() {
                    let first = (column * tiling.blocks + block) * stored_tile(PLANES);
                    let tile = &mut row[first..][..stored_tile(PLANES)];
                    for (lane, halves) in by_column.iter().enumerate() {
                        for part in (0..HALF).step_by(U::Vector::LANES) {
                            let [low, high] = halves.each_ref().map(|half| half.0[from * HALF..][..HALF].as_ptr());
                            // SAFETY: a part is a vector of the column's 16 values and of the
                            // image's row in the tile, which begins a line where stores are
                            // non-temporal: rows and tiles are whole lines.
                            unsafe {
                                let value = (simd.vector().load(low.add(part)), simd.vector().load(high.add(part)));
                                let at = lane * HALF + part;
                                store_either::<U, PLANES>(simd, value, tile.as_mut_ptr(), at, non_temporal);
                            }
                        }
                    }
                }
            }
        }
    }
    U::Vector::fence(simd.vector());
}

/// What the taps of a block of tiles read of one image for 16 columns of tiles from `first` on,
/// `[tap][column]` of each half.
#[inline(always)]
fn gather(image: &Bordered, tiling: Tiling, (y, first, block): (usize, usize, usize), by_tap: &mut [Tile; 2]) {
    for (half, taps) in by_tap.iter_mut().enumerate() {
        for (i, values) in taps.0.as_chunks_mut().0.iter_mut().enumerate() {
            *values = [0.0; LANE_GROUP];
            match tiling.pixels {
                1 => image.read((2 * block + half) * HALF + i, y, first, values),
                _ => image.read_pairs(i, y, 2 * first + half, values),
            }
        }
    }
}

/// An image with its border of zeros.
struct Bordered {
    values: Vec<f32>,
    /// Where each tap reads for the first pixel.
    taps: Vec<usize>,
    conv: Conv2d,
    width: usize,
}

impl Bordered {
    fn new(conv: &Conv2d, image: &[f32]) -> Self {
        let (input, padding, kernel) = (conv.input(), conv.vertical.padding, conv.vertical.kernel);
        let (height, width) = (input.height + 2 * padding, input.width + 2 * padding);
        let taps = (0..conv.im2col().channels)
            .map(|tap| {
                let (channel, row, column) = (tap / (kernel * kernel), tap / kernel % kernel, tap % kernel);
                (channel * height + row) * width + column
            })
            .collect();
        let mut values = vec![0.0; input.channels * height * width];
        for (row, pixels) in image.chunks_exact(input.width).enumerate() {
            let (channel, y) = (row / input.height, row % input.height);
            let at = (channel * height + y + padding) * width + padding;
            values[at..at + input.width].copy_from_slice(pixels);
        }
        Self { values, taps, conv: *conv, width }
    }

    /// What a tap reads for 16 pixels of a row from `x` on; zeros where a tap or a pixel does not
    /// exist.
    #[inline(always)]
    fn read(&self, tap: usize, y: usize, x: usize, values: &mut [f32; LANE_GROUP]) {
        let Some(&tap) = self.taps.get(tap) else { return };
        let stride = self.conv.vertical.stride;
        let source = &self.values[tap + (y * self.width + x) * stride..];
        if stride == 1 && x + LANE_GROUP <= self.conv.horizontal.output {
            values.copy_from_slice(&source[..LANE_GROUP]);
        } else {
            let count = LANE_GROUP.min(self.conv.horizontal.output - x);
            values.iter_mut().take(count).zip(source.iter().step_by(stride)).for_each(|(value, &pixel)| *value = pixel);
        }
    }

    /// What a tap reads for 16 pixels of a row from `x` on, every other one; zeros where a tap or a
    /// pixel does not exist.
    #[inline(always)]
    fn read_pairs(&self, tap: usize, y: usize, x: usize, values: &mut [f32; LANE_GROUP]) {
        let width = self.conv.horizontal.output;
        let Some(&tap) = self.taps.get(tap).filter(|_| x < width) else { return };
        let stride = self.conv.vertical.stride;
        let source = self.values[tap + (y * self.width + x) * stride..].iter().step_by(2 * stride);
        let count = LANE_GROUP.min((width - x).div_ceil(2));
        values.iter_mut().take(count).zip(source).for_each(|(value, &pixel)| *value = pixel);
    }
}
