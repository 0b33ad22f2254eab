//! What is to be evaluated, on what.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use resnet::arch::Network;
use resnet::data::{Splits, Workers};
use resnet::model::{Draft, Model};
use resnet::train::{Kept, RunDir};

use super::Args;
use crate::args::network::NetworkArgs;

/// A trained network, and images to measure it on.
pub struct Subject {
    pub model: Model,
    pub weights: PathBuf,
    pub data: Splits,
    /// The threads that read the images.
    pub workers: Workers,
}

/// `--checkpoint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Checkpoint {
    /// the one of the lowest test error
    Best,
    /// the last one
    Last,
}

impl From<Checkpoint> for Kept {
    fn from(arg: Checkpoint) -> Self {
        match arg {
            Checkpoint::Best => Self::Best,
            Checkpoint::Last => Self::Last,
        }
    }
}

impl Subject {
    /// What the arguments name. What flags say about images goes before what the weights say.
    pub fn find(args: &Args) -> anyhow::Result<Self> {
        let (mut draft, home) = open(args)?;
        let weights = draft.file().to_owned();
        let network = network(&draft, args)?;
        let (name, input) = (network.name.clone(), network.input);
        draft.card.network = Some(network);
        draft.fit().with_context(|| format!("{} as {name}", weights.display()))?;
        let choice = args.preprocess.choice();
        if choice.is_none() {
            draft.preprocessing()?; // or an error, before data are fetched
        }
        let data = args.data.clone().or(home).with_context(|| ask_for_data(&draft))?;
        let (data, workers) = (crate::data::open(&data)?, Workers::new(0)?);
        draft.name_classes(&data)?;
        if let Some(choice) = choice {
            draft.card.preprocessing = Some(choice.fit(data.train.as_ref(), input, &workers)?);
        }
        Ok(Self { model: draft.build()?, weights, data, workers })
    }
}

/// The weights, and of a run the data that it was trained on.
fn open(args: &Args) -> anyhow::Result<(Draft, Option<String>)> {
    if args.path.is_dir() {
        let run = RunDir::open(&args.path)?;
        let draft = Draft::from_run(&run, args.checkpoint.map(Kept::from).unwrap_or_default())?;
        return Ok((draft, Some(run.config()?.data)));
    }
    let file = args.path.display();
    ensure!(args.checkpoint.is_none(), "{file} is not a run: --checkpoint is for the folder of one");
    Ok((Draft::open(&args.path)?, None))
}

/// The network that the weights or the flags name.
fn network(draft: &Draft, args: &Args) -> anyhow::Result<Network> {
    if let Some(known) = &draft.card.network {
        ensure!(
            args.model.is_none() && args.network == NetworkArgs::default(),
            "{} {}knows its network: leave out --model and the network flags",
            args.path.display(),
            if args.path.is_dir() { "is a run and " } else { "" }
        );
        return Ok(known.clone());
    }
    let Some(model) = args.model.as_deref().or(draft.card.model()) else { return Ok(draft.network()?.clone()) };
    let mut network = draft.named(model)?;
    args.network.apply(&mut network)?;
    Ok(network)
}

fn ask_for_data(draft: &Draft) -> String {
    let trained = draft.card.provenance.data.as_ref().map(|data| format!(", such as the {data} it was trained on"));
    format!("what to measure on? Give --data{}", trained.unwrap_or_default())
}
