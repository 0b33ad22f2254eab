//! Batch norm's statistics, and what follows from them for each channel.

use crate::fuse::{NORM_EPS, Norm};
use crate::kernels::NormValues;

/// Momentum of the running statistics, as PyTorch's default.
const RUNNING_MOMENTUM: f64 = 0.1;

impl NormValues {
    /// Takes mean and variance from the moments of the batch, and moves the running statistics on: they
    /// take the unbiased variance, the normalisation the biased one.
    pub fn use_batch(&mut self, norm: &Norm, parameters: &[f32], moments: &[f64], count: usize, running: &mut [f32]) {
        let count = count as f64;
        for (channel, sums) in moments.chunks_exact(2).enumerate() {
            let running_mean = &mut running[norm.running_mean.start + channel];
            let offset = sums[0] / count;
            let mean = f64::from(*running_mean) + offset;
            let variance = (sums[1] / count - offset * offset).max(0.0);
            *running_mean = moved(*running_mean, mean);
            let unbiased = if count > 1.0 { variance * count / (count - 1.0) } else { variance };
            let running_var = &mut running[norm.running_var.start + channel];
            *running_var = moved(*running_var, unbiased);
            self.set(norm, parameters, channel, mean, variance);
        }
    }

    fn set(&mut self, norm: &Norm, parameters: &[f32], channel: usize, mean: f64, variance: f64) {
        let inv_std = 1.0 / (variance + NORM_EPS).sqrt();
        let scale = f64::from(parameters[norm.weight.start + channel]) * inv_std;
        self.mean[channel] = mean as f32;
        self.inv_std[channel] = inv_std as f32;
        self.scale[channel] = scale as f32;
        self.shift[channel] = (f64::from(parameters[norm.bias.start + channel]) - mean * scale) as f32;
    }

    /// Computes the [factors](NormValues::factors) of the gradient with respect to the input from the sums of the
    /// output's gradient `g` and of `g` times the normalised input (arXiv:1502.03167, section 3).
    pub fn use_gradient(&mut self, weight: &[f32], sums: &[f64], count: usize) {
        for channel in 0..weight.len() {
            let (mean, inv_std) = (f64::from(self.mean[channel]), f64::from(self.inv_std[channel]));
            let a = f64::from(weight[channel]) * inv_std;
            let b = -a * inv_std * sums[2 * channel + 1] / count as f64;
            let c = -a * sums[2 * channel] / count as f64 - b * mean;
            for (factor, value) in self.factors.iter_mut().zip([a, b, c]) {
                factor[channel] = value as f32;
            }
        }
    }
}

fn moved(running: f32, batch: f64) -> f32 {
    ((1.0 - RUNNING_MOMENTUM) * f64::from(running) + RUNNING_MOMENTUM * batch) as f32
}
