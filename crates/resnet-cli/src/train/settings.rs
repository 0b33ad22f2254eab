//! The flags that say how to train, as a layer of settings.

use std::path::PathBuf;

use anyhow::{Context, bail};
use resnet::arch::{ProjectionInit, Shortcut};
use resnet::data::Preprocess;
use resnet::engine::Precision;
use resnet::train::{Config, Layers};
use toml::{Table, Value};

use crate::network::NetworkArgs;
use crate::precision::PrecisionArg;
use crate::preprocess::PreprocessArgs;

/// How to train.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Settings {
    /// Network: resnet20, 32, 44, 56, 110, 1202, plain20 to plain110, cifar-resnet<6n+2>, cifar-plain<6n+2>
    model: Option<String>,
    /// Recipe to start from: quick, fast or paper-cifar
    #[arg(long, value_name = "NAME")]
    recipe: Option<String>,
    /// Settings over the recipe's, as --print-config shows them; all or some
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data set: a name or a folder
    #[arg(long, value_name = "NAME|FOLDER")]
    data: Option<String>,
    /// Training images held back to evaluate on instead of the test images (5000 in the paper)
    #[arg(long, value_name = "N")]
    validation_images: Option<u32>,
    /// Steps; the recipe's milestones are scaled
    #[arg(long, value_name = "N")]
    iterations: Option<u32>,
    /// Images of a step
    #[arg(long, value_name = "N")]
    batch: Option<u32>,
    /// Learning rate
    #[arg(long)]
    lr: Option<f64>,
    /// How the learning rate moves: multi-step, cosine, one-cycle or plateau
    #[arg(long, value_name = "KIND")]
    schedule: Option<String>,
    /// What turns gradients into steps: sgd or adam
    #[arg(long, value_name = "KIND")]
    optimizer: Option<String>,
    /// L2 penalty
    #[arg(long, value_name = "X")]
    weight_decay: Option<f64>,
    /// Share of the target spread over all classes
    #[arg(long, value_name = "SHARE")]
    label_smoothing: Option<f64>,
    /// Pixels of padding for the random crop; 0 for no crop
    #[arg(long, value_name = "N")]
    crop_padding: Option<u16>,
    /// Whether half of the training images are mirrored
    #[arg(long, value_name = "true|false")]
    flip: Option<bool>,
    /// Iterations between evaluations
    #[arg(long, value_name = "N")]
    eval_interval: Option<u32>,
    /// Iterations between checkpoints
    #[arg(long, value_name = "N")]
    checkpoint_interval: Option<u32>,
    /// Seed of all that is random
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
    /// Precision: f32 or bf16 [default: the faster on this machine]
    #[arg(long, value_name = "NAME")]
    precision: Option<PrecisionArg>,
    /// Any other setting of --print-config, for example schedule.gamma=0.2
    #[arg(long, value_name = "SETTING=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    network: NetworkArgs,
}

impl Settings {
    /// Recipe, file and flags, each over the one before.
    pub fn resolve(&self, threads: Option<u16>) -> anyhow::Result<Config> {
        let mut layers = Layers::new();
        if let Some(recipe) = &self.recipe {
            layers = layers.recipe(recipe);
        }
        if let Some(path) = &self.config {
            layers = layers.file(path)?;
        }
        let mut flags = self.flags()?;
        put(&mut flags, "threads", threads.map(i64::from));
        layers = layers.table(flags);
        for setting in &self.set {
            layers = layers.table(parse(setting)?);
        }
        Ok(layers.resolve()?)
    }

    /// Whether nothing was said but perhaps where the data are.
    pub fn is_data_alone(&self) -> anyhow::Result<bool> {
        let mut flags = self.flags()?;
        flags.remove("data");
        Ok(self.recipe.is_none() && self.config.is_none() && self.set.is_empty() && flags.is_empty())
    }

    /// The data set, where it was named.
    pub fn data(&self) -> Option<&str> {
        self.data.as_deref()
    }

    fn flags(&self) -> anyhow::Result<Table> {
        let mut flags = Table::new();
        put(&mut flags, "model", self.model.clone());
        put(&mut flags, "shortcut", text(self.network.shortcut.map(Shortcut::from))?);
        put(&mut flags, "projection-init", text(self.network.projection_init.map(ProjectionInit::from))?);
        put(&mut flags, "classes", self.network.classes.map(i64::from));
        put(&mut flags, "in-channels", self.network.in_channels.map(i64::from));
        put(&mut flags, "data", self.data.clone());
        put(&mut flags, "validation-images", self.validation_images.map(i64::from));
        put(&mut flags, "iterations", self.iterations.map(i64::from));
        put(&mut flags, "batch", self.batch.map(i64::from));
        put(&mut flags, "lr", self.lr);
        put(&mut flags, "label-smoothing", self.label_smoothing);
        put(&mut flags, "eval-interval", self.eval_interval.map(i64::from));
        put(&mut flags, "checkpoint-interval", self.checkpoint_interval.map(i64::from));
        put(&mut flags, "precision", text(self.precision.map(Precision::from))?);
        put(&mut flags, "seed", self.seed.map(i64::from));

        let mut optimizer = Table::new();
        put(&mut optimizer, "kind", self.optimizer.clone());
        put(&mut optimizer, "weight-decay", self.weight_decay);
        let mut schedule = Table::new();
        put(&mut schedule, "kind", self.schedule.clone());
        let mut augment = Table::new();
        put(&mut augment, "crop-padding", self.crop_padding.map(i64::from));
        put(&mut augment, "flip", self.flip);
        for (name, table) in [("optimizer", optimizer), ("schedule", schedule), ("augment", augment)] {
            put(&mut flags, name, (!table.is_empty()).then_some(table));
        }
        put(&mut flags, "preprocess", self.preprocess.choice().map(preprocess).transpose()?);
        Ok(flags)
    }
}

fn put(table: &mut Table, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        table.insert(name.into(), value.into());
    }
}

/// A choice as it is written in TOML.
fn text(choice: Option<impl serde::Serialize>) -> anyhow::Result<Option<Value>> {
    Ok(choice.map(Value::try_from).transpose()?)
}

fn preprocess(choice: Preprocess) -> anyhow::Result<Table> {
    Ok(Table::try_from(choice)?)
}

/// `schedule.gamma=0.2` as TOML; what is no TOML value is text: `optimizer.kind=adam`.
fn parse(setting: &str) -> anyhow::Result<Table> {
    let (name, value) = setting.split_once('=').with_context(|| format!("--set {setting}: expected SETTING=VALUE"))?;
    if let Ok(table) = setting.parse() {
        return Ok(table);
    }
    match format!("{name} = {}", Value::from(value.trim())).parse() {
        Ok(table) => Ok(table),
        Err(_) => bail!("--set {setting}: '{name}' is not the name of a setting"),
    }
}
