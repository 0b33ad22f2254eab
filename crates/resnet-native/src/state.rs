//! A network's parameters and running statistics, which know when they have changed.

use resnet_graph::{TensorSpec, TensorTable};

/// Flat parameters and running statistics, each with a version.
///
/// What is made from them (packed or folded weights) keeps the version that it was made from, and is made
/// anew when that is no longer the current one.
pub struct State {
    parameters: Vec<f32>,
    statistics: Vec<f32>,
    parameters_version: u64,
    statistics_version: u64,
}

impl State {
    /// All zero.
    pub fn new(tensors: &TensorTable) -> Self {
        Self {
            parameters: vec![0.0; tensors.parameter_len()],
            statistics: vec![0.0; tensors.statistics_len()],
            parameters_version: 0,
            statistics_version: 0,
        }
    }

    /// The parameters, to read.
    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// The running statistics, to read.
    pub fn statistics(&self) -> &[f32] {
        &self.statistics
    }

    /// Changes with every use of the parameters that may change them.
    pub fn parameters_version(&self) -> u64 {
        self.parameters_version
    }

    /// Changes with every use of parameters or statistics that may change them.
    pub fn version(&self) -> [u64; 2] {
        [self.parameters_version, self.statistics_version]
    }

    /// The parameters, to change.
    pub fn parameters_mut(&mut self) -> &mut [f32] {
        self.parameters_version += 1;
        &mut self.parameters
    }

    /// The parameters, to read, and the running statistics, to change.
    pub fn parameters_and_statistics_mut(&mut self) -> (&[f32], &mut [f32]) {
        self.statistics_version += 1;
        (&self.parameters, &mut self.statistics)
    }

    /// Values of a tensor, to read.
    pub fn tensor(&self, tensor: &TensorSpec) -> &[f32] {
        let flat = if tensor.role.is_parameter() { &self.parameters } else { &self.statistics };
        &flat[tensor.range.clone()]
    }

    /// Values of a tensor, to change.
    pub fn tensor_mut(&mut self, tensor: &TensorSpec) -> &mut [f32] {
        let flat = if tensor.role.is_parameter() {
            self.parameters_version += 1;
            &mut self.parameters
        } else {
            self.statistics_version += 1;
            &mut self.statistics
        };
        &mut flat[tensor.range.clone()]
    }
}
