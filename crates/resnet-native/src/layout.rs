//! How activations lie in memory: the images of a batch interleaved, 16 to a group.
//!
//! [`Layout::Interleaved`], in single precision: a tensor of shape `[C, H, W]` for `N` images is stored
//! as `[N / 16][H][W][C][16 images]`. One pixel of one channel is then a contiguous run of 16 floats (one
//! AVX-512 register, two of AVX2), so that every kernel is "vector times broadcast weight" or "vector
//! times vector" with no shuffles, for any number of channels, any stride and any border.
//!
//! [`Layout::Tiled`], for matrix units that multiply bf16: `[N / 16][H][W][C / 32][16 images][32 channels]`,
//! tiles of 1 KB, which hold up to 32 channels of one pixel. A value is multiplied as the sum of its *planes*:
//! the first is the value rounded to bf16, the second what that rounding left, rounded again, and the third
//! the rest. One plane is plain bf16, two keep 16 bits of a value's mantissa and three all 24. Where a layer has no more than 16 channels, a tile
//! holds two pixels: `[N / 16][H][W / 2][16 images][2 pixels of 16 channels]`. The two *halves* of a tile
//! (channels 0 to 15 and 16 to 31, or the two pixels) alternate in bf16: the 32-bit word `i` of a row holds
//! the value `i` of the first half in its low bits and that of the second in its high ones, so that a shift
//! and a mask widen both to single precision.
//!
//! What is multiplied in one plane is stored in bf16. For two planes values are stored in 24 bits, which are single precision without
//! its last byte: the words of their upper halves, as in bf16 but cut off, and after them, for each word, a pair of third bytes. For
//! three they are stored in single precision, the second half after the first.
//!
//! Memory is counted in 32-bit words, a float or two values in bf16. What belongs to no image, no
//! channel and no pixel (in a last, partial group or tile) is kept at zero wherever a sum is taken.

use crate::geometry::Conv2d;
use resnet_graph::Shape;

/// Images stored side by side.
pub const GROUP: usize = 16;

/// Channels in half a tile.
pub const HALF: usize = 16;

/// Words of a tile.
pub const TILE: usize = GROUP * HALF;

/// Most planes of a value in tiles: they hold single precision.
pub const MAX_PLANES: usize = 3;

/// One of the ways to store activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Single precision, images innermost.
    Interleaved,
    /// Tiles, in bf16, in 24 bits or in single precision.
    Tiled {
        /// Numbers in bf16 as whose sum a value is multiplied, at most `MAX_PLANES`.
        planes: usize,
    },
}

impl Layout {
    /// Shape in which images are stored for the convolution that reads them: in tiles every pixel written gets
    /// the patch it sees, so that a few channels fill a tile and the convolution is pointwise.
    pub fn image_shape(self, conv: &Conv2d) -> Shape {
        match self {
            Self::Interleaved => conv.input(),
            Self::Tiled { .. } => conv.patches(),
        }
    }

    /// Groups that a gradient by the weights sums over at a time.
    pub fn weight_groups(self) -> usize {
        match self {
            Self::Interleaved => 1,
            Self::Tiled { .. } => 2,
        }
    }

    /// Whether a gradient by the weights can be worked out for some of the outputs alone.
    pub fn cuts_outputs(self) -> bool {
        self == Self::Interleaved
    }

    /// Words that a row of pixels of a group takes.
    pub fn row_len(self, shape: Shape) -> usize {
        match self {
            Self::Interleaved => shape.width * shape.channels * GROUP,
            Self::Tiled { planes } => Tiling::new(shape).row_tiles() * stored_tile(planes),
        }
    }

    /// Words that a group takes.
    pub fn group_len(self, shape: Shape) -> usize {
        shape.height * self.row_len(shape)
    }

    /// Stores up to 16 images `[image][C][H][W]` as one group.
    pub fn pack_group(self, images: &[f32], shape: Shape, group: &mut [f32]) {
        match self {
            Self::Interleaved => interleave(images, shape, group),
            Self::Tiled { planes } => tile(images, shape, planes, group),
        }
    }

    /// The reverse of [`pack_group`](Self::pack_group), for as many images as `images` has room for.
    pub fn unpack_group(self, group: &[f32], shape: Shape, images: &mut [f32]) {
        for (lane, image) in images.chunks_exact_mut(shape.len()).enumerate() {
            for (at, value) in image.iter_mut().enumerate() {
                let (channel, pixel) = (at / (shape.height * shape.width), at % (shape.height * shape.width));
                *value = match self {
                    Self::Interleaved => group[(pixel * shape.channels + channel) * GROUP + lane],
                    Self::Tiled { planes } => {
                        let (tile, word, half) = Tiling::new(shape).place(pixel, channel, lane);
                        stored_value(&group[tile * stored_tile(planes)..], planes, word, half)
                    }
                };
            }
        }
    }
}

/// Words that a tile is stored in.
pub const fn stored_tile(planes: usize) -> usize {
    match planes {
        1 => TILE,
        2 => TILE + TILE / 2,
        _ => 2 * TILE,
    }
}

/// A value of a stored tile.
fn stored_value(tile: &[f32], planes: usize, word: usize, half: usize) -> f32 {
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

/// The two values of a word.
pub fn widen(word: f32) -> [f32; 2] {
    [f32::from_bits(word.to_bits() << 16), f32::from_bits(word.to_bits() & 0xffff_0000)]
}

/// Two values rounded to bf16, to the nearest and to even.
pub fn narrow([low, high]: [f32; 2]) -> f32 {
    let round = |value: f32| {
        let bits = value.to_bits();
        bits.wrapping_add(0x7fff + (bits >> 16 & 1))
    };
    f32::from_bits(round(low) >> 16 | round(high) & 0xffff_0000)
}

/// The two values of a word of upper halves and a pair of third bytes.
pub fn widen_24(word: f32, bytes: u16) -> [f32; 2] {
    let [low, high] = widen(word).map(f32::to_bits);
    let bytes = u32::from(bytes);
    [f32::from_bits(low | (bytes & 0xff) << 8), f32::from_bits(high | bytes & 0xff00)]
}

/// The reverse of [`widen_24`], rounding to the nearest; ties go away from zero.
pub fn narrow_24(values: [f32; 2]) -> (f32, u16) {
    let [low, high] = values.map(|value| value.to_bits().wrapping_add(0x80));
    (f32::from_bits(low >> 16 | high & 0xffff_0000), (low >> 8 & 0xff | high & 0xff00) as u16)
}

/// Number of groups that hold `images`.
pub const fn groups(images: usize) -> usize {
    images.div_ceil(GROUP)
}

/// One for each lane that holds an image, zero for the others.
pub fn lane_mask(images: usize) -> [f32; GROUP] {
    std::array::from_fn(|lane| if lane < images { 1.0 } else { 0.0 })
}

fn interleave(images: &[f32], shape: Shape, group: &mut [f32]) {
    let (channels, pixels) = (shape.channels, shape.height * shape.width);
    let count = images.len() / shape.len();
    for (pixel, lanes) in group.chunks_exact_mut(channels * GROUP).enumerate() {
        for (channel, lanes) in lanes.chunks_exact_mut(GROUP).enumerate() {
            let at = channel * pixels + pixel;
            for (lane, value) in lanes.iter_mut().enumerate() {
                *value = if lane < count { images[lane * shape.len() + at] } else { 0.0 };
            }
        }
    }
}

fn tile(images: &[f32], shape: Shape, planes: usize, group: &mut [f32]) {
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

/// Height of the bands of rows that an operation is cut into: the tallest that divides the height
/// and gives about `bands` bands over all groups. It depends on the batch alone, never on the number
/// of threads, and with it so does the order of every sum.
pub fn band_rows(height: usize, groups: usize, bands: usize) -> usize {
    let wanted = bands.div_ceil(groups.max(1)).clamp(1, height);
    (1..=height).rev().find(|rows| height.is_multiple_of(*rows) && height / rows >= wanted).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_and_unpacking_a_partial_group_gives_the_images_back() {
        let tiled = (1..=3).flat_map(|planes| [3, 45].map(|channels| (Layout::Tiled { planes }, channels)));
        for (layout, channels) in tiled.chain([(Layout::Interleaved, 3)]) {
            let shape = Shape::new(channels, 3, 5);
            let images: Vec<f32> = (0..7 * shape.len()).map(|i| (i % 251) as f32).collect();
            let mut group = vec![f32::NAN; layout.group_len(shape)];
            layout.pack_group(&images, shape, &mut group);
            let mut back = vec![0.0; images.len()];
            layout.unpack_group(&group, shape, &mut back);
            assert_eq!(back, images);
            let total: f32 = match layout {
                Layout::Interleaved => group.iter().sum(),
                Layout::Tiled { planes } => {
                    let values = |tile| (0..2 * TILE).map(move |at| stored_value(tile, planes, at / 2, at % 2));
                    group.chunks_exact(stored_tile(planes)).flat_map(values).sum()
                }
            };
            assert_eq!(total, images.iter().sum(), "what belongs to no image is zero");
        }
    }

    #[test]
    fn rounding_to_bf16_is_to_the_nearest_and_to_even() {
        let rounded = |bits| widen(narrow([f32::from_bits(bits), 0.0]))[0].to_bits();
        assert_eq!(rounded(0x3f80_8000), 0x3f80_0000);
        assert_eq!(rounded(0x3f81_8000), 0x3f82_0000);
        assert_eq!(rounded(0x3f80_8001), 0x3f81_0000);
        assert!(f32::from_bits(rounded(f32::NAN.to_bits())).is_nan());
    }

    #[test]
    fn rounding_to_24_bits_is_to_the_nearest() {
        for (value, rounded) in [(0x3f81_237f, 0x3f81_2300), (0x3f81_2380, 0x3f81_2400), (0xbf81_ffff, 0xbf82_0000)] {
            let (word, bytes) = narrow_24([f32::from_bits(value), 1.0]);
            assert_eq!(widen_24(word, bytes).map(f32::to_bits), [rounded, 0x3f80_0000]);
            let (word, bytes) = narrow_24([-1.0, f32::from_bits(value)]);
            assert_eq!(widen_24(word, bytes).map(f32::to_bits), [0xbf80_0000, rounded]);
        }
    }

    #[test]
    fn bands_cover_the_height_evenly() {
        assert_eq!(band_rows(32, 8, 32), 8);
        assert_eq!(band_rows(8, 8, 32), 2);
        assert_eq!(band_rows(7, 1, 4), 1);
        assert_eq!(band_rows(1, 8, 32), 1);
        assert_eq!(band_rows(32, 64, 32), 32);
    }
}
