//! One image: its logits against its class.

/// What an image's logits say about its class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Score {
    /// Cross-entropy: `ln(sum(exp(logits))) - logits[label]`.
    pub loss: f64,
    /// Classes ahead of the right one: those with a larger logit, or an equal one and a smaller
    /// label. `None` when a logit is NaN.
    pub rank: Option<usize>,
    /// The first class with the largest logit. `None` when a logit is NaN.
    pub prediction: Option<usize>,
}

/// Scores the logits of one image; `None` when there is no such label.
pub(super) fn score(logits: &[f32], label: usize) -> Option<Score> {
    let right = *logits.get(label)?;
    let loss = log_sum_exp(logits) - f64::from(right);
    if logits.iter().any(|logit| logit.is_nan()) {
        return Some(Score { loss, rank: None, prediction: None });
    }
    let ahead = |(class, &logit): (usize, &f32)| logit > right || (logit == right && class < label);
    let rank = logits.iter().enumerate().filter(|&entry| ahead(entry)).count();
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let prediction = logits.iter().position(|&logit| logit == largest);
    Some(Score { loss, rank: Some(rank), prediction })
}

/// `ln(sum(exp(values)))` without overflow: the largest value is taken out of the sum.
fn log_sum_exp(values: &[f32]) -> f64 {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let largest = f64::from(largest);
    largest + values.iter().map(|&value| (f64::from(value) - largest).exp()).sum::<f64>().ln()
}
