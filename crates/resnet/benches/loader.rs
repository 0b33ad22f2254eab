//! What the paper's batches cost before a network sees them: `cargo bench --bench loader`.

use std::sync::Arc;
use std::time::Instant;

use resnet::data::{Augment, Loader, Preprocess, Workers, synthetic};

const BATCH: usize = 128;
const BATCHES: u32 = 2000;

fn main() -> resnet::Result<()> {
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(()); // Built and started as a test.
    }
    let start = Instant::now();
    let images = synthetic::splits(0, synthetic::TRAIN_IMAGES, 1)?.train;
    println!("{} synthetic images drawn: {:?}", images.len(), start.elapsed());
    let shape = images.shape().expect("they have one shape");
    for threads in [1, 2, 0] {
        let workers = Workers::new(threads)?;
        let start = Instant::now();
        let normalizer = Arc::new(Preprocess::PixelMean.fit(images.as_ref(), shape, &workers)?);
        let mean = start.elapsed();
        let loader = Loader::train(images.clone(), normalizer, BATCH, Augment::default(), 0, &workers)?;
        let start = Instant::now();
        for batch in loader.batches(0).take(BATCHES as usize) {
            std::hint::black_box(batch?);
        }
        let (batch, threads) = (start.elapsed() / BATCHES, workers.threads());
        let rate = BATCH as f64 / batch.as_secs_f64();
        println!("{threads} threads: mean image {mean:?}, batch of {BATCH} {batch:?}, {rate:.0} images/s");
    }
    Ok(())
}
