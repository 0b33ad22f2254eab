//! `resnet convert`: weights of any kind that can be read, as safetensors.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use resnet::arch::Network;
use resnet::weights::{self, Weights, safetensors};
use resnet::{StateDict, Tensor};

use crate::args::network::NetworkArgs;
use crate::terminal::{grouped, print};

const EXAMPLES: &str = "\
Examples:
  resnet convert resnet20.th resnet20.safetensors
  resnet convert checkpoint.pth weights.safetensors --model resnet56 --shortcut b

Tensors are written as 32-bit floats under the names of torchvision (layer1.0.conv1.weight,
fc.bias). Optimizer states and whatever else lies beside the network are left out. With
--model the tensors must be exactly those of the network.";

/// Convert weights, for example of PyTorch, to safetensors
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Weights: a .safetensors file, or one of PyTorch (.pth, .pt, .th)
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// File to write, .safetensors; may be the same file
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Network that the weights must fit
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
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
    let network = args.model.as_ref().map(|model| args.network.build(model)).transpose()?;
    let Weights { state, metadata } = read(&args.input, network)?;
    safetensors::write(&args.output, &state, &metadata)?;
    let parameters = parameters(&state);
    Ok(print(format_args!("{}: {} tensors, {} parameters", args.output.display(), state.len(), grouped(parameters)))?)
}

/// The weights, checked against `network`, whose name their file then carries.
fn read(path: &Path, network: Option<Network>) -> anyhow::Result<Weights> {
    let Some(network) = network else { return Ok(weights::read(path, None)?) };
    let mut found = weights::read(path, Some(&network.graph()?))?;
    found.metadata.insert("model".into(), network.name);
    Ok(found)
}

/// Number of learned values: all but the running statistics of batch norm.
fn parameters(state: &StateDict) -> u64 {
    let learned = |name: &str| !name.ends_with(".running_mean") && !name.ends_with(".running_var");
    let values = |tensor: &Tensor| tensor.data().len() as u64;
    state.iter().filter(|(name, _)| learned(name)).map(|(_, tensor)| values(tensor)).sum()
}
