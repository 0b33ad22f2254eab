//! Everything needed to repeat a run.

use serde::{Deserialize, Serialize};
use toml::Table;

use super::schedule::Schedule;
use super::settings::SETTINGS;
use crate::arch::{Network, Overrides, ProjectionInit, Shortcut};
use crate::data::{Augment, Preprocess};
use crate::engine::{self, Loss, Precision, Rule, Update};
use crate::{Error, Result};

/// A run's settings; in TOML with dashes in the names. [`Layers`](super::Layers) puts one together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// The recipe it started from.
    pub recipe: String,
    /// Name of the network; absent when `network` says all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Its shortcuts, where not the family's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortcut: Option<Shortcut>,
    /// How its projections start, where not [`ProjectionInit::He`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projection_init: Option<ProjectionInit>,
    /// Number of classes; the data set's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Channels of an image, where not the family's own 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_channels: Option<usize>,
    /// Name or path of the data set.
    pub data: String,
    /// Training images held back and evaluated on instead of the test images; 5000 in the paper's
    /// 45k/5k split, 0 to train on all.
    pub validation_images: usize,
    /// Images of one step.
    pub batch: usize,
    /// Steps.
    pub iterations: u64,
    /// Learning rate, which the schedule moves.
    pub lr: f64,
    /// Share of the target spread evenly over all classes.
    pub label_smoothing: f64,
    /// Iterations between records of the training loss.
    pub log_interval: u64,
    /// Iterations between evaluations; there is one at the end in any case.
    pub eval_interval: u64,
    /// Iterations between checkpoints; there is one after each evaluation in any case.
    pub checkpoint_interval: u64,
    /// Seed of the weights, the order of the images, their augmentation and the validation split.
    pub seed: u64,
    /// Name of the engine, one of [`engine::ENGINES`].
    #[serde(default = "engine::default_name")]
    pub engine: String,
    /// Precision of the engine; the [fastest](engine::fastest_precision) of the machine that starts the
    /// run when absent.
    #[serde(default = "engine::fastest_precision")]
    pub precision: Precision,
    /// Threads of the engine; 0 for one a core. They do not change the result.
    pub threads: usize,
    /// Threads that decode and augment images; 0 to go by the cores. They do not change the result.
    #[serde(default)]
    pub workers: usize,
    /// How pixels are normalised.
    pub preprocess: Preprocess,
    /// How training images are varied.
    pub augment: Augment,
    /// What turns gradients into steps.
    pub optimizer: Optimizer,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// The network layer by layer, in place of `model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
}

/// What turns gradients into steps; see [`Rule`] for the formulas.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub enum Optimizer {
    /// Stochastic gradient descent with momentum.
    Sgd {
        /// Share of the last step that is kept.
        #[serde(default = "nine_tenths")]
        momentum: f64,
        /// L2 penalty.
        #[serde(default)]
        weight_decay: f64,
        /// Whether the momentum is Nesterov's.
        #[serde(default)]
        nesterov: bool,
    },
    /// Adam, with its authors' defaults.
    Adam {
        /// Decay of the mean of gradients.
        #[serde(default = "nine_tenths")]
        beta1: f64,
        /// Decay of the mean of squared gradients.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of the second moment.
        #[serde(default = "eps")]
        eps: f64,
        /// L2 penalty.
        #[serde(default)]
        weight_decay: f64,
    },
}

fn nine_tenths() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.999
}
fn eps() -> f64 {
    1e-8
}

impl Optimizer {
    /// The step to take at a learning rate, over so many parameters.
    pub(super) fn update(&self, lr: f64, parameters: usize) -> Update {
        let (rule, weight_decay) = match *self {
            Self::Sgd { momentum, weight_decay, nesterov } => {
                (Rule::Sgd { momentum: momentum as f32, nesterov }, weight_decay)
            }
            Self::Adam { beta1, beta2, eps, weight_decay } => {
                (Rule::Adam { beta1: beta1 as f32, beta2: beta2 as f32, eps: eps as f32 }, weight_decay)
            }
        };
        Update::uniform(rule, lr as f32, weight_decay as f32, parameters)
    }

    /// Checks what has no flag and so is not in [`SETTINGS`].
    fn check(&self) -> Result<()> {
        let Self::Adam { beta1, beta2, eps, .. } = *self else { return Ok(()) };
        for (name, decay) in [("beta1", beta1), ("beta2", beta2)] {
            require((0.0..1.0).contains(&decay), || {
                format!("optimizer.{name} must be from 0 to below 1, found {decay}")
            })?;
        }
        require(eps.is_finite() && eps > 0.0, || format!("optimizer.eps must be positive, found {eps}"))
    }
}

impl Config {
    /// The network to train; with 10 classes, or the named family's number, where [`classes`](Self::classes) is absent.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn network(&self) -> Result<Network> {
        let mut network = match (&self.network, &self.model) {
            (Some(network), _) => network.clone(),
            (None, Some(name)) => Network::named(name)?,
            (None, None) => return Err(Error::Config("expected a 'model' or a 'network'".into())),
        };
        let Self { shortcut, projection_init, classes, in_channels, .. } = *self;
        Overrides { shortcut, projection_init, classes, in_channels }.apply(&mut network)?;
        network.graph()?;
        Ok(network)
    }

    /// Iterations in which training goes through `train_images` once, those held back left out.
    ///
    /// # Errors
    /// When all images are held back.
    pub(super) fn iterations_per_epoch(&self, train_images: usize) -> Result<u64> {
        let left = train_images.saturating_sub(self.validation_images);
        require(left > 0, || {
            let held_back = self.validation_images;
            format!("validation-images must be below the {train_images} training images, found {held_back}")
        })?;
        Ok(left.div_ceil(self.batch) as u64)
    }

    /// What is minimised.
    pub fn loss(&self) -> Loss {
        Loss { label_smoothing: self.label_smoothing as f32 }
    }

    /// # Errors
    /// When a setting means nothing; the message names it.
    pub(super) fn check(&self) -> Result<()> {
        let settings = Table::try_from(self).map_err(does_not_fit)?;
        SETTINGS.iter().try_for_each(|setting| setting.check(&settings))?;
        self.optimizer.check()?;
        self.schedule.check()?;
        self.network().map(drop)
    }

    /// As TOML that [`Layers::file`](super::Layers::file) takes back.
    ///
    /// # Errors
    /// When a number is beyond what TOML holds.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(does_not_fit)
    }
}

fn does_not_fit(error: toml::ser::Error) -> Error {
    Error::Config(format!("the settings do not fit TOML: {error}"))
}

fn require(good: bool, message: impl FnOnce() -> String) -> Result<()> {
    if good { Ok(()) } else { Err(Error::Config(message())) }
}
