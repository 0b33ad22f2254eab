//! The CPU engine behind the [`Engine`](super::Engine) trait.

use super::{Batch, Engine, Loss, OptimizerState, Outcome, Update};
use crate::arch::Network;
use crate::{Result, StateDict};

/// How the CPU engine runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct NativeOptions {
    /// Threads; 0 for one a core.
    pub threads: usize,
    /// Most images of one training step.
    pub batch: usize,
}

/// The CPU engine of this project.
pub struct Native {}

impl Native {
    /// An engine for `network` with the weights of `state`.
    ///
    /// # Errors
    /// When the network cannot be built or the state does not fit.
    pub fn new(_network: &Network, _state: &StateDict, _options: NativeOptions) -> Result<Self> {
        todo!()
    }
}

impl Engine for Native {
    fn describe(&self) -> String {
        todo!()
    }
    fn forward_backward(&mut self, _batch: &Batch, _loss: &Loss) -> Result<Outcome> {
        todo!()
    }
    fn gradients(&mut self) -> &mut [f32] {
        todo!()
    }
    fn apply(&mut self, _update: &Update) {
        todo!()
    }
    fn infer(&mut self, _images: &[f32]) -> Result<Vec<f32>> {
        todo!()
    }
    fn state(&self) -> StateDict {
        todo!()
    }
    fn load_state(&mut self, _state: &StateDict) -> Result<()> {
        todo!()
    }
    fn optimizer_state(&self) -> OptimizerState {
        todo!()
    }
    fn load_optimizer_state(&mut self, _state: &OptimizerState) -> Result<()> {
        todo!()
    }
}
