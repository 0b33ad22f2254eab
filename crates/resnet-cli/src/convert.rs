//! `resnet convert`: weights of any kind that can be read, as safetensors.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use resnet::model::Draft;
use resnet::{StateDict, Tensor};

use crate::args::network::NetworkArgs;
use crate::args::preprocess::PreprocessArgs;
use crate::terminal::{grouped, print};

const EXAMPLES: &str = "\
Examples:
  resnet convert resnet20.th resnet20.safetensors
  resnet convert checkpoint.pth weights.safetensors --model resnet56 --shortcut b \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225

Tensors are written as 32-bit floats under the names of torchvision (layer1.0.conv1.weight,
fc.bias). Optimizer states and whatever else lies beside the network are left out. With
--model the tensors must be exactly those of the network, and the file knows it from then on;
with --mean and --std it knows how images are normalised, too.";

/// Convert weights, for example of PyTorch, to safetensors
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Weights: a .safetensors file, one of PyTorch (.pth, .pt, .th), or a run, for its best
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// File to write, .safetensors; may be the same file
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Network that the weights must fit, where they do not say it
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    network: NetworkArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        args.output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors")),
        "{}: only safetensors can be written: choose a name that ends in .safetensors",
        args.output.display()
    );
    ensure!(
        args.model.is_some() || args.network == NetworkArgs::default(),
        "the network flags say more about a network: name it with --model"
    );
    let mut draft = Draft::open(&args.input)?;
    describe(&mut draft, args)?;
    if draft.card.network.is_some() {
        draft.fit()?;
    }
    draft.save(&args.output)?;
    let (tensors, parameters) = (draft.state.len(), parameters(&draft.state));
    Ok(print(format_args!("{}: {tensors} tensors, {} parameters", args.output.display(), grouped(parameters)))?)
}

/// Adds what the flags say to what the weights say about themselves.
fn describe(draft: &mut Draft, args: &Args) -> anyhow::Result<()> {
    if let Some(model) = &args.model {
        let mut network = draft.named(model)?;
        args.network.apply(&mut network)?;
        draft.card.network = Some(network);
    }
    if let Some(choice) = args.preprocess.choice() {
        let normalizer = choice.without_images(draft.network()?.input)?;
        draft.card.preprocessing =
            Some(normalizer.context("--preprocess: these statistics take images: give --mean and --std")?);
    }
    Ok(())
}

/// Number of learned values: all but the running statistics of batch norm.
fn parameters(state: &StateDict) -> u64 {
    let learned = |name: &str| !name.ends_with(".running_mean") && !name.ends_with(".running_var");
    let values = |tensor: &Tensor| tensor.data().len() as u64;
    state.iter().filter(|(name, _)| learned(name)).map(|(_, tensor)| values(tensor)).sum()
}
