//! How a network learns: recipes, schedules, the loop, checkpoints.

mod checkpoint;
mod config;
pub mod metrics;
mod recipe;
mod run;
mod rundir;
mod schedule;
mod settings;
mod tensorboard;

pub use checkpoint::{Best, Checkpoint, Progress, Sums};
pub use config::{Config, Optimizer};
pub use recipe::{Layers, RECIPES, Recipe};
pub use run::{Changes, Event, Run};
pub use rundir::{Kept, RunDir};
pub use schedule::{Anneal, Schedule, ScheduleState, WARMUP_WINDOW, Warmup, Window};
pub use settings::{Choice, EPOCHS, Group, PRECISIONS, SETTINGS, Setting, Values};
