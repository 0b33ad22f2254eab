//! Tiles of bf16, for units that multiply matrices.
//!
//! `[N / 16][H][W][C / 32][16 images][32 channels]`: tiles of 1 KB, which hold up to 32 channels of one
//! pixel. A value is multiplied as the sum of its *planes*: the first is the value rounded to bf16, the
//! second what that rounding left, rounded again, and the third the rest. One plane is plain bf16, two keep
//! 16 bits of a value's mantissa and three all 24. Where a layer has no more than 16 channels, a tile holds
//! two pixels: `[N / 16][H][W / 2][16 images][2 pixels of 16 channels]`.
//!
//! The two *halves* of a tile (channels 0 to 15 and 16 to 31, or the two pixels) alternate in bf16: the
//! 32-bit word `i` of a row holds the value `i` of the first half in its low bits and that of the second in
//! its high ones, so that a shift and a mask widen both to single precision.
//!
//! What is multiplied in one plane is stored in bf16. For two planes values are stored in 24 bits, which are
//! single precision without its last byte: the words of their upper halves, as in bf16 but cut off, and
//! after them, for each word, a pair of third bytes. For three they are stored in single precision, the
//! second half after the first.

use resnet_graph::Shape;

use super::LANE_GROUP;
use super::numbers::{narrow, narrow_24, widen, widen_24};

/// Channels in half a tile.
pub const HALF: usize = 16;

/// Words of a tile.
pub const TILE: usize = LANE_GROUP * HALF;

/// Most planes of a value in tiles: they hold single precision.
pub const MAX_PLANES: usize = 3;

/// Words that a tile is stored in.
pub const fn stored_tile(planes: usize) -> usize {
    match planes {
        1 => TILE,
        2 => TILE + TILE / 2,
        _ => 2 * TILE,
    }
}

/// A value of a stored tile.
pub fn stored_value(tile: &[f32], planes: usize, word: usize, half: usize) -> f32 {
    match planes {
        1 => widen(tile[word])[half],
        2 => widen_24(tile[word], byte_pair(tile, word))[half],
        _ => tile[half * TILE + word],
    }
}

/// Puts a value into a stored tile.
fn store_value(tile: &mut [f32], planes: usize, word: usize, half: usize, value: f32) {
    let mut halves = [0, 1].map(|half| stored_value(tile, planes, word, half));
    halves[half] = value;
    match planes {
        1 => tile[word] = narrow(halves),
        2 => {
            let (high, bytes) = narrow_24(halves);
            let shift = word % 2 * 16;
            let others = tile[TILE + word / 2].to_bits() & !(0xffff << shift);
            tile[word] = high;
            tile[TILE + word / 2] = f32::from_bits(others | u32::from(bytes) << shift);
        }
        _ => tile[half * TILE + word] = value,
    }
}

/// The third bytes of the values of a word in 24 bits.
fn byte_pair(tile: &[f32], word: usize) -> u16 {
    (tile[TILE + word / 2].to_bits() >> (word % 2 * 16)) as u16
}

/// Pixels that a tile holds.
pub const fn tile_pixels(channels: usize) -> usize {
    if channels <= HALF { 2 } else { 1 }
}

/// How a shape is cut into tiles.
#[derive(Clone, Copy, Debug)]
pub struct Tiling {
    /// Pixels in a tile.
    pub pixels: usize,
    /// Tiles side by side along a row of pixels.
    pub columns: usize,
    /// Tiles along the channels.
    pub blocks: usize,
    width: usize,
}

impl Tiling {
    /// The tiles of `shape`.
    pub fn new(shape: Shape) -> Self {
        let pixels = tile_pixels(shape.channels);
        let blocks = shape.channels.div_ceil(2 * HALF);
        Self { pixels, columns: shape.width.div_ceil(pixels), blocks, width: shape.width }
    }

    /// Tiles of a row of pixels.
    pub fn row_tiles(self) -> usize {
        self.columns * self.blocks
    }

    /// Halves of a tile that exist: the last column of an odd width is half a pixel pair.
    pub fn halves(self, column: usize) -> usize {
        if (column + 1) * self.pixels > self.width { 1 } else { 2 }
    }

    /// Groups of 16 channels, those that fill up the last tile included.
    pub fn chunks(self) -> usize {
        2 * self.blocks / self.pixels
    }

    /// Which tile of a group a value is in, which place in each half of it, and which half.
    pub fn place(self, pixel: usize, channel: usize, image: usize) -> (usize, usize, usize) {
        let (y, x) = (pixel / self.width, pixel % self.width);
        let (block, half) = if self.pixels == 2 { (0, x % 2) } else { (channel / (2 * HALF), channel / HALF % 2) };
        let tile = (y * self.columns + x / self.pixels) * self.blocks + block;
        (tile, image * HALF + channel % HALF, half)
    }
}

/// Stores up to 16 images `[image][C][H][W]` as one lane group of tiles.
pub fn tile(images: &[f32], shape: Shape, planes: usize, group: &mut [f32]) {
    let tiling = Tiling::new(shape);
    group.fill(0.0);
    for (lane, image) in images.chunks_exact(shape.len()).enumerate() {
        for (at, &value) in image.iter().enumerate() {
            let (channel, pixel) = (at / (shape.height * shape.width), at % (shape.height * shape.width));
            let (tile, word, half) = tiling.place(pixel, channel, lane);
            store_value(&mut group[tile * stored_tile(planes)..], planes, word, half, value);
        }
    }
}
