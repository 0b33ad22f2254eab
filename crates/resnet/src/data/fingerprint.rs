//! Knowing data again that were moved, without reading all of them.

use serde::{Deserialize, Serialize};

use super::{Dataset, Image, Splits};
use crate::Result;

/// Images that are looked at, spread evenly over the data set.
const SAMPLES: usize = 32;

/// What a data set is known by: all its labels, and the pixels of a few images. A changed image may be
/// missed, another data set or another order will not be; the largest takes a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// Number of images.
    pub images: usize,
    /// CRC-32 of all labels in order, each four bytes, little-endian.
    pub labels: u32,
    /// CRC-32 of the pixels of each image that was looked at.
    pub samples: Vec<u32>,
}

impl Fingerprint {
    /// The fingerprint of `dataset`.
    ///
    /// # Errors
    /// When an image cannot be read.
    pub fn of(dataset: &dyn Dataset) -> Result<Self> {
        let images = dataset.len();
        let mut labels = crc32fast::Hasher::new();
        for index in 0..images {
            labels.update(&dataset.label(index).to_le_bytes());
        }
        let mut image = Image::default();
        let sample = |index| {
            dataset.read(index, &mut image)?;
            Ok(crc32fast::hash(image.pixels()))
        };
        let samples = sampled(images).map(sample).collect::<Result<_>>()?;
        Ok(Self { images, labels: labels.finalize(), samples })
    }

    /// How `found` differs from this, in words; `None` where it does not.
    fn difference(&self, found: &Self) -> Option<String> {
        if self.images != found.images {
            return Some(format!("there were {}, now there are {}", self.images, found.images));
        }
        if self.labels != found.labels {
            return Some("their labels or their order changed".into());
        }
        let mut pairs = sampled(self.images).zip(self.samples.iter().zip(&found.samples));
        let changed = pairs.find(|(_, (before, now))| before != now).map(|(index, _)| index);
        changed.map(|index| format!("image {index} has other pixels"))
    }
}

/// Which of so many images are looked at: the first, the last and those evenly between.
fn sampled(images: usize) -> impl Iterator<Item = usize> {
    let samples = images.min(SAMPLES);
    (0..samples).map(move |sample| sample * (images - 1) / (samples - 1).max(1))
}

/// What a run remembers of its data, wherever they lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Names of the classes, by label.
    pub classes: Vec<String>,
    /// The images to learn from.
    pub train: Fingerprint,
    /// The images to measure on.
    pub test: Fingerprint,
}

impl Identity {
    /// What `data` are known by.
    ///
    /// # Errors
    /// When an image cannot be read.
    pub fn of(data: &Splits) -> Result<Self> {
        let (train, test) = (Fingerprint::of(data.train.as_ref())?, Fingerprint::of(data.test.as_ref())?);
        Ok(Self { classes: data.train.classes().to_vec(), train, test })
    }

    /// How the images of `found` differ from these, in words; `None` where no difference was seen.
    pub fn difference(&self, found: &Self) -> Option<String> {
        let part = |name, before: &Fingerprint, now| Some(format!("of the {name} images, {}", before.difference(now)?));
        part("training", &self.train, &found.train).or_else(|| part("test", &self.test, &found.test))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::arch::Shape;
    use crate::data::Images;

    /// Two classes in turn; one pixel an image, its index.
    fn images(count: usize, change: impl FnOnce(&mut [u32], &mut [u8])) -> Arc<dyn Dataset> {
        let mut labels: Vec<u32> = (0..count as u32).map(|index| index % 2).collect();
        let mut pixels: Vec<u8> = (0..count).map(|index| index as u8).collect();
        change(&mut labels, &mut pixels);
        let classes = vec!["cat".into(), "dog".into()];
        Arc::new(Images::new(Shape::new(1, 1, 1), classes, labels, pixels).expect("sizes agree"))
    }

    fn difference(change: impl FnOnce(&mut [u32], &mut [u8])) -> Option<String> {
        let of = |images: Arc<dyn Dataset>| Fingerprint::of(images.as_ref()).expect("readable");
        of(images(100, |_, _| ())).difference(&of(images(100, change)))
    }

    #[test]
    fn the_same_images_have_the_same_fingerprint() {
        assert_eq!(difference(|_, _| ()), None);
    }

    #[test]
    fn a_label_anywhere_and_a_changed_image_that_is_looked_at_are_noticed() {
        assert!(difference(|labels, _| labels.swap(40, 41)).expect("noticed").contains("labels"));
        assert_eq!(difference(|_, pixels| pixels[99] = 7), Some("image 99 has other pixels".into()));
        assert_eq!(difference(|_, pixels| pixels.reverse()), Some("image 0 has other pixels".into()));
    }

    #[test]
    fn images_are_looked_at_from_the_first_to_the_last() {
        for images in [0, 1, 2, SAMPLES, SAMPLES + 1, 1_281_167] {
            let looked_at: Vec<_> = sampled(images).collect();
            assert_eq!(looked_at.len(), images.min(SAMPLES));
            assert_eq!(looked_at.last().copied(), images.checked_sub(1));
            assert!(looked_at.is_sorted_by(|a, b| a < b) && looked_at.first().is_none_or(|&first| first == 0));
        }
    }

    #[test]
    fn a_difference_names_the_part() {
        let splits = |test| Splits { name: "data".into(), train: images(9, |_, _| ()), test: images(test, |_, _| ()) };
        let identity = |test| Identity::of(&splits(test)).expect("readable");
        assert_eq!(identity(4).difference(&identity(4)), None);
        let difference = identity(4).difference(&identity(5)).expect("noticed");
        assert_eq!(difference, "of the test images, there were 4, now there are 5");
    }
}
