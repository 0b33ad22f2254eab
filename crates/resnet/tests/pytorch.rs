//! Training steps as PyTorch takes them: loss, every gradient, running statistics, updated weights and
//! what the optimizer remembers, then logits in inference mode.
//!
//! Two tensors agree when their largest difference is at most [`TOLERANCE`] times the largest magnitude
//! in the expected one. The expected values come from PyTorch in float64: `fixtures/generate_steps.py`,
//! which tells how the cases were chosen.

use std::path::Path;

use resnet::arch::{Network, TensorSpec};
use resnet::engine::{self, Batch, Engine, Loss, Options, Part, Rule, Update};
use resnet::weights::safetensors;
use resnet::{StateDict, Tensor};

/// Three times what PyTorch's own single precision may be off in the fixtures: Winograd's method loses twice what plain sums do.
const TOLERANCE: f64 = 2e-5;

/// A fixture's settings, as the generator wrote them.
#[derive(serde::Deserialize)]
struct Case {
    network: Network,
    update: Settings,
    label_smoothing: f32,
    /// Images of each step.
    batches: Vec<usize>,
    /// Whether the fixture keeps a sample of each tensor instead of the whole.
    sampled: bool,
    seed: u64,
}

#[derive(Clone, Copy, serde::Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
enum Settings {
    Sgd {
        lr: f32,
        momentum: f32,
        weight_decay: f32,
        #[serde(default)]
        nesterov: bool,
    },
    Adam {
        lr: f32,
        beta1: f32,
        beta2: f32,
        eps: f32,
        weight_decay: f32,
    },
}

impl Settings {
    fn update(self, parameters: usize) -> Update {
        let (rule, lr, weight_decay) = match self {
            Self::Sgd { lr, momentum, weight_decay, nesterov } => (Rule::Sgd { momentum, nesterov }, lr, weight_decay),
            Self::Adam { lr, beta1, beta2, eps, weight_decay } => (Rule::Adam { beta1, beta2, eps }, lr, weight_decay),
        };
        Update::uniform(rule, lr, weight_decay, parameters)
    }
}

/// The generator's `hashes`: SplitMix64 from a start that depends on the seed and the name (FNV-1a).
fn hashes(seed: u64, name: &str) -> impl Iterator<Item = u64> + use<> {
    let offset = 0xcbf2_9ce4_8422_2325 ^ seed;
    let start = name.bytes().fold(offset, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (1..).map(move |index: u64| {
        let mut z = start.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// The generator's `values`: uniform from `low` to `high`.
fn values(seed: u64, name: &str, len: usize, low: f64, high: f64) -> Vec<f32> {
    let unit = |hash: u64| (hash >> 40) as f64 / f64::from(1 << 24);
    hashes(seed, name).take(len).map(|hash| (low + (high - low) * unit(hash)) as f32).collect()
}

impl Case {
    /// The generator's `initial_state`.
    fn initial_state(&self) -> StateDict {
        let mut state = StateDict::new();
        let graph = self.network.graph().expect("a network");
        for spec in &graph.tensors() {
            let (low, high) = match spec.shape.len() {
                4 => {
                    let fan_in: usize = spec.shape[1..].iter().product();
                    let bound = (6.0 / fan_in as f64).sqrt();
                    (-bound, bound)
                }
                _ if spec.name.starts_with("fc.") => (-0.25, 0.25),
                _ if spec.name.ends_with(".bias") => (-0.5, 0.5),
                _ if spec.name.ends_with(".running_mean") => (-0.1, 0.1),
                _ => (0.5, 1.5),
            };
            let data = values(self.seed, &spec.name, spec.len(), low, high);
            state.insert(&*spec.name, Tensor::new(spec.shape.clone(), data).expect("sizes agree"));
        }
        state
    }

    /// The generator's `batch`; steps count from 1.
    fn batch(&self, step: usize, size: usize) -> Batch {
        let classes = self.network.classes as u64;
        let labels = hashes(self.seed, &format!("labels.{step}")).take(size).map(|hash| (hash % classes) as u32);
        let targets = labels.collect::<Vec<_>>().into();
        let len = size * self.network.input.len();
        Batch { images: values(self.seed, &format!("images.{step}"), len, -2.0, 2.0), targets }
    }
}

/// Everything a fixture has a value for, by the names it uses.
fn run(case: &Case, engine: &mut dyn Engine) -> StateDict {
    let scalar = |value: f32| Tensor::full(vec![1], value);
    let mut found = StateDict::new();
    for (step, &size) in (1..).zip(&case.batches) {
        let loss = Loss { label_smoothing: case.label_smoothing };
        let outcome = engine.forward_backward(&case.batch(step, size), &loss, Part::WHOLE).expect("a step");
        found.insert(format!("{step}.loss"), scalar(outcome.loss));
        found.insert(format!("{step}.correct"), scalar(outcome.correct as f32));
        for (name, gradient) in gradients(engine) {
            found.insert(format!("{step}.gradient.{name}"), gradient);
        }
        let update = case.update.update(engine.parameters().len());
        engine.apply(&update).expect("an update of all parameters");
        for (name, tensor) in engine.optimizer_state().tensors {
            found.insert(format!("{step}.optimizer.{name}"), tensor);
        }
        for (name, tensor) in engine.state() {
            found.insert(format!("{step}.state.{name}"), tensor);
        }
    }
    let logits = engine.infer(&case.batch(1, case.batches[0]).images).expect("logits");
    let shape = vec![case.batches[0], case.network.classes];
    found.insert("logits", Tensor::new(shape, logits).expect("logits of every image"));
    found
}

/// The flat gradients by name.
fn gradients(engine: &mut dyn Engine) -> Vec<(String, Tensor)> {
    let flat = engine.gradients().to_vec();
    let tensors = engine.tensors();
    assert_eq!(flat.len(), tensors.parameter_len());
    let tensor = |spec: &TensorSpec| Tensor::new(spec.shape.clone(), flat[spec.range.clone()].to_vec());
    tensors.parameters().map(|spec| (spec.name.clone(), tensor(spec).expect("sizes agree"))).collect()
}

/// How far `found` is from `expected`, as a share of the largest magnitude expected.
fn disagreement(found: &[f32], expected: &[f32], largest: f32) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference = |(&a, &b): (&f32, &f32)| (f64::from(a) - f64::from(b)).abs();
    // NaN must not pass for small.
    let worst = found.iter().zip(expected).map(difference).fold(0.0, |a, b| if a >= b { a } else { b });
    worst / f64::from(largest).max(1e-30)
}

/// The same when `expected` is the generator's `sample`: largest magnitude, norm, entries.
fn sampled_disagreement(found: &[f32], expected: &[f32]) -> f64 {
    let [largest, norm, entries @ ..] = expected else { panic!("a sample of {} numbers", expected.len()) };
    let at = |i: usize| found[i * found.len() / entries.len()];
    let found_entries: Vec<_> = (0..entries.len()).map(at).collect();
    let found_norm = found.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    disagreement(&found_entries, entries, *largest).max(disagreement(&[found_norm as f32], &[*norm], *norm))
}

fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/steps/{name}.safetensors"));
    let fixture = safetensors::read(&path).expect("the fixture");
    let case: Case = serde_json::from_str(&fixture.metadata["case"]).expect("the fixture's settings");
    let graph = case.network.graph().expect("a network");
    let engine = engine::open("native", graph, &case.initial_state(), Options::default());
    let found = run(&case, engine.expect("an engine").as_mut());
    assert_eq!(found.len(), fixture.state.len());
    let mut worst = (0.0, "");
    for (tensor, expected) in fixture.state.iter() {
        let found = found.get(tensor).unwrap_or_else(|| panic!("{name}: nothing for {tensor}")).data();
        let expected = expected.data();
        let off = if case.sampled {
            sampled_disagreement(found, expected)
        } else {
            disagreement(found, expected, expected.iter().fold(0.0, |a, b| b.abs().max(a)))
        };
        assert!(off <= TOLERANCE, "{name}: {tensor} is off by {off:.1e}, allowed {TOLERANCE:.1e}");
        worst = if off > worst.0 { (off, tensor) } else { worst };
    }
    println!("{name}: {} tensors, the worst off by {:.1e}: {}", fixture.state.len(), worst.0, worst.1);
}

macro_rules! cases {
    ($($test:ident: $file:literal,)*) => {
        $(#[test] fn $test() { check($file); })*
    };
}

// Odd widths and image sizes, whole tensors, two steps: 20 images, then 5.
cases! {
    small_plain_network: "small-plain",
    small_network_with_shortcut_a: "small-a",
    small_network_with_shortcut_b: "small-b",
    small_network_with_shortcut_c: "small-c",
    adam: "small-b-adam",
    nesterov: "small-b-nesterov",
    label_smoothing: "small-b-smoothing",
}

// The paper's widths and depth, samples of each tensor, one step: 17 images of 8x8, 3 of 32x32.
cases! {
    plain20_on_many_images: "plain20-8px",
    resnet20_a_on_many_images: "resnet20-a-8px",
    resnet20_a_on_large_images: "resnet20-a-32px",
    resnet20_b_on_many_images: "resnet20-b-8px",
    resnet20_b_on_large_images: "resnet20-b-32px",
    resnet20_c_on_many_images: "resnet20-c-8px",
    resnet20_c_on_large_images: "resnet20-c-32px",
}
