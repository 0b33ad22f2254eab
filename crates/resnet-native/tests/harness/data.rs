//! Values that a precision represents, laid out for a kernel and read back.

use resnet_graph::{Precision, Shape};
use resnet_native::layout::{LANE_GROUP, Layout};

use crate::reference::{Exact, noise};

/// Noise that the precision represents exactly.
pub fn values(precision: Precision, seed: u64, len: usize) -> Vec<f32> {
    let mut values = noise(seed, len);
    let kept = match precision {
        Precision::F32 => u32::MAX,
        Precision::Tf32 => 0xffff_ff00,
        Precision::Bf16 => 0xffff_0000,
    };
    values.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits() & kept));
    values
}

/// All groups of some images.
pub fn pack(layout: Layout, images: &[f32], shape: Shape) -> Vec<f32> {
    let mut groups = Vec::new();
    for images in images.chunks(LANE_GROUP * shape.len()) {
        let mut group = vec![f32::NAN; layout.lane_group_len(shape)];
        layout.pack_images(images, shape, &mut group);
        groups.extend(group);
    }
    groups
}

/// The images of groups that [`pack`] laid out.
pub fn unpack(layout: Layout, groups: &[f32], shape: Shape, images: usize) -> Vec<f32> {
    let mut values = vec![0.0; images * shape.len()];
    let images = values.chunks_mut(LANE_GROUP * shape.len());
    images
        .zip(groups.chunks(layout.lane_group_len(shape)))
        .for_each(|(images, group)| layout.unpack_images(group, shape, images));
    values
}

/// Words that begin with a line of the cache, as those of the engine do: only such are written past
/// it.
pub struct Lines {
    words: Vec<f32>,
    first: usize,
    len: usize,
}

impl Lines {
    pub fn new(values: Vec<f32>) -> Self {
        let len = values.len();
        let mut words = vec![0.0; len + LANE_GROUP];
        let first = words.as_ptr().align_offset(64);
        words[first..first + len].copy_from_slice(&values);
        Self { words, first, len }
    }

    pub fn words(&mut self) -> &mut [f32] {
        &mut self.words[self.first..self.first + self.len]
    }
}

/// The bits of the numbers that a word of some groups holds, or of parts of them, but for signs.
fn numbers(layout: Layout, at: usize) -> &'static [u32] {
    /// Words of a tile in 24 bits: those of the upper halves, and all with the third bytes.
    const TILE: [usize; 2] = [LANE_GROUP * LANE_GROUP, LANE_GROUP * LANE_GROUP * 3 / 2];
    match layout {
        Layout::Tiles { planes: 2 } if at % TILE[1] >= TILE[0] => &[0xff, 0xff00, 0xff_0000, 0xff00_0000],
        Layout::Tiles { planes: 1 | 2 } => &[0x7fff, 0x7fff_0000],
        _ => &[0x7fff_ffff],
    }
}

/// The values of the images, after a check that all else is zero.
pub fn unpack_checked(layout: Layout, groups: &[f32], shape: Shape, images: usize) -> Vec<f32> {
    // In 24 bits, a mark in every byte but the last.
    let marks = pack(layout, &vec![1.0 + f32::powi(2.0, -15); images * shape.len()], shape);
    for (at, (word, mark)) in groups.iter().zip(&marks).enumerate() {
        let is_clean = numbers(layout, at).iter().all(|bits| mark.to_bits() & bits != 0 || word.to_bits() & bits == 0);
        assert!(is_clean, "what belongs to no image is zero");
    }
    unpack(layout, groups, shape, images)
}

/// Up to `parts` ranges that cover `0..len`.
pub fn split(len: usize, parts: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let size = len.div_ceil(parts);
    (0..len).step_by(size).map(move |start| start..len.min(start + size))
}

/// The channel of a value in `[image][channel][height][width]`.
pub fn channel_of(index: usize, shape: Shape) -> usize {
    index / (shape.height * shape.width) % shape.channels
}

/// An elementwise result: `f(index, channel)` gives value and magnitude.
pub fn each(like: &[f32], shape: Shape, f: impl Fn(usize, usize) -> (f64, f64)) -> Exact {
    let (values, magnitudes) = (0..like.len()).map(|i| f(i, channel_of(i, shape))).unzip();
    Exact { values, magnitudes }
}
