//! How images are normalised: the flags for weights that do not say it themselves.

use clap::Command;
use resnet::data::Preprocess;
use resnet::train::Group;
use toml::{Table, Value};

use super::{Flags, FromSettings};

/// The normalisation that a network was trained with.
pub type PreprocessArgs = Flags<Preprocessing>;

/// The choice that was made, if one was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Preprocessing(Option<Preprocess>);

impl Preprocessing {
    /// The choice that was made, if one was.
    pub fn choice(&self) -> Option<Preprocess> {
        self.0.clone()
    }
}

impl FromSettings for Preprocessing {
    const GROUPS: &[Group] = &[Group::Preprocessing];

    fn from_layer(layer: Table) -> anyhow::Result<Self> {
        let Some(Value::Table(mut given)) = layer.get("preprocess").cloned() else { return Ok(Self(None)) };
        // Given statistics are each channel's.
        given.entry("kind").or_insert_with(|| "channel".into());
        Ok(Self(Some(given.try_into()?)))
    }

    fn relate(command: Command) -> Command {
        command
            .mut_arg("mean", |mean| mean.requires("std").conflicts_with("preprocess"))
            .mut_arg("std", |std| std.requires("mean"))
    }
}
