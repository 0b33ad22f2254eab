//! `resnet summary`: the layers of a network and what they cost.

use resnet::arch::{LayerSummary, Network, Summary};

use crate::args::network::{self, NetworkArgs};
use crate::terminal::{Align, grouped, print, print_json, short, table};

const EXAMPLES: &str = "\
Examples:
  resnet summary resnet20
  resnet summary resnet110 --shortcut b --classes 100
  resnet summary cifar-plain26 --json

Multiply-adds are counted for one image, as the paper counts FLOPs: convolutions and the
fully connected layer.";

/// Show a network's layers, output shapes, parameters and multiply-adds
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[arg(help = network::MODEL)]
    model: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: NetworkArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let network = args.network.build(&args.model)?;
    let summary = Summary::of(&network)?;
    if args.json {
        return print_json(&summary);
    }
    Ok(print(text(&network, &summary))?)
}

/// What network it is, the table and its totals.
fn text(network: &Network, summary: &Summary) -> String {
    let shortcuts = match network.shortcut {
        None => "no shortcuts".to_owned(),
        Some(kind) => format!("shortcuts {kind:?}"),
    };
    let mut layers = table(&[
        ("layer", Align::Left),
        ("kind", Align::Left),
        ("output", Align::Right),
        ("parameters", Align::Right),
        ("multiply-adds", Align::Right),
    ]);
    layers.add_row(["input", "", &summary.input.to_string()]);
    layers.add_rows(summary.layers.iter().map(row));
    let parameters = summary.parameters as u64;
    format!(
        "{}: {} images, {} classes, {shortcuts}\n\n\
         {}\n\n\
         parameters     {:>14}  ({})\n\
         multiply-adds  {:>14}  ({})",
        network.name,
        network.input,
        network.classes,
        layers.trim_fmt(),
        grouped(parameters),
        short(parameters),
        grouped(summary.multiply_adds),
        short(summary.multiply_adds),
    )
}

/// One layer; costs of zero stay blank.
fn row(layer: &LayerSummary) -> [String; 5] {
    let cost = |number: u64| if number == 0 { String::new() } else { grouped(number) };
    [
        layer.name.clone(),
        layer.kind.clone(),
        layer.output.to_string(),
        cost(layer.parameters as u64),
        cost(layer.multiply_adds),
    ]
}
