//! From a graph to the layers the engine runs: batch norm takes the addition and the ReLU that
//! follow it along, and every tensor of the state gets its place.

use std::collections::HashMap;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::geometry::{Conv2d, Direction};
use crate::kernels::KernelSet;
use crate::layout::Layout;
use crate::layout::gather::Gather;
use resnet_graph::{Graph, Node, NodeId, Op, Role, Shape, TensorTable};

/// A convolution, or a fully connected layer as a 1x1 convolution of one pixel.
pub struct ConvLayer {
    /// Its geometry.
    pub conv: Conv2d,
    /// What an output pixel reads.
    pub forward: Gather,
    /// What an input pixel's gradient reads.
    pub backward: Gather,
    /// Layout of what it reads and writes.
    pub layout: Layout,
    /// Its weights among the parameters.
    pub weight: Range<usize>,
    /// Its bias among the parameters; only the fully connected layer has one.
    pub bias: Option<Range<usize>>,
    /// Its weights packed for the forward batch.
    pub packed_forward: Range<usize>,
    /// Its weights packed for the gradient with respect to the input.
    pub packed_backward: Range<usize>,
    /// The batch norm that reads it.
    pub norm: Option<usize>,
}

/// Batch norm.
pub struct NormLayer {
    /// Shape of its input and output.
    pub shape: Shape,
    /// Scale, among the parameters.
    pub weight: Range<usize>,
    /// Shift, among the parameters.
    pub bias: Range<usize>,
    /// Among the running statistics.
    pub running_mean: Range<usize>,
    /// Among the running statistics.
    pub running_var: Range<usize>,
}

/// One fused layer; values go by the graph node that gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Convolution or fully connected layer: index into [`Program::convs`].
    Conv { conv: usize, input: NodeId, output: NodeId },
    /// Batch norm, `+ residual`, ReLU: index into [`Program::norms`]. Its output is `stored`, or worked out
    /// by the one convolution that reads it.
    Norm { norm: usize, input: NodeId, residual: Option<NodeId>, relu: bool, stored: bool, output: NodeId },
    /// Option A shortcut.
    PadShortcut { stride: usize, input: NodeId, output: NodeId },
    /// Global average pooling.
    AvgPool { input: NodeId, output: NodeId },
}

impl Layer {
    /// The value it gives.
    pub fn output(&self) -> NodeId {
        match *self {
            Self::Conv { output, .. } | Self::Norm { output, .. } | Self::PadShortcut { output, .. } => output,
            Self::AvgPool { output, .. } => output,
        }
    }

    /// The values it reads.
    pub fn inputs(&self) -> impl Iterator<Item = NodeId> {
        let (input, residual) = match *self {
            Self::Norm { input, residual, .. } => (input, residual),
            Self::Conv { input, .. } | Self::PadShortcut { input, .. } | Self::AvgPool { input, .. } => (input, None),
        };
        std::iter::once(input).chain(residual)
    }
}

/// A network ready to be planned for a batch size.
pub struct Program {
    /// Fused layers in the order they run; the last gives the logits.
    pub layers: Vec<Layer>,
    /// Shape in which each graph node's output is stored.
    pub shapes: Vec<Shape>,
    /// Layout of each graph node's output.
    pub layouts: Vec<Layout>,
    /// The convolution that reads the images.
    pub stem: Conv2d,
    /// Convolutions.
    pub convs: Vec<ConvLayer>,
    /// Batch norms.
    pub norms: Vec<NormLayer>,
    /// All tensors of the state.
    pub tensors: TensorTable,
    /// Floats of all packed weights.
    pub packed_len: usize,
}

impl Program {
    /// Lowers `graph` for some kernels.
    ///
    /// # Errors
    /// When an addition or a ReLU does not follow a batch norm, the images are not read by one
    /// convolution, or the last layer is not linear.
    pub fn new(graph: &Graph, kernels: KernelSet) -> Result<Self> {
        let stem = stem(graph)?;
        let mut shapes: Vec<_> = graph.nodes().iter().map(|node| node.output).collect();
        shapes[Graph::INPUT] = kernels.body.layout().image_shape(&stem);
        let mut program = Self {
            layers: Vec::new(),
            shapes,
            layouts: layouts(graph, kernels),
            stem,
            convs: Vec::new(),
            norms: Vec::new(),
            tensors: graph.tensors(),
            packed_len: 0,
        };
        let fusions = fuse(graph);
        for (id, node) in graph.nodes().iter().enumerate() {
            program.push(graph, id, node, &fusions, kernels)?;
        }
        match graph.nodes().last().map(|node| node.op) {
            Some(Op::Linear) => Ok(program),
            other => Err(Error::Graph(format!("the last layer must be linear, found {other:?}"))),
        }
    }

    fn push(&mut self, graph: &Graph, id: NodeId, node: &Node, fusions: &Fusions, kernels: KernelSet) -> Result<()> {
        let input = node.inputs.first().copied().unwrap_or(Graph::INPUT);
        if let Some(fusion) = fusions.by_last.get(&id) {
            let norm_node = &graph.nodes()[fusion.norm];
            self.norms.push(NormLayer {
                shape: norm_node.output,
                weight: self.tensors.range(fusion.norm, Role::NormWeight),
                bias: self.tensors.range(fusion.norm, Role::NormBias),
                running_mean: self.tensors.range(fusion.norm, Role::RunningMean),
                running_var: self.tensors.range(fusion.norm, Role::RunningVar),
            });
            let Fusion { residual, relu, .. } = *fusion;
            let (norm, input) = (self.norms.len() - 1, norm_node.inputs[0]);
            let makes_input = |layer: &Layer| match *layer {
                Layer::Conv { conv, output, .. } if output == input => Some(conv),
                _ => None,
            };
            let Some(conv) = self.layers.iter().find_map(makes_input) else {
                return Err(Error::Graph(format!("{}: batch norm must follow a convolution", norm_node.name)));
            };
            self.convs[conv].norm = Some(norm);
            let stored = residual.is_some() || !relu || !is_read_by_one_convolution(graph, id);
            self.layers.push(Layer::Norm { norm, input, residual, relu, stored, output: id });
            return Ok(());
        }
        if fusions.absorbed.contains(&id) {
            return Ok(());
        }
        if node.op == Op::Linear && !matches!(graph.nodes()[input].op, Op::GlobalAvgPool | Op::Linear) {
            return Err(Error::Graph(format!("{}: a linear layer must follow global average pooling", node.name)));
        }
        match node.op {
            Op::Input => {}
            Op::Conv { .. } | Op::Linear => {
                let layer = self.conv_layer(graph, id, node, kernels);
                self.convs.push(layer);
                self.layers.push(Layer::Conv { conv: self.convs.len() - 1, input, output: id });
            }
            Op::PadShortcut { stride } => self.layers.push(Layer::PadShortcut { stride, input, output: id }),
            Op::GlobalAvgPool => self.layers.push(Layer::AvgPool { input, output: id }),
            Op::MaxPool { .. } => {
                return Err(Error::Graph(format!("{}: this engine has no max pooling yet", node.name)));
            }
            Op::BatchNorm | Op::Relu | Op::Add => {
                return Err(Error::Graph(format!("{}: {:?} must follow batch norm", node.name, node.op)));
            }
        }
        Ok(())
    }

    fn conv_layer(&mut self, graph: &Graph, id: NodeId, node: &Node, kernels: KernelSet) -> ConvLayer {
        let layout = self.layouts[id];
        let conv = if node.inputs[0] == Graph::INPUT && matches!(layout, Layout::Tiles { .. }) {
            Conv2d::new(self.shapes[Graph::INPUT], node.output, 1, 1, 0)
        } else {
            conv_of(graph, node)
        };
        let (forward, backward) = (Gather::new(&conv, Direction::Forward), Gather::new(&conv, Direction::Backward));
        let mut pack = |gather| {
            let start = self.packed_len;
            self.packed_len += kernels.of(layout).packed_len(gather);
            start..self.packed_len
        };
        let (packed_forward, packed_backward) = (pack(&forward), pack(&backward));
        ConvLayer {
            conv,
            forward,
            backward,
            layout,
            weight: self.tensors.range(id, Role::Weight),
            bias: (node.op == Op::Linear).then(|| self.tensors.range(id, Role::Bias)),
            packed_forward,
            packed_backward,
            norm: None,
        }
    }
}

/// Whether a convolution reads a node's output and nothing else does.
fn is_read_by_one_convolution(graph: &Graph, id: NodeId) -> bool {
    let mut readers = graph.nodes().iter().filter(|node| node.inputs.contains(&id));
    matches!(readers.next(), Some(node) if matches!(node.op, Op::Conv { .. })) && readers.next().is_none()
}

/// The convolution of a convolution node, or of a fully connected layer.
fn conv_of(graph: &Graph, node: &Node) -> Conv2d {
    let from = graph.input_of(node);
    match node.op {
        Op::Conv { kernel, stride, padding } => Conv2d::new(from, node.output, kernel, stride, padding),
        _ => Conv2d::new(Shape::new(from.len(), 1, 1), node.output, 1, 1, 0),
    }
}

/// The one convolution that reads the images.
fn stem(graph: &Graph) -> Result<Conv2d> {
    let mut readers = graph.nodes().iter().filter(|node| node.inputs.contains(&Graph::INPUT));
    match (readers.next(), readers.next()) {
        (Some(node), None) if matches!(node.op, Op::Conv { .. } | Op::Linear) => Ok(conv_of(graph, node)),
        _ => Err(Error::Graph("the images must be read by one convolution and nothing else".into())),
    }
}

/// Layout of each node's output: the head, from the pooling on, is in single precision.
fn layouts(graph: &Graph, kernels: KernelSet) -> Vec<Layout> {
    let mut layouts: Vec<Layout> = Vec::new();
    for node in graph.nodes() {
        let body = kernels.body.layout();
        let from = node.inputs.first().map_or(body, |&input| layouts[input]);
        layouts.push(match node.op {
            Op::GlobalAvgPool | Op::Linear => kernels.head.layout(),
            _ => from,
        });
    }
    layouts
}

/// A batch norm and what follows it.
struct Fusion {
    norm: NodeId,
    residual: Option<NodeId>,
    relu: bool,
}

struct Fusions {
    /// By the last node of each.
    by_last: HashMap<NodeId, Fusion>,
    /// Nodes that are part of one.
    absorbed: std::collections::HashSet<NodeId>,
}

/// Finds, for every batch norm, the addition and the ReLU that nothing else reads in between.
fn fuse(graph: &Graph) -> Fusions {
    let nodes = graph.nodes();
    let only_reader = |id: NodeId| {
        let mut readers = (0..nodes.len()).filter(|&reader| nodes[reader].inputs.contains(&id));
        readers.next().filter(|_| readers.next().is_none())
    };
    let mut fusions = Fusions { by_last: HashMap::new(), absorbed: Default::default() };
    for norm in (0..nodes.len()).filter(|&id| nodes[id].op == Op::BatchNorm) {
        let mut fusion = Fusion { norm, residual: None, relu: false };
        let mut last = norm;
        while let Some(next) = only_reader(last) {
            match nodes[next].op {
                Op::Add if !fusion.relu && fusion.residual.is_none() && nodes[next].inputs[0] == last => {
                    fusion.residual = Some(nodes[next].inputs[1]);
                }
                Op::Relu if !fusion.relu => fusion.relu = true,
                _ => break,
            }
            fusions.absorbed.insert(last);
            last = next;
        }
        fusions.absorbed.insert(last);
        fusions.by_last.insert(last, fusion);
    }
    fusions
}
