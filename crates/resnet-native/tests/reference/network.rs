//! A small network with every layer and every shortcut.

use resnet_graph::{Graph, NodeId, Shape};
use resnet_native::{Options, Session};

use super::noise;

pub const CLASSES: usize = 4;

/// What goes around a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shortcut {
    /// Nothing: a plain network.
    Plain,
    /// The input, padded where dimensions change.
    A,
    /// The input, projected where dimensions change.
    B,
    /// The input, projected everywhere.
    C,
}

/// A stem, a block of equal width, a block of stride 2, and the head.
pub fn graph(input: Shape, shortcut: Shortcut) -> Graph {
    let mut graph = Graph::new(input);
    let norm = conv_norm(&mut graph, ["conv1", "bn1"], Graph::INPUT, 5, 3, 1);
    let stem = graph.relu("relu", norm);
    let first = block(&mut graph, "layer1.0", stem, 5, 1, shortcut);
    let second = block(&mut graph, "layer2.0", first, 9, 2, shortcut);
    let pooled = graph.global_avg_pool("avgpool", second);
    graph.linear("fc", pooled, CLASSES);
    graph
}

/// A session with weights and statistics that are not special.
pub fn session(graph: &Graph, options: Options) -> Session {
    let mut session = Session::new(graph, options).expect("a session");
    for index in 0..session.tensors().len() {
        let spec = session.tensors()[index].clone();
        let mut values = noise(index as u64 + 7, spec.len());
        let centre = if spec.name.ends_with("bn1.weight") || spec.name.ends_with("running_var") { 1.5 } else { 0.0 };
        values.iter_mut().for_each(|value| *value = 0.5 * *value + centre);
        session.set_values(index, &values);
    }
    session
}

/// Images and their labels.
pub fn batch(input: Shape, images: usize) -> (Vec<f32>, Vec<u32>) {
    let labels = (0..images).map(|i| (i * 7 % CLASSES) as u32).collect();
    (noise(99, images * input.len()), labels)
}

fn block(graph: &mut Graph, name: &str, input: NodeId, channels: usize, stride: usize, shortcut: Shortcut) -> NodeId {
    let named = |part: &str| format!("{name}.{part}");
    let norm = conv_norm(graph, [&named("conv1"), &named("bn1")], input, channels, 3, stride);
    let relu = graph.relu(&named("relu1"), norm);
    let branch = conv_norm(graph, [&named("conv2"), &named("bn2")], relu, channels, 3, 1);
    let around = match shortcut {
        Shortcut::Plain => return graph.relu(&named("relu2"), branch),
        Shortcut::A | Shortcut::B if stride == 1 => input,
        Shortcut::A => graph.pad_shortcut(&named("downsample"), input, channels, stride),
        Shortcut::B | Shortcut::C => {
            conv_norm(graph, [&named("downsample.0"), &named("downsample.1")], input, channels, 1, stride)
        }
    };
    let sum = graph.add(&named("add"), branch, around);
    graph.relu(&named("relu2"), sum)
}

fn conv_norm(
    graph: &mut Graph,
    [conv, norm]: [&str; 2],
    input: NodeId,
    channels: usize,
    kernel: usize,
    stride: usize,
) -> NodeId {
    let conv = graph.conv(conv, input, channels, kernel, stride);
    graph.batch_norm(norm, conv)
}
