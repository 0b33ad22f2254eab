//! What is to be evaluated.

use std::path::PathBuf;

use anyhow::Context;
use resnet::StateDict;
use resnet::arch::Network;
use resnet::data::Preprocess;

use super::Args;

/// A trained network, and what its training knew about images.
pub struct Subject {
    pub network: Network,
    pub weights: PathBuf,
    pub state: StateDict,
    pub data: String,
    pub normalisation: Preprocess,
}

impl Subject {
    /// What the arguments name.
    pub fn find(args: &Args) -> anyhow::Result<Self> {
        Self::from_weights(args)
    }

    /// A file of weights, which says little about itself.
    fn from_weights(args: &Args) -> anyhow::Result<Self> {
        let file = args.path.display();
        let weights = resnet::weights::read(&args.path, None)?;
        let model = args.model.as_ref().or(weights.metadata.get("model"));
        let model = model.with_context(|| format!("{file} does not say what network it is for: give --model"))?;
        let normalisation = args.preprocess.choice().with_context(|| {
            format!("{file} does not say how images were normalised: give --mean and --std, or --preprocess")
        })?;
        let mut network = args.network.build(model)?;
        if let (None, Some(classifier)) = (args.network.classes, weights.state.get("fc.weight")) {
            network.classes = classifier.shape().first().copied().unwrap_or(network.classes);
        }
        Ok(Self {
            network,
            weights: args.path.clone(),
            state: weights.state,
            data: args.data.clone().context("what to measure on? Give --data")?,
            normalisation,
        })
    }
}
