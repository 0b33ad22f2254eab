//! `resnet eval`: how good a trained network is.

mod report;
mod subject;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use resnet::data::{Loader, Workers};
use resnet::engine::{self, Options};
use resnet::eval::{Evaluation, evaluate};
use serde::Serialize;

use crate::network::NetworkArgs;
use crate::precision::{PrecisionArg, check_speed};
use crate::preprocess::PreprocessArgs;
use crate::progress::Progress;
use crate::terminal::{print, print_json};
use subject::{Checkpoint, Subject};

/// Images that go through the network at once; the result does not depend on it.
const BATCH: usize = 256;

const EXAMPLES: &str = "\
Examples:
  resnet eval runs/resnet20-cifar10
  resnet eval model.safetensors --model resnet20 --data cifar10 --preprocess pixel-mean
  resnet eval resnet20.th --model resnet20 --data cifar10 \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --json

A run knows its network, its data and how images were normalised. Published weights must be told:
--model, --data, and --mean and --std or --preprocess, as in their training.";

/// Measure a trained network: top-1 and top-5 accuracy, loss, accuracy of each class, confusions
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of a run, or weights: a .safetensors file, or one of PyTorch (.pth, .pt, .th)
    #[arg(value_name = "RUN|WEIGHTS")]
    path: PathBuf,
    /// Data set whose test part is measured on, a name or a folder; that of the run by default
    #[arg(long, value_name = "NAME|FOLDER")]
    data: Option<String>,
    /// Network that the weights are for, where their file does not say
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Which weights of a run [default: best]
    #[arg(long, value_name = "WHICH")]
    checkpoint: Option<Checkpoint>,
    /// Precision
    #[arg(long, value_name = "NAME", default_value = "f32")]
    precision: PrecisionArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    network: NetworkArgs,
}

/// What was measured, of what, on what.
#[derive(Serialize)]
struct Measurement {
    model: String,
    weights: PathBuf,
    data: String,
    #[serde(flatten)]
    result: Evaluation,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    check_speed(&engine::default_name(), args.precision.into())?;
    let measurement = measure(Subject::find(args)?, args.precision)?;
    if args.json { print_json(&measurement) } else { Ok(print(report::text(&measurement))?) }
}

fn measure(subject: Subject, precision: PrecisionArg) -> anyhow::Result<Measurement> {
    let Subject { network, weights, state, data, normalisation } = subject;
    let options = Options { precision: precision.into(), ..Options::default() };
    let mut engine = engine::open(&engine::default_name(), network.graph()?, &state, options)
        .with_context(|| format!("{} as {}", weights.display(), network.name))?;
    let splits = crate::data::open(&data)?;
    let classes = splits.test.classes();
    anyhow::ensure!(
        network.classes == classes.len(),
        "{} tells {} classes apart, but {} has {}",
        weights.display(),
        network.classes,
        splits.name,
        classes.len()
    );
    let workers = Workers::new(0)?;
    let normalizer = normalisation.normalizer(splits.train.as_ref(), network.input, &workers)?;
    let batches = Loader::evaluation(splits.test.clone(), Arc::new(normalizer), BATCH, &workers)?.once();
    let mut progress = Progress::new(splits.test.len(), "images");
    let result = evaluate(engine.as_mut(), batches, classes, |done| progress.set(done))?;
    Ok(Measurement { model: network.name, weights, data: splits.name, result })
}
