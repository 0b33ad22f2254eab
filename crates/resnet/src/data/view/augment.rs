//! The view of training: random crops and flips.

use rand::RngExt;
use resnet_graph::Shape;
use serde::{Deserialize, Serialize};

use super::View;
use crate::data::random::{Purpose, stream};
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
    /// Whether those mirrored in one epoch are the others of the next, so that two epochs show all
    /// of both, in place of a draw in every epoch (arXiv:2404.00498).
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

    /// Draws how image `index` is seen in an epoch, which is `view` where nothing varies. The
    /// mirror is drawn in any case, so that it does not change the crop.
    pub fn vary(&self, view: View, seed: u64, epoch: u64, index: u64) -> View {
        let draws = |epoch| stream(seed, Purpose::Augment, epoch, index);
        let mut rng = draws(epoch);
        let mut flip = rng.random::<bool>();
        if self.alternate {
            flip = draws(0).random::<bool>() != (epoch % 2 == 1);
        }
        let mut shift = || rng.random_range(0..=2 * self.crop_padding as u64) as isize - self.crop_padding as isize;
        View { down: shift(), right: shift(), flip: flip && self.flip, ..view }
    }

    /// # Errors
    /// When a crop could miss a canvas of `shape` altogether.
    pub(in crate::data) fn check(&self, shape: Shape) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Framing;

    fn draw(augment: Augment, epoch: u64, index: u64) -> View {
        let shape = Shape::new(3, 32, 32);
        augment.vary(Framing::Pad.view(shape, shape), 1, epoch, index)
    }

    #[test]
    fn every_shift_and_both_mirrors_are_drawn_evenly() {
        let mut counts = std::collections::HashMap::<_, usize>::new();
        for index in 0..81 * 2 * 100 {
            let p = draw(Augment::default(), 0, index);
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
            let views: Vec<_> = (0..4).map(|epoch| draw(alternating, epoch, index)).collect();
            assert!(views.windows(2).all(|pair| pair[0].flip != pair[1].flip));
            for (epoch, view) in (0..).zip(&views) {
                let drawn = draw(Augment::default(), epoch, index);
                assert_eq!((view.down, view.right), (drawn.down, drawn.right));
            }
            mirrored += usize::from(views[0].flip);
        }
        assert!((400..=600).contains(&mirrored), "{mirrored}");
    }
}
