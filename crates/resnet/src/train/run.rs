//! A run from its settings to its end: data, network, folder, and the loop.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::checkpoint::{Best, Checkpoint, Moment, Progress, Sums};
use super::config::Config;
use super::metrics::{self, Record, TestRecord};
use super::recipe::Layers;
use super::rundir::RunDir;
use super::schedule::Scheduler;
use super::tensorboard;
use crate::arch::{Network, initial_state};
use crate::data::{self, Identity, Loader, Normalizer, Shard, Splits, Workers};
use crate::engine::{Batch, Engine, OptimizerState, Part, Peers};
use crate::eval::evaluate;
use crate::files::remove_unfinished;
use crate::weights::{Card, Metadata, Provenance, safetensors};
use crate::{Error, Result, StateDict, StateView, TensorView, same_classes};

/// A run that is ready to start or to go on.
pub struct Run {
    dir: RunDir,
    config: Config,
    network: Network,
    data: Splits,
    train: Loader,
    test: Loader,
    normalizer: Arc<Normalizer>,
    /// What it goes on from; without tensors once an engine has them.
    start: Checkpoint,
    _lock: File,
}

/// What may be other than it was when a run goes on: nothing that changes its result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    /// In place of its [`threads`](Config::threads).
    pub threads: Option<usize>,
    /// In place of its [`workers`](Config::workers).
    pub workers: Option<usize>,
    /// Name or path of the data set, which has moved.
    pub data: Option<String>,
}

/// What happens during [`Run::train`], in order.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A step was taken.
    Stepped {
        /// How far the run is.
        progress: &'a Progress,
        /// Learning rate of the step.
        lr: f64,
    },
    /// The slow start ended with this step.
    WarmedUp {
        /// Steps taken.
        iteration: u64,
    },
    /// An evaluation goes on.
    Evaluating {
        /// Images done.
        done: usize,
        /// Images in all.
        images: usize,
    },
    /// A record was written.
    Recorded(&'a Record),
    /// A checkpoint was written.
    Saved {
        /// Steps taken.
        iteration: u64,
    },
}

impl Run {
    /// A new run on `data` in a folder of its own in `parent`, called `name` or after its model and
    /// data.
    ///
    /// # Errors
    /// When a setting means nothing, the data do not fit the network, or `name` exists.
    pub fn create(mut config: Config, data: Splits, parent: &Path, name: Option<&str>) -> Result<Self> {
        config.check()?;
        let (network, data) = match_up(&mut config, data)?;
        let workers = Workers::new(config.workers)?;
        let (start, normalizer) = beginning(&config, &network, &data, &workers)?;
        let (train, test) = loaders(&config, &data, &normalizer, &workers)?;
        let dir = RunDir::create(parent, name, &format!("{}-{}", network.name, data.name))?;
        let lock = dir.lock()?;
        dir.start(&config)?;
        dir.save_preprocess(&start.preprocess)?;
        start.write(&dir.resume())?;
        Ok(Self { dir, config, network, data, train, test, normalizer, start, _lock: lock })
    }

    /// The run in `dir`, on the same `data`, from its last checkpoint, with the `changes` that are given.
    ///
    /// That the data are the same is told by the names of the classes, the number of images, all labels
    /// and a few images: see [`Identity`]. Where they lie may change; `config.toml` then names the new
    /// place.
    ///
    /// # Errors
    /// When another process is training the run, its checkpoint is damaged, or its settings or data
    /// have changed.
    pub fn resume(dir: RunDir, data: Splits, changes: Changes) -> Result<Self> {
        let lock = dir.lock()?;
        let kept = dir.config()?;
        let mut config = kept.clone();
        config.threads = changes.threads.unwrap_or(config.threads);
        config.workers = changes.workers.unwrap_or(config.workers);
        config.data = changes.data.unwrap_or(config.data);
        let path = dir.resume();
        let saved = path.try_exists().map_err(Error::io(&path))?.then(|| Checkpoint::read(&path)).transpose()?;
        if let Some(known) = saved.as_ref().and_then(|saved| saved.data.as_ref()) {
            same_classes(&known.classes, data.train.classes())
                .map_err(|error| Error::format(&path, error.to_string()))?;
        }
        let (network, data) = match_up(&mut config, data)?;
        let workers = Workers::new(config.workers)?;
        let (start, normalizer) = match saved {
            Some(saved) => going_on(&dir, saved, &config, &network, &data)?,
            // Killed before the first checkpoint.
            None => beginning(&config, &network, &data, &workers)?,
        };
        let (train, test) = loaders(&config, &data, &normalizer, &workers)?;
        if config.data != kept.data {
            dir.write_config(&Config { data: config.data.clone(), ..kept })?;
        }
        for folder in [dir.path(), &dir.checkpoints()] {
            remove_unfinished(folder)?;
        }
        dir.save_preprocess(&start.preprocess)?;
        Ok(Self { dir, config, network, data, train, test, normalizer, start, _lock: lock })
    }

    /// Its folder.
    pub fn dir(&self) -> &RunDir {
        &self.dir
    }

    /// Its settings, with the number of classes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What is trained.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The images; `test` holds the validation images where some are held back.
    pub fn data(&self) -> &Splits {
        &self.data
    }

    /// How far it is.
    pub fn progress(&self) -> &Progress {
        &self.start.progress
    }

    /// Whether nothing is left to do.
    pub fn is_finished(&self) -> bool {
        self.start.progress.iteration >= self.config.iterations
    }

    /// The weights to go on from.
    pub fn weights(&self) -> &StateDict {
        &self.start.model
    }

    /// Trains to the end, or until `stop` is set: then the step under way is finished and a checkpoint
    /// written. Gives how far it came.
    ///
    /// The engine takes over the run's weights and optimizer state. The weights at the end depend on
    /// the settings and the engine alone, not on where the run was stopped and resumed.
    ///
    /// # Errors
    /// When a file cannot be written, an image not read, or the training diverges: the last checkpoint
    /// before is kept.
    pub fn train(
        mut self,
        engine: &mut dyn Engine,
        peers: &mut dyn Peers,
        stop: &AtomicBool,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<Progress> {
        engine.load_state(&self.start.model)?;
        engine.load_optimizer_state(&self.start.optimizer)?;
        (self.start.model, self.start.optimizer) = Default::default();
        let first = self.start.progress.iteration;
        if first > 0 {
            // The run may have been killed between the checkpoint and what is copied from it.
            self.publish(&engine.state_view(), &self.start.progress)?;
        }
        if self.is_finished() {
            return Ok(self.start.progress);
        }
        let mut trainer = Trainer {
            scheduler: Scheduler {
                schedule: &self.config.schedule,
                lr: self.config.lr,
                iterations: self.config.iterations,
                depth: self.network.graph()?.depth(),
            },
            progress: self.start.progress.clone(),
            lr: self.config.lr,
            saved: first,
            metrics: metrics::Writer::open(&self.dir.metrics(), first)?,
            board: tensorboard::Writer::create(self.dir.path(), first)?,
            clock: Instant::now(),
            run: &self,
            engine,
            peers,
            observe,
        };
        let left = self.config.iterations.saturating_sub(first);
        let shard = Shard::new(trainer.peers.rank(), trainer.peers.size())?;
        for batch in
            self.train.clone().with_shard(shard).batches(first).take(usize::try_from(left).unwrap_or(usize::MAX))
        {
            trainer.step(&batch?)?;
            let stopped = stop.load(Ordering::Relaxed);
            trainer.look_after(stopped)?;
            if stopped {
                break;
            }
        }
        Ok(trainer.progress)
    }

    /// Writes the weights of a checkpoint to where other programs look for them, with all that using them
    /// takes.
    fn publish(&self, model: &StateView<'_>, progress: &Progress) -> Result<()> {
        let evaluated = progress.test.filter(|_| self.evaluates_after(progress.iteration));
        let card = Card {
            network: Some(self.network.clone()),
            preprocessing: Some(Normalizer::clone(&self.normalizer)),
            classes: Some(self.data.train.classes().to_vec()),
            provenance: Provenance {
                data: Some(self.data.name.clone()),
                iteration: Some(progress.iteration),
                test_error: evaluated.map(|test| test.test_error),
            },
            other: Metadata::new(),
        };
        let metadata = card.metadata()?;
        if progress.best.is_some_and(|best| best.iteration == progress.iteration) {
            safetensors::write_view(&self.dir.best(), model, &metadata)?;
        }
        safetensors::write_view(&self.dir.last(), model, &metadata)
    }

    /// Whether there is an evaluation after so many steps.
    fn evaluates_after(&self, iteration: u64) -> bool {
        iteration == self.config.iterations || iteration.is_multiple_of(self.config.eval_interval)
    }
}

/// Data split as the settings say; the network with as many classes as the data have.
fn match_up(config: &mut Config, mut data: Splits) -> Result<(Network, Splits)> {
    let found = data.train.classes().len();
    let expected = config.classes.or(config.network.as_ref().map(|network| network.classes)).unwrap_or(found);
    if expected != found {
        return Err(Error::Config(format!(
            "the network tells {expected} classes apart, but {} has {found}",
            data.name
        )));
    }
    config.classes = Some(found);
    let network = config.network()?;
    if config.validation_images > 0 {
        let (train, held_back) = data::split(&data.train, config.validation_images, config.seed)?;
        data = Splits { name: data.name, train: Arc::new(train), test: Arc::new(held_back) };
    }
    Ok((network, data))
}

/// A run before its first step.
fn beginning(
    config: &Config,
    network: &Network,
    data: &Splits,
    workers: &Workers,
) -> Result<(Checkpoint, Arc<Normalizer>)> {
    let normalizer = config.preprocess.fit(data.train.as_ref(), network.input, workers)?;
    let start = Checkpoint {
        model: initial_state(network, config.seed)?,
        optimizer: OptimizerState::default(),
        preprocess: normalizer.state(),
        progress: Progress::default(),
        config: config.to_toml()?,
        train_images: data.train.len(),
        data: Some(Identity::of(data)?),
    };
    Ok((start, Arc::new(normalizer)))
}

fn loaders(
    config: &Config,
    data: &Splits,
    normalizer: &Arc<Normalizer>,
    workers: &Workers,
) -> Result<(Loader, Loader)> {
    let (images, statistics) = (data.train.clone(), normalizer.clone());
    let train = Loader::train(images, statistics, config.batch, config.augment, config.seed, workers)?;
    let test = Loader::evaluation(data.test.clone(), normalizer.clone(), config.batch, workers)?;
    Ok((train, test))
}

/// A run at its last checkpoint, once its settings and data are known to be the same.
fn going_on(
    dir: &RunDir,
    mut saved: Checkpoint,
    config: &Config,
    network: &Network,
    data: &Splits,
) -> Result<(Checkpoint, Arc<Normalizer>)> {
    let path = dir.resume();
    let trained =
        same_settings(&saved.config, config).map_err(|error| Error::format(dir.config_file(), error.to_string()))?;
    if trained.data != config.data {
        saved.config = Config { data: config.data.clone(), ..trained }.to_toml()?;
    }
    if saved.train_images != data.train.len() {
        let (then, now) = (saved.train_images, data.train.len());
        let message = format!("the run was learning from {then} images of {}, now there are {now}", data.name);
        return Err(Error::format(path, message));
    }
    let found = Identity::of(data)?;
    if let Some(difference) = saved.data.as_ref().and_then(|known| known.difference(&found)) {
        let message = format!("{} is not the data set that the run was learning from: {difference}", data.name);
        return Err(Error::format(path, message));
    }
    saved.data = Some(found);
    let normalizer = Normalizer::from_state(network.input, &saved.preprocess)
        .map_err(|error| Error::format(path, error.to_string()))?;
    Ok((saved, Arc::new(normalizer)))
}

/// The settings that a checkpoint was trained with.
///
/// # Errors
/// When `config` differs from them in more than [`Changes`] may.
fn same_settings(trained: &str, config: &Config) -> Result<Config> {
    let trained = trained.parse().map_err(|error: toml::de::Error| Error::Config(error.to_string()))?;
    let trained = Layers::new().table(trained).resolve()?;
    let (threads, workers, data) = (trained.threads, trained.workers, trained.data.clone());
    if (Config { threads, workers, data, ..config.clone() }) == trained {
        return Ok(trained);
    }
    Err(Error::Config("these are not the settings that the checkpoint was trained with".into()))
}

/// A run under way.
struct Trainer<'a> {
    run: &'a Run,
    engine: &'a mut dyn Engine,
    peers: &'a mut dyn Peers,
    observe: &'a mut dyn FnMut(Event<'_>),
    scheduler: Scheduler<'a>,
    progress: Progress,
    /// Learning rate of the last step.
    lr: f64,
    /// Steps before the last checkpoint.
    saved: u64,
    metrics: metrics::Writer,
    board: tensorboard::Writer,
    /// Up to when time is counted in `progress`.
    clock: Instant,
}

impl Trainer<'_> {
    /// Learns from one batch.
    fn step(&mut self, batch: &Batch) -> Result<()> {
        let config = &self.run.config;
        self.lr = self.scheduler.lr(self.progress.iteration, &self.progress.schedule);
        let outcome = self.engine.forward_backward(batch, &config.loss(), Part::WHOLE)?;
        self.peers.average(self.engine.gradients())?;
        let images = batch.len() as f64;
        let mut sums = [images, outcome.correct as f64, f64::from(outcome.loss) * images];
        self.peers.add_up(&mut sums)?;
        let [images, correct, loss] = sums;
        if !loss.is_finite() {
            return Err(self.diverged(self.progress.iteration + 1, &format!("the loss is {}", loss / images)));
        }
        let parameters = self.engine.parameters().len();
        self.engine.apply(&config.optimizer.update(self.lr, parameters))?;

        let (images, correct) = (images as u64, correct as u64);
        self.progress.iteration += 1;
        let seconds = self.lap().as_secs_f64();
        let sums = &mut self.progress.since_record;
        sums.images += images;
        sums.correct += correct;
        sums.loss += loss;
        sums.seconds += seconds;
        if self.scheduler.stepped(&mut self.progress.schedule, images, correct) {
            (self.observe)(Event::WarmedUp { iteration: self.progress.iteration });
        }
        (self.observe)(Event::Stepped { progress: &self.progress, lr: self.lr });
        Ok(())
    }

    /// Evaluates, records and saves what is due after a step.
    fn look_after(&mut self, stopped: bool) -> Result<()> {
        let config = &self.run.config;
        let iteration = self.progress.iteration;
        let evaluates = self.run.evaluates_after(iteration);
        let saves = evaluates || stopped || iteration.is_multiple_of(config.checkpoint_interval);
        // First: nothing that has diverged is evaluated or kept.
        if saves {
            self.check_finite()?;
        }
        if evaluates {
            self.evaluate()?;
        }
        if evaluates || iteration.is_multiple_of(config.log_interval) {
            self.record(evaluates)?;
        }
        if saves {
            self.save()?;
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<()> {
        let Run { test, data, .. } = self.run;
        let images = data.test.len();
        let observe = &mut *self.observe;
        let progress = |done| observe(Event::Evaluating { done, images });
        let found = evaluate(self.engine, test.once(), data.test.classes(), progress)?;
        if !found.loss.is_finite() {
            return Err(self.diverged(self.progress.iteration, &format!("the test loss is {}", found.loss)));
        }
        let test_error = found.error();
        self.scheduler.evaluated(&mut self.progress.schedule, test_error);
        self.progress.test = Some(TestRecord { test_loss: found.loss, test_error });
        if self.progress.best.is_none_or(|best| test_error < best.test_error) {
            self.progress.best = Some(Best { iteration: self.progress.iteration, test_error });
        }
        self.lap();
        Ok(())
    }

    fn record(&mut self, evaluated: bool) -> Result<()> {
        let Sums { images, correct, loss, seconds } = std::mem::take(&mut self.progress.since_record);
        let record = Record {
            iteration: self.progress.iteration,
            epoch: self.progress.iteration as f64 / self.run.train.iterations_per_epoch() as f64,
            seconds: self.progress.seconds,
            lr: self.lr,
            train_loss: loss / images as f64,
            train_error: 1.0 - correct as f64 / images as f64,
            images_per_second: images as f64 / seconds,
            test: self.progress.test.filter(|_| evaluated),
        };
        self.metrics.write(&record)?;
        self.board.write(&record)?;
        (self.observe)(Event::Recorded(&record));
        Ok(())
    }

    /// Writes a checkpoint. The records up to here are on disk before: none is missing after it.
    fn save(&mut self) -> Result<()> {
        self.metrics.sync()?;
        self.lap();
        let (model, optimizer) = (self.engine.state_view(), self.engine.optimizer_view());
        let moment = Moment { model: model.clone(), optimizer, progress: &self.progress };
        self.run.start.write_moment(&self.run.dir.resume(), moment)?;
        self.run.publish(&model, &self.progress)?;
        self.saved = self.progress.iteration;
        (self.observe)(Event::Saved { iteration: self.saved });
        self.lap();
        Ok(())
    }

    /// Counts the time since the last call as the run's.
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let elapsed = now.duration_since(std::mem::replace(&mut self.clock, now));
        self.progress.seconds += elapsed.as_secs_f64();
        elapsed
    }

    /// # Errors
    /// When a parameter or a running statistic is not a finite number.
    fn check_finite(&self) -> Result<()> {
        let is_finite = |tensor: &TensorView<'_>| tensor.data().iter().all(|value| value.is_finite());
        match self.engine.state_view().iter().find(|(_, tensor)| !is_finite(tensor)) {
            None => Ok(()),
            Some((name, _)) => {
                let how = format!("{name} has values that are not finite numbers");
                Err(self.diverged(self.progress.iteration, &how))
            }
        }
    }

    fn diverged(&self, iteration: u64, how: &str) -> Error {
        let kept = match self.saved {
            0 => "there is no checkpoint yet".into(),
            saved => {
                format!("the last good checkpoint, after iteration {saved}, is kept: {}", self.run.dir.last().display())
            }
        };
        Error::Training(format!(
            "training diverged at iteration {} with a learning rate of {}: {how}\n{kept}\n\
             a lower learning rate (--lr {}) or a slow start may help",
            iteration,
            self.lr,
            self.run.config.lr / 10.0,
        ))
    }
}
