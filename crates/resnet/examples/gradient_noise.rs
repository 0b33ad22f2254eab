//! How far the gradients of a precision are from those in `f32`, and what of that the mean over many batches keeps: what
//! rounding does by chance cancels there, what it does with method stays.
//!
//! ```text
//! cargo run --release --example gradient_noise -- resnet20 weights.safetensors cifar10 bf16 100
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use resnet::arch::Network;
use resnet::data::{self, Augment, Loader, OpenOptions, Preprocess, Workers};
use resnet::engine::{Engine, Loss, Native, Options, Part, Precision};
use resnet::weights;

/// Images of a batch.
const BATCH: usize = 128;

/// The augmentation of the paper's CIFAR networks (section 4.2).
const AUGMENT: Augment = Augment { crop_padding: 4, flip: true, alternate: false };

/// Gradients of all batches by some tensors, in `f32` and as differences from that.
#[derive(Default)]
struct Gradients {
    /// Sum of the squares of the gradients.
    squares: f64,
    /// Sum of the squares of the differences.
    differences: f64,
    /// Sum of the differences of each weight.
    total: Vec<f64>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, file, dataset, precision, batches] = arguments.as_slice() else {
        return Err("expected MODEL WEIGHTS DATA PRECISION BATCHES".into());
    };
    let precision = Precision::ALL
        .into_iter()
        .find(|known| known.name() == precision)
        .ok_or("PRECISION: expected f32, tf32 or bf16")?;
    let batches = batches.parse::<NonZeroUsize>().map_err(|error| format!("BATCHES '{batches}': {error}"))?.get();
    let network = Network::named(model)?;
    let graph = network.graph()?;
    let state = weights::read(Path::new(file), Some(&graph))?.state;
    let tensors = graph.tensors();
    let images = data::open(dataset, &OpenOptions::default())?.train;
    let workers = Workers::new(0)?;
    let normalizer = Arc::new(Preprocess::PixelMean.fit(images.as_ref(), network.input, &workers)?);
    let loader = Loader::train(images, normalizer, BATCH, AUGMENT, 0, &workers)?;
    let engine = |precision| Native::new(graph.clone(), &state, Options { precision, ..Options::default() });
    let (mut exact, mut rounded) = (engine(Precision::F32)?, engine(precision)?);

    let mut stages: BTreeMap<&str, Gradients> = BTreeMap::new();
    let (mut losses, mut made) = ([0.0; 2], loader.batches(0));
    for _ in 0..batches {
        let batch = made.next().ok_or("no more batches")??;
        for (engine, total) in [&mut exact, &mut rounded].into_iter().zip(&mut losses) {
            *total += f64::from(engine.forward_backward(&batch, &Loss::default(), Part::WHOLE)?.loss);
        }
        let mut gradients = exact.gradients().iter().zip(rounded.gradients().iter());
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for tensor in tensors.parameters() {
            let stage = tensor.name.split('.').next().unwrap_or(&tensor.name);
            let (sums, at) = (stages.entry(stage).or_default(), seen.entry(stage).or_default());
            for (exact, rounded) in gradients.by_ref().take(tensor.len()) {
                let difference = f64::from(rounded - exact);
                sums.squares += f64::from(exact * exact);
                sums.differences += difference * difference;
                sums.total.resize(sums.total.len().max(*at + 1), 0.0);
                sums.total[*at] += difference;
                *at += 1;
            }
        }
    }

    let count = batches as f64;
    println!("mean loss {:.6} in f32, {:.6} in {}", losses[0] / count, losses[1] / count, precision.name());
    println!("{:10} {:>22} {:>16} {:>16}", "", "difference, one batch", "of the mean", "were it chance");
    for (stage, sums) in &stages {
        let one = (sums.differences / sums.squares).sqrt();
        let total: f64 = sums.total.iter().map(|difference| difference * difference).sum();
        let mean = (total / sums.squares / count).sqrt();
        println!("{stage:10} {:21.2}% {:15.2}% {:15.2}%", 100.0 * one, 100.0 * mean, 100.0 * one / count.sqrt());
    }
    Ok(())
}
