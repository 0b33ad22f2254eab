//! `resnet bench`: how fast this machine trains and runs a network.

use std::time::{Duration, Instant};

use resnet::arch::{Network, initial_state};
use resnet::engine::{self, Batch, Loss, Options, Part, PartTime, Precision, Rule, Update, Work};
use serde::Serialize;

use crate::args::network::NetworkArgs;
use crate::args::precision::{PrecisionArg, check_speed};
use crate::terminal::{Align, print, print_json, table};

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
    #[arg(
        short,
        long,
        visible_alias = "batch-size",
        value_name = "N",
        default_value_t = 128,
        value_parser = clap::value_parser!(u32).range(1..=65_536)
    )]
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
    /// Show every layer's share of the step
    #[arg(long)]
    layers: bool,
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
    /// Multiply-adds a second, in 10^9, that the kernels reach with nothing to load or store; where the
    /// engine can tell.
    peak_gmacs: Option<f64>,
    /// Of activations and gradients, for training and for inference; where the engine knows.
    arena_bytes: Option<usize>,
    /// Of the whole process; where the system says.
    peak_resident_bytes: Option<u64>,
    training: Speed,
    inference: Speed,
    /// Of a training step.
    parts: Vec<StepPart>,
}

#[derive(Serialize)]
struct Speed {
    images_per_second: f64,
    step_ms: f64,
    steps: usize,
}

/// A part of a training step: one kind of work on one layer.
#[derive(Serialize)]
struct StepPart {
    work: &'static str,
    layer: String,
    /// The time of all threads over their number, median of the steps.
    ms: f64,
    /// Multiply-adds a second, in 10^9; for convolutions.
    gmacs: Option<f64>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.seconds.is_finite() && (0.0..=3600.0).contains(&args.seconds),
        "--seconds: expected 0 to 3600, found {}",
        args.seconds
    );
    let network = args.network.build(&args.model)?;
    let precision = args.precision.map_or_else(engine::fastest_precision, Precision::from);
    check_speed(&engine::default_name(), precision)?;
    let options = Options { threads: args.threads.into(), precision };
    let state = initial_state(&network, 0)?;
    let mut engine = engine::open(&engine::default_name(), network.graph()?, &state, options)?;
    let batch = random_batch(&network, args.batch as usize);
    let duration = Duration::from_secs_f64(args.seconds);
    // A learning rate of zero: the same arithmetic, and random labels cannot drive the weights away.
    let rule = Rule::Sgd { momentum: 0.9, nesterov: false };
    let update = Update::uniform(rule, 0.0, 1e-4, engine.parameters().len());
    let mut profiles = Vec::new();
    let training = measure(batch.len(), duration, || {
        engine.forward_backward(&batch, &Loss::default(), Part::WHOLE)?;
        engine.apply(&update)?;
        profiles.push(engine.profile());
        Ok(())
    })?;
    let inference = measure(batch.len(), duration, || Ok(engine.infer(&batch.images).map(drop)?))?;
    let report = Report {
        model: network.name,
        engine: engine.describe(),
        batch: batch.len(),
        peak_gmacs: engine.peak().map(|peak| peak / 1e9),
        arena_bytes: engine.arena_bytes(),
        peak_resident_bytes: peak_resident_bytes(),
        training,
        inference,
        parts: parts(&profiles, batch.len(), engine.threads()),
    };
    if args.json { print_json(&report) } else { Ok(print(text(&report, args.layers))?) }
}

/// The median of each part over the steps.
fn parts(profiles: &[Vec<PartTime>], images: usize, threads: usize) -> Vec<StepPart> {
    let Some(last) = profiles.last() else { return Vec::new() };
    let part = |(index, part): (usize, &PartTime)| {
        let mut times: Vec<f64> = profiles.iter().map(|parts| parts[index].thread_seconds).collect();
        times.sort_by(f64::total_cmp);
        let seconds = times[times.len() / 2] / threads as f64;
        let multiply_adds = part.multiply_adds * images as u64;
        StepPart {
            work: name(part.work),
            layer: part.layer.clone(),
            ms: seconds * 1e3,
            gmacs: (multiply_adds > 0).then(|| multiply_adds as f64 / seconds / 1e9),
        }
    };
    last.iter().enumerate().map(part).collect()
}

fn name(work: Work) -> &'static str {
    match work {
        Work::Load => "load images",
        Work::Pack => "pack weights",
        Work::Forward => "forward",
        Work::Loss => "loss",
        Work::BackwardInput => "backward",
        Work::BackwardWeights => "backward, weights",
        Work::Update => "update",
    }
}

/// The most memory the process ever held, as Linux tells it.
fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Deterministic images and labels; their values do not matter to the speed.
fn random_batch(network: &Network, images: usize) -> Batch {
    let pixels = (0..images * network.input.len()).map(|i| (i * 7919 % 1013) as f32 / 506.0 - 1.0);
    let labels: Vec<_> = (0..images).map(|i| (i % network.classes) as u32).collect();
    Batch { images: pixels.collect(), targets: labels.into() }
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

fn text(report: &Report, layers: bool) -> String {
    let line = |what: &str, speed: &Speed| {
        format!(
            "{what:<10} {:>9.1} img/s {:>9.2} ms a step (median of {})",
            speed.images_per_second, speed.step_ms, speed.steps
        )
    };
    let mut lines = vec![
        format!("{}, batch {}, {}", report.model, report.batch, report.engine),
        line("training", &report.training),
        line("inference", &report.inference),
        memory(report),
        String::new(),
    ];
    lines.push(if layers { by_layer(report) } else { by_work(report) });
    lines.join("\n")
}

fn memory(report: &Report) -> String {
    let megabytes = |bytes: u64| format!("{:.0} MB", bytes as f64 / 1e6);
    let arena = report.arena_bytes.map(|bytes| format!("{} of activations and gradients", megabytes(bytes as u64)));
    let peak = report.peak_resident_bytes.map(|bytes| format!("{} with all else", megabytes(bytes)));
    format!("memory     {}", arena.into_iter().chain(peak).collect::<Vec<_>>().join(", "))
}

/// A training step by kind of work.
fn by_work(report: &Report) -> String {
    let mut kinds: Vec<(&str, f64)> = Vec::new();
    for part in &report.parts {
        match kinds.iter_mut().find(|(work, _)| *work == part.work) {
            Some((_, ms)) => *ms += part.ms,
            None => kinds.push((part.work, part.ms)),
        }
    }
    let share = |ms: f64| format!("{:.1}", 100.0 * ms / report.training.step_ms);
    kinds.push(("waiting", report.training.step_ms - kinds.iter().map(|(_, ms)| ms).sum::<f64>()));
    let mut table = table(&[("training step", Align::Left), ("ms", Align::Right), ("%", Align::Right)]);
    for (work, ms) in kinds {
        table.add_row([work.to_string(), format!("{ms:.2}"), share(ms)]);
    }
    table.to_string()
}

/// A training step by layer, with what its convolutions reach of the kernels' peak.
fn by_layer(report: &Report) -> String {
    let mut table = table(&[
        ("work", Align::Left),
        ("layer", Align::Left),
        ("ms", Align::Right),
        ("GMAC/s", Align::Right),
        ("% of peak", Align::Right),
    ]);
    for part in &report.parts {
        let gmacs = part.gmacs.map_or_else(String::new, |gmacs| format!("{gmacs:.0}"));
        let share = part.gmacs.zip(report.peak_gmacs).map(|(gmacs, peak)| format!("{:.0}", 100.0 * gmacs / peak));
        table.add_row([
            part.work.into(),
            part.layer.clone(),
            format!("{:.3}", part.ms),
            gmacs,
            share.unwrap_or_default(),
        ]);
    }
    table.to_string()
}
