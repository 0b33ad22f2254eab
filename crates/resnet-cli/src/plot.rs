//! `resnet plot`: training curves of one or more runs in one figure.

use std::path::PathBuf;

use resnet::report::{CurvesOptions, RunCurves, curves};

use crate::terminal::print;

const EXAMPLES: &str = "\
Examples:
  resnet plot runs/resnet20 -o curves.png
  resnet plot runs/plain20 runs/resnet20 -o plain-vs-residual.svg --max-error 20

Bold lines are the test error, light ones the training error; dashed lines mark where the
learning rate drops.";

/// Draw training and test error over iterations, as in figure 6 of the paper
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Run directories or metrics.jsonl files; one colour each
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// Picture to write, by its name a PNG or an SVG
    #[arg(short, long, value_name = "FILE", default_value = "curves.png")]
    output: PathBuf,
    /// Upper end of the error axis [default: three times the last test error, 20 at least]
    #[arg(long, value_name = "PERCENT")]
    max_error: Option<f64>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let runs = args.runs.iter().map(|path| RunCurves::read(path)).collect::<resnet::Result<Vec<_>>>()?;
    curves(&runs, &CurvesOptions { max_error: args.max_error }, &args.output)?;
    Ok(print(args.output.display())?)
}
