//! How to train: recipe, file and flags, as layers of settings.

use std::path::PathBuf;

use anyhow::{Context, anyhow, bail, ensure};
use clap::builder::{PossibleValue, PossibleValuesParser};
use resnet::train::{Changes, Config, Group, Layers, RECIPES};
use toml::{Table, Value};

use super::network::{self, NetworkArgs};
use super::preprocess::PreprocessArgs;
use super::{Flags, FromSettings};

/// How to train.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct TrainingArgs {
    #[arg(help = network::MODEL)]
    model: Option<String>,
    /// Network, in place of MODEL
    #[arg(long = "model", value_name = "NAME", conflicts_with = "model")]
    named: Option<String>,
    /// Recipe to start from [default: quick]
    #[arg(long, value_name = "NAME", value_parser = recipes())]
    recipe: Option<String>,
    /// Settings over the recipe's, as --print-config shows them; all or some
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any other setting of --print-config, for example schedule.gamma=0.2
    #[arg(long, value_name = "SETTING=VALUE", value_parser = assignment)]
    set: Vec<Table>,
    #[command(flatten)]
    training: Flags<Training>,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    network: NetworkArgs,
}

/// What only a training is told.
#[derive(Clone, Debug, Default)]
pub struct Training(Table);

impl FromSettings for Training {
    const GROUPS: &[Group] = &[Group::Data, Group::Training, Group::Records, Group::Machine];

    fn from_layer(layer: Table) -> anyhow::Result<Self> {
        Ok(Self(layer))
    }

    fn relate(command: clap::Command) -> clap::Command {
        command.mut_arg("epochs", |epochs| epochs.conflicts_with("iterations"))
    }
}

impl TrainingArgs {
    /// Recipe, file and flags, each over the one before. `train_images` is asked where there are epochs
    /// to count; see [`Layers::resolve_with`].
    pub fn resolve(&self, train_images: impl FnOnce(&Config) -> resnet::Result<usize>) -> anyhow::Result<Config> {
        let mut layers = Layers::new();
        if let Some(recipe) = &self.recipe {
            layers = layers.recipe(recipe);
        }
        if let Some(path) = &self.config {
            layers = layers.file(path)?;
        }
        layers = layers.table(self.flags()?);
        for setting in &self.set {
            layers = layers.table(setting.clone());
        }
        Ok(layers.resolve_with(train_images)?)
    }

    /// What a run that goes on may be told.
    ///
    /// # Errors
    /// When anything else was said.
    pub fn changes(&self) -> anyhow::Result<Changes> {
        let only = "of the settings only --threads and --workers can be given and, for data that have moved, --data";
        ensure!(self.recipe.is_none() && self.config.is_none() && self.set.is_empty(), only);
        self.flags()?.try_into().map_err(|_| anyhow!(only))
    }

    fn flags(&self) -> anyhow::Result<Table> {
        let Training(mut flags) = Training::clone(&self.training);
        flags.extend(Table::try_from(*self.network)?);
        if let Some(model) = self.model.as_ref().or(self.named.as_ref()) {
            flags.insert("model".into(), model.clone().into());
        }
        if let Some(choice) = self.preprocess.choice() {
            flags.insert("preprocess".into(), Value::try_from(choice)?);
        }
        Ok(flags)
    }
}

fn recipes() -> PossibleValuesParser {
    PossibleValuesParser::new(RECIPES.map(|recipe| PossibleValue::new(recipe.name).help(recipe.summary)))
}

/// `schedule.gamma=0.2` as TOML; what is no TOML value is text: `optimizer.kind=adam`.
fn assignment(setting: &str) -> anyhow::Result<Table> {
    let (name, value) = setting.split_once('=').context("expected SETTING=VALUE")?;
    if let Ok(table) = setting.parse() {
        return Ok(table);
    }
    match format!("{name} = {}", Value::from(value.trim())).parse() {
        Ok(table) => Ok(table),
        Err(_) => bail!("'{name}' is not the name of a setting"),
    }
}
