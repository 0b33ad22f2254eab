//! A network as a list of layers in topological order.

use crate::{Shape, TensorTable};

/// Index of a node in its [`Graph`].
pub type NodeId = usize;

/// What a node computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The images. Always node 0, and only there.
    Input,
    /// Square convolution without bias; every one in a residual network is followed by batch norm.
    Conv {
        /// Side of the kernel.
        kernel: usize,
        /// Step between output pixels.
        stride: usize,
        /// Zero rows and columns added on each side.
        padding: usize,
    },
    /// Batch normalisation over images and pixels, with learned scale and shift (arXiv:1502.03167).
    BatchNorm,
    /// `max(x, 0)`.
    Relu,
    /// Elementwise sum of two inputs of one shape: a residual branch and its shortcut (equation 1).
    Add,
    /// Largest value of a square window, in each channel; what lies beyond the border does not count.
    MaxPool {
        /// Side of the window.
        kernel: usize,
        /// Step between output pixels.
        stride: usize,
        /// Rows and columns on each side that windows reach beyond the border.
        padding: usize,
    },
    /// The parameter-free shortcut (option A): every `stride`-th pixel, zero channels on both sides.
    PadShortcut {
        /// Step between the pixels kept.
        stride: usize,
    },
    /// Mean over all pixels of a channel.
    GlobalAvgPool,
    /// Fully connected layer with bias.
    Linear,
}

/// Which way through a block a layer is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Branch {
    /// The way that counts for the network's depth.
    #[default]
    Main,
    /// The shortcut around a block: padding or projection.
    Shortcut,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Module name as in PyTorch (`layer1.0.conv1`); unique among the nodes.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// Main branch or shortcut.
    pub branch: Branch,
    /// The nodes it reads, all before it.
    pub inputs: Vec<NodeId>,
    /// Shape of what it gives, for one image.
    pub output: Shape,
}

/// A network as layers in topological order; the last one gives the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    nodes: Vec<Node>,
}

impl Graph {
    /// A graph of nothing but its input.
    pub fn new(input: Shape) -> Self {
        let (op, inputs) = (Op::Input, Vec::new());
        Self { nodes: vec![Node { name: "input".into(), op, branch: Branch::Main, inputs, output: input }] }
    }

    /// The input node.
    pub const INPUT: NodeId = 0;

    /// Appends a square convolution with `out_channels` and "same" padding (`kernel / 2`).
    pub fn conv(&mut self, name: &str, input: NodeId, out_channels: usize, kernel: usize, stride: usize) -> NodeId {
        let padding = kernel / 2;
        let output = Shape { channels: out_channels, ..self.windows(input, kernel, stride, padding) };
        self.push(name, Op::Conv { kernel, stride, padding }, vec![input], output)
    }

    /// Appends batch normalisation.
    pub fn batch_norm(&mut self, name: &str, input: NodeId) -> NodeId {
        self.push(name, Op::BatchNorm, vec![input], self.nodes[input].output)
    }

    /// Appends a ReLU.
    pub fn relu(&mut self, name: &str, input: NodeId) -> NodeId {
        self.push(name, Op::Relu, vec![input], self.nodes[input].output)
    }

    /// Appends the sum of a residual branch and its shortcut.
    ///
    /// # Panics
    /// When the two shapes differ: a mistake in the caller's construction.
    pub fn add(&mut self, name: &str, branch: NodeId, shortcut: NodeId) -> NodeId {
        assert_eq!(self.nodes[branch].output, self.nodes[shortcut].output, "{name}: shapes to add differ");
        self.push(name, Op::Add, vec![branch, shortcut], self.nodes[branch].output)
    }

    /// Appends max pooling over windows of `kernel` by `kernel` pixels.
    pub fn max_pool(&mut self, name: &str, input: NodeId, kernel: usize, stride: usize, padding: usize) -> NodeId {
        let output = self.windows(input, kernel, stride, padding);
        self.push(name, Op::MaxPool { kernel, stride, padding }, vec![input], output)
    }

    /// Appends an option A shortcut to `out_channels`.
    pub fn pad_shortcut(&mut self, name: &str, input: NodeId, out_channels: usize, stride: usize) -> NodeId {
        let from = self.nodes[input].output;
        let output = Shape::new(out_channels, from.height.div_ceil(stride), from.width.div_ceil(stride));
        self.push(name, Op::PadShortcut { stride }, vec![input], output)
    }

    /// Appends global average pooling.
    pub fn global_avg_pool(&mut self, name: &str, input: NodeId) -> NodeId {
        let output = Shape::new(self.nodes[input].output.channels, 1, 1);
        self.push(name, Op::GlobalAvgPool, vec![input], output)
    }

    /// Appends a fully connected layer.
    pub fn linear(&mut self, name: &str, input: NodeId, outputs: usize) -> NodeId {
        self.push(name, Op::Linear, vec![input], Shape::new(outputs, 1, 1))
    }

    /// Says that a node is part of a shortcut; gives it back.
    pub fn on_shortcut(&mut self, node: NodeId) -> NodeId {
        self.nodes[node].branch = Branch::Shortcut;
        node
    }

    /// The input's shape after a window of `kernel` pixels has gone over it.
    fn windows(&self, input: NodeId, kernel: usize, stride: usize, padding: usize) -> Shape {
        let from = self.nodes[input].output;
        let extent = |side: usize| (side + 2 * padding).saturating_sub(kernel) / stride + 1;
        Shape::new(from.channels, extent(from.height), extent(from.width))
    }

    fn push(&mut self, name: &str, op: Op, inputs: Vec<NodeId>, output: Shape) -> NodeId {
        self.nodes.push(Node { name: name.into(), op, branch: Branch::Main, inputs, output });
        self.nodes.len() - 1
    }

    /// The layers, in topological order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that name.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// The nodes that read what a node gives.
    pub fn readers(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().enumerate().filter(move |(_, node)| node.inputs.contains(&id)).map(|(reader, _)| reader)
    }

    /// The one node that reads what a node gives; none where there is no reader or several.
    pub fn only_reader(&self, id: NodeId) -> Option<NodeId> {
        let mut readers = self.readers(id);
        readers.next().filter(|_| readers.next().is_none())
    }

    /// Shape of one image.
    pub fn input_shape(&self) -> Shape {
        self.nodes[Self::INPUT].output
    }

    /// Shape of what the last layer gives for an image: `[classes, 1, 1]` for a whole network.
    pub fn output_shape(&self) -> Shape {
        self.nodes[self.nodes.len() - 1].output
    }

    /// Shape of what a node's first input gives.
    pub fn input_of(&self, node: &Node) -> Shape {
        node.inputs.first().map_or(node.output, |&id| self.nodes[id].output)
    }

    /// All tensors of the network's state, in their one order.
    pub fn tensors(&self) -> TensorTable {
        TensorTable::of(self)
    }

    /// The part of the network that `last` is computed by, with `last` as its result: for the features
    /// or the responses of a layer. Nodes keep their names, and so tensors theirs.
    pub fn until(&self, last: NodeId) -> Self {
        let mut needed = vec![false; last + 1];
        needed[last] = true;
        for id in (0..=last).rev() {
            if needed[id] {
                self.nodes[id].inputs.iter().for_each(|&input| needed[input] = true);
            }
        }
        let mut places = vec![0; last + 1];
        let mut nodes = Vec::new();
        for id in (0..=last).filter(|&id| needed[id]) {
            places[id] = nodes.len();
            let node = &self.nodes[id];
            let inputs = node.inputs.iter().map(|&input| places[input]).collect();
            nodes.push(Node { inputs, ..node.clone() });
        }
        Self { nodes }
    }

    /// Multiply-adds of one node for one image, counted as the paper counts FLOPs: convolutions and
    /// the fully connected layer.
    pub fn multiply_adds_of(&self, node: &Node) -> u64 {
        let inputs = self.input_of(node);
        let per_output = match node.op {
            Op::Conv { kernel, .. } => kernel * kernel * inputs.channels,
            Op::Linear => inputs.len(),
            _ => 0,
        };
        per_output as u64 * node.output.len() as u64
    }

    /// Weighted layers on the main branch, as the paper counts a network's depth: 20 in ResNet-20,
    /// whatever its shortcuts.
    pub fn depth(&self) -> usize {
        let is_weighted = |node: &&Node| matches!(node.op, Op::Conv { .. } | Op::Linear);
        self.nodes.iter().filter(is_weighted).filter(|node| node.branch == Branch::Main).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The start of an ImageNet network and a block with a projection.
    fn graph() -> Graph {
        let mut graph = Graph::new(Shape::new(3, 224, 160));
        let conv = graph.conv("conv1", Graph::INPUT, 64, 7, 2);
        let norm = graph.batch_norm("bn1", conv);
        let relu = graph.relu("relu", norm);
        let pooled = graph.max_pool("maxpool", relu, 3, 2, 1);
        let main = graph.conv("layer1.0.conv1", pooled, 128, 3, 2);
        let side = graph.conv("layer1.0.downsample.0", pooled, 128, 1, 2);
        let side = graph.on_shortcut(side);
        let sum = graph.add("layer1.0.add", main, side);
        let mean = graph.global_avg_pool("avgpool", sum);
        graph.linear("fc", mean, 10);
        graph
    }

    #[test]
    fn shapes_of_an_imagenet_stem_are_the_papers() {
        let graph = graph();
        let output = |name: &str| graph.nodes()[graph.find(name).expect("a node")].output;
        assert_eq!(output("conv1"), Shape::new(64, 112, 80));
        assert_eq!(output("maxpool"), Shape::new(64, 56, 40));
        assert_eq!(output("layer1.0.add"), Shape::new(128, 28, 20));
        assert_eq!(graph.output_shape(), Shape::new(10, 1, 1));
    }

    #[test]
    fn depth_counts_the_main_branch_alone() {
        assert_eq!(graph().depth(), 3);
    }

    #[test]
    fn a_cut_graph_has_what_its_last_node_needs_and_nothing_else() {
        let graph = graph();
        for (id, node) in graph.nodes().iter().enumerate() {
            let cut = graph.until(id);
            let last = cut.nodes().last().expect("a node");
            assert_eq!((&last.name, last.output), (&node.name, node.output));
            for (id, node) in cut.nodes().iter().enumerate() {
                let whole = &graph.nodes()[graph.find(&node.name).expect("a node of the whole")];
                assert!(node.inputs.iter().all(|&input| input < id), "{} reads what is before it", node.name);
                assert_eq!((node.op, node.branch), (whole.op, whole.branch));
                let name = |graph: &Graph, id: &NodeId| graph.nodes()[*id].name.clone();
                let inputs: Vec<_> = node.inputs.iter().map(|id| name(&cut, id)).collect();
                assert_eq!(inputs, whole.inputs.iter().map(|id| name(&graph, id)).collect::<Vec<_>>());
                assert!(id + 1 == cut.nodes().len() || cut.readers(id).next().is_some(), "{} is needed", node.name);
            }
        }
        let side = graph.until(graph.find("layer1.0.downsample.0").expect("a node"));
        assert!(side.find("layer1.0.conv1").is_none());
        assert_eq!(graph.until(graph.nodes().len() - 1), graph);
    }
}
