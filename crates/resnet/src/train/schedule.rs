//! Learning rates by iteration.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How the learning rate moves over a run; `lr` is the run's own ([`Config::lr`](super::Config::lr)).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// `lr`, multiplied by `gamma` at each milestone (section 4.2). Without milestones it is constant.
    MultiStep {
        /// Iterations at which it drops, ascending.
        #[serde(default)]
        milestones: Vec<u64>,
        /// What it is multiplied by.
        #[serde(default = "tenth")]
        gamma: f64,
        /// A slow start for deep networks.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warmup: Option<Warmup>,
    },
    /// From 0 to `lr` in a straight line, then down to 0 along half a cosine (arXiv:1608.03983,
    /// without restarts).
    Cosine {
        /// Iterations of the straight line.
        #[serde(default)]
        warmup: u64,
    },
    /// From `lr / start-division` up to `lr` and down to `lr / start-division / end-division`: PyTorch's
    /// `OneCycleLR` (arXiv:1708.07120). Momentum stays as it is.
    OneCycle {
        /// The way up and down.
        #[serde(default)]
        anneal: Anneal,
        /// Share of the iterations that goes up.
        #[serde(default = "three_tenths")]
        rise: f64,
        /// `lr` over the first learning rate.
        #[serde(default = "twenty_five")]
        start_division: f64,
        /// The first learning rate over the last.
        #[serde(default = "ten_thousand")]
        end_division: f64,
    },
    /// `lr`, multiplied by `factor` whenever more than `patience` evaluations in a row found no lower
    /// test error.
    Plateau {
        /// What it is multiplied by.
        #[serde(default = "tenth")]
        factor: f64,
        /// Evaluations without gain that are accepted.
        #[serde(default = "ten")]
        patience: u32,
    },
}

/// A way from one learning rate to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Anneal {
    /// Half a cosine.
    #[default]
    Cosine,
    /// A straight line.
    Linear,
}

/// The slow start of section 4.2: "we use 0.01 to warm up the training until the training error is
/// below 80%, and then go back to 0.1".
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Warmup {
    /// Learning rate until then.
    pub lr: f64,
    /// Training error, 0 to 1, below which it ends: the mean over [`WARMUP_WINDOW`] iterations.
    pub until_train_error: f64,
    /// Only networks with at least this many weighted layers on a path start slowly.
    #[serde(default)]
    pub from_depth: usize,
}

/// Iterations over which [`Warmup`] measures the training error: with batches of 128 its standard
/// deviation is then below 0.4%, so chance does not end the slow start.
pub const WARMUP_WINDOW: u64 = 100;

fn tenth() -> f64 {
    0.1
}
fn three_tenths() -> f64 {
    0.3
}
fn twenty_five() -> f64 {
    25.0
}
fn ten_thousand() -> f64 {
    1e4
}
fn ten() -> u32 {
    10
}

impl Schedule {
    /// # Errors
    /// When a setting means nothing; the message names it.
    pub(super) fn check(&self) -> Result<()> {
        let require = |good: bool, message: &str| {
            if good { Ok(()) } else { Err(Error::Config(format!("schedule.{message}"))) }
        };
        let factor = |x: f64| x > 0.0 && x <= 1.0;
        match self {
            Self::MultiStep { milestones, gamma, warmup } => {
                require(milestones.is_sorted(), "milestones must ascend")?;
                require(factor(*gamma), "gamma must be above 0 and at most 1")?;
                let Some(warmup) = warmup else { return Ok(()) };
                require(warmup.lr.is_finite() && warmup.lr > 0.0, "warmup.lr must be positive")?;
                require(factor(warmup.until_train_error), "warmup.until-train-error must be above 0 and at most 1")
            }
            Self::Cosine { .. } => Ok(()),
            Self::OneCycle { rise, start_division, end_division, .. } => {
                require((0.0..=1.0).contains(rise), "rise must be between 0 and 1")?;
                require(start_division.is_finite() && *start_division >= 1.0, "start-division must be at least 1")?;
                require(end_division.is_finite() && *end_division >= 1.0, "end-division must be at least 1")
            }
            Self::Plateau { factor: by, .. } => require(factor(*by), "factor must be above 0 and at most 1"),
        }
    }
}

/// What a schedule has learned from the run so far; part of every checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScheduleState {
    /// Whether the slow start is over.
    pub warmed_up: bool,
    /// The slow start's measurement under way.
    pub window: Window,
    /// Lowest test error found.
    pub lowest_error: Option<f64>,
    /// Evaluations since, or since the last reduction.
    pub without_gain: u32,
    /// How often the learning rate was reduced.
    pub reductions: u32,
}

/// Training images seen since the last look at their error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Steps.
    pub iterations: u64,
    /// Images.
    pub images: u64,
    /// Images classified correctly.
    pub correct: u64,
}

/// A schedule at work on one run.
#[derive(Debug)]
pub(super) struct Scheduler<'a> {
    pub schedule: &'a Schedule,
    pub lr: f64,
    pub iterations: u64,
    /// Weighted layers on a path through the network.
    pub depth: usize,
}

impl Scheduler<'_> {
    /// Learning rate of the step after `iteration` steps.
    pub fn lr(&self, iteration: u64, state: &ScheduleState) -> f64 {
        if let Some(warmup) = self.warmup(state) {
            return warmup.lr;
        }
        match *self.schedule {
            Schedule::MultiStep { ref milestones, gamma, .. } => {
                let passed = milestones.iter().filter(|&&milestone| milestone <= iteration).count();
                self.lr * gamma.powi(passed as i32)
            }
            Schedule::Cosine { warmup } if iteration < warmup => self.lr * (iteration + 1) as f64 / warmup as f64,
            Schedule::Cosine { warmup } => Anneal::Cosine.rate(
                self.lr,
                0.0,
                share(iteration - warmup, self.iterations.saturating_sub(warmup) as f64),
            ),
            Schedule::OneCycle { anneal, rise, start_division, end_division } => {
                // The phases end one step early, as PyTorch's do: the last step has the last rate.
                let top = rise * self.iterations as f64 - 1.0;
                let end = (self.iterations - 1) as f64;
                let first = self.lr / start_division;
                match iteration as f64 {
                    step if step <= top => anneal.rate(first, self.lr, share(iteration, top)),
                    step => anneal.rate(self.lr, first / end_division, (step - top) / (end - top)),
                }
            }
            Schedule::Plateau { factor, .. } => self.lr * factor.powi(state.reductions as i32),
        }
    }

    /// The slow start, while it lasts.
    fn warmup(&self, state: &ScheduleState) -> Option<Warmup> {
        match self.schedule {
            Schedule::MultiStep { warmup, .. } => {
                warmup.filter(|warmup| !state.warmed_up && self.depth >= warmup.from_depth)
            }
            _ => None,
        }
    }

    /// Takes note of a step; whether the slow start has just ended.
    pub fn stepped(&self, state: &mut ScheduleState, images: u64, correct: u64) -> bool {
        let Some(warmup) = self.warmup(state) else { return false };
        state.window.iterations += 1;
        state.window.images += images;
        state.window.correct += correct;
        if state.window.iterations < WARMUP_WINDOW {
            return false;
        }
        let window = std::mem::take(&mut state.window);
        let error = 1.0 - window.correct as f64 / window.images as f64;
        state.warmed_up = error < warmup.until_train_error;
        state.warmed_up
    }

    /// Takes note of an evaluation.
    pub fn evaluated(&self, state: &mut ScheduleState, test_error: f64) {
        let Schedule::Plateau { patience, .. } = *self.schedule else { return };
        if state.lowest_error.is_none_or(|lowest| test_error < lowest) {
            state.lowest_error = Some(test_error);
            state.without_gain = 0;
            return;
        }
        state.without_gain += 1;
        if state.without_gain > patience {
            state.reductions += 1;
            state.without_gain = 0;
        }
    }
}

/// `iteration / span`; all of it when there is no span.
fn share(iteration: u64, span: f64) -> f64 {
    if span > 0.0 { iteration as f64 / span } else { 1.0 }
}

impl Anneal {
    /// The rate after a `share` of the way from `start` to `end`.
    fn rate(self, start: f64, end: f64, share: f64) -> f64 {
        let left = match self {
            Self::Cosine => 0.5 * (1.0 + (PI * share).cos()),
            Self::Linear => 1.0 - share,
        };
        end + (start - end) * left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(schedule: &Schedule, lr: f64, iterations: u64) -> Scheduler<'_> {
        Scheduler { schedule, lr, iterations, depth: 20 }
    }

    fn rates(schedule: &Schedule, lr: f64, iterations: u64) -> Vec<f64> {
        let scheduler = scheduler(schedule, lr, iterations);
        (0..iterations).map(|iteration| scheduler.lr(iteration, &ScheduleState::default())).collect()
    }

    fn one_cycle(anneal: Anneal, rise: f64) -> Schedule {
        Schedule::OneCycle { anneal, rise, start_division: 25.0, end_division: 1e4 }
    }

    fn assert_near(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1e-3), "{found} instead of {expected}");
        }
    }

    #[test]
    fn multi_step_drops_at_the_milestone_itself() {
        let schedule = Schedule::MultiStep { milestones: vec![2, 4], gamma: 0.1, warmup: None };
        assert_near(&rates(&schedule, 0.1, 6), &[0.1, 0.1, 0.01, 0.01, 0.001, 0.001]);
    }

    #[test]
    fn cosine_rises_in_a_line_and_falls_to_zero() {
        let half = 0.5f64.sqrt();
        let expected = [0.5, 1.0, 1.0, 0.5 + 0.5 * half, 0.5, 0.5 - 0.5 * half];
        assert_near(&rates(&Schedule::Cosine { warmup: 2 }, 1.0, 6), &expected);
    }

    /// `OneCycleLR(max_lr=0.1, total_steps=10)` peaks at step 0.3 * 10 - 1 and ends at step 9.
    #[test]
    fn one_cycle_peaks_and_ends_where_pytorchs_does() {
        let schedule = one_cycle(Anneal::Cosine, 0.3);
        let rates = rates(&schedule, 0.1, 10);
        assert_near(&rates[..3], &[0.004, 0.052, 0.1]);
        let down = |share: f64| 4e-7 + (0.1 - 4e-7) * 0.5 * (1.0 + (PI * share).cos());
        assert_near(&rates[3..], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0].map(|step| down(step / 7.0)));
    }

    /// The same with `anneal_strategy="linear"`.
    #[test]
    fn one_cycle_in_straight_lines_is_pytorchs() {
        let rates = rates(&one_cycle(Anneal::Linear, 0.3), 0.1, 10);
        let down = |share: f64| 4e-7 + (0.1 - 4e-7) * (1.0 - share);
        assert_near(&rates[..3], &[0.004, 0.052, 0.1]);
        assert_near(&rates[3..], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0].map(|step| down(step / 7.0)));
    }

    #[test]
    fn every_schedule_is_finite_for_the_shortest_runs() {
        for iterations in 1..=4 {
            for schedule in [
                one_cycle(Anneal::Cosine, 0.3),
                one_cycle(Anneal::Cosine, 1.0),
                one_cycle(Anneal::Linear, 0.0),
                Schedule::Cosine { warmup: 0 },
                Schedule::Cosine { warmup: 9 },
            ] {
                let rates = rates(&schedule, 0.1, iterations);
                assert!(rates.iter().all(|lr| (0.0..=0.1).contains(lr)), "{schedule:?}: {rates:?}");
            }
        }
    }

    #[test]
    fn the_slow_start_ends_once_a_whole_window_is_good_enough() {
        let warmup = Some(Warmup { lr: 0.01, until_train_error: 0.8, from_depth: 20 });
        let schedule = Schedule::MultiStep { milestones: vec![], gamma: 0.1, warmup };
        let scheduler = scheduler(&schedule, 0.1, 1000);
        let mut state = ScheduleState::default();
        for correct in [20, 21] {
            for step in 1..=WARMUP_WINDOW {
                assert_eq!(scheduler.lr(step, &state), 0.01);
                let ended = scheduler.stepped(&mut state, 100, correct);
                assert_eq!(ended, correct == 21 && step == WARMUP_WINDOW);
            }
        }
        assert_eq!(scheduler.lr(200, &state), 0.1);
        assert!(!scheduler.stepped(&mut state, 100, 0));

        let shallow = Scheduler { depth: 19, ..scheduler };
        assert_eq!(shallow.lr(0, &ScheduleState::default()), 0.1);
    }

    #[test]
    fn a_plateau_reduces_after_patience_runs_out() {
        let schedule = Schedule::Plateau { factor: 0.5, patience: 1 };
        let scheduler = scheduler(&schedule, 1.0, 1000);
        let mut state = ScheduleState::default();
        let errors = [0.5, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4];
        let found = errors.map(|error| {
            scheduler.evaluated(&mut state, error);
            scheduler.lr(0, &state)
        });
        assert_eq!(found, [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25]);
    }
}
