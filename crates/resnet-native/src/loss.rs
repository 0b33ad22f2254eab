//! Softmax cross-entropy.

/// What one pass over a batch found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Mean loss.
    pub loss: f32,
    /// Images whose largest logit was their class.
    pub correct: usize,
}

/// Mean loss of `logits` `[images, classes]`, which are replaced by their gradient.
///
/// The target is `1 - smoothing` for the label plus `smoothing / classes` for every class
/// (arXiv:1512.00567, section 7); zero smoothing is plain cross-entropy.
pub fn softmax_cross_entropy(logits: &mut [f32], labels: &[u32], smoothing: f32) -> Outcome {
    let classes = logits.len() / labels.len();
    let smoothing = f64::from(smoothing);
    let mut outcome = Outcome { loss: 0.0, correct: 0 };
    let mut total = 0.0f64;
    for (logits, &label) in logits.chunks_exact_mut(classes).zip(labels) {
        let label = label as usize;
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let own = logits[label];
        if own == max && logits[..label].iter().all(|&other| other < own) {
            outcome.correct += 1;
        }
        let max = f64::from(max);
        let sum: f64 = logits.iter().map(|&z| (f64::from(z) - max).exp()).sum();
        let log_sum = sum.ln() + max;
        let mean_logit = logits.iter().map(|&z| f64::from(z)).sum::<f64>() / classes as f64;
        total += log_sum - (1.0 - smoothing) * f64::from(own) - smoothing * mean_logit;
        for (class, z) in logits.iter_mut().enumerate() {
            let hit = if class == label { 1.0 - smoothing } else { 0.0 };
            let target = hit + smoothing / classes as f64;
            *z = (((f64::from(*z) - log_sum).exp() - target) / labels.len() as f64) as f32;
        }
    }
    outcome.loss = (total / labels.len() as f64) as f32;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_classes() {
        let mut logits = vec![3.0; 8];
        let outcome = softmax_cross_entropy(&mut logits, &[0, 3], 0.0);
        assert!((outcome.loss - 4f32.ln()).abs() < 1e-6);
        assert_eq!(outcome.correct, 1, "a tie counts for the first class alone");
        assert!((logits[0] - (0.25 - 1.0) / 2.0).abs() < 1e-6 && (logits[1] - 0.125).abs() < 1e-6);
    }

    #[test]
    fn gradients_of_an_image_sum_to_zero_with_and_without_smoothing() {
        for smoothing in [0.0, 0.1] {
            let mut logits = vec![0.3, -2.0, 40.0, 1.0, 0.0];
            softmax_cross_entropy(&mut logits, &[3], smoothing);
            assert!(logits.iter().sum::<f32>().abs() < 1e-6);
        }
    }

    #[test]
    fn logits_that_are_not_numbers_give_a_loss_that_is_not_one() {
        assert!(softmax_cross_entropy(&mut [f32::NAN, 1.0], &[1], 0.0).loss.is_nan());
    }
}
