//! Batches by iteration number, made ahead of the step that takes them.
//!
//! What a batch holds is a function of (seed, iteration) alone, so any number of threads gives the
//! same batches and a run can be resumed at any iteration.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use rand::seq::SliceRandom;
use rayon::prelude::*;
use resnet_graph::Targets;

use super::image::Image;
use super::normalize::Normalizer;
use super::random::{Purpose, stream};
use super::source::{Dataset, about};
use super::view::{Augment, Framing, Scratch};
use super::workers::Workers;
use crate::{Error, Result};

/// Batches that are made ahead: while one takes long, as the first of a folder does, the others
/// wait ready.
const AHEAD: usize = 3;

/// Images and what they should be classified as, ready for a network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Preprocessed pixels, `[images, channels, height, width]`.
    pub images: Vec<f32>,
    /// One target for each image.
    pub targets: Targets,
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }
}

/// Which part of every batch one of several processes takes.
///
/// All of them draw the same order; the parts are one after another, together the whole batch, and
/// differ by one image at most. A batch of fewer images than processes leaves some without any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    rank: usize,
    of: usize,
}

impl Shard {
    /// Everything: one process.
    pub const WHOLE: Self = Self { rank: 0, of: 1 };

    /// The part of process `rank`, from 0, of `of` processes.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn new(rank: usize, of: usize) -> Result<Self> {
        if rank >= of {
            return Err(Error::Config(format!("there is no rank {rank} of {of} processes")));
        }
        Ok(Self { rank, of })
    }

    fn part(self, images: &[usize]) -> &[usize] {
        let (least, more) = (images.len() / self.of, images.len() % self.of);
        let first = self.rank * least + self.rank.min(more);
        &images[first..][..least + usize::from(self.rank < more)]
    }
}

/// Makes the batches of a data set.
#[derive(Clone)]
pub struct Loader {
    maker: Maker,
    workers: Workers,
}

/// What a batch is made of.
#[derive(Clone)]
struct Maker {
    dataset: Arc<dyn Dataset>,
    framing: Framing,
    normalizer: Arc<Normalizer>,
    batch: usize,
    shuffle: Option<Shuffle>,
    shard: Shard,
}

/// What makes training batches different from epoch to epoch.
#[derive(Clone, Copy)]
struct Shuffle {
    seed: u64,
    augment: Augment,
}

impl Loader {
    /// Training batches of `batch` images: every epoch goes through `dataset` once, in an order
    /// drawn from (`seed`, epoch), each image seen as drawn from (`seed`, epoch, its index). The
    /// last batch of an epoch has what is left over.
    ///
    /// # Errors
    /// When there is no image, `batch` is 0, or the images or the augmentation do not fit what
    /// `normalizer` is for.
    pub fn train(
        dataset: Arc<dyn Dataset>,
        normalizer: Arc<Normalizer>,
        batch: usize,
        augment: Augment,
        seed: u64,
        workers: &Workers,
    ) -> Result<Self> {
        augment.check(normalizer.shape())?;
        Self::new(dataset, normalizer, batch, Some(Shuffle { seed, augment }), workers)
    }

    /// Evaluation batches of `batch` images: `dataset` in order, every image as its [`Framing`]
    /// shows it.
    ///
    /// # Errors
    /// As [`train`](Loader::train).
    pub fn evaluation(
        dataset: Arc<dyn Dataset>,
        normalizer: Arc<Normalizer>,
        batch: usize,
        workers: &Workers,
    ) -> Result<Self> {
        Self::new(dataset, normalizer, batch, None, workers)
    }

    fn new(
        dataset: Arc<dyn Dataset>,
        normalizer: Arc<Normalizer>,
        batch: usize,
        shuffle: Option<Shuffle>,
        workers: &Workers,
    ) -> Result<Self> {
        if dataset.is_empty() {
            return Err(Error::Config("the data set has no images".into()));
        }
        if batch == 0 {
            return Err(Error::Config("a batch needs at least one image".into()));
        }
        let framing = Framing::of(&*dataset, normalizer.shape())?;
        let maker = Maker { dataset, framing, normalizer, batch, shuffle, shard: Shard::WHOLE };
        Ok(Self { maker, workers: workers.clone() })
    }

    /// The same batches, but of each only the part of one process.
    pub fn with_shard(mut self, shard: Shard) -> Self {
        self.maker.shard = shard;
        self
    }

    /// Iterations of one epoch.
    pub fn iterations_per_epoch(&self) -> u64 {
        self.maker.iterations_per_epoch()
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
        let mut batches = Batches { loader: self.clone(), order: None, started: VecDeque::new(), left: iterations };
        batches.start(AHEAD);
        batches
    }
}

thread_local! {
    /// An image and what its view is drawn in: kept by each thread, as every image needs them.
    static IMAGE: RefCell<(Image, Scratch)> = RefCell::default();
}

impl Maker {
    fn iterations_per_epoch(&self) -> u64 {
        self.dataset.len().div_ceil(self.batch) as u64
    }

    /// The order that an epoch goes through the images in.
    fn order(&self, epoch: u64) -> Arc<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.dataset.len()).collect();
        if let Some(Shuffle { seed, .. }) = self.shuffle {
            order.shuffle(&mut stream(seed, Purpose::Shuffle, epoch, 0));
        }
        Arc::new(order)
    }

    /// Makes the batch of an iteration on all threads of the pool it is called in.
    fn batch(&self, iteration: u64, order: &[usize]) -> Result<Batch> {
        let (epoch, iteration) = (iteration / self.iterations_per_epoch(), iteration % self.iterations_per_epoch());
        let first = iteration as usize * self.batch;
        let indices = self.shard.part(&order[first..order.len().min(first + self.batch)]);

        let image_len = self.normalizer.shape().len();
        let mut images = vec![0.0; indices.len() * image_len];
        let views = images.par_chunks_exact_mut(image_len).zip(indices).with_max_len(1);
        let made: Vec<Result<()>> = views.map(|(image, &index)| self.image(epoch, index, image)).collect();
        made.into_iter().collect::<Result<()>>()?; // The first that failed, whichever it was on the clock.
        let labels: Vec<u32> = indices.iter().map(|&index| self.dataset.label(index)).collect();
        Ok(Batch { images, targets: labels.into() })
    }

    /// Reads an image and writes what the network sees of it.
    fn image(&self, epoch: u64, index: usize, out: &mut [f32]) -> Result<()> {
        // Taken out, so that a data set that works on these threads itself finds the cell free.
        let (mut image, mut scratch) = IMAGE.take();
        self.dataset.read(index, &mut image)?;
        let mut view = self.framing.view(image.shape(), self.normalizer.shape());
        if let Some(Shuffle { seed, augment }) = self.shuffle {
            view = augment.vary(view, seed, epoch, index as u64);
        }
        let rendered = self.normalizer.render(&image, &view, &mut scratch, out);
        IMAGE.set((image, scratch));
        rendered.map_err(about(&*self.dataset, index))
    }
}

/// Batches in order, some of them made ahead.
pub struct Batches {
    loader: Loader,
    /// The last epoch begun, and its order.
    order: Option<(u64, Arc<Vec<usize>>)>,
    /// Iterations whose batches are being made or wait ready.
    started: VecDeque<(u64, Receiver<Result<Batch>>)>,
    /// Iterations not started.
    left: Range<u64>,
}

impl Batches {
    /// Starts batches until so many are on their way.
    fn start(&mut self, batches: usize) {
        while self.started.len() < batches
            && let Some(iteration) = self.left.next()
        {
            let epoch = self.loader.epoch(iteration);
            let order = match self.order.take() {
                Some((known, order)) if known == epoch => order,
                _ => self.loader.maker.order(epoch),
            };
            self.order = Some((epoch, order.clone()));
            let (sender, receiver) = sync_channel(1);
            let maker = self.loader.maker.clone();
            self.loader.workers.start(move || {
                // Nobody may wait for it any more.
                let _ = sender.send(maker.batch(iteration, &order));
            });
            self.started.push_back((iteration, receiver));
        }
    }
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.start(AHEAD + 1);
        let (iteration, receiver) = self.started.pop_front()?;
        Some(receiver.recv().unwrap_or_else(|_| {
            Err(Error::Training(format!("the thread that makes batch {iteration} has stopped unexpectedly")))
        }))
    }
}
