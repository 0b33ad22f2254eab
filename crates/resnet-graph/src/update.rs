//! One step of an optimizer, in words: what turns gradients into changed parameters.

use std::ops::Range;

/// How a parameter `w` follows from its gradient `g`, which includes its weight decay, by PyTorch's
/// formulas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// `v = momentum v + g`, `w -= lr v`; Nesterov's: `w -= lr (g + momentum v)`.
    Sgd {
        /// Share of the last step that is kept.
        momentum: f32,
        /// Whether the momentum is Nesterov's.
        nesterov: bool,
    },
    /// Adam (arXiv:1412.6980) with bias correction.
    Adam {
        /// Decay of the mean of gradients.
        beta1: f32,
        /// Decay of the mean of squared gradients.
        beta2: f32,
        /// Added to the root of the second moment.
        eps: f32,
    },
}

/// Neighbouring parameters that are changed alike.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamGroup {
    /// Which of the flat parameters.
    pub range: Range<usize>,
    /// What the learning rate is multiplied by.
    pub lr_factor: f32,
    /// L2 penalty: `weight_decay * w` is added to the gradient.
    pub weight_decay: f32,
    /// Whether they stay as they are, whatever their gradients.
    pub frozen: bool,
}

/// One step of an optimizer over all parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// The formula.
    pub rule: Rule,
    /// Learning rate.
    pub lr: f32,
    /// Which parameters are changed how: ascending, without gaps, from the first to the last.
    pub groups: Vec<ParamGroup>,
}

impl Update {
    /// The same for all of `parameters` values.
    pub fn uniform(rule: Rule, lr: f32, weight_decay: f32, parameters: usize) -> Self {
        let all = ParamGroup { range: 0..parameters, lr_factor: 1.0, weight_decay, frozen: false };
        Self { rule, lr, groups: vec![all] }
    }

    /// Whether the groups cover `parameters` values, each once and in order.
    pub fn covers(&self, parameters: usize) -> bool {
        let mut end = 0;
        let follows = |group: &ParamGroup| {
            let starts = group.range.start == end && group.range.end >= end;
            end = group.range.end;
            starts
        };
        self.groups.iter().all(follows) && end == parameters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(ranges: &[(usize, usize)]) -> Update {
        let group = |&(start, end)| ParamGroup { range: start..end, lr_factor: 1.0, weight_decay: 0.0, frozen: false };
        Update {
            rule: Rule::Sgd { momentum: 0.9, nesterov: false },
            lr: 0.1,
            groups: ranges.iter().map(group).collect(),
        }
    }

    #[test]
    fn groups_cover_all_parameters_once_and_in_order() {
        assert!(update(&[(0, 7)]).covers(7));
        assert!(update(&[(0, 3), (3, 3), (3, 7)]).covers(7));
        assert!(update(&[]).covers(0));
        for wrong in [&[(0, 3)][..], &[(0, 3), (4, 7)], &[(0, 4), (3, 7)], &[(3, 7), (0, 3)], &[(0, 8)]] {
            assert!(!update(wrong).covers(7), "{wrong:?}");
        }
    }
}
