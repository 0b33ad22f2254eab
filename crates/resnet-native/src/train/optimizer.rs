//! One step of an optimizer over the flat parameters, by PyTorch's formulas.

use resnet_graph::{Rule, Update};

use crate::threads::Team;

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
    /// Takes one step. A kind of rule that differs from the last starts with no memory.
    ///
    /// # Panics
    /// When the groups of `update` do not [cover](Update::covers) the parameters.
    pub fn apply(&mut self, team: &Team, update: &Update, parameters: &mut [f32], gradients: &[f32]) {
        let len = parameters.len();
        assert!(update.covers(len), "groups must cover all {len} parameters once and in order");
        self.prepare(update.rule, len);
        self.step += 1;
        for group in update.groups.iter().filter(|group| !group.frozen) {
            let (range, lr) = (group.range.clone(), update.lr * group.lr_factor);
            let (parameters, gradients) = (&mut parameters[range.clone()], &gradients[range.clone()]);
            match (update.rule, &mut self.memory) {
                (Rule::Sgd { momentum, nesterov }, Memory::Momentum(velocity)) => {
                    let sgd = Sgd { lr, momentum, weight_decay: group.weight_decay, nesterov };
                    sgd.apply(team, parameters, gradients, &mut velocity[range]);
                }
                (Rule::Adam { .. }, Memory::Moments { mean, square }) => {
                    let adam = Adam::new(update.rule, lr, group.weight_decay, self.step);
                    adam.apply(team, parameters, gradients, &mut mean[range.clone()], &mut square[range]);
                }
                _ => unreachable!("the memory is that of the rule"),
            }
        }
    }

    /// Makes the memory one of `rule`.
    fn prepare(&mut self, rule: Rule, len: usize) {
        let fits = matches!(
            (rule, &self.memory),
            (Rule::Sgd { .. }, Memory::Momentum(_)) | (Rule::Adam { .. }, Memory::Moments { .. })
        );
        if !fits {
            let memory = match rule {
                Rule::Sgd { .. } => Memory::Momentum(vec![0.0; len]),
                Rule::Adam { .. } => Memory::Moments { mean: vec![0.0; len], square: vec![0.0; len] },
            };
            *self = Self { step: 0, memory };
        }
    }
}

/// A step of stochastic gradient descent.
struct Sgd {
    lr: f32,
    momentum: f32,
    weight_decay: f32,
    nesterov: bool,
}

impl Sgd {
    fn apply(&self, team: &Team, parameters: &mut [f32], gradients: &[f32], velocity: &mut [f32]) {
        let Self { lr, momentum, weight_decay, nesterov } = *self;
        let chunks = parameters.chunks_mut(CHUNK).zip(gradients.chunks(CHUNK)).zip(velocity.chunks_mut(CHUNK));
        team.for_each(chunks, |((parameters, gradients), velocity)| {
            for ((w, g), v) in parameters.iter_mut().zip(gradients).zip(velocity) {
                let g = g + weight_decay * *w;
                *v = momentum * *v + g;
                *w -= lr * if nesterov { g + momentum * *v } else { *v };
            }
        });
    }
}

/// A step of Adam; bias correction is in the factors.
struct Adam {
    step_size: f32,
    root_correction: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
}

impl Adam {
    /// The `step`-th one, from 1.
    fn new(rule: Rule, lr: f32, weight_decay: f32, step: u64) -> Self {
        let Rule::Adam { beta1, beta2, eps } = rule else { unreachable!("made for Adam alone") };
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(step as f64);
        let step_size = (f64::from(lr) / correction(beta1)) as f32;
        let root_correction = correction(beta2).sqrt() as f32;
        Self { step_size, root_correction, beta1, beta2, eps, weight_decay }
    }

    fn apply(&self, team: &Team, parameters: &mut [f32], gradients: &[f32], mean: &mut [f32], square: &mut [f32]) {
        let Self { step_size, root_correction, beta1, beta2, eps, weight_decay } = *self;
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
}
