//! Fused layers: a network as the engine runs it, before anything is laid out.
//!
//! Batch norm takes the addition and the ReLU that follow it along. Training and inference each plan
//! memory and kernels from this one description.

use std::ops::Range;

use resnet_graph::{Graph, Node, NodeId, Op, Role, Shape, TensorTable};

use crate::error::{Error, Result};
use crate::geometry::Conv2d;

/// Added to batch norm's variance, as PyTorch's default.
pub const NORM_EPS: f64 = 1e-5;

/// A convolution, or a fully connected layer as a 1x1 convolution of one pixel.
pub struct Conv {
    /// Its geometry.
    pub conv: Conv2d,
    /// The value it reads.
    pub input: NodeId,
    /// Its weights among the parameters.
    pub weight: Range<usize>,
    /// Its bias among the parameters; only a fully connected layer has one.
    pub bias: Option<Range<usize>>,
    /// The batch norm that reads it, and nothing else does: index into [`Fused::norms`].
    pub norm: Option<usize>,
}

/// Batch norm.
#[derive(Clone)]
pub struct Norm {
    /// Shape of its input and output.
    pub shape: Shape,
    /// The convolution it normalises: index into [`Fused::convs`].
    pub conv: usize,
    /// Scale, among the parameters.
    pub weight: Range<usize>,
    /// Shift, among the parameters.
    pub bias: Range<usize>,
    /// Mean, among the running statistics.
    pub running_mean: Range<usize>,
    /// Variance, among the running statistics.
    pub running_var: Range<usize>,
}

impl Norm {
    /// Factor and summand of a channel with the running statistics: `y = factor * x + summand`.
    pub fn running_affine(&self, parameters: &[f32], running: &[f32], channel: usize) -> (f64, f64) {
        let value = |values: &[f32], range: &Range<usize>| f64::from(values[range.start + channel]);
        let factor = value(parameters, &self.weight) / (value(running, &self.running_var) + NORM_EPS).sqrt();
        (factor, value(parameters, &self.bias) - value(running, &self.running_mean) * factor)
    }
}

/// One fused layer; values go by the graph node that gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Convolution or fully connected layer: index into [`Fused::convs`].
    Conv { conv: usize, input: NodeId, output: NodeId },
    /// Batch norm, `+ residual`, ReLU: index into [`Fused::norms`].
    Norm { norm: usize, input: NodeId, residual: Option<NodeId>, relu: bool, output: NodeId },
    /// Option A shortcut.
    PadShortcut { stride: usize, input: NodeId, output: NodeId },
    /// Global average pooling.
    AvgPool { input: NodeId, output: NodeId },
}

impl Layer {
    /// The value it gives.
    pub fn output(&self) -> NodeId {
        match *self {
            Self::Conv { output, .. } | Self::Norm { output, .. } => output,
            Self::PadShortcut { output, .. } | Self::AvgPool { output, .. } => output,
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

/// A network as fused layers.
pub struct Fused {
    /// The layers in the order they run; the last gives the result.
    pub layers: Vec<Layer>,
    /// Convolutions and fully connected layers.
    pub convs: Vec<Conv>,
    /// Batch norms.
    pub norms: Vec<Norm>,
    /// Shape of each graph node's value.
    pub shapes: Vec<Shape>,
    /// All tensors of the state.
    pub tensors: TensorTable,
}

impl Fused {
    /// Fuses the layers of `graph`.
    ///
    /// # Errors
    /// When an addition or a ReLU does not follow a batch norm, a batch norm not a convolution, a fully
    /// connected layer not the pooling, or the images are not read by one convolution alone.
    pub fn new(graph: &Graph) -> Result<Self> {
        let shapes = graph.nodes().iter().map(|node| node.output).collect();
        let tensors = graph.tensors();
        let mut fused = Self { layers: Vec::new(), convs: Vec::new(), norms: Vec::new(), shapes, tensors };
        let mut absorbed = vec![false; graph.nodes().len()];
        let followers: Vec<_> = (0..graph.nodes().len()).map(|id| Followers::of(graph, id, &mut absorbed)).collect();
        for (id, node) in graph.nodes().iter().enumerate() {
            match followers.iter().flatten().find(|followers| followers.last == id) {
                Some(followers) => fused.push_norm(graph, followers)?,
                None if absorbed[id] => {}
                None => fused.push(graph, id, node)?,
            }
        }
        match graph.only_reader(Graph::INPUT).map(|id| graph.nodes()[id].op) {
            Some(Op::Conv { .. }) => Ok(fused),
            _ => Err(Error::Graph("the images must be read by one convolution and nothing else".into())),
        }
    }

    /// The value that the last layer gives.
    pub fn result(&self) -> NodeId {
        self.layers.last().map_or(Graph::INPUT, Layer::output)
    }

    /// The convolution that reads the images.
    pub fn stem(&self) -> &Conv2d {
        let stem = self.convs.iter().find(|conv| conv.input == Graph::INPUT);
        &stem.expect("a fused network has a stem").conv
    }

    /// The layers that read a value.
    pub fn readers(&self, value: NodeId) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(move |layer| layer.inputs().any(|input| input == value))
    }

    fn push_norm(&mut self, graph: &Graph, followers: &Followers) -> Result<()> {
        let Followers { norm, residual, relu, last } = *followers;
        let node = &graph.nodes()[norm];
        let input = node.inputs[0];
        let makes_input = |layer: &Layer| match *layer {
            Layer::Conv { conv, output, .. } if output == input => Some(conv),
            _ => None,
        };
        let conv = self.layers.iter().find_map(makes_input).filter(|_| graph.only_reader(input) == Some(norm));
        let Some(conv) = conv else {
            let message = "batch norm must follow a convolution that nothing else reads";
            return Err(Error::Graph(format!("{}: {message}", node.name)));
        };
        let range = |role| self.tensors.range(norm, role);
        self.norms.push(Norm {
            shape: node.output,
            conv,
            weight: range(Role::NormWeight),
            bias: range(Role::NormBias),
            running_mean: range(Role::RunningMean),
            running_var: range(Role::RunningVar),
        });
        let norm = self.norms.len() - 1;
        self.convs[conv].norm = Some(norm);
        self.layers.push(Layer::Norm { norm, input, residual, relu, output: last });
        Ok(())
    }

    fn push(&mut self, graph: &Graph, id: NodeId, node: &Node) -> Result<()> {
        let refused = |why: String| Err(Error::Graph(format!("{}: {why}", node.name)));
        let input = node.inputs.first().copied().unwrap_or(Graph::INPUT);
        let from = graph.input_of(node);
        match node.op {
            Op::Input => {}
            Op::Conv { kernel, stride, padding } => {
                self.push_conv(id, input, Conv2d::new(from, node.output, kernel, stride, padding));
            }
            Op::Linear if matches!(graph.nodes()[input].op, Op::GlobalAvgPool | Op::Linear) => {
                self.push_conv(id, input, Conv2d::new(Shape::new(from.len(), 1, 1), node.output, 1, 1, 0));
            }
            Op::Linear => return refused("a linear layer must follow global average pooling".into()),
            Op::PadShortcut { stride } => self.layers.push(Layer::PadShortcut { stride, input, output: id }),
            Op::GlobalAvgPool => self.layers.push(Layer::AvgPool { input, output: id }),
            Op::MaxPool { .. } => return refused("this engine has no max pooling yet".into()),
            Op::BatchNorm | Op::Relu | Op::Add => return refused(format!("{:?} must follow batch norm", node.op)),
        }
        Ok(())
    }

    fn push_conv(&mut self, id: NodeId, input: NodeId, conv: Conv2d) {
        let bias = self.tensors.get(id, Role::Bias).map(|bias| bias.range.clone());
        let weight = self.tensors.range(id, Role::Weight);
        self.convs.push(Conv { conv, input, weight, bias, norm: None });
        self.layers.push(Layer::Conv { conv: self.convs.len() - 1, input, output: id });
    }
}

/// A batch norm and what it takes along: the addition and the ReLU that nothing else reads in between.
struct Followers {
    norm: NodeId,
    residual: Option<NodeId>,
    relu: bool,
    last: NodeId,
}

impl Followers {
    /// Those of a node, if it is a batch norm; marks the nodes that are part of it.
    fn of(graph: &Graph, norm: NodeId, absorbed: &mut [bool]) -> Option<Self> {
        let nodes = graph.nodes();
        if nodes[norm].op != Op::BatchNorm {
            return None;
        }
        let mut followers = Self { norm, residual: None, relu: false, last: norm };
        while let Some(next) = graph.only_reader(followers.last) {
            match nodes[next].op {
                Op::Add if !followers.relu && followers.residual.is_none() => {
                    let [branch, shortcut] = nodes[next].inputs[..] else { break };
                    if branch != followers.last {
                        break;
                    }
                    followers.residual = Some(shortcut);
                }
                Op::Relu if !followers.relu => followers.relu = true,
                _ => break,
            }
            absorbed[followers.last] = true;
            followers.last = next;
        }
        absorbed[followers.last] = true;
        Some(followers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stem and a block whose shortcut is a projection.
    fn graph() -> Graph {
        let mut graph = Graph::new(Shape::new(3, 8, 8));
        let conv = graph.conv("conv1", Graph::INPUT, 4, 3, 1);
        let norm = graph.batch_norm("bn1", conv);
        let stem = graph.relu("relu", norm);
        let conv = graph.conv("block.conv1", stem, 4, 3, 1);
        let main = graph.batch_norm("block.bn1", conv);
        let conv = graph.conv("block.downsample.0", stem, 4, 1, 1);
        let side = graph.batch_norm("block.downsample.1", conv);
        let sum = graph.add("block.add", main, side);
        let relu = graph.relu("block.relu", sum);
        let pooled = graph.global_avg_pool("avgpool", relu);
        graph.linear("fc", pooled, 5);
        graph
    }

    #[test]
    fn a_norm_takes_its_addition_and_relu_along() {
        let graph = graph();
        let fused = Fused::new(&graph).expect("a graph the engine can run");
        let node = |name: &str| graph.find(name).expect("a node");
        let norms: Vec<_> = fused.layers.iter().filter(|layer| matches!(layer, Layer::Norm { .. })).collect();
        let norm = |norm, input, residual, relu, output| Layer::Norm { norm, input, residual, relu, output };
        let side = node("block.downsample.1");
        assert_eq!(
            norms,
            [
                &norm(0, node("conv1"), None, true, node("relu")),
                &norm(1, node("block.downsample.0"), None, false, side),
                &norm(2, node("block.conv1"), Some(side), true, node("block.relu")),
            ]
        );
        assert_eq!(fused.convs.iter().map(|conv| conv.norm).collect::<Vec<_>>(), [Some(0), Some(2), Some(1), None]);
        assert_eq!(fused.result(), node("fc"));
    }

    #[test]
    fn every_cut_of_a_network_fuses() {
        let graph = graph();
        for id in 1..graph.nodes().len() {
            let fused = Fused::new(&graph.until(id)).expect("a cut graph");
            assert_eq!(fused.shapes[fused.result()], graph.nodes()[id].output);
        }
    }
}
