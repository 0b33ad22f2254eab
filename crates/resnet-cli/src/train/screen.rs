//! What a person sees while a network trains: a bar on a terminal, lines elsewhere.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use resnet::train::metrics::Record;
use resnet::train::{Event, Progress};

/// Time between lines that no evaluation calls for.
const PAUSE: Duration = Duration::from_secs(5);

/// Shows a run on standard error.
pub struct Screen<'a> {
    bar: ProgressBar,
    iterations: u64,
    first: u64,
    start: Instant,
    last_line: Instant,
    /// Whether the run is asked to stop.
    stop: &'a AtomicBool,
    stop_shown: bool,
}

impl<'a> Screen<'a> {
    /// A screen for a run of `iterations` that goes on after the `first`; `stop` tells when it is asked
    /// to end early.
    pub fn new(iterations: u64, first: u64, stop: &'a AtomicBool) -> Self {
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}  {eta} left");
        let bar = ProgressBar::new(iterations).with_position(first);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.reset_eta();
        let start = Instant::now();
        Self { bar, iterations, first, start, last_line: start, stop, stop_shown: false }
    }

    /// Shows what happened.
    pub fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Stepped { progress, lr } => self.step(progress, lr),
            Event::Evaluating { done, images } => self.bar.set_message(format!("evaluating {done}/{images}")),
            Event::Recorded(record) if record.test.is_some() => self.line(&self.record(record)),
            Event::Recorded(_) | Event::Saved { .. } => {}
            Event::WarmedUp { iteration } => self.line(&format!("warmed up after {iteration} iterations")),
        }
        if self.stop.load(Ordering::Relaxed) && !self.stop_shown {
            self.stop_shown = true;
            self.line("stopping after this step, to write a checkpoint; once more to stop at once");
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn step(&mut self, progress: &Progress, lr: f64) {
        let sums = &progress.since_record;
        let images = sums.images as f64;
        let (loss, error) = (sums.loss / images, 1.0 - sums.correct as f64 / images);
        let speed = images / sums.seconds;
        self.bar.set_position(progress.iteration);
        let mut message = format!("{speed:.0} img/s  loss {loss:.3}  error {:.1}%", 100.0 * error);
        if let Some(test) = progress.test {
            let _ = write!(message, "  test {:.2}%", 100.0 * test.test_error);
        }
        if self.bar.is_hidden() && self.last_line.elapsed() > PAUSE {
            let done = self.done(progress.iteration);
            self.line(&format!("{done}  {message}  lr {lr:.4}  {} left", self.left(progress.iteration)));
        }
        self.bar.set_message(message);
    }

    fn record(&self, record: &Record) -> String {
        let mut line = format!(
            "{}  epoch {:.1}  loss {:.3}  error {:.2}%",
            self.done(record.iteration),
            record.epoch,
            record.train_loss,
            100.0 * record.train_error
        );
        if let Some(test) = record.test {
            let _ = write!(line, "  test loss {:.3}  test error {:.2}%", test.test_loss, 100.0 * test.test_error);
        }
        let _ = write!(line, "  lr {:.4}  {:.0} img/s", record.lr, record.images_per_second);
        line
    }

    fn done(&self, iteration: u64) -> String {
        let width = self.iterations.to_string().len();
        format!("{iteration:>width$}/{}", self.iterations)
    }

    /// Time left, at the pace since the start.
    fn left(&self, iteration: u64) -> HumanDuration {
        let steps = iteration.saturating_sub(self.first).max(1) as f64;
        let left = self.iterations.saturating_sub(iteration) as f64;
        HumanDuration(
            Duration::try_from_secs_f64(self.start.elapsed().as_secs_f64() / steps * left).unwrap_or_default(),
        )
    }

    fn line(&mut self, text: &str) {
        self.last_line = Instant::now();
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }
}
