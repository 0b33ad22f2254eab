//! `resnet summary`: the layers of a network and what they cost.

use resnet::arch::{Network, Summary};

/// Show a network's layers, output shapes, parameters and multiply-adds
#[derive(clap::Args)]
pub struct Args {
    /// Network, for example resnet20, plain56 or cifar-resnet38
    model: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let summary = Summary::of(&Network::named(&args.model)?)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        println!("{summary:?}");
    }
    Ok(())
}
