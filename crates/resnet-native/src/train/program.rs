//! A network as training runs it: each fused layer with the layout of what it reads and writes, and the
//! place of its packed weights.

use std::ops::Range;

use resnet_graph::{Graph, NodeId, Shape};

use crate::error::{Error, Result};
use crate::fuse::{Fused, Layer, Norm};
use crate::geometry::{Conv2d, Direction};
use crate::kernels::KernelSet;
use crate::layout::Layout;
use crate::layout::gather::Gather;

/// A convolution, or a fully connected layer as a 1x1 convolution of one pixel.
pub struct ConvLayer {
    /// Its geometry, after im2col where the layout takes the images so.
    pub conv: Conv2d,
    /// What an output pixel reads.
    pub forward: Gather,
    /// What an input pixel's gradient reads.
    pub backward: Gather,
    /// Layout of what it reads and writes.
    pub layout: Layout,
    /// Its weights among the parameters.
    pub weight: Range<usize>,
    /// Its bias among the parameters; only a fully connected layer has one.
    pub bias: Option<Range<usize>>,
    /// Its weights packed for the forward pass.
    pub packed_forward: Range<usize>,
    /// Its weights packed for the gradient with respect to the input.
    pub packed_backward: Range<usize>,
    /// The batch norm that reads it.
    pub norm: Option<usize>,
}

/// A network ready to be planned for a batch size.
pub struct Program {
    /// Fused layers in the order they run; the last gives the logits.
    pub layers: Vec<Layer>,
    /// Shape in which each graph node's output is stored.
    pub shapes: Vec<Shape>,
    /// Layout of each graph node's output.
    pub layouts: Vec<Layout>,
    /// The convolution that reads the images, before im2col.
    pub stem: Conv2d,
    /// Convolutions.
    pub convs: Vec<ConvLayer>,
    /// Batch norms.
    pub norms: Vec<Norm>,
    /// For each batch norm, whether its output is never stored: the one convolution that reads it
    /// recomputes it on load.
    pub recomputed: Vec<bool>,
    /// Floats of all packed weights.
    pub packed_len: usize,
}

impl Program {
    /// Lays the layers of `fused` out for some kernels.
    ///
    /// # Errors
    /// When the network does not end in a fully connected layer: there is nothing to train.
    pub fn new(fused: &Fused, kernels: KernelSet) -> Result<Self> {
        if fused.convs.last().is_none_or(|conv| conv.bias.is_none()) {
            return Err(Error::Graph("a network to train must end in a linear layer".into()));
        }
        let stem = *fused.stem();
        let mut shapes = fused.shapes.clone();
        shapes[Graph::INPUT] = kernels.body.stem(&stem).input();
        let layouts = layouts(fused, kernels);
        let recomputed = fused.layers.iter().filter_map(|layer| match *layer {
            Layer::Norm { residual, relu, output, .. } => {
                Some(residual.is_none() && relu && is_read_by_one_convolution(fused, output))
            }
            _ => None,
        });
        let mut program = Self {
            recomputed: recomputed.collect(),
            layers: fused.layers.clone(),
            shapes,
            stem,
            convs: Vec::new(),
            norms: fused.norms.clone(),
            packed_len: 0,
            layouts,
        };
        for layer in &fused.layers {
            if let Layer::Conv { conv, output, .. } = *layer {
                let conv = program.conv_layer(&fused.convs[conv], output, kernels);
                program.convs.push(conv);
            }
        }
        Ok(program)
    }

    fn conv_layer(&mut self, fused: &crate::fuse::Conv, output: NodeId, kernels: KernelSet) -> ConvLayer {
        let layout = self.layouts[output];
        let reads_images = fused.input == Graph::INPUT;
        let conv = if reads_images { kernels.body.stem(&fused.conv) } else { fused.conv };
        let (forward, backward) = (Gather::new(&conv, Direction::Forward), Gather::new(&conv, Direction::Backward));
        let mut pack = |gather| {
            let start = self.packed_len;
            self.packed_len += kernels.of(layout).packed_len(gather);
            start..self.packed_len
        };
        let (packed_forward, packed_backward) = (pack(&forward), pack(&backward));
        let (weight, bias) = (fused.weight.clone(), fused.bias.clone());
        ConvLayer { conv, forward, backward, layout, weight, bias, packed_forward, packed_backward, norm: fused.norm }
    }
}

/// Whether a convolution, not a fully connected layer, reads a value and nothing else does.
fn is_read_by_one_convolution(fused: &Fused, value: NodeId) -> bool {
    let mut readers = fused.readers(value);
    let is_convolution = |layer: &Layer| matches!(*layer, Layer::Conv { conv, .. } if fused.convs[conv].bias.is_none());
    readers.next().is_some_and(is_convolution) && readers.next().is_none()
}

/// Layout of each graph node's value: the head, from the pooling on, is in single precision.
fn layouts(fused: &Fused, kernels: KernelSet) -> Vec<Layout> {
    let mut layouts = vec![kernels.body.layout(); fused.shapes.len()];
    for layer in &fused.layers {
        let is_head = match *layer {
            Layer::AvgPool { .. } => true,
            Layer::Conv { conv, .. } => fused.convs[conv].bias.is_some(),
            _ => false,
        };
        if is_head {
            layouts[layer.output()] = kernels.head.layout();
        }
    }
    layouts
}
