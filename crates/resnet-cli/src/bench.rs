//! `resnet bench`: how fast this machine trains and runs a network.

use std::time::{Duration, Instant};

use resnet::arch::{Network, initial_state};
use resnet::engine::{Batch, Engine, Loss, Native, NativeOptions, Precision, Update};
use serde::Serialize;

use crate::network::NetworkArgs;
use crate::precision::PrecisionArg;
use crate::terminal::{print, print_json};

const EXAMPLES: &str = "\
Examples:
  resnet bench resnet20
  resnet bench resnet20 --precision f32
  resnet bench resnet56 --batch 64 --threads 1 --json
  RESNET_ISA=avx2 resnet bench resnet20

Random images, no data loading. The median step counts: other work on the machine lengthens the
mean, not the median.";

/// Measure training and inference speed on this machine
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Network, for example resnet20
    #[arg(default_value = "resnet20")]
    model: String,
    /// Images of a step
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// Threads; one a core by default
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1024))]
    threads: u16,
    /// Precision [default: what train takes on this machine]
    #[arg(long, value_name = "NAME")]
    precision: Option<PrecisionArg>,
    /// Seconds to measure training, and again inference
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: NetworkArgs,
}

/// What was measured.
#[derive(Serialize)]
struct Report {
    model: String,
    engine: String,
    batch: usize,
    training: Speed,
    inference: Speed,
}

#[derive(Serialize)]
struct Speed {
    images_per_second: f64,
    step_ms: f64,
    steps: usize,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.seconds.is_finite() && (0.0..=3600.0).contains(&args.seconds),
        "--seconds: expected 0 to 3600, found {}",
        args.seconds
    );
    let network = args.network.build(&args.model)?;
    let precision = args.precision.map_or_else(Precision::fastest, Precision::from);
    let options = NativeOptions { threads: args.threads.into(), precision };
    let mut engine = Native::new(&network, &initial_state(&network, 0)?, options)?;
    let batch = random_batch(&network, args.batch as usize);
    let duration = Duration::from_secs_f64(args.seconds);
    // A learning rate of zero: the same arithmetic, and random labels cannot drive the weights away.
    let update = Update::Sgd { lr: 0.0, momentum: 0.9, weight_decay: 1e-4 };
    let training = measure(batch.len(), duration, || {
        engine.forward_backward(&batch, &Loss::default())?;
        engine.apply(&update);
        Ok(())
    })?;
    let inference = measure(batch.len(), duration, || Ok(engine.infer(&batch.images).map(drop)?))?;
    let report = Report { model: network.name, engine: engine.describe(), batch: batch.len(), training, inference };
    if args.json { print_json(&report) } else { Ok(print(text(&report))?) }
}

/// Deterministic images and labels; their values do not matter to the speed.
fn random_batch(network: &Network, images: usize) -> Batch {
    let pixels = (0..images * network.input.len()).map(|i| (i * 7919 % 1013) as f32 / 506.0 - 1.0);
    let labels = (0..images).map(|i| (i % network.classes) as u32);
    Batch { images: pixels.collect(), labels: labels.collect() }
}

/// Repeats `step` for at least `duration` and three times, after two to warm up.
fn measure(images: usize, duration: Duration, mut step: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Speed> {
    const WARM_UP: usize = 2;
    const FEWEST: usize = 3;
    for _ in 0..WARM_UP {
        step()?;
    }
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < duration || times.len() < FEWEST {
        let begin = Instant::now();
        step()?;
        times.push(begin.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    Ok(Speed { images_per_second: images as f64 / median, step_ms: median * 1e3, steps: times.len() })
}

fn text(report: &Report) -> String {
    let line = |what: &str, speed: &Speed| {
        format!(
            "{what:<10} {:>9.1} img/s {:>9.2} ms a step (median of {})",
            speed.images_per_second, speed.step_ms, speed.steps
        )
    };
    format!(
        "{}, batch {}, {}\n{}\n{}",
        report.model,
        report.batch,
        report.engine,
        line("training", &report.training),
        line("inference", &report.inference)
    )
}
