//! A progress bar for what takes longer than a moment.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Work shorter than this shows no bar.
const PATIENCE: Duration = Duration::from_secs(2);

/// A bar on standard error that appears late, only on a terminal, and leaves nothing behind.
pub struct Progress {
    total: u64,
    unit: &'static str,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Progress towards `total` of `unit`s.
    pub fn new(total: usize, unit: &'static str) -> Self {
        Self { total: total as u64, unit, start: Instant::now(), bar: None }
    }

    /// Tells how many are done.
    pub fn set(&mut self, done: usize) {
        if self.bar.is_none() && self.start.elapsed() > PATIENCE {
            self.bar = Some(self.new_bar());
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        }
    }

    fn new_bar(&self) -> ProgressBar {
        let template = format!("{{wide_bar}} {{pos}}/{{len}} {}  {{per_sec}}  {{eta}} left", self.unit);
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(self.total).with_style(style).with_elapsed(self.start.elapsed())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
