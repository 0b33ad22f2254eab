//! Batches by iteration number, made ready on other threads.
//!
//! What a batch holds is a function of (seed, iteration) alone, so any number of threads gives the same
//! batches and a run can be resumed at any iteration.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use rand::seq::SliceRandom;

use super::augment::Placement;
use super::random::{Purpose, stream};
use super::{Augment, Dataset, Normalizer};
use crate::engine::Batch;
use crate::{Error, Result};

/// Threads that make batches. One keeps up with any CPU engine on small images; the second covers
/// moments when the other is not scheduled, or decoding.
const THREADS: u64 = 2;

/// Batches that wait ready on each thread.
const READY: usize = 2;

/// Makes the batches of a data set.
#[derive(Clone)]
pub struct Loader {
    dataset: Arc<dyn Dataset>,
    normalizer: Arc<Normalizer>,
    batch: usize,
    shuffle: Option<Shuffle>,
}

/// What makes training batches different from epoch to epoch.
#[derive(Clone, Copy)]
struct Shuffle {
    seed: u64,
    augment: Augment,
}

impl Loader {
    /// Training batches of `batch` images: every epoch goes through `dataset` once, in an order drawn
    /// from (`seed`, epoch), each image varied as drawn from (`seed`, epoch, its index). The last batch
    /// of an epoch has what is left over.
    ///
    /// # Errors
    /// When there is no image, `batch` is 0, or the normalizer or the augmentation does not fit the
    /// images.
    pub fn train(
        dataset: Arc<dyn Dataset>,
        normalizer: Arc<Normalizer>,
        batch: usize,
        augment: Augment,
        seed: u64,
    ) -> Result<Self> {
        augment.check(dataset.shape())?;
        Self::new(dataset, normalizer, batch, Some(Shuffle { seed, augment }))
    }

    /// Evaluation batches of `batch` images: `dataset` as it is, in order.
    ///
    /// # Errors
    /// As [`train`](Loader::train).
    pub fn evaluation(dataset: Arc<dyn Dataset>, normalizer: Arc<Normalizer>, batch: usize) -> Result<Self> {
        Self::new(dataset, normalizer, batch, None)
    }

    fn new(
        dataset: Arc<dyn Dataset>,
        normalizer: Arc<Normalizer>,
        batch: usize,
        shuffle: Option<Shuffle>,
    ) -> Result<Self> {
        if dataset.is_empty() {
            return Err(Error::Config("the data set has no images".into()));
        }
        if batch == 0 {
            return Err(Error::Config("a batch needs at least one image".into()));
        }
        if dataset.shape() != normalizer.shape() {
            return Err(Error::Config(format!(
                "the images are {}, but the preprocessing is for {}",
                dataset.shape(),
                normalizer.shape()
            )));
        }
        Ok(Self { dataset, normalizer, batch, shuffle })
    }

    /// Iterations of one epoch.
    pub fn iterations_per_epoch(&self) -> u64 {
        self.dataset.len().div_ceil(self.batch) as u64
    }

    /// The epoch, from 0, that an iteration, from 0, belongs to.
    pub fn epoch(&self, iteration: u64) -> u64 {
        iteration / self.iterations_per_epoch()
    }

    /// One epoch's batches, in order: what an evaluation goes through.
    pub fn once(&self) -> Batches {
        self.range(0..self.iterations_per_epoch())
    }

    /// Batches without end, the first being that of iteration `start`.
    pub fn batches(&self, start: u64) -> Batches {
        self.range(start..u64::MAX)
    }

    fn range(&self, iterations: Range<u64>) -> Batches {
        let workers = (0..THREADS).map(|thread| {
            let loader = self.clone();
            let mine = (iterations.start.saturating_add(thread)..iterations.end).step_by(THREADS as usize);
            let (sender, receiver) = sync_channel(READY);
            let thread = std::thread::spawn(move || {
                let mut maker = Maker::new(&loader);
                for iteration in mine {
                    if sender.send(maker.batch(iteration)).is_err() {
                        break; // Nobody waits for batches any more.
                    }
                }
            });
            Worker { receiver: Some(receiver), thread: Some(thread) }
        });
        Batches { workers: workers.collect(), next: 0, left: iterations }
    }
}

/// Makes batches on one thread, keeping what the next one needs again.
struct Maker<'a> {
    loader: &'a Loader,
    /// The epoch that `order` is of.
    epoch: Option<u64>,
    order: Vec<usize>,
    pixels: Vec<u8>,
}

impl<'a> Maker<'a> {
    fn new(loader: &'a Loader) -> Self {
        let order = (0..loader.dataset.len()).collect();
        Self { loader, epoch: None, order, pixels: vec![0; loader.dataset.shape().len()] }
    }

    fn batch(&mut self, iteration: u64) -> Result<Batch> {
        let Loader { dataset, normalizer, batch, shuffle } = self.loader;
        let epoch = self.loader.epoch(iteration);
        if let Some(shuffle) = shuffle {
            self.shuffle(shuffle.seed, epoch);
        }
        let first = (iteration % self.loader.iterations_per_epoch()) as usize * batch;
        let indices = &self.order[first..self.order.len().min(first + batch)];

        let image_len = self.pixels.len();
        let mut images = vec![0.0; indices.len() * image_len];
        for (&index, image) in indices.iter().zip(images.chunks_exact_mut(image_len)) {
            dataset.read(index, &mut self.pixels)?;
            let placement = match shuffle {
                Some(Shuffle { seed, augment }) => augment.draw(*seed, epoch, index as u64),
                None => Placement::default(),
            };
            normalizer.place(&self.pixels, placement, image);
        }
        let labels: Vec<u32> = indices.iter().map(|&index| dataset.label(index)).collect();
        Ok(Batch { images, targets: labels.into() })
    }

    fn shuffle(&mut self, seed: u64, epoch: u64) {
        if self.epoch != Some(epoch) {
            // From the start each time: the order must not depend on the epochs gone through before.
            for (index, slot) in self.order.iter_mut().enumerate() {
                *slot = index;
            }
            self.order.shuffle(&mut stream(seed, Purpose::Shuffle, epoch, 0));
            self.epoch = Some(epoch);
        }
    }
}

/// Batches in order; made by threads that end when this is dropped.
pub struct Batches {
    /// Iterations go round the workers in turn.
    workers: Vec<Worker>,
    next: usize,
    left: Range<u64>,
}

struct Worker {
    /// Taken when the thread is to end.
    receiver: Option<Receiver<Result<Batch>>>,
    thread: Option<JoinHandle<()>>,
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let iteration = self.left.next()?;
        let receiver = self.workers[self.next].receiver.as_ref()?;
        self.next = (self.next + 1) % self.workers.len();
        Some(receiver.recv().unwrap_or_else(|_| {
            Err(Error::Training(format!("the thread that makes batch {iteration} has stopped unexpectedly")))
        }))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.receiver.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has already shown as a missing batch.
            let _ = thread.join();
        }
    }
}
