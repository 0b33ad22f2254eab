//! How weights start.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use super::{Branch, Network, Op, ProjectionInit, Role, TensorSpec};
use crate::{Result, StateDict, Tensor};

/// The state a network starts training from; the same for the same seed, everywhere.
///
/// Convolutions: He normal (arXiv:1502.01852, equation 10), standard deviation `sqrt(2 / (k k c_in))`.
/// Batch norm: weight 1, bias 0, running mean 0, running variance 1. Linear: uniform within
/// `1 / sqrt(inputs)`, as PyTorch's.
///
/// # Errors
/// When the network cannot be built.
pub fn initial_state(network: &Network, seed: u64) -> Result<StateDict> {
    let graph = network.graph()?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut state = StateDict::new();
    for spec in &graph.tensors() {
        let node = &graph.nodes()[spec.node];
        let average = node.branch == Branch::Shortcut && network.projection_init == ProjectionInit::Average;
        let tensor = match (node.op, spec.role) {
            (Op::Conv { .. }, _) if average => Tensor::full(spec.shape.clone(), 1.0 / spec.shape[1] as f32),
            (Op::Conv { .. }, _) => he_normal(spec, &mut rng),
            (_, Role::Weight | Role::Bias) => uniform(spec, graph.input_of(node).len(), &mut rng),
            (_, Role::NormWeight | Role::RunningVar) => Tensor::full(spec.shape.clone(), 1.0),
            (_, Role::NormBias | Role::RunningMean) => Tensor::full(spec.shape.clone(), 0.0),
        };
        state.insert(&*spec.name, tensor);
    }
    Ok(state)
}

fn he_normal(spec: &TensorSpec, rng: &mut ChaCha8Rng) -> Tensor {
    let fan_in: usize = spec.shape[1..].iter().product();
    let normal = Normal::new(0.0, (2.0 / fan_in as f64).sqrt()).expect("a finite standard deviation");
    fill(spec, || normal.sample(rng) as f32)
}

fn uniform(spec: &TensorSpec, inputs: usize, rng: &mut ChaCha8Rng) -> Tensor {
    let bound = 1.0 / (inputs as f32).sqrt();
    fill(spec, || rng.random_range(-bound..bound))
}

fn fill(spec: &TensorSpec, value: impl FnMut() -> f32) -> Tensor {
    let data = std::iter::repeat_with(value).take(spec.len()).collect();
    Tensor::new(spec.shape.clone(), data).expect("as many values as the shape holds")
}
