//! Batch norm with known statistics is a factor and a summand of each channel: the factor goes into the weights of
//! the convolution before it, the summand becomes its bias.

use super::plan::{Conv, Linear, Plan, Weights};
use crate::fuse::Fused;
use crate::threads::Team;

/// Folds and packs all weights.
pub fn fold(team: &Team, plan: &Plan, fused: &Fused, (parameters, statistics): (&[f32], &[f32]), packed: &mut [f32]) {
    let mut jobs = Vec::with_capacity(plan.convs.len());
    let mut rest = packed;
    let mut start = 0;
    let mut take = |range: &std::ops::Range<usize>| {
        let (_, tail) = std::mem::take(&mut rest).split_at_mut(range.start - start);
        let (own, tail) = tail.split_at_mut(range.len());
        (rest, start) = (tail, range.end);
        own
    };
    // Places were reserved in the order of the layers, and the fully connected ones come last.
    for conv in &plan.convs {
        jobs.push((conv, take(&conv.packed), take(&conv.bias)));
    }
    for linear in &plan.linears {
        transpose(linear, parameters, take(&linear.packed));
    }
    team.for_each(jobs.into_iter(), |(conv, packed, bias)| {
        let (weights, summands) = folded(conv, fused, parameters, statistics);
        conv.windows.pack(&weights, packed);
        bias[..summands.len()].copy_from_slice(&summands);
    });
}

/// Weights `[out][in][row][column]` and bias of a convolution with its batch norm; in double precision up to here.
fn folded(conv: &Conv, fused: &Fused, parameters: &[f32], statistics: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let geometry = &conv.windows.conv;
    let mut weights = match &conv.weights {
        Weights::Learned(range) => parameters[range.clone()].to_vec(),
        Weights::Shift(channels) => {
            let mut weights = vec![0.0; geometry.weight_len()];
            (0..geometry.inputs).for_each(|input| weights[(input + channels) * geometry.inputs + input] = 1.0);
            weights
        }
    };
    let Some(norm) = conv.norm.map(|norm| &fused.norms[norm]) else { return (weights, Vec::new()) };
    let outputs = weights.chunks_exact_mut(geometry.inputs * geometry.taps()).enumerate();
    let summands = outputs.map(|(channel, weights)| {
        let (scale, shift) = norm.running_affine(parameters, statistics, channel);
        weights.iter_mut().for_each(|weight| *weight = (f64::from(*weight) * scale) as f32);
        shift as f32
    });
    let summands = summands.collect();
    (weights, summands)
}

/// Bias and transposed weights of a fully connected layer.
fn transpose(linear: &Linear, parameters: &[f32], packed: &mut [f32]) {
    let weights = &parameters[linear.weight.clone()];
    let outputs = linear.bias.len();
    let inputs = weights.len() / outputs;
    let (bias, packed) = packed.split_at_mut(outputs);
    bias.copy_from_slice(&parameters[linear.bias.clone()]);
    for (at, value) in packed.iter_mut().enumerate() {
        *value = weights[at % outputs * inputs + at / outputs];
    }
}
