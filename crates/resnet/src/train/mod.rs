//! How a network learns: recipes, schedules, the loop, checkpoints.

pub mod metrics;
