//! A network as inference runs it: convolutions that have taken the batch norm, the addition and the ReLU
//! after them along, and where each value lives.

use std::ops::Range;

use resnet_graph::{Graph, NodeId, Shape};

use crate::fuse::{self, Fused};
use crate::geometry::Conv2d;
use crate::layout::{Format, Halo, Pixels, Windows};
use crate::memory::{ALIGN_FLOATS, Buffer, Lifetime, place};

/// What a convolution multiplies by.
#[derive(Clone, Debug)]
pub enum Weights {
    /// Learned, among the parameters.
    Learned(Range<usize>),
    /// One from each channel to the same channel so many further on, zero elsewhere: the shortcut of option A.
    Shift(usize),
}

/// A convolution with a bias.
pub struct Conv {
    /// Which windows of pixels it reads and writes.
    pub windows: Windows,
    /// Its weights.
    pub weights: Weights,
    /// The batch norm to fold in: index into [`Fused::norms`].
    pub norm: Option<usize>,
    /// Where its packed weights are.
    pub packed: Range<usize>,
    /// Where its bias is, filled up to whole blocks.
    pub bias: Range<usize>,
}

/// A fully connected layer.
pub struct Linear {
    /// Its weights `[out][in]` among the parameters.
    pub weight: Range<usize>,
    /// Its bias among the parameters.
    pub bias: Range<usize>,
    /// Where both are, the bias and then the weights `[in][out]`.
    pub packed: Range<usize>,
}

/// What a layer does.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Convolution, addition and ReLU: index into [`Plan::convs`].
    Conv { conv: usize, residual: Option<Buffer>, relu: bool },
    /// Global average pooling of pixels laid out so.
    AvgPool(Pixels),
    /// Fully connected layer: index into [`Plan::linears`].
    Linear(usize),
}

/// One layer.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// The graph node whose value it gives.
    pub node: NodeId,
    /// What it does.
    pub op: Op,
    /// What it reads.
    pub input: Buffer,
    /// What it writes.
    pub output: Buffer,
}

/// How a value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// As pixels.
    Pixels(Pixels),
    /// As so many floats.
    Vector(usize),
}

impl Storage {
    fn len(self) -> usize {
        match self {
            Self::Pixels(pixels) => pixels.image_len(),
            Self::Vector(len) => len,
        }
    }

    /// Takes the value of one image, `[channel][height][width]`, from where it is stored.
    pub fn unload(self, words: &[f32], values: &mut [f32]) {
        match self {
            Self::Pixels(pixels) => pixels.unload(words, values),
            // Channels are filled up to whole blocks.
            Self::Vector(_) => values.copy_from_slice(&words[..values.len()]),
        }
    }
}

/// The layers of a network and the memory that one image takes on its way through them.
pub struct Plan {
    /// Layout of the image.
    pub image: Pixels,
    /// The image.
    pub input: Buffer,
    /// Layers in the order they run.
    pub layers: Vec<Layer>,
    /// Convolutions.
    pub convs: Vec<Conv>,
    /// Fully connected layers.
    pub linears: Vec<Linear>,
    /// What the last layer gives.
    pub output: Buffer,
    /// How it is stored.
    pub output_storage: Storage,
    /// Its shape.
    pub output_shape: Shape,
    /// Words that an image takes.
    pub arena_len: usize,
    /// Words of packed weights and biases.
    pub packed_len: usize,
}

impl Plan {
    /// Plans the layers of `fused` for values of `format`.
    pub fn new(fused: &Fused, format: Format) -> Self {
        let steps = steps(fused);
        let storages = storages(fused, &steps, format);
        let (buffers, arena_len) = place_values(&steps, &storages);
        let output = fused.result();
        let mut plan = Self {
            image: Pixels::of_image(fused.stem().input(), format, halo_of(fused.stem())),
            input: buffers[Graph::INPUT],
            layers: Vec::new(),
            convs: Vec::new(),
            linears: Vec::new(),
            output: buffers[output],
            output_storage: storages[output],
            output_shape: fused.shapes[output],
            arena_len,
            packed_len: 0,
        };
        for step in &steps {
            plan.push(step, &storages, &buffers);
        }
        plan
    }

    fn push(&mut self, step: &Step, storages: &[Storage], buffers: &[Buffer]) {
        let op = match (&step.kind, storages[step.input], storages[step.output]) {
            (Kind::Conv { conv, weights, norm, residual, relu }, Storage::Pixels(from), Storage::Pixels(to)) => {
                let windows = Windows::new(*conv, from, to);
                let packed = self.reserve(to.blocks() * windows.packed_len);
                let bias = self.reserve(to.blocks() * to.block);
                self.convs.push(Conv { windows, weights: weights.clone(), norm: *norm, packed, bias });
                Op::Conv { conv: self.convs.len() - 1, residual: residual.map(|node| buffers[node]), relu: *relu }
            }
            (Kind::AvgPool, Storage::Pixels(pixels), _) => Op::AvgPool(pixels),
            (Kind::Linear { weight, bias }, ..) => {
                let packed = self.reserve(bias.len() + weight.len());
                self.linears.push(Linear { weight: weight.clone(), bias: bias.clone(), packed });
                Op::Linear(self.linears.len() - 1)
            }
            _ => unreachable!("convolutions and pooling read pixels"),
        };
        self.layers.push(Layer { node: step.output, op, input: buffers[step.input], output: buffers[step.output] });
    }

    /// Room among the packed weights, at a cache line's start.
    fn reserve(&mut self, len: usize) -> Range<usize> {
        let start = self.packed_len;
        self.packed_len += len.next_multiple_of(ALIGN_FLOATS);
        start..start + len
    }
}

/// A layer before its values have a place.
struct Step {
    kind: Kind,
    input: NodeId,
    output: NodeId,
}

enum Kind {
    Conv { conv: Conv2d, weights: Weights, norm: Option<usize>, residual: Option<NodeId>, relu: bool },
    AvgPool,
    Linear { weight: Range<usize>, bias: Range<usize> },
}

impl Step {
    fn inputs(&self) -> impl Iterator<Item = NodeId> {
        let residual = if let Kind::Conv { residual, .. } = self.kind { residual } else { None };
        std::iter::once(self.input).chain(residual)
    }
}

/// The layers that inference runs: each convolution where its batch norm stands.
fn steps(fused: &Fused) -> Vec<Step> {
    let conv_of = |conv: &fuse::Conv, residual, relu| Kind::Conv {
        conv: conv.conv,
        weights: Weights::Learned(conv.weight.clone()),
        norm: conv.norm,
        residual,
        relu,
    };
    let step = |layer: &fuse::Layer| match *layer {
        fuse::Layer::Conv { conv, input, output } => {
            let conv = &fused.convs[conv];
            let kind = match (&conv.bias, conv.norm) {
                (Some(bias), _) => Kind::Linear { weight: conv.weight.clone(), bias: bias.clone() },
                (None, Some(_)) => return None,
                (None, None) => conv_of(conv, None, false),
            };
            Some(Step { kind, input, output })
        }
        fuse::Layer::Norm { norm, residual, relu, output, .. } => {
            let conv = &fused.convs[fused.norms[norm].conv];
            Some(Step { kind: conv_of(conv, residual, relu), input: conv.input, output })
        }
        fuse::Layer::PadShortcut { stride, input, output } => {
            let (narrow, wide) = (fused.shapes[input], fused.shapes[output]);
            let conv = Conv2d::new(narrow, wide, 1, stride, 0);
            let weights = Weights::Shift((wide.channels - narrow.channels) / 2);
            let kind = Kind::Conv { conv, weights, norm: None, residual: None, relu: false };
            Some(Step { kind, input, output })
        }
        fuse::Layer::AvgPool { input, output } => Some(Step { kind: Kind::AvgPool, input, output }),
    };
    fused.layers.iter().filter_map(step).collect()
}

fn halo_of(conv: &Conv2d) -> Halo {
    Halo { padding: conv.vertical.padding, stride: conv.vertical.stride }
}

/// How each graph node's value is stored. Between layers all have the same border, so that positions in one
/// are positions in another.
fn storages(fused: &Fused, steps: &[Step], format: Format) -> Vec<Storage> {
    let halos = steps.iter().filter(|step| step.input != Graph::INPUT).filter_map(|step| match &step.kind {
        Kind::Conv { conv, .. } => Some(halo_of(conv)),
        _ => None,
    });
    let halo = halos.fold(Halo { padding: 0, stride: 1 }, |most, halo| Halo {
        padding: most.padding.max(halo.padding),
        stride: most.stride.max(halo.stride),
    });
    let pixels = |shape: &Shape| Storage::Pixels(Pixels::new(*shape, format, halo));
    let mut storages: Vec<Storage> = fused.shapes.iter().map(pixels).collect();
    let stem = fused.stem();
    storages[Graph::INPUT] = Storage::Pixels(Pixels::of_image(stem.input(), format, halo_of(stem)));
    for step in steps {
        match step.kind {
            Kind::Conv { .. } => {}
            Kind::AvgPool => {
                let Storage::Pixels(pixels) = storages[step.input] else { continue };
                storages[step.output] = Storage::Vector(pixels.blocks() * pixels.block);
            }
            Kind::Linear { .. } => storages[step.output] = Storage::Vector(fused.shapes[step.output].channels),
        }
    }
    storages
}

/// A buffer for each value that is stored, by graph node, and the words that all take. Values stored in the
/// same way share memory one after another: the border of zeros, written once, holds for all of them.
fn place_values(steps: &[Step], storages: &[Storage]) -> (Vec<Buffer>, usize) {
    let values: Vec<NodeId> = std::iter::once(Graph::INPUT).chain(steps.iter().map(|step| step.output)).collect();
    let last_read = |node| steps.iter().rposition(|step| step.inputs().any(|input| input == node));
    let lifetimes = values.iter().enumerate().map(|(step, &node)| Lifetime {
        len: storages[node].len(),
        // Value `step` is written by layer `step - 1`, and the result is read after all layers.
        first: step,
        last: last_read(node).unwrap_or(steps.len()) + 1,
        kind: Some(storages[node]),
    });
    let (placed, arena_len) = place(&lifetimes.collect::<Vec<_>>());
    let mut buffers = vec![Buffer { offset: 0, len: 0 }; storages.len()];
    values.into_iter().zip(placed).for_each(|(node, buffer)| buffers[node] = buffer);
    (buffers, arena_len)
}
