//! A program laid out for a group of images: the steps of the forward and backward batch, and where in the
//! arena each value lives, from the step that makes it to the last that reads it.

use crate::fuse::Layer;
use crate::memory::{Buffer, Lifetime, place};
use crate::train::program::Program;
use resnet_graph::{Graph, NodeId};

/// One step of the forward batch.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// What to run.
    pub layer: Layer,
    /// The layer's first input.
    pub input: Read<Buffer>,
    /// What a batch norm adds.
    pub residual: Option<Buffer>,
    /// The layer's output.
    pub output: Buffer,
}

/// Where what a layer reads comes from: a place of its own, or others from which it is recomputed on load.
#[derive(Clone, Copy, Debug)]
pub enum Read<T> {
    /// A place of its own.
    Stored(T),
    /// A batch norm of `input`, rectified.
    Normalized { norm: usize, input: T },
    /// The gradient of a batch norm's input, from the `gradient` of its output, masked by the ReLU.
    NormGradient { norm: usize, gradient: T, input: T },
}

impl<T: Copy> Read<T> {
    /// The places read, one of them twice where there is one.
    pub fn places(self) -> [T; 2] {
        match self {
            Self::Stored(place) => [place; 2],
            Self::Normalized { input, .. } => [input; 2],
            Self::NormGradient { gradient, input, .. } => [gradient, input],
        }
    }

    fn map<U>(self, mut place: impl FnMut(T) -> U) -> Read<U> {
        match self {
            Self::Stored(value) => Read::Stored(place(value)),
            Self::Normalized { norm, input } => Read::Normalized { norm, input: place(input) },
            Self::NormGradient { norm, gradient, input } => {
                Read::NormGradient { norm, gradient: place(gradient), input: place(input) }
            }
        }
    }
}

/// One step of the backward batch.
#[derive(Clone, Copy, Debug)]
pub enum Backward {
    /// Gradients of a convolution.
    Conv(ConvGradients),
    /// Gradient of a batch norm, up to what is recomputed on load, where no convolution gave the `gradient` of its output.
    Norm { reduce: Reduce<Buffer>, gradient: Buffer },
    /// Gradient of an option A shortcut.
    PadShortcut { stride: usize, input: NodeId, output: NodeId, output_gradient: Buffer, input_gradient: Buffer },
    /// Gradient of the average pooling.
    AvgPool { input: NodeId, output_gradient: Buffer, input_gradient: Buffer },
}

/// weight gradient of a convolution and, unless it reads the images, by its input.
#[derive(Clone, Copy, Debug)]
pub struct ConvGradients {
    /// Index into [`Program::convs`].
    pub conv: usize,
    /// What it read.
    pub input: Read<Buffer>,
    /// The gradient of what it gave.
    pub output_gradient: Read<Buffer>,
    /// Where the gradient with respect to what it read goes.
    pub input_gradient: Option<InputGradient>,
}

/// What becomes of the gradient of a batch norm's output: it is masked by the ReLU, which makes it that of the residual,
/// and summed.
#[derive(Clone, Copy, Debug)]
pub struct Reduce<T> {
    /// The batch norm.
    pub norm: usize,
    /// What it read.
    pub input: T,
    /// What masks.
    pub mask: Rectifier<T>,
}

impl<T: Copy> Reduce<T> {
    /// The tensors that are read for it; one of them twice where there is one.
    pub fn places(self) -> [T; 2] {
        [self.input, if let Rectifier::OfSum(sum) = self.mask { sum } else { self.input }]
    }

    fn map<U>(self, place: impl Fn(T) -> U) -> Reduce<U> {
        let mask = match self.mask {
            Rectifier::None => Rectifier::None,
            Rectifier::OfInput => Rectifier::OfInput,
            Rectifier::OfSum(sum) => Rectifier::OfSum(place(sum)),
        };
        Reduce { norm: self.norm, input: place(self.input), mask }
    }
}

/// The ReLU after a batch norm, for its gradient.
#[derive(Clone, Copy, Debug)]
pub enum Rectifier<T> {
    /// There is none.
    None,
    /// Of the normalised input alone, which is recomputed.
    OfInput,
    /// Of its sum with a shortcut, kept here.
    OfSum(T),
}

/// Where a convolution's gradient with respect to its input goes.
#[derive(Clone, Copy, Debug)]
pub struct InputGradient {
    /// Its place.
    pub buffer: Buffer,
    /// Whether another reader of the input has left its part there.
    pub accumulate: bool,
    /// What becomes of it, where a batch norm gave the input and this completes the gradient.
    pub reduce: Option<Reduce<Buffer>>,
}

impl ConvGradients {
    /// What becomes of the gradient with respect to the input, where a batch norm gave that and this completes it.
    pub fn reduce(&self) -> Option<Reduce<Buffer>> {
        self.input_gradient.and_then(|gradient| gradient.reduce)
    }
}

impl Backward {
    /// The batch norm whose sums this step takes.
    pub fn reduced_norm(&self) -> Option<usize> {
        match self {
            Self::Conv(step) => step.reduce(),
            Self::Norm { reduce, .. } => Some(*reduce),
            Self::PadShortcut { .. } | Self::AvgPool { .. } => None,
        }
        .map(|reduce| reduce.norm)
    }
}

/// The steps and the arena they need.
pub struct Plan {
    /// The images.
    pub input: Buffer,
    /// Forward steps in order.
    pub forward: Vec<Forward>,
    /// Backward steps in order, with the graph node whose gradient each takes.
    pub backward: Vec<(NodeId, Backward)>,
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
    values: Vec<Option<Read<StorageId>>>,
    /// Where each graph node's gradient is.
    gradients: Vec<Option<Read<StorageId>>>,
    /// The backward step that wrote it last, where that is a convolution's.
    writers: Vec<Option<usize>>,
    drafts: Vec<(NodeId, Draft)>,
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
            drafts: Vec::new(),
        }
    }

    fn plan(mut self) -> Plan {
        let layers = &self.program.layers;
        self.values[Graph::INPUT] = Some(Read::Stored(self.allocate(Graph::INPUT, 0)));
        for (step, layer) in layers.iter().enumerate() {
            for input in layer.inputs() {
                self.read(input, step);
            }
            self.values[layer.output()] = Some(match *layer {
                Layer::Norm { norm, input, .. } if self.program.recomputed[norm] => {
                    Read::Normalized { norm, input: self.stored(input, step) }
                }
                _ => Read::Stored(self.allocate(layer.output(), step)),
            });
        }
        let logits = layers[layers.len() - 1].output();
        let loss_step = layers.len();
        self.read(logits, loss_step);
        let logits_gradient = self.allocate(logits, loss_step);
        self.gradients[logits] = Some(Read::Stored(logits_gradient));
        for (step, layer) in (loss_step + 1..).zip(layers.iter().rev()) {
            self.backward_step(*layer, step);
        }
        let (buffers, arena_len) = place(&self.storages);
        let read = |id: NodeId| self.values[id].expect("every value is planned").map(|id| buffers[id]);
        let value = |id: NodeId| read(id).places()[0];
        let forward = |layer: &Layer| {
            let mut inputs = layer.inputs();
            let input = read(inputs.next().expect("every layer has an input"));
            Forward { layer: *layer, input, residual: inputs.next().map(value), output: value(layer.output()) }
        };
        let is_run = |layer: &&Layer| !matches!(layer, Layer::Norm { norm, .. } if self.program.recomputed[*norm]);
        Plan {
            input: value(Graph::INPUT),
            forward: layers.iter().filter(is_run).map(forward).collect(),
            backward: self.drafts.iter().map(|(node, draft)| (*node, draft.finish(&buffers))).collect(),
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
    fn read(&mut self, node: NodeId, step: usize) -> Read<StorageId> {
        let read = self.values[node].expect("a value is made before it is read");
        read.map(|id| self.keep(id, step))
    }

    /// The same for a value with a place of its own.
    fn stored(&mut self, node: NodeId, step: usize) -> StorageId {
        match self.read(node, step) {
            Read::Stored(id) => id,
            other => unreachable!("only convolutions recompute values on load, found {other:?}"),
        }
    }

    fn keep(&mut self, id: StorageId, step: usize) -> StorageId {
        self.storages[id].last = self.storages[id].last.max(step);
        id
    }

    fn backward_step(&mut self, layer: Layer, step: usize) {
        let gradient = self.gradients[layer.output()].expect("a reader of every value comes after it");
        let output_gradient = gradient.map(|id| self.keep(id, step));
        let [gradient, _] = output_gradient.places();
        let draft = match layer {
            Layer::Conv { conv, input, .. } => {
                let value = self.read(input, step);
                let input_gradient = (input != Graph::INPUT).then(|| match self.gradients[input] {
                    Some(read) => (self.keep(read.places()[0], step), true),
                    None => (self.new_gradient(input, step), false),
                });
                self.writers[input] = Some(self.drafts.len());
                Draft::Conv { conv, input: value, output_gradient, input_gradient, reduce: None }
            }
            Layer::Norm { norm, input, residual, relu, output, .. } => {
                let value = self.stored(input, step);
                let mask = match (relu, residual) {
                    (false, _) => Rectifier::None,
                    (true, None) => Rectifier::OfInput,
                    (true, Some(_)) => Rectifier::OfSum(self.stored(output, step)),
                };
                debug_assert!(self.gradients[input].is_none(), "a batch norm is the one reader of its input");
                self.gradients[input] = Some(Read::NormGradient { norm, gradient, input: value });
                if let Some(residual) = residual {
                    // The masked gradient is the residual's; what else reads the residual adds to it.
                    debug_assert!(self.gradients[residual].is_none(), "the addition is a value's last reader");
                    self.gradients[residual] = Some(Read::Stored(gradient));
                }
                let norm = Reduce { norm, input: value, mask };
                let writer = self.writers[output].map(|index| &mut self.drafts[index].1);
                if let Some(Draft::Conv { reduce, .. }) = writer {
                    *reduce = Some(norm);
                    return;
                }
                Draft::Norm { reduce: norm, gradient }
            }
            Layer::PadShortcut { stride, input, output } => {
                let input_gradient = self.new_gradient(input, step);
                Draft::PadShortcut { stride, input, output, output_gradient: gradient, input_gradient }
            }
            Layer::AvgPool { input, .. } => {
                let input_gradient = self.new_gradient(input, step);
                Draft::AvgPool { input, output_gradient: gradient, input_gradient }
            }
        };
        self.drafts.push((layer.output(), draft));
    }

    fn new_gradient(&mut self, node: NodeId, step: usize) -> StorageId {
        let id = self.allocate(node, step);
        debug_assert!(self.gradients[node].is_none(), "only convolutions add to a gradient");
        self.gradients[node] = Some(Read::Stored(id));
        id
    }
}

/// A backward step whose buffers have no place yet.
enum Draft {
    Conv {
        conv: usize,
        input: Read<StorageId>,
        output_gradient: Read<StorageId>,
        input_gradient: Option<(StorageId, bool)>,
        reduce: Option<Reduce<StorageId>>,
    },
    Norm {
        reduce: Reduce<StorageId>,
        gradient: StorageId,
    },
    PadShortcut {
        stride: usize,
        input: NodeId,
        output: NodeId,
        output_gradient: StorageId,
        input_gradient: StorageId,
    },
    AvgPool {
        input: NodeId,
        output_gradient: StorageId,
        input_gradient: StorageId,
    },
}

impl Draft {
    fn finish(&self, buffers: &[Buffer]) -> Backward {
        match *self {
            Self::Conv { conv, input, output_gradient, input_gradient, reduce } => Backward::Conv(ConvGradients {
                conv,
                input: input.map(|id| buffers[id]),
                output_gradient: output_gradient.map(|id| buffers[id]),
                input_gradient: input_gradient.map(|(id, accumulate)| InputGradient {
                    buffer: buffers[id],
                    accumulate,
                    reduce: reduce.map(|reduce| reduce.map(|id| buffers[id])),
                }),
            }),
            Self::Norm { reduce, gradient } => {
                Backward::Norm { reduce: reduce.map(|id| buffers[id]), gradient: buffers[gradient] }
            }
            Self::PadShortcut { stride, input, output, output_gradient, input_gradient } => Backward::PadShortcut {
                stride,
                input,
                output,
                output_gradient: buffers[output_gradient],
                input_gradient: buffers[input_gradient],
            },
            Self::AvgPool { input, output_gradient, input_gradient } => Backward::AvgPool {
                input,
                output_gradient: buffers[output_gradient],
                input_gradient: buffers[input_gradient],
            },
        }
    }
}
