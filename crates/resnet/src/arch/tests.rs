use super::*;
use crate::StateDict;

fn named(name: &str) -> Network {
    Network::named(name).unwrap()
}

fn with(name: &str, change: impl FnOnce(&mut Network)) -> Network {
    let mut network = named(name);
    change(&mut network);
    network
}

fn parameters(network: &Network) -> usize {
    Summary::of(network).unwrap().parameters
}

#[test]
fn parameter_counts_are_those_of_table_6() {
    let table = [
        ("resnet20", 269_722, "0.27"),
        ("resnet32", 464_154, "0.46"),
        ("resnet44", 658_586, "0.66"),
        ("resnet56", 853_018, "0.85"),
        ("resnet110", 1_727_962, "1.73"),    // printed as 1.7
        ("resnet1202", 19_421_274, "19.42"), // printed as 19.4
    ];
    for (name, exact, millions) in table {
        let count = parameters(&named(name));
        assert_eq!(count, exact, "{name}");
        assert_eq!(format!("{:.2}", count as f64 / 1e6), millions, "{name}");
        assert_eq!(count, named(name).graph().unwrap().tensors().parameter_len(), "{name}");
    }
}

#[test]
fn a_plain_network_has_the_parameters_of_its_residual_twin() {
    for depth in [20, 32, 44, 56, 110] {
        let (plain, residual) = (named(&format!("plain{depth}")), named(&format!("resnet{depth}")));
        assert_eq!(parameters(&plain), parameters(&residual), "depth {depth}");
    }
}

/// Each projection adds `in * out` weights and two values an output channel for its batch norm.
#[test]
fn projections_add_their_parameters() {
    let projection = |from: usize, to: usize| from * to + 2 * to;
    let changing = projection(16, 32) + projection(32, 64);
    let kept = 3 * projection(16, 16) + 2 * projection(32, 32) + 2 * projection(64, 64);
    let count = |shortcut| parameters(&with("resnet20", |network| network.shortcut = Some(shortcut)));
    assert_eq!(count(Shortcut::B), 269_722 + changing);
    assert_eq!(count(Shortcut::C), 269_722 + changing + kept);
}

#[test]
fn multiply_adds_count_convolutions_and_the_classifier() {
    let summary = Summary::of(&named("resnet20")).unwrap();
    let stem = 9 * 3 * 16 * 32 * 32;
    let full_stage = 9 * 16 * 16 * 32 * 32; // one convolution; every stage's costs the same
    assert_eq!(summary.multiply_adds, stem + (6 + 5 + 5) * full_stage + 2 * full_stage / 2 + 640);
}

#[test]
fn a_deep_name_builds_any_depth_of_6n_plus_2() {
    for (name, blocks) in [("cifar-resnet38", 6), ("cifar-plain8", 1), ("cifar-resnet6002", 1000)] {
        let network = named(name);
        assert_eq!(network.name, name);
        assert!(network.stages.iter().all(|stage| stage.blocks == blocks), "{name}");
        assert_eq!(network.shortcut.is_some(), name.contains("resnet"));
    }
    let graph = named("cifar-resnet38").graph().unwrap();
    let weighted = graph.nodes().iter().filter(|n| matches!(n.op, Op::Conv { .. } | Op::Linear));
    assert_eq!(weighted.count(), 38);
}

#[test]
fn a_wrong_name_says_what_there_is() {
    for name in ["", "resnet", "resnet21", "resnet19", "plain1202", "vgg16", "resnet20x", "20", "résnet20"] {
        let message = Network::named(name).unwrap_err().to_string();
        assert!(message.starts_with(&format!("unknown model '{name}': expected resnet20, ")), "{message}");
    }
    for name in ["cifar-resnet2", "cifar-resnet21", "cifar-plain6008", "cifar-resnet0"] {
        let message = Network::named(name).unwrap_err().to_string();
        assert!(message.contains("depth must be 6n+2 between 8 and 6002"), "{message}");
    }
    assert!(Network::named("cifar-resnet99999999999999999999999").is_err());
}

#[test]
fn a_network_that_cannot_be_built_names_the_field() {
    type Change = fn(&mut Network);
    let cases: [(&str, Change); 6] = [
        ("must not be zero", |n| n.classes = 0),
        ("must not be zero", |n| n.input.channels = 0),
        ("stem.channels", |n| n.stem = Stem::Conv3x3 { channels: 0 }),
        ("stages[1]", |n| n.stages[1].stride = 3),
        ("stages[2]", |n| n.stages[2].blocks = 0),
        ("shortcut a pads channels and cannot go from 32 to 8", |n| n.stages[2].channels = 8),
    ];
    for (expected, change) in cases {
        let message = with("resnet20", change).graph().unwrap_err().to_string();
        assert!(message.starts_with("network 'resnet20': ") && message.contains(expected), "{message}");
    }
}

#[test]
fn stages_halve_the_map_and_double_the_channels() {
    let summary = Summary::of(&named("resnet56")).unwrap();
    let output = |name: &str| summary.layers.iter().find(|layer| layer.name == name).unwrap().output;
    assert_eq!(output("conv1"), Shape::new(16, 32, 32));
    assert_eq!(output("layer1.8.relu2"), Shape::new(16, 32, 32));
    assert_eq!(output("layer2.0.conv1"), Shape::new(32, 16, 16));
    assert_eq!(output("layer3.8.conv2"), Shape::new(64, 8, 8));
    assert_eq!(output("avgpool"), Shape::new(64, 1, 1));
    assert_eq!(output("fc"), Shape::new(10, 1, 1));
}

#[test]
fn odd_images_shrink_alike_on_both_paths() {
    for shortcut in [Shortcut::A, Shortcut::B, Shortcut::C] {
        let network = with("resnet20", |network| {
            network.input = Shape::new(1, 29, 7);
            network.shortcut = Some(shortcut);
        });
        let graph = network.graph().unwrap();
        let pooled = &graph.nodes()[graph.nodes().len() - 2];
        assert_eq!(graph.input_of(pooled), Shape::new(64, 8, 2), "{shortcut:?}");
    }
}

#[test]
fn tensors_have_torchvisions_names_and_shapes() {
    let network = with("resnet20", |network| network.shortcut = Some(Shortcut::B));
    let graph = network.graph().unwrap();
    let tensors = graph.tensors();
    let shape = |name: &str| &tensors.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no {name}")).shape[..];
    assert_eq!(shape("conv1.weight"), [16, 3, 3, 3]);
    assert_eq!(shape("bn1.running_var"), [16]);
    assert_eq!(shape("layer1.0.conv1.weight"), [16, 16, 3, 3]);
    assert_eq!(shape("layer2.0.conv1.weight"), [32, 16, 3, 3]);
    assert_eq!(shape("layer2.0.downsample.0.weight"), [32, 16, 1, 1]);
    assert_eq!(shape("layer3.0.downsample.1.bias"), [64]);
    assert_eq!(shape("layer3.2.bn2.running_mean"), [64]);
    assert_eq!(shape("fc.weight"), [10, 64]);
    assert_eq!(shape("fc.bias"), [10]);
    let tensors = graph.tensors();
    let names: Vec<_> = tensors.iter().map(|t| t.name.as_str()).collect();
    let unique: std::collections::HashSet<_> = names.iter().collect();
    assert_eq!(unique.len(), names.len());
    assert!(!names.iter().any(|name| name.starts_with("layer1") && name.contains("downsample")));
}

#[test]
fn option_a_has_no_tensors_of_its_own() {
    let graph = named("resnet20").graph().unwrap();
    let shortcuts = graph.nodes().iter().filter(|n| n.op == Op::PadShortcut { stride: 2 });
    assert_eq!(shortcuts.count(), 2);
    assert!(graph.tensors().iter().all(|t| !t.name.contains("downsample")));
}

#[test]
fn a_network_survives_being_written_down() {
    let network = with("cifar-resnet14", |network| network.projection_init = ProjectionInit::Average);
    let text = serde_json::to_string(&network).unwrap();
    assert_eq!(serde_json::from_str::<Network>(&text).unwrap(), network);
}

fn deviation(values: &[f32]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt()
}

#[test]
fn convolutions_start_he_normal() {
    let state = initial_state(&named("resnet20"), 1).unwrap();
    for (name, fan_in) in
        [("layer2.1.conv1", 9.0 * 32.0), ("layer3.0.conv1", 9.0 * 32.0), ("layer3.2.conv2", 9.0 * 64.0)]
    {
        let weights = state.get(&format!("{name}.weight")).unwrap().data();
        let (found, expected) = (deviation(weights), f64::sqrt(2.0 / fan_in));
        // The deviation of n normal values spreads by 1/sqrt(2n): 5 of these, for 9216 values and more.
        assert!((found / expected - 1.0).abs() < 5.0 / f64::sqrt(2.0 * weights.len() as f64), "{name}: {found}");
    }
}

#[test]
fn everything_else_starts_as_in_the_reference() {
    let state = initial_state(&named("resnet20"), 1).unwrap();
    let all = |name: &str, value: f32| state.get(name).unwrap().data().iter().all(|&x| x == value);
    assert!(all("bn1.weight", 1.0) && all("bn1.bias", 0.0));
    assert!(all("layer3.2.bn2.running_mean", 0.0) && all("layer3.2.bn2.running_var", 1.0));
    for name in ["fc.weight", "fc.bias"] {
        let values = state.get(name).unwrap().data();
        assert!(values.iter().all(|x| x.abs() <= 0.125), "{name}: within 1/sqrt(64)");
        assert!(deviation(values) > 0.0);
    }
}

#[test]
fn a_seed_decides_the_start() {
    let network = named("cifar-resnet8");
    let start = |seed| initial_state(&network, seed).unwrap();
    assert_eq!(start(7), start(7));
    assert_ne!(start(7), start(8));
    start(7).check(&network.graph().unwrap()).unwrap();
}

#[test]
fn an_average_projection_starts_as_the_mean_of_its_inputs() {
    let network = with("resnet20", |network| {
        network.shortcut = Some(Shortcut::C);
        network.projection_init = ProjectionInit::Average;
    });
    let state = initial_state(&network, 0).unwrap();
    let weights = |state: &StateDict, name: &str| state.get(name).unwrap().data().to_vec();
    assert!(weights(&state, "layer1.0.downsample.0.weight").iter().all(|&w| w == 1.0 / 16.0));
    assert!(weights(&state, "layer3.0.downsample.0.weight").iter().all(|&w| w == 1.0 / 32.0));
    assert!(weights(&state, "layer3.0.downsample.1.bias").iter().all(|&b| b == 0.0));
    assert!(deviation(&weights(&state, "layer3.0.conv1.weight")) > 0.0);
}
