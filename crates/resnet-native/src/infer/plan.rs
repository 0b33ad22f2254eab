//! A program as inference runs it: convolutions that have taken the batch norm, the addition and the ReLU
//! after them along, and where each value lives.

use std::ops::Range;

use crate::geometry::Conv2d;
use crate::layout::{Format, Halo, Pixels, Windows};
use crate::memory::{ALIGN_FLOATS, Buffer};
use crate::train::program::{self, Program};
use resnet_graph::{Graph, NodeId, Shape};

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
    /// Its way over the pixels.
    pub windows: Windows,
    /// Its weights.
    pub weights: Weights,
    /// The batch norm to fold in: index into [`Program::norms`].
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
    /// Convolution, addition and ReLU: index into [`Network::convs`].
    Conv { conv: usize, residual: Option<Buffer>, relu: bool },
    /// Global average pooling of pixels laid out so.
    AvgPool(Pixels),
    /// Fully connected layer: index into [`Network::linears`].
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

/// The layers of a network and the memory that one image takes on its way through them.
pub struct Network {
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
    /// The logits.
    pub logits: Buffer,
    /// Words that an image takes.
    pub arena_len: usize,
    /// Words of packed weights and biases.
    pub packed_len: usize,
}

impl Network {
    /// Lowers `program` for values of `format`.
    pub fn new(program: &Program, format: Format) -> Self {
        let drafts = fuse(program);
        let places = places(program, &drafts, format);
        let mut network = Self {
            image: Pixels::of_image(program.stem.input(), format, halo_of(&program.stem)),
            input: Buffer { offset: 0, len: 0 },
            layers: Vec::new(),
            convs: Vec::new(),
            linears: Vec::new(),
            logits: Buffer { offset: 0, len: 0 },
            arena_len: 0,
            packed_len: 0,
        };
        let buffers = network.place(&drafts, &places);
        for draft in &drafts {
            network.push(draft, &places, &buffers);
        }
        network.input = buffers[Graph::INPUT];
        network.logits = network.layers.last().map_or(network.input, |layer| layer.output);
        network
    }

    fn push(&mut self, draft: &Draft, places: &[Place], buffers: &[Buffer]) {
        let op = match (&draft.kind, places[draft.input], places[draft.output]) {
            (DraftKind::Conv { conv, weights, norm, residual, relu }, Place::Pixels(from), Place::Pixels(to)) => {
                let windows = Windows::new(*conv, from, to);
                let packed = self.reserve(to.blocks() * windows.packed_len);
                let bias = self.reserve(to.blocks() * to.block);
                self.convs.push(Conv { windows, weights: weights.clone(), norm: *norm, packed, bias });
                Op::Conv { conv: self.convs.len() - 1, residual: residual.map(|node| buffers[node]), relu: *relu }
            }
            (DraftKind::AvgPool, Place::Pixels(pixels), _) => Op::AvgPool(pixels),
            (DraftKind::Linear { weight, bias }, ..) => {
                let packed = self.reserve(bias.len() + weight.len());
                self.linears.push(Linear { weight: weight.clone(), bias: bias.clone(), packed });
                Op::Linear(self.linears.len() - 1)
            }
            _ => unreachable!("convolutions and pooling read pixels"),
        };
        self.layers.push(Layer { node: draft.output, op, input: buffers[draft.input], output: buffers[draft.output] });
    }

    /// Room among the packed weights, at a cache line's start.
    fn reserve(&mut self, len: usize) -> Range<usize> {
        let start = self.packed_len;
        self.packed_len += len.next_multiple_of(ALIGN_FLOATS);
        start..start + len
    }

    /// Gives every value a buffer, one that an earlier value of the same layout no longer needs where there is one:
    /// its border of zeros, which is written once, holds for both.
    fn place(&mut self, drafts: &[Draft], places: &[Place]) -> Vec<Buffer> {
        let last_read = |node| {
            let read = drafts.iter().rposition(|draft| draft.inputs().any(|input| input == node));
            read.unwrap_or(drafts.len())
        };
        let mut buffers = vec![Buffer { offset: 0, len: 0 }; places.len()];
        // Each buffer made so far, and the last layer that reads its value.
        let mut made: Vec<(Place, Buffer, usize)> = Vec::new();
        let values = std::iter::once(Graph::INPUT).chain(drafts.iter().map(|draft| draft.output));
        for (step, node) in values.enumerate() {
            // Value `step` is written by layer `step - 1`.
            let free = |(place, _, last): &&mut (Place, Buffer, usize)| *place == places[node] && last + 1 < step;
            let buffer = match made.iter_mut().find(free) {
                Some((_, buffer, last)) => {
                    *last = last_read(node);
                    *buffer
                }
                None => {
                    let buffer = Buffer { offset: self.arena_len, len: places[node].len() };
                    self.arena_len += buffer.len.next_multiple_of(ALIGN_FLOATS);
                    made.push((places[node], buffer, last_read(node)));
                    buffer
                }
            };
            buffers[node] = buffer;
        }
        buffers
    }
}

/// How a value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// As pixels.
    Pixels(Pixels),
    /// As so many floats.
    Vector(usize),
}

impl Place {
    fn len(self) -> usize {
        match self {
            Self::Pixels(pixels) => pixels.image_len(),
            Self::Vector(len) => len,
        }
    }
}

/// A layer before its values have a place.
struct Draft {
    kind: DraftKind,
    input: NodeId,
    output: NodeId,
}

enum DraftKind {
    Conv { conv: Conv2d, weights: Weights, norm: Option<usize>, residual: Option<NodeId>, relu: bool },
    AvgPool,
    Linear { weight: Range<usize>, bias: Range<usize> },
}

impl Draft {
    fn inputs(&self) -> impl Iterator<Item = NodeId> {
        let residual = if let DraftKind::Conv { residual, .. } = self.kind { residual } else { None };
        std::iter::once(self.input).chain(residual)
    }
}

/// The layers of a program, each convolution where its batch norm stood.
fn fuse(program: &Program) -> Vec<Draft> {
    let geometry = |conv: usize, input| if input == Graph::INPUT { program.stem } else { program.convs[conv].conv };
    let mut drafts = Vec::new();
    for layer in &program.layers {
        let conv_of = |conv: usize, input, norm, residual, relu| DraftKind::Conv {
            conv: geometry(conv, input),
            weights: Weights::Learned(program.convs[conv].weight.clone()),
            norm,
            residual,
            relu,
        };
        let (kind, input) = match *layer {
            program::Layer::Conv { conv, input, output } => match &program.convs[conv].bias {
                Some(bias) => {
                    let weight = program.convs[conv].weight.clone();
                    (DraftKind::Linear { weight, bias: bias.clone() }, input)
                }
                None if is_read_by_its_norm_alone(program, output) => continue,
                None => (conv_of(conv, input, None, None, false), input),
            },
            program::Layer::Norm { norm, input: normalized, residual, relu, .. } => {
                let made = program.layers.iter().find_map(|layer| match *layer {
                    program::Layer::Conv { conv, input, output } if output == normalized => Some((conv, input)),
                    _ => None,
                });
                let (conv, input) = made.expect("batch norm follows a convolution");
                (conv_of(conv, input, Some(norm), residual, relu), input)
            }
            program::Layer::PadShortcut { stride, input, output } => {
                let (narrow, wide) = (program.shapes[input], program.shapes[output]);
                let conv = Conv2d::new(narrow, wide, 1, stride, 0);
                let weights = Weights::Shift((wide.channels - narrow.channels) / 2);
                (DraftKind::Conv { conv, weights, norm: None, residual: None, relu: false }, input)
            }
            program::Layer::AvgPool { input, .. } => (DraftKind::AvgPool, input),
        };
        drafts.push(Draft { kind, input, output: layer.output() });
    }
    drafts
}

fn is_read_by_its_norm_alone(program: &Program, conv: NodeId) -> bool {
    let mut readers = program.layers.iter().filter(|layer| layer.inputs().any(|input| input == conv));
    matches!(readers.next(), Some(program::Layer::Norm { residual, .. }) if *residual != Some(conv))
        && readers.next().is_none()
}

fn halo_of(conv: &Conv2d) -> Halo {
    Halo { padding: conv.vertical.padding, stride: conv.vertical.stride }
}

/// How each graph node's value is stored. Between layers all have the same border, so that positions in one are
/// positions in another.
fn places(program: &Program, drafts: &[Draft], format: Format) -> Vec<Place> {
    let halo = drafts.iter().filter(|draft| draft.input != Graph::INPUT).filter_map(|draft| match &draft.kind {
        DraftKind::Conv { conv, .. } => Some(halo_of(conv)),
        _ => None,
    });
    let halo = halo.fold(Halo { padding: 0, stride: 1 }, |most, halo| Halo {
        padding: most.padding.max(halo.padding),
        stride: most.stride.max(halo.stride),
    });
    let pixels = |shape: &Shape| Place::Pixels(Pixels::new(*shape, format, halo));
    let mut places: Vec<Place> = program.shapes.iter().map(pixels).collect();
    places[Graph::INPUT] = Place::Pixels(Pixels::of_image(program.stem.input(), format, halo_of(&program.stem)));
    for draft in drafts {
        let channels = program.shapes[draft.output].channels;
        match draft.kind {
            DraftKind::Conv { .. } => {}
            DraftKind::AvgPool => {
                let Place::Pixels(pixels) = places[draft.input] else { continue };
                places[draft.output] = Place::Vector(pixels.blocks() * pixels.block);
            }
            DraftKind::Linear { .. } => places[draft.output] = Place::Vector(channels),
        }
    }
    places
}
