//! Random crops and flips.

use rand::RngExt;
use resnet_graph::Shape;
use serde::{Deserialize, Serialize};

use super::random::{Purpose, stream};
use crate::{Error, Result};

/// How training images are varied; the default is the paper's (section 4.2, after arXiv:1409.5185):
/// 4 pixels of padding on each side and a random crop of the original size from the padded image or
/// its mirror image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Augment {
    /// Pixels of padding for the random crop; 0 for no crop.
    pub crop_padding: usize,
    /// Whether half of the images are mirrored left to right.
    pub flip: bool,
    /// Whether those mirrored in one epoch are the others of the next, so that two epochs show all of both, in
    /// place of a draw in every epoch (arXiv:2404.00498).
    pub alternate: bool,
}

impl Default for Augment {
    fn default() -> Self {
        Self { crop_padding: 4, flip: true, alternate: false }
    }
}

impl Augment {
    /// Images as they are.
    pub const NONE: Self = Self { crop_padding: 0, flip: false, alternate: false };

    /// Draws where image `index` goes in an epoch. The mirror is drawn in any case, so that it does not change the crop.
    pub(super) fn draw(&self, seed: u64, epoch: u64, index: u64) -> Placement {
        let draws = |epoch| stream(seed, Purpose::Augment, epoch, index);
        let mut rng = draws(epoch);
        let mut flip = rng.random::<bool>();
        if self.alternate {
            flip = draws(0).random::<bool>() != (epoch % 2 == 1);
        }
        let mut shift = || rng.random_range(0..=2 * self.crop_padding as u64) as isize - self.crop_padding as isize;
        Placement { down: shift(), right: shift(), flip: flip && self.flip }
    }

    /// # Errors
    /// When a crop could miss an image of `shape` altogether.
    pub(super) fn check(&self, shape: Shape) -> Result<()> {
        let side = shape.height.min(shape.width);
        if self.crop_padding >= side {
            return Err(Error::Config(format!(
                "crop padding {} is too large for {shape} images: less than {side} expected",
                self.crop_padding
            )));
        }
        Ok(())
    }
}

/// Which part of an image is seen: `out(y, x) = image(y + down, x + right)`, zero beyond the edges,
/// then mirrored if `flip`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Placement {
    pub down: isize,
    pub right: isize,
    pub flip: bool,
}

impl Placement {
    /// Writes one plane of the seen image, row by row: `convert` gets the first pixel's index in the
    /// plane and as many outputs as there are pixels in that stretch.
    pub fn rows(self, shape: Shape, out: &mut [f32], mut convert: impl FnMut(usize, &mut [f32])) {
        let (height, width) = (shape.height, shape.width);
        let left = self.right.min(0).unsigned_abs().min(width);
        let right = width - self.right.max(0).unsigned_abs().min(width);
        for (y, row) in out.chunks_exact_mut(width).enumerate() {
            let source = y.checked_add_signed(self.down).filter(|&y| y < height);
            match source {
                Some(source) if left < right => {
                    row[..left].fill(0.0);
                    row[right..].fill(0.0);
                    let first = source * width + left.saturating_add_signed(self.right);
                    convert(first, &mut row[left..right]);
                }
                _ => row.fill(0.0),
            }
            if self.flip {
                row.reverse();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(placement: Placement) -> Vec<f32> {
        let plane = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut out = vec![-1.0; 6];
        placement.rows(Shape::new(1, 2, 3), &mut out, |first, row| row.copy_from_slice(&plane[first..][..row.len()]));
        out
    }

    #[test]
    fn a_placement_shifts_pads_with_zero_and_mirrors() {
        let place = |down, right, flip| placed(Placement { down, right, flip });
        assert_eq!(place(0, 0, false), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(place(0, 0, true), [3.0, 2.0, 1.0, 6.0, 5.0, 4.0]);
        assert_eq!(place(1, 1, false), [5.0, 6.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(place(-1, -1, false), [0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
        assert_eq!(place(-1, 2, true), [0.0, 0.0, 0.0, 0.0, 0.0, 3.0]);
        assert_eq!(place(0, 7, false), [0.0; 6]);
        assert_eq!(place(0, -7, false), [0.0; 6]);
    }

    #[test]
    fn every_shift_and_both_mirrors_are_drawn_evenly() {
        let mut counts = std::collections::HashMap::<_, usize>::new();
        for index in 0..81 * 2 * 100 {
            let p = Augment::default().draw(1, 0, index);
            *counts.entry((p.down, p.right, p.flip)).or_default() += 1;
        }
        assert_eq!(counts.len(), 81 * 2);
        assert!(counts.values().all(|&n| (50..=160).contains(&n)), "{counts:?}");
    }

    #[test]
    fn alternating_mirrors_change_every_epoch_and_nothing_else() {
        let alternating = Augment { alternate: true, ..Augment::default() };
        let mut mirrored = 0;
        for index in 0..1000 {
            let placements: Vec<_> = (0..4).map(|epoch| alternating.draw(1, epoch, index)).collect();
            assert!(placements.windows(2).all(|pair| pair[0].flip != pair[1].flip));
            for (epoch, placement) in (0..).zip(&placements) {
                let drawn = Augment::default().draw(1, epoch, index);
                assert_eq!((placement.down, placement.right), (drawn.down, drawn.right));
            }
            mirrored += usize::from(placements[0].flip);
        }
        assert!((400..=600).contains(&mirrored), "{mirrored}");
    }
}
