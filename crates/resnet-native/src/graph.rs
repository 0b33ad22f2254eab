//! What the engine can run: a network as a list of layers in topological order.
//!
//! A [`Graph`] is plain data. Node names are the module names of the PyTorch implementation
//! (`layer1.0.conv1`), so a tensor's name is the node's name and a suffix (`.weight`).

/// The shape of one image's activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Shape {
    /// Feature maps.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Shape {
    /// A shape from its three extents.
    pub const fn new(channels: usize, height: usize, width: usize) -> Self {
        Self { channels, height, width }
    }

    /// Number of values an image has in this shape.
    pub const fn len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Whether the shape holds no value.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{}", self.channels, self.height, self.width)
    }
}

/// Index of a node in its [`Graph`].
pub type NodeId = usize;

/// What a node computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The images. Always node 0, and only there.
    Input,
    /// Square convolution without bias; every one in a residual network is followed by batch norm.
    Conv {
        /// Side of the kernel: 1 or 3.
        kernel: usize,
        /// Step between output pixels: 1 or 2.
        stride: usize,
        /// Zero rows and columns added on each side.
        padding: usize,
    },
    /// Batch normalisation over images and pixels, with learned scale and shift.
    BatchNorm,
    /// `max(x, 0)`.
    Relu,
    /// Elementwise sum of two inputs of one shape.
    Add,
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

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Module name as in PyTorch; unique among the nodes.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// The nodes it reads, all before it.
    pub inputs: Vec<NodeId>,
    /// Shape of what it gives, for one image.
    pub output: Shape,
}

/// What a tensor of the state is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Learned by the optimizer.
    Parameter,
    /// A running statistic of batch norm.
    Buffer,
}

/// Name, shape and role of one tensor of the network's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name as in PyTorch's state dict.
    pub name: String,
    /// Extents as in PyTorch: `[out, in, kernel, kernel]` for a convolution.
    pub shape: Vec<usize>,
    /// Parameter or buffer.
    pub role: Role,
}

impl TensorSpec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor holds no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A network as layers in topological order; the last one gives the logits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    nodes: Vec<Node>,
}

impl Graph {
    /// A graph of nothing but its input.
    pub fn new(input: Shape) -> Self {
        let node = Node { name: "input".into(), op: Op::Input, inputs: Vec::new(), output: input };
        Self { nodes: vec![node] }
    }

    /// The input node.
    pub const INPUT: NodeId = 0;

    /// Appends a square convolution with `out_channels` and "same" padding (`kernel / 2`).
    pub fn conv(&mut self, name: &str, input: NodeId, out_channels: usize, kernel: usize, stride: usize) -> NodeId {
        let padding = kernel / 2;
        let from = self.nodes[input].output;
        let extent = |side: usize| (side + 2 * padding - kernel) / stride + 1;
        let output = Shape::new(out_channels, extent(from.height), extent(from.width));
        self.push(name, Op::Conv { kernel, stride, padding }, vec![input], output)
    }

    /// Appends batch normalisation.
    pub fn batch_norm(&mut self, name: &str, input: NodeId) -> NodeId {
        self.push(name, Op::BatchNorm, vec![input], self.nodes[input].output)
    }

    /// Appends a rectifier.
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

    fn push(&mut self, name: &str, op: Op, inputs: Vec<NodeId>, output: Shape) -> NodeId {
        self.nodes.push(Node { name: name.into(), op, inputs, output });
        self.nodes.len() - 1
    }

    /// The layers, in topological order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Shape of one image.
    pub fn input_shape(&self) -> Shape {
        self.nodes[Self::INPUT].output
    }

    /// Number of values the last layer gives for an image.
    pub fn outputs(&self) -> usize {
        self.nodes.last().map_or(0, |node| node.output.len())
    }

    /// Shape of what a node's first input gives.
    pub fn input_of(&self, node: &Node) -> Shape {
        node.inputs.first().map_or(node.output, |&id| self.nodes[id].output)
    }

    /// The tensors of one node, in PyTorch's order.
    pub fn tensors_of(&self, node: &Node) -> Vec<TensorSpec> {
        let inputs = self.input_of(node).channels;
        let outputs = node.output.channels;
        let spec = |suffix: &str, shape: &[usize], role| TensorSpec {
            name: format!("{}.{suffix}", node.name),
            shape: shape.to_vec(),
            role,
        };
        match node.op {
            Op::Conv { kernel, .. } => vec![spec("weight", &[outputs, inputs, kernel, kernel], Role::Parameter)],
            Op::BatchNorm => vec![
                spec("weight", &[outputs], Role::Parameter),
                spec("bias", &[outputs], Role::Parameter),
                spec("running_mean", &[outputs], Role::Buffer),
                spec("running_var", &[outputs], Role::Buffer),
            ],
            Op::Linear => {
                vec![spec("weight", &[outputs, inputs], Role::Parameter), spec("bias", &[outputs], Role::Parameter)]
            }
            _ => Vec::new(),
        }
    }

    /// All tensors of the network's state, in graph order.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSpec> + '_ {
        self.nodes.iter().flat_map(|node| self.tensors_of(node))
    }

    /// Number of learned values.
    pub fn parameter_count(&self) -> usize {
        self.tensors().filter(|t| t.role == Role::Parameter).map(|t| t.len()).sum()
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
}
