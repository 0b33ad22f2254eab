//! A run at one moment, in one file.
//!
//! Weights, optimizer and progress are only worth something together, so they are one safetensors file
//! that one rename puts in place: whenever a run is killed, what it resumes from is of one moment.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::metrics::TestRecord;
use super::schedule::ScheduleState;
use crate::data::{Identity, Normalizer};
use crate::engine::{OptimizerState, OptimizerView};
use crate::weights::{Metadata, Weights, safetensors};
use crate::{Error, Result, StateDict, StateView};

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps taken.
    pub iteration: u64,
    /// Time so far, in seconds, over all resumptions.
    pub seconds: f64,
    /// The last evaluation.
    pub test: Option<TestRecord>,
    /// The evaluation that found the lowest test error, the first of equals.
    pub best: Option<Best>,
    /// What the schedule has learned.
    pub schedule: ScheduleState,
    /// What was measured since the last record.
    pub since_record: Sums,
}

/// The best evaluation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps taken before it.
    pub iteration: u64,
    /// Share of images classified wrongly, 0 to 1.
    pub test_error: f64,
}

/// What steps add up to, for the next record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Images seen.
    pub images: u64,
    /// Images classified correctly.
    pub correct: u64,
    /// Sum of the images' losses.
    pub loss: f64,
    /// Time of the steps, in seconds.
    pub seconds: f64,
}

/// All that a run goes on from.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Parameters and running statistics.
    pub model: StateDict,
    /// What the optimizer remembers.
    pub optimizer: OptimizerState,
    /// What images are normalised with.
    pub preprocess: StateDict,
    /// How far the run has come.
    pub progress: Progress,
    /// The run's settings, in TOML.
    pub config: String,
    /// Number of images it learns from.
    pub train_images: usize,
    /// What its data are known by; runs of earlier versions do not say.
    pub data: Option<Identity>,
}

/// What changes from one checkpoint of a run to the next, where it lies.
pub(super) struct Moment<'a> {
    pub model: StateView<'a>,
    pub optimizer: OptimizerView<'a>,
    pub progress: &'a Progress,
}

/// What is stored as text beside the tensors.
#[derive(Serialize, Deserialize)]
struct Training {
    progress: Progress,
    optimizer_step: u64,
    config: String,
    train_images: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<Identity>,
}

/// The metadata entry of [`Training`]; marks the file as a checkpoint.
const TRAINING: &str = "training";

/// Prefixes of the tensors' names.
const MODEL: &str = "model.";
const OPTIMIZER: &str = "optimizer.";

impl Checkpoint {
    /// Replaces the file at `path`.
    ///
    /// # Errors
    /// When it cannot be written; what was there stays then.
    pub fn write(&self, path: &Path) -> Result<()> {
        let (model, optimizer) = (self.model.view(), self.optimizer.view());
        self.write_moment(path, Moment { model, optimizer, progress: &self.progress })
    }

    /// Replaces the file at `path` by a checkpoint of the same run at another moment, whose tensors are
    /// not copied.
    ///
    /// # Errors
    /// When it cannot be written; what was there stays then.
    pub(super) fn write_moment(&self, path: &Path, moment: Moment<'_>) -> Result<()> {
        let training = Training {
            progress: moment.progress.clone(),
            optimizer_step: moment.optimizer.step,
            config: self.config.clone(),
            train_images: self.train_images,
            data: self.data.clone(),
        };
        let json = serde_json::to_string(&training).map_err(|error| Error::format(path, error.to_string()))?;
        let mut tensors = Vec::new();
        let parts = [(MODEL, moment.model), (OPTIMIZER, moment.optimizer.tensors), ("", self.preprocess.view())];
        for (prefix, state) in parts {
            tensors.extend(state.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
        }
        safetensors::write_view(path, &tensors, &Metadata::from([(TRAINING.into(), json)]))
    }

    /// Reads a checkpoint back and verifies its checksums.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged or is not a checkpoint.
    pub fn read(path: &Path) -> Result<Self> {
        let Weights { state, mut metadata } = safetensors::read(path)?;
        let json = metadata
            .remove(TRAINING)
            .ok_or_else(|| Error::format(path, "not a checkpoint: it has weights, but no training to go on with"))?;
        let training: Training = serde_json::from_str(&json)
            .map_err(|error| Error::format(path, format!("metadata '{TRAINING}': {error}")))?;
        let mut checkpoint = Self {
            model: StateDict::new(),
            optimizer: OptimizerState { step: training.optimizer_step, tensors: StateDict::new() },
            preprocess: StateDict::new(),
            progress: training.progress,
            config: training.config,
            train_images: training.train_images,
            data: training.data,
        };
        for (name, tensor) in state {
            let known = [Normalizer::MEAN, Normalizer::STD].contains(&name.as_str());
            let replaced = match (name.strip_prefix(MODEL), name.strip_prefix(OPTIMIZER)) {
                (Some(name), _) => checkpoint.model.insert(name, tensor),
                (None, Some(name)) => checkpoint.optimizer.tensors.insert(name, tensor),
                (None, None) if known => checkpoint.preprocess.insert(name, tensor),
                (None, None) => return Err(Error::format(path, format!("not a checkpoint: it has a tensor '{name}'"))),
            };
            debug_assert!(replaced.is_none(), "names in a safetensors file are unique");
        }
        Ok(checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;
    use crate::data::Fingerprint;

    fn checkpoint() -> Checkpoint {
        let tensor = |values: &[f32]| Tensor::new(vec![values.len()], values.to_vec()).expect("sizes agree");
        let state = |tensors: &[(&str, &[f32])]| {
            tensors.iter().map(|(name, values)| (name.to_string(), tensor(values))).collect::<StateDict>()
        };
        Checkpoint {
            model: state(&[("fc.weight", &[1.0, -0.1]), ("fc.bias", &[f32::MIN_POSITIVE])]),
            optimizer: OptimizerState { step: 7, tensors: state(&[("fc.weight.momentum_buffer", &[0.1, 0.2])]) },
            preprocess: state(&[("preprocess.std", &[1.0, 1.0, 1.0])]),
            progress: Progress {
                iteration: 7,
                seconds: 0.1 + 0.2,
                test: Some(TestRecord { test_loss: 0.7, test_error: 0.2 }),
                best: Some(Best { iteration: 5, test_error: 1.0 - 0.9173 }),
                schedule: ScheduleState { warmed_up: true, ..Default::default() },
                since_record: Sums { images: 256, correct: 100, loss: 1.0 / 3.0, seconds: 0.7 },
            },
            config: "lr = 0.1\n".into(),
            train_images: 50_000,
            data: Some(Identity {
                classes: vec!["cat".into(), "dog".into()],
                train: Fingerprint { images: 50_000, labels: 7, samples: vec![u32::MAX, 0] },
                test: Fingerprint { images: 0, labels: 0, samples: Vec::new() },
            }),
        }
    }

    #[test]
    fn a_checkpoint_comes_back_bit_by_bit() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("resume.safetensors");
        checkpoint().write(&path).expect("written");
        assert_eq!(Checkpoint::read(&path).expect("readable"), checkpoint());
    }

    #[test]
    fn a_checkpoint_of_an_earlier_version_says_nothing_of_its_data() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("resume.safetensors");
        let earlier = Checkpoint { data: None, ..checkpoint() };
        earlier.write(&path).expect("written");
        let Weights { metadata, .. } = safetensors::read(&path).expect("readable");
        assert!(!metadata[TRAINING].contains("\"data\""), "as such versions wrote it");
        assert_eq!(Checkpoint::read(&path).expect("readable"), earlier);
    }

    #[test]
    fn weights_alone_are_not_a_checkpoint() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("last.safetensors");
        safetensors::write(&path, &checkpoint().model, &Metadata::new()).expect("written");
        let message = Checkpoint::read(&path).expect_err("weights").to_string();
        assert!(message.contains("not a checkpoint"), "{message}");
    }
}
