//! One step of an optimizer over the flat parameters, by PyTorch's formulas.

use crate::team::Team;

/// One step of an optimizer. Weight decay is an L2 penalty, added to the gradient of every parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Update {
    /// `v = momentum v + g`, `w -= lr v`; Nesterov's: `w -= lr (g + momentum v)`.
    Sgd {
        /// Learning rate.
        lr: f32,
        /// Share of the last step that is kept.
        momentum: f32,
        /// L2 penalty.
        weight_decay: f32,
        /// Whether the momentum is Nesterov's.
        nesterov: bool,
    },
    /// Adam (arXiv:1412.6980) with bias correction.
    Adam {
        /// Learning rate.
        lr: f32,
        /// Decay of the mean of gradients.
        beta1: f32,
        /// Decay of the mean of squared gradients.
        beta2: f32,
        /// Added to the root of the second moment.
        eps: f32,
        /// L2 penalty.
        weight_decay: f32,
    },
}

/// What an optimizer remembers between steps; one value for each parameter.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Memory {
    /// Nothing yet.
    #[default]
    Empty,
    /// SGD's velocity.
    Momentum(Vec<f32>),
    /// Adam's moments.
    Moments {
        /// Mean of gradients.
        mean: Vec<f32>,
        /// Mean of squared gradients.
        square: Vec<f32>,
    },
}

/// An optimizer's memory and the number of steps it took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Optimizer {
    /// Steps taken.
    pub step: u64,
    /// What it remembers.
    pub memory: Memory,
}

/// Parameters a thread takes at a time.
const CHUNK: usize = 1 << 14;

impl Optimizer {
    /// Takes one step. A kind of update that differs from the last starts with no memory.
    pub fn apply(&mut self, team: &Team, update: &Update, parameters: &mut [f32], gradients: &[f32]) {
        let len = parameters.len();
        match *update {
            Update::Sgd { .. } => {
                if !matches!(self.memory, Memory::Momentum(_)) {
                    *self = Self { step: 0, memory: Memory::Momentum(vec![0.0; len]) };
                }
                if let Memory::Momentum(velocity) = &mut self.memory {
                    sgd(team, update, parameters, gradients, velocity);
                }
            }
            Update::Adam { .. } => {
                if !matches!(self.memory, Memory::Moments { .. }) {
                    *self = Self { step: 0, memory: Memory::Moments { mean: vec![0.0; len], square: vec![0.0; len] } };
                }
                let step = self.step + 1;
                if let Memory::Moments { mean, square } = &mut self.memory {
                    adam(team, update, step, parameters, gradients, mean, square);
                }
            }
        }
        self.step += 1;
    }
}

fn sgd(team: &Team, update: &Update, parameters: &mut [f32], gradients: &[f32], velocity: &mut [f32]) {
    let Update::Sgd { lr, momentum, weight_decay, nesterov } = *update else { return };
    let chunks = parameters.chunks_mut(CHUNK).zip(gradients.chunks(CHUNK)).zip(velocity.chunks_mut(CHUNK));
    team.for_each(chunks, |((parameters, gradients), velocity)| {
        for ((w, g), v) in parameters.iter_mut().zip(gradients).zip(velocity) {
            let g = g + weight_decay * *w;
            *v = momentum * *v + g;
            *w -= lr * if nesterov { g + momentum * *v } else { *v };
        }
    });
}

fn adam(
    team: &Team,
    update: &Update,
    step: u64,
    parameters: &mut [f32],
    gradients: &[f32],
    mean: &mut [f32],
    square: &mut [f32],
) {
    let Update::Adam { lr, beta1, beta2, eps, weight_decay } = *update else { return };
    let correction = |beta: f32| 1.0 - f64::from(beta).powf(step as f64);
    let step_size = (f64::from(lr) / correction(beta1)) as f32;
    let root_correction = correction(beta2).sqrt() as f32;
    let chunks = parameters.chunks_mut(CHUNK).zip(gradients.chunks(CHUNK));
    let moments = mean.chunks_mut(CHUNK).zip(square.chunks_mut(CHUNK));
    team.for_each(chunks.zip(moments), |((parameters, gradients), (mean, square))| {
        for (((w, g), m), s) in parameters.iter_mut().zip(gradients).zip(mean).zip(square) {
            let g = g + weight_decay * *w;
            *m += (1.0 - beta1) * (g - *m);
            *s = beta2 * *s + (1.0 - beta2) * g * g;
            *w -= step_size * *m / (s.sqrt() / root_correction + eps);
        }
    });
}
