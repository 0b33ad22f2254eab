//! Softmax cross-entropy.

use resnet_graph::{Outcome, Targets};

/// Mean loss of `logits` `[images, classes]`, which are replaced by their gradient.
///
/// The target of a label is `1 - smoothing` for its class plus `smoothing / classes` for every class
/// (arXiv:1512.00567, section 7); zero smoothing is plain cross-entropy. Soft targets are smoothed the
/// same way.
pub fn softmax_cross_entropy(logits: &mut [f32], targets: &Targets, smoothing: f32) -> Outcome {
    let images = targets.len();
    let classes = logits.len() / images;
    let smoothing = f64::from(smoothing);
    let mut outcome = Outcome { loss: 0.0, correct: 0 };
    let mut total = 0.0f64;
    for (image, logits) in logits.chunks_exact_mut(classes).enumerate() {
        let target = Target::of(targets, image);
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let best = target.class();
        if logits[best] == max && logits[..best].iter().all(|&other| other < max) {
            outcome.correct += 1;
        }
        let max = f64::from(max);
        let sum: f64 = logits.iter().map(|&z| (f64::from(z) - max).exp()).sum();
        let log_sum = sum.ln() + max;
        let mean_logit = logits.iter().map(|&z| f64::from(z)).sum::<f64>() / classes as f64;
        total += log_sum - (1.0 - smoothing) * target.mean(logits) - smoothing * mean_logit;
        for (class, z) in logits.iter_mut().enumerate() {
            let share = (1.0 - smoothing) * target.share(class) + smoothing / classes as f64;
            *z = (((f64::from(*z) - log_sum).exp() - share) / images as f64) as f32;
        }
    }
    outcome.loss = (total / images as f64) as f32;
    outcome
}

/// The target of one image, before smoothing.
#[derive(Clone, Copy)]
enum Target<'a> {
    Label(usize),
    Soft(&'a [f32]),
}

impl<'a> Target<'a> {
    fn of(targets: &'a Targets, image: usize) -> Self {
        match targets {
            Targets::Labels(labels) => Self::Label(labels[image] as usize),
            Targets::Soft { classes, shares } => Self::Soft(&shares[image * classes..][..*classes]),
        }
    }

    /// The class of the largest share, the first of equals.
    fn class(self) -> usize {
        match self {
            Self::Label(label) => label,
            Self::Soft(shares) => {
                let largest = |best: usize, class: usize| if shares[class] > shares[best] { class } else { best };
                (0..shares.len()).reduce(largest).unwrap_or(0)
            }
        }
    }

    /// Share of a class.
    fn share(self, class: usize) -> f64 {
        match self {
            Self::Label(label) => f64::from(u8::from(label == class)),
            Self::Soft(shares) => f64::from(shares[class]),
        }
    }

    /// The logits' mean, each class with its share.
    fn mean(self, logits: &[f32]) -> f64 {
        match self {
            Self::Label(label) => f64::from(logits[label]),
            Self::Soft(shares) => shares.iter().zip(logits).map(|(&share, &z)| f64::from(share) * f64::from(z)).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_classes() {
        let mut logits = vec![3.0; 8];
        let outcome = softmax_cross_entropy(&mut logits, &vec![0, 3].into(), 0.0);
        assert!((outcome.loss - 4f32.ln()).abs() < 1e-6);
        assert_eq!(outcome.correct, 1, "a tie counts for the first class alone");
        assert!((logits[0] - (0.25 - 1.0) / 2.0).abs() < 1e-6 && (logits[1] - 0.125).abs() < 1e-6);
    }

    #[test]
    fn gradients_of_an_image_sum_to_zero_with_and_without_smoothing() {
        for smoothing in [0.0, 0.1] {
            let mut logits = vec![0.3, -2.0, 40.0, 1.0, 0.0];
            softmax_cross_entropy(&mut logits, &vec![3].into(), smoothing);
            assert!(logits.iter().sum::<f32>().abs() < 1e-6);
        }
    }

    #[test]
    fn soft_targets_of_one_class_are_labels_and_mixed_ones_lie_between() {
        let logits = [0.3, -2.0, 1.5, 1.0];
        let run = |targets: &Targets| {
            let mut gradient = logits.to_vec();
            (softmax_cross_entropy(&mut gradient, targets, 0.1), gradient)
        };
        let soft = |shares: &[f32]| Targets::Soft { classes: 4, shares: shares.to_vec() };
        let [first, second] = [vec![0].into(), vec![2].into()].map(|labels| run(&labels));
        assert_eq!(run(&soft(&[1.0, 0.0, 0.0, 0.0])), first);
        let (mixed, gradient) = run(&soft(&[0.25, 0.0, 0.75, 0.0]));
        assert!((mixed.loss - (0.25 * first.0.loss + 0.75 * second.0.loss)).abs() < 1e-6);
        assert_eq!(mixed.correct, 1, "the largest logit is that of the largest share");
        for (class, value) in gradient.into_iter().enumerate() {
            assert!((value - (0.25 * first.1[class] + 0.75 * second.1[class])).abs() < 1e-6);
        }
    }

    #[test]
    fn logits_that_are_not_numbers_give_a_loss_that_is_not_one() {
        assert!(softmax_cross_entropy(&mut [f32::NAN, 1.0], &vec![1].into(), 0.0).loss.is_nan());
    }
}
