//! A program laid out for a group of images: the steps of the forward and backward pass, and where in the
//! arena each value lives, from the step that makes it to the last that reads it.

use crate::fuse::Layer;
use crate::kernels::{NormReduction, Operand, ReluMask};
use crate::memory::{Buffer, Lifetime, place};
use crate::train::program::Program;
use resnet_graph::{Graph, NodeId};

/// One step of the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// What to run.
    pub layer: Layer,
    /// The layer's first input.
    pub input: Operand<Buffer, usize>,
    /// What a batch norm adds.
    pub residual: Option<Buffer>,
    /// The layer's output.
    pub output: Buffer,
}

/// One step of the backward pass; memory goes by `P`, a buffer once it has a place.
#[derive(Clone, Copy, Debug)]
pub enum Backward<P> {
    /// Gradients of a convolution.
    Conv(ConvGradients<P>),
    /// Gradient of a batch norm, up to what is recomputed on load, where no convolution gave the `gradient` of its output.
    Norm { reduction: NormReduction<P, usize>, gradient: P },
    /// Gradient of an option A shortcut.
    PadShortcut { stride: usize, input: NodeId, output: NodeId, output_gradient: P, input_gradient: P },
    /// Gradient of the average pooling.
    AvgPool { input: NodeId, output_gradient: P, input_gradient: P },
}

/// The weight gradient of a convolution and, unless it reads the images, the gradient with respect to its input.
#[derive(Clone, Copy, Debug)]
pub struct ConvGradients<P> {
    /// Index into [`Program::convs`].
    pub conv: usize,
    /// What it read.
    pub input: Operand<P, usize>,
    /// The gradient of what it gave.
    pub output_gradient: Operand<P, usize>,
    /// Where the gradient with respect to what it read goes.
    pub input_gradient: Option<InputGradient<P>>,
}

/// Where a convolution's gradient with respect to its input goes.
#[derive(Clone, Copy, Debug)]
pub struct InputGradient<P> {
    /// Its place.
    pub buffer: P,
    /// Whether another reader of the input has left its part there.
    pub accumulate: bool,
    /// What becomes of it, where a batch norm gave the input and this completes the gradient.
    pub reduction: Option<NormReduction<P, usize>>,
}

impl<P: Copy> ConvGradients<P> {
    /// What becomes of the gradient with respect to the input, where a batch norm gave that and this completes it.
    pub fn reduction(&self) -> Option<NormReduction<P, usize>> {
        self.input_gradient.and_then(|gradient| gradient.reduction)
    }
}

impl<P: Copy> Backward<P> {
    /// The batch norm whose sums this step takes.
    pub fn reduced_norm(&self) -> Option<usize> {
        match self {
            Self::Conv(step) => step.reduction(),
            Self::Norm { reduction, .. } => Some(*reduction),
            Self::PadShortcut { .. } | Self::AvgPool { .. } => None,
        }
        .map(|reduction| reduction.norm)
    }

    /// The same step in other memory.
    fn map<Q>(self, place: impl Fn(P) -> Q) -> Backward<Q> {
        let operand = |operand: Operand<P, usize>| operand.of(operand.tensors().map(&place), |norm| norm);
        let reduce = |reduction: NormReduction<P, usize>| reduction.of(reduction.tensors().map(&place), |norm| norm);
        match self {
            Self::Conv(ConvGradients { conv, input, output_gradient, input_gradient }) => {
                Backward::Conv(ConvGradients {
                    conv,
                    input: operand(input),
                    output_gradient: operand(output_gradient),
                    input_gradient: input_gradient.map(|gradient| InputGradient {
                        buffer: place(gradient.buffer),
                        accumulate: gradient.accumulate,
                        reduction: gradient.reduction.map(reduce),
                    }),
                })
            }
            Self::Norm { reduction, gradient } => {
                Backward::Norm { reduction: reduce(reduction), gradient: place(gradient) }
            }
            Self::PadShortcut { stride, input, output, output_gradient, input_gradient } => Backward::PadShortcut {
                stride,
                input,
                output,
                output_gradient: place(output_gradient),
                input_gradient: place(input_gradient),
            },
            Self::AvgPool { input, output_gradient, input_gradient } => Backward::AvgPool {
                input,
                output_gradient: place(output_gradient),
                input_gradient: place(input_gradient),
            },
        }
    }
}

/// The steps and the arena they need.
pub struct Plan {
    /// The images.
    pub input: Buffer,
    /// Forward steps in order.
    pub forward: Vec<Forward>,
    /// Backward steps in order, with the graph node whose gradient each takes.
    pub backward: Vec<(NodeId, Backward<Buffer>)>,
    /// The logits.
    pub logits: Buffer,
    /// The gradient of the logits.
    pub logits_gradient: Buffer,
    /// Floats of the arena.
    pub arena_len: usize,
}

impl Plan {
    /// Lays `program` out.
    pub fn new(program: &Program) -> Self {
        Planner::new(program).plan()
    }
}

/// Index of a value's [`Lifetime`].
type StorageId = usize;

struct Planner<'a> {
    program: &'a Program,
    storages: Vec<Lifetime<()>>,
    /// Where each graph node's output is.
    values: Vec<Option<Operand<StorageId, usize>>>,
    /// Where each graph node's gradient is.
    gradients: Vec<Option<Operand<StorageId, usize>>>,
    /// The backward step that wrote it last, where that is a convolution's.
    writers: Vec<Option<usize>>,
    backward: Vec<(NodeId, Backward<StorageId>)>,
}

impl<'a> Planner<'a> {
    fn new(program: &'a Program) -> Self {
        let nodes = program.shapes.len();
        Self {
            program,
            storages: Vec::new(),
            values: vec![None; nodes],
            gradients: vec![None; nodes],
            writers: vec![None; nodes],
            backward: Vec::new(),
        }
    }

    fn plan(mut self) -> Plan {
        let layers = &self.program.layers;
        self.values[Graph::INPUT] = Some(Operand::Stored(self.allocate(Graph::INPUT, 0)));
        for (step, layer) in layers.iter().enumerate() {
            for input in layer.inputs() {
                self.read(input, step);
            }
            self.values[layer.output()] = Some(match *layer {
                Layer::Norm { norm, input, .. } if self.program.recomputed[norm] => {
                    Operand::Normalized { norm, input: self.stored(input, step) }
                }
                _ => Operand::Stored(self.allocate(layer.output(), step)),
            });
        }
        let logits = layers[layers.len() - 1].output();
        let loss_step = layers.len();
        self.read(logits, loss_step);
        let logits_gradient = self.allocate(logits, loss_step);
        self.gradients[logits] = Some(Operand::Stored(logits_gradient));
        for (step, layer) in (loss_step + 1..).zip(layers.iter().rev()) {
            self.backward_step(*layer, step);
        }
        let (buffers, arena_len) = place(&self.storages);
        let read = |node: NodeId| {
            let value = self.values[node].expect("every value is planned");
            value.of(value.tensors().map(|id| buffers[id]), |norm| norm)
        };
        let value = |node: NodeId| read(node).tensors()[0];
        let forward = |layer: &Layer| {
            let mut inputs = layer.inputs();
            let input = read(inputs.next().expect("every layer has an input"));
            Forward { layer: *layer, input, residual: inputs.next().map(value), output: value(layer.output()) }
        };
        let is_run = |layer: &&Layer| !matches!(layer, Layer::Norm { norm, .. } if self.program.recomputed[*norm]);
        Plan {
            input: value(Graph::INPUT),
            forward: layers.iter().filter(is_run).map(forward).collect(),
            backward: self.backward.iter().map(|(node, step)| (*node, step.map(|id| buffers[id]))).collect(),
            logits: value(logits),
            logits_gradient: buffers[logits_gradient],
            arena_len,
        }
    }

    fn allocate(&mut self, node: NodeId, step: usize) -> StorageId {
        let len = self.program.layouts[node].lane_group_len(self.program.shapes[node]);
        self.storages.push(Lifetime { len, first: step, last: step, kind: None });
        self.storages.len() - 1
    }

    /// Keeps what a node's value is read from until `step`.
    fn read(&mut self, node: NodeId, step: usize) -> Operand<StorageId, usize> {
        let value = self.values[node].expect("a value is made before it is read");
        self.keep_all(value, step)
    }

    /// Keeps a node's value, which has a place of its own, until `step`.
    fn stored(&mut self, node: NodeId, step: usize) -> StorageId {
        match self.read(node, step) {
            Operand::Stored(id) => id,
            other => unreachable!("only convolutions recompute values on load, found {other:?}"),
        }
    }

    fn keep_all(&mut self, operand: Operand<StorageId, usize>, step: usize) -> Operand<StorageId, usize> {
        for id in operand.tensors() {
            self.keep(id, step);
        }
        operand
    }

    fn keep(&mut self, id: StorageId, step: usize) -> StorageId {
        self.storages[id].last = self.storages[id].last.max(step);
        id
    }

    fn backward_step(&mut self, layer: Layer, step: usize) {
        let gradient = self.gradients[layer.output()].expect("a reader of every value comes after it");
        let output_gradient = self.keep_all(gradient, step);
        let [gradient, _] = output_gradient.tensors();
        let backward = match layer {
            Layer::Conv { conv, input, .. } => {
                let value = self.read(input, step);
                let input_gradient = (input != Graph::INPUT).then(|| {
                    let (buffer, accumulate) = match self.gradients[input] {
                        Some(gradient) => (self.keep(gradient.tensors()[0], step), true),
                        None => (self.new_gradient(input, step), false),
                    };
                    InputGradient { buffer, accumulate, reduction: None }
                });
                self.writers[input] = Some(self.backward.len());
                Backward::Conv(ConvGradients { conv, input: value, output_gradient, input_gradient })
            }
            Layer::Norm { norm, input, residual, relu, output, .. } => {
                let value = self.stored(input, step);
                let mask = match (relu, residual) {
                    (false, _) => ReluMask::None,
                    (true, None) => ReluMask::Input,
                    (true, Some(_)) => ReluMask::Output(self.stored(output, step)),
                };
                debug_assert!(self.gradients[input].is_none(), "a batch norm is the one reader of its input");
                self.gradients[input] = Some(Operand::NormGradient { norm, gradient, input: value });
                if let Some(residual) = residual {
                    // The masked gradient is the residual's; what else reads the residual adds to it.
                    debug_assert!(self.gradients[residual].is_none(), "the addition is a value's last reader");
                    self.gradients[residual] = Some(Operand::Stored(gradient));
                }
                let reduction = NormReduction { norm, input: value, mask };
                let writer = self.writers[output].map(|index| &mut self.backward[index].1);
                if let Some(Backward::Conv(ConvGradients { input_gradient: Some(written), .. })) = writer {
                    written.reduction = Some(reduction);
                    return;
                }
                Backward::Norm { reduction, gradient }
            }
            Layer::PadShortcut { stride, input, output } => {
                let input_gradient = self.new_gradient(input, step);
                Backward::PadShortcut { stride, input, output, output_gradient: gradient, input_gradient }
            }
            Layer::AvgPool { input, .. } => {
                let input_gradient = self.new_gradient(input, step);
                Backward::AvgPool { input, output_gradient: gradient, input_gradient }
            }
        };
        self.backward.push((layer.output(), backward));
    }

    fn new_gradient(&mut self, node: NodeId, step: usize) -> StorageId {
        let id = self.allocate(node, step);
        debug_assert!(self.gradients[node].is_none(), "only convolutions add to a gradient");
        self.gradients[node] = Some(Operand::Stored(id));
        id
    }
}
