//! Training: a network as fused layers over lane groups of images, forward and backward.

pub mod bands;
pub mod batch;
pub mod context;
pub mod lane_group;
pub mod loss;
pub mod micro_batch;
pub mod norm_values;
pub mod optimizer;
pub mod plan;
pub mod program;
