//! `resnet eval`: how good a trained network is.

mod report;
mod subject;

use std::path::PathBuf;
use std::sync::Arc;

use resnet::data::Loader;
use resnet::engine::{self, Options};
use resnet::eval::{Evaluation, evaluate};
use resnet::model::Model;
use serde::Serialize;

use crate::args::network::NetworkArgs;
use crate::args::precision::{PrecisionArg, check_speed};
use crate::args::preprocess::PreprocessArgs;
use crate::progress::Progress;
use crate::terminal::{print, print_json};
use subject::{Checkpoint, Subject};

/// Images that go through the network at once; the result does not depend on it.
const BATCH: usize = 256;

const EXAMPLES: &str = "\
Examples:
  resnet eval runs/resnet20-cifar10
  resnet eval best.safetensors --data cifar10
  resnet eval resnet20.th --model resnet20 --data cifar10 \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --json

A run knows its network, its data and how images were normalised. Its best.safetensors and
last.safetensors, wherever they are copied, know all but where the data lie: --data. Weights
from elsewhere must be told: --model, --data, and --mean and --std or --preprocess, as in
their training.";

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
    let Subject { model, weights, data, workers } = subject;
    let mut engine = model.engine(Options { precision: precision.into(), ..Options::default() })?;
    let Model { network, state, preprocessing, classes, .. } = model;
    drop(state); // the engine has its own
    let batches = Loader::evaluation(data.test.clone(), Arc::new(preprocessing), BATCH, &workers)?.once();
    let mut progress = Progress::new(data.test.len(), "images");
    let result = evaluate(engine.as_mut(), batches, &classes, |done| progress.set(done))?;
    Ok(Measurement { model: network.name, weights, data: data.name, result })
}
