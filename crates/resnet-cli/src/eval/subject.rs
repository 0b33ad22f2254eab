//! What is to be evaluated.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use resnet::StateDict;
use resnet::arch::{Network, Shape};
use resnet::data::{Dataset, Normalizer, Preprocess, Workers};
use resnet::train::RunDir;
use resnet::weights;

use super::Args;
use crate::network::NetworkArgs;

/// A trained network, and what its training knew about images.
pub struct Subject {
    pub network: Network,
    pub weights: PathBuf,
    pub state: StateDict,
    pub data: String,
    pub normalisation: Normalisation,
}

/// How images are normalised.
pub enum Normalisation {
    /// With the statistics of the training.
    Known(Normalizer),
    /// As the flags say.
    Chosen(Preprocess),
}

impl Normalisation {
    /// What normalises the images; `train` is what statistics that are not given come from.
    pub fn normalizer(self, train: &dyn Dataset, input: Shape, workers: &Workers) -> resnet::Result<Normalizer> {
        match self {
            Self::Known(normalizer) => Ok(normalizer),
            Self::Chosen(preprocess) => preprocess.fit(train, input, workers),
        }
    }
}

/// `--checkpoint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Checkpoint {
    /// the one of the lowest test error
    Best,
    /// the last one
    Last,
}

impl Subject {
    /// What the arguments name.
    pub fn find(args: &Args) -> anyhow::Result<Self> {
        if args.path.is_dir() { Self::from_run(args) } else { Self::from_weights(args) }
    }

    /// A run, which knows its network, its data and how images were normalised.
    fn from_run(args: &Args) -> anyhow::Result<Self> {
        let run = RunDir::open(&args.path)?;
        ensure!(
            args.model.is_none() && args.network == NetworkArgs::default(),
            "{} is a run and knows its network: leave out --model and the network flags",
            args.path.display()
        );
        let weights = match args.checkpoint.unwrap_or(Checkpoint::Best) {
            Checkpoint::Best => run.best(),
            Checkpoint::Last => run.last(),
        };
        let normalisation = match args.preprocess.choice() {
            Some(choice) => Normalisation::Chosen(choice),
            None => Normalisation::Known(run.normalizer()?),
        };
        let data = args.data.clone().map_or_else(|| run.config().map(|config| config.data), Ok)?;
        let state = weights::read(&weights, None)?.state;
        Ok(Self { network: run.network()?, weights, state, data, normalisation })
    }

    /// A file of weights, which says little about itself.
    fn from_weights(args: &Args) -> anyhow::Result<Self> {
        let file = args.path.display();
        ensure!(args.checkpoint.is_none(), "{file} is not a run: --checkpoint is for the folder of one");
        let weights::Weights { state, metadata } = weights::read(&args.path, None)?;
        let model = args.model.as_ref().or(metadata.get("model"));
        let model = model.with_context(|| format!("{file} does not say what network it is for: give --model"))?;
        let choice = args.preprocess.choice().with_context(|| {
            format!("{file} does not say how images were normalised: give --mean and --std, or --preprocess")
        })?;
        let mut network = args.network.build(model)?;
        if let (None, Some(classifier)) = (args.network.classes, state.get("fc.weight")) {
            network.classes = classifier.shape().first().copied().unwrap_or(network.classes);
        }
        Ok(Self {
            network,
            weights: args.path.clone(),
            state,
            data: args.data.clone().context("what to measure on? Give --data")?,
            normalisation: Normalisation::Chosen(choice),
        })
    }
}
