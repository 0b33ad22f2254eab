//! What a file says about its weights, in the metadata of a safetensors header.
//!
//! | Entry | |
//! |---|---|
//! | `format_version` | `1`; the other entries mean what they mean here only beside it |
//! | `model` | the network's name, for people |
//! | `network` | [`Network`] in JSON, complete |
//! | `preprocessing` | how images are normalised, in JSON: [`Normalizer`]'s statistics |
//! | `classes` | names of the classes by label, in JSON |
//! | `data`, `iteration`, `test_error` | where the weights come from: [`Provenance`] |
//!
//! Means of channels are JSON numbers, which give back the same `f32`. A mean image is the base64 of its
//! little-endian `f32`: a third of the length. All of it is text of the header, so that the file's tensors
//! are the network's and nothing else.

use std::path::Path;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Metadata;
use crate::arch::{Network, Shape, Stem};
use crate::data::Normalizer;
use crate::{Error, Result, StateDict, Tensor};

/// Of the entries described above.
const VERSION: &str = "1";

/// Bounds on what a file can make us allocate: values of an image, channels of a layer, classes.
const MAX_IMAGE: usize = 1 << 24;
const MAX_CHANNELS: usize = 1 << 16;
const MAX_CLASSES: usize = 1 << 24;

/// What a file says about its weights. Files from elsewhere say little or nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Card {
    /// The network they are for.
    pub network: Option<Network>,
    /// How images are normalised.
    pub preprocessing: Option<Normalizer>,
    /// Names of the classes, by label.
    pub classes: Option<Vec<String>>,
    /// Where they come from.
    pub provenance: Provenance,
    /// All other entries.
    pub other: Metadata,
}

/// Where weights come from, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Provenance {
    /// Name of the data set that they were trained on.
    pub data: Option<String>,
    /// Steps taken.
    pub iteration: Option<u64>,
    /// Share of test images (validation images, where some were held back) classified wrongly, 0 to 1.
    pub test_error: Option<f64>,
}

/// [`Normalizer`] as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Preprocessing {
    /// Shape of an image.
    input: Shape,
    mean: Mean,
    /// Of each channel.
    std: Vec<f32>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mean {
    /// Of each channel.
    Channel(Vec<f32>),
    /// Of each pixel, `[channels, height, width]`, in base64.
    Pixel(String),
    /// Of the image itself.
    Image,
}

impl Card {
    /// Takes apart what the file at `path` says. It is believed no further than checked: sizes against
    /// `tensors`, the number of tensors in the file, before anything is made of them.
    ///
    /// # Errors
    /// When an entry is not what it should be or entries contradict each other; names the file and the
    /// entry.
    pub fn of(path: &Path, metadata: Metadata, tensors: usize) -> Result<Self> {
        let mut entries = Entries { path, metadata };
        match entries.take(key::VERSION).as_deref() {
            // Other programs may mean anything by these names.
            None => return Ok(Self { other: entries.metadata, ..Self::default() }),
            Some(VERSION) => {}
            Some(version) => {
                let message =
                    format!("expected {VERSION}, found '{version}': a later version of this program wrote it");
                return Err(entries.wrong(key::VERSION, message));
            }
        }
        let network: Option<Network> = entries.json(key::NETWORK)?;
        if let Some(network) = &network {
            check_size(network, tensors).map_err(|message| entries.wrong(key::NETWORK, message))?;
            entries.metadata.remove(key::MODEL);
        }
        let preprocessing = entries.json(key::PREPROCESSING)?.map(Preprocessing::decode).transpose();
        let card = Self {
            network,
            preprocessing: preprocessing.map_err(|message| entries.wrong(key::PREPROCESSING, message))?,
            classes: entries.json(key::CLASSES)?,
            provenance: Provenance {
                data: entries.take(key::DATA),
                iteration: entries.parse(key::ITERATION, "a number of steps")?,
                test_error: entries.parse(key::TEST_ERROR, "a share from 0 to 1")?,
            },
            other: std::mem::take(&mut entries.metadata),
        };
        card.contradiction().map_or(Ok(card), |(key, message)| Err(entries.wrong(key, message)))
    }

    /// Name of the network, where it is known.
    pub fn model(&self) -> Option<&str> {
        self.network.as_ref().map(|network| &network.name).or(self.other.get(key::MODEL)).map(String::as_str)
    }

    /// # Errors
    /// When what is known contradicts itself; names the entry.
    pub fn check(&self) -> Result<()> {
        self.contradiction().map_or(Ok(()), |(key, message)| Err(Error::Config(format!("{key}: {message}"))))
    }

    /// An entry that cannot be true, and why.
    fn contradiction(&self) -> Option<(&'static str, String)> {
        if let Some(error) = self.provenance.test_error.filter(|error| !(0.0..=1.0).contains(error)) {
            return Some((key::TEST_ERROR, format!("expected a share from 0 to 1, found {error}")));
        }
        let network = self.network.as_ref()?;
        let (expected, input) = (network.classes, network.input);
        if let Some(found) = self.classes.as_ref().map(Vec::len).filter(|&found| found != expected) {
            return Some((key::CLASSES, format!("the network tells {expected} classes apart, but {found} are named")));
        }
        let shape = self.preprocessing.as_ref().map(Normalizer::shape).filter(|&shape| shape != input)?;
        Some((key::PREPROCESSING, format!("it is for {shape} images, but the network takes {input}")))
    }

    /// As entries of a file. Where others have the same names and, being of another program, may mean
    /// something else, they are kept as `original_...`.
    ///
    /// # Errors
    /// When what is known contradicts itself.
    pub fn metadata(&self) -> Result<Metadata> {
        self.check()?;
        let known = [
            (key::MODEL, self.network.as_ref().map(|network| network.name.clone())),
            (key::NETWORK, self.network.as_ref().map(json).transpose()?),
            (key::PREPROCESSING, self.preprocessing.as_ref().map(|known| json(&Preprocessing::of(known))).transpose()?),
            (key::CLASSES, self.classes.as_ref().map(json).transpose()?),
            (key::DATA, self.provenance.data.clone()),
            (key::ITERATION, self.provenance.iteration.map(|iteration| iteration.to_string())),
            (key::TEST_ERROR, self.provenance.test_error.map(|error| error.to_string())),
        ];
        let mut metadata: Metadata =
            known.into_iter().filter_map(|(key, text)| Some((key.to_owned(), text?))).collect();
        if metadata.is_empty() {
            return Ok(self.other.clone());
        }
        metadata.insert(key::VERSION.into(), VERSION.into());
        for (name, text) in &self.other {
            match name.as_str() {
                key::MODEL if self.network.is_some() => {} // said better
                taken if key::VERSIONED.contains(&taken) => {
                    metadata.insert(format!("original_{taken}"), text.clone());
                }
                _ => drop(metadata.insert(name.clone(), text.clone())),
            }
        }
        Ok(metadata)
    }
}

/// Names of the entries.
mod key {
    pub const VERSION: &str = "format_version";
    pub const MODEL: &str = "model";
    pub const NETWORK: &str = "network";
    pub const PREPROCESSING: &str = "preprocessing";
    pub const CLASSES: &str = "classes";
    pub const DATA: &str = "data";
    pub const ITERATION: &str = "iteration";
    pub const TEST_ERROR: &str = "test_error";
    /// All whose meaning depends on the version.
    pub const VERSIONED: [&str; 7] = [VERSION, NETWORK, PREPROCESSING, CLASSES, DATA, ITERATION, TEST_ERROR];
}

/// The entries of a file, taken one by one.
struct Entries<'a> {
    path: &'a Path,
    metadata: Metadata,
}

impl Entries<'_> {
    fn take(&mut self, key: &str) -> Option<String> {
        self.metadata.remove(key)
    }

    fn parse<T: FromStr>(&mut self, key: &str, expected: &str) -> Result<Option<T>> {
        let Some(text) = self.take(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.wrong(key, format!("expected {expected}, found '{text}'")))
    }

    fn json<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        let Some(text) = self.take(key) else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|error| self.wrong(key, error.to_string()))
    }

    fn wrong(&self, key: &str, message: String) -> Error {
        Error::format(self.path, format!("metadata '{key}': {message}"))
    }
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Config(format!("it cannot be written as JSON: {error}")))
}

impl Preprocessing {
    fn of(normalizer: &Normalizer) -> Self {
        let state = normalizer.state();
        let mean = match state.get(Normalizer::MEAN) {
            None => Mean::Image,
            Some(mean) if mean.shape().len() == 1 => Mean::Channel(mean.data().to_vec()),
            Some(mean) => Mean::Pixel(encode_values(mean.data())),
        };
        let std = state.get(Normalizer::STD).map(Tensor::data).unwrap_or_default();
        Self { input: normalizer.shape(), mean, std: std.to_vec() }
    }

    fn decode(self) -> Result<Normalizer, String> {
        let Self { input, mean, std } = self;
        check_input(input)?;
        let Shape { channels, height, width } = input;
        let tensor = |shape: &[usize], values: Vec<f32>| {
            let found = values.len();
            Tensor::new(shape.to_vec(), values).ok_or_else(|| format!("{found} values are not of shape {shape:?}"))
        };
        let mut state = StateDict::new();
        match mean {
            Mean::Image => {}
            Mean::Channel(mean) => drop(state.insert(Normalizer::MEAN, tensor(&[channels], mean)?)),
            Mean::Pixel(text) => {
                let mean = decode_values(&text, input.len())?;
                state.insert(Normalizer::MEAN, tensor(&[channels, height, width], mean)?);
            }
        }
        state.insert(Normalizer::STD, tensor(&[channels], std)?);
        Normalizer::from_state(input, &state).map_err(|error| error.to_string())
    }
}

/// Little-endian `f32` as base64.
fn encode_values(values: &[f32]) -> String {
    BASE64.encode(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
}

/// As many little-endian `f32` as expected, from base64.
fn decode_values(text: &str, expected: usize) -> Result<Vec<f32>, String> {
    let bytes = BASE64.decode(text).map_err(|error| format!("the mean image is not base64: {error}"))?;
    if bytes.len() != size_of::<f32>() * expected {
        return Err(format!("expected a mean image of {expected} values, found {} bytes", bytes.len()));
    }
    Ok(bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect())
}

fn check_input(input: Shape) -> Result<(), String> {
    let Shape { channels, height, width } = input;
    match [height, width].iter().try_fold(channels, |values, &extent| values.checked_mul(extent)) {
        Some(1..=MAX_IMAGE) => Ok(()),
        _ => Err(format!("expected images of 1 to {MAX_IMAGE} values, found {channels}x{height}x{width}")),
    }
}

/// Refuses a network whose tensors could not be those of a file of so many, before they are listed: each
/// block has several.
fn check_size(network: &Network, tensors: usize) -> Result<(), String> {
    check_input(network.input)?;
    let Stem::Conv3x3 { channels } = network.stem;
    let widest = network.stages.iter().map(|stage| stage.channels).chain([channels]).max().unwrap_or(0);
    let blocks = network.stages.iter().fold(0usize, |blocks, stage| blocks.saturating_add(stage.blocks));
    for (what, found, most) in [
        ("channels in a layer", widest, MAX_CHANNELS),
        ("classes", network.classes, MAX_CLASSES),
        ("blocks with their tensors", blocks, tensors),
    ] {
        if found > most {
            return Err(format!("expected at most {most} {what}, found {found}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Shortcut;
    use crate::data::{Images, Preprocess, Workers};

    /// What a run's file says of a small network on images with a mean image.
    fn card() -> Card {
        let mut network = Network::named("cifar-resnet8").expect("a network");
        (network.shortcut, network.classes) = (Some(Shortcut::C), 2);
        network.input = Shape::new(2, 3, 3);
        let pixels = (0..3 * 18).map(|index| (index * 7) as u8).collect();
        let images = Images::new(network.input, vec!["a".into()], vec![0; 3], pixels).expect("three images");
        Card {
            preprocessing: Some(
                Preprocess::PixelMean
                    .fit(&images, network.input, &Workers::new(1).expect("a thread"))
                    .expect("three images"),
            ),
            network: Some(network),
            classes: Some(vec!["cat \"and\"\n".into(), "Hündin".into()]),
            provenance: Provenance { data: Some("pets".into()), iteration: Some(7), test_error: Some(1.0 - 0.9173) },
            other: Metadata::from([("note".into(), "kept".into())]),
        }
    }

    fn parse(metadata: Metadata) -> Result<Card> {
        Card::of("weights.safetensors".as_ref(), metadata, 60)
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        assert_eq!(parse(card().metadata().expect("consistent")).expect("readable"), card());
        let given = |mean: Vec<f32>, std| Preprocess::Channel { mean: Some(mean), std: Some(std) };
        for preprocess in [given(vec![0.1, f32::MIN_POSITIVE], vec![1.0 / 3.0, 0.300_000_04]), Preprocess::ImageMean] {
            let normalizer = preprocess.without_images(Shape::new(2, 3, 3)).expect("it fits");
            let card = Card { preprocessing: normalizer, ..card() };
            assert_eq!(parse(card.metadata().expect("consistent")).expect("readable"), card);
        }
    }

    #[test]
    fn what_is_not_known_is_not_written() {
        assert_eq!(Card::default().metadata().expect("consistent"), Metadata::new());
        let network = Card { preprocessing: None, classes: None, provenance: Provenance::default(), ..card() };
        let metadata = network.metadata().expect("consistent");
        assert!(metadata.keys().eq(["format_version", "model", "network", "note"]), "{metadata:?}");
        assert_eq!(parse(metadata).expect("readable"), network);
    }

    #[test]
    fn files_of_other_programs_and_earlier_versions_are_left_as_they_are() {
        let other = Metadata::from(
            [("model", "resnet20"), ("classes", "ten"), ("iteration", "last")]
                .map(|(key, text)| (key.to_owned(), text.to_owned())),
        );
        let card = parse(other.clone()).expect("nothing to check");
        assert_eq!(card.model(), Some("resnet20"));
        assert_eq!(card, Card { other: other.clone(), ..Card::default() });
        assert_eq!(card.metadata().expect("consistent"), other);

        let described = Card { network: Network::named("cifar-resnet8").ok(), ..card };
        let metadata = described.metadata().expect("consistent");
        assert_eq!((metadata["model"].as_str(), metadata["original_iteration"].as_str()), ("cifar-resnet8", "last"));
        let read = parse(metadata).expect("readable");
        assert_eq!((read.network, read.classes), (described.network, None));
    }

    #[test]
    fn a_wrong_entry_is_named_with_its_file() {
        let mean = format!("{{\"pixel\":\"{}\"}}", "A".repeat(4));
        let not_numbers = mean.replace("AAAA", &"AADAfwAAwH8AAMB/".repeat(6)); // 18 NaN
        let preprocessing = |mean: &str, std: &str| {
            format!("{{\"input\":{{\"channels\":2,\"height\":3,\"width\":3}},\"mean\":{mean},\"std\":{std}}}")
        };
        let cases = [
            ("format_version", "2".to_owned(), "later version"),
            ("network", "{".into(), "EOF"),
            ("network", "{\"name\":\"resnet20\"}".into(), "missing field"),
            ("preprocessing", "{\"mean\":\"image\"}".into(), "missing field"),
            ("preprocessing", preprocessing("\"median\"", "[1,1]"), "median"),
            ("preprocessing", preprocessing("{\"channel\":[0,0]}", "[1,0]"), "positive standard deviations"),
            ("preprocessing", preprocessing(&not_numbers, "[1,1]"), "finite"),
            ("preprocessing", preprocessing("{\"channel\":[0]}", "[1,1]"), "1 values"),
            ("preprocessing", preprocessing(&mean, "[1,1]"), "18 values, found 3 bytes"),
            ("preprocessing", preprocessing("{\"pixel\":\"?\"}", "[1,1]"), "base64"),
            ("preprocessing", preprocessing("\"image\"", "[1,1]").replace(":3,", ":4,"), "takes 2x3x3"),
            ("classes", "[\"cat\"]".into(), "2 classes apart, but 1 are named"),
            ("classes", "[\"cat\", 7]".into(), "expected a string"),
            ("iteration", "-1".into(), "found '-1'"),
            ("test_error", "NaN".into(), "found NaN"),
            ("test_error", "1.5".into(), "found 1.5"),
        ];
        for (key, text, expected) in cases {
            let mut metadata = card().metadata().expect("consistent");
            metadata.insert(key.into(), text);
            let message = parse(metadata).expect_err(key).to_string();
            assert!(message.starts_with(&format!("weights.safetensors: metadata '{key}': ")), "{message}");
            assert!(message.contains(expected), "{expected} in {message}");
        }
    }

    #[test]
    fn sizes_are_checked_before_anything_is_made_of_them() {
        let huge = usize::MAX / 2;
        type Change = fn(&mut Network, usize);
        let changes: [(&str, Change); 6] = [
            ("images of 1 to", |network, huge| network.input.width = huge),
            ("images of 1 to", |network, _| network.input.channels = 0),
            ("channels in a layer", |network, huge| network.stages[1].channels = huge),
            ("channels in a layer", |network, huge| network.stem = Stem::Conv3x3 { channels: huge }),
            ("classes", |network, huge| network.classes = huge),
            ("blocks with their tensors", |network, huge| {
                network.stages.iter_mut().for_each(|stage| stage.blocks = huge)
            }),
        ];
        for (expected, change) in changes {
            let mut network = card().network.expect("known");
            change(&mut network, huge);
            let mut metadata = card().metadata().expect("consistent");
            metadata.insert("network".into(), json(&network).expect("JSON"));
            let message = parse(metadata).expect_err(expected).to_string();
            assert!(message.contains("metadata 'network': ") && message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_mean_image_takes_a_third_more_than_its_bytes() {
        let network = Network::named("resnet20").expect("a network");
        let images = Images::new(network.input, vec!["a".into()], vec![0], vec![77; 3072]).expect("an image");
        let card = Card {
            preprocessing: Some(
                Preprocess::PixelMean.fit(&images, network.input, &Workers::new(1).expect("a thread")).expect("fitted"),
            ),
            ..Card::default()
        };
        let metadata = card.metadata().expect("consistent");
        assert!((16_384..16_600).contains(&metadata["preprocessing"].len()), "{}", metadata["preprocessing"].len());
    }
}
