//! The tensors of a network's state, and their one order.

use std::collections::HashMap;
use std::ops::Range;

use crate::{Graph, NodeId, Op};

/// What a tensor of the state is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Weights of a convolution `[out, in, kernel, kernel]` or a fully connected layer `[out, in]`.
    Weight,
    /// Bias of a fully connected layer.
    Bias,
    /// What batch norm multiplies a normalised channel by.
    NormWeight,
    /// What batch norm adds then.
    NormBias,
    /// Batch norm's running mean.
    RunningMean,
    /// Batch norm's running variance.
    RunningVar,
}

impl Role {
    /// Whether an optimizer learns it; the others are running statistics.
    pub const fn is_parameter(self) -> bool {
        !matches!(self, Self::RunningMean | Self::RunningVar)
    }

    /// The end of the tensor's name, as in PyTorch.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Weight | Self::NormWeight => "weight",
            Self::Bias | Self::NormBias => "bias",
            Self::RunningMean => "running_mean",
            Self::RunningVar => "running_var",
        }
    }
}

/// One tensor of a network's state, and where it lies in the flat values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name as in PyTorch's state dict: the node's name, a dot and a suffix.
    pub name: String,
    /// Extents as in PyTorch: `[out, in, kernel, kernel]` for a convolution.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
    /// The layer it belongs to.
    pub node: NodeId,
    /// Range in the flat parameters (and their gradients) or, for a running statistic, in the flat
    /// statistics.
    pub range: Range<usize>,
}

impl TensorSpec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether the tensor holds no value.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

/// All tensors of a network's state.
///
/// Their order is that of the graph's nodes and, within a node, PyTorch's. Flat parameters, gradients
/// and statistics have it too: this table is the one place that says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorTable {
    tensors: Vec<TensorSpec>,
    by_role: HashMap<(NodeId, Role), usize>,
    parameter_len: usize,
    statistics_len: usize,
}

impl TensorTable {
    /// The tensors of `graph`.
    pub fn of(graph: &Graph) -> Self {
        let mut table = Self { tensors: Vec::new(), by_role: HashMap::new(), parameter_len: 0, statistics_len: 0 };
        for (id, node) in graph.nodes().iter().enumerate() {
            let (inputs, outputs) = (graph.input_of(node).channels, node.output.channels);
            match node.op {
                Op::Conv { kernel, .. } => table.push(graph, id, Role::Weight, &[outputs, inputs, kernel, kernel]),
                Op::BatchNorm => {
                    for role in [Role::NormWeight, Role::NormBias, Role::RunningMean, Role::RunningVar] {
                        table.push(graph, id, role, &[outputs]);
                    }
                }
                Op::Linear => {
                    table.push(graph, id, Role::Weight, &[outputs, graph.input_of(node).len()]);
                    table.push(graph, id, Role::Bias, &[outputs]);
                }
                _ => {}
            }
        }
        table
    }

    fn push(&mut self, graph: &Graph, node: NodeId, role: Role, shape: &[usize]) {
        let end = if role.is_parameter() { &mut self.parameter_len } else { &mut self.statistics_len };
        let range = *end..*end + shape.iter().product::<usize>();
        *end = range.end;
        let name = format!("{}.{}", graph.nodes()[node].name, role.suffix());
        self.by_role.insert((node, role), self.tensors.len());
        self.tensors.push(TensorSpec { name, shape: shape.to_vec(), role, node, range });
    }

    /// The tensors in order.
    pub fn iter(&self) -> std::slice::Iter<'_, TensorSpec> {
        self.tensors.iter()
    }

    /// The learned tensors, in order.
    pub fn parameters(&self) -> impl Iterator<Item = &TensorSpec> {
        self.iter().filter(|tensor| tensor.role.is_parameter())
    }

    /// The tensors of one node, in order.
    pub fn of_node(&self, node: NodeId) -> impl Iterator<Item = &TensorSpec> {
        self.iter().filter(move |tensor| tensor.node == node)
    }

    /// A node's tensor of some role, where it has one.
    pub fn get(&self, node: NodeId, role: Role) -> Option<&TensorSpec> {
        Some(&self.tensors[*self.by_role.get(&(node, role))?])
    }

    /// The range of a node's tensor.
    ///
    /// # Panics
    /// When the node has no tensor of that role: a mistake of the caller.
    pub fn range(&self, node: NodeId, role: Role) -> Range<usize> {
        self.get(node, role).unwrap_or_else(|| panic!("node {node} has no {role:?}")).range.clone()
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Number of learned values: the length of flat parameters and gradients.
    pub fn parameter_len(&self) -> usize {
        self.parameter_len
    }

    /// Number of running statistics: the length of the flat ones.
    pub fn statistics_len(&self) -> usize {
        self.statistics_len
    }
}

impl<'a> IntoIterator for &'a TensorTable {
    type Item = &'a TensorSpec;
    type IntoIter = std::slice::Iter<'a, TensorSpec>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl std::ops::Index<usize> for TensorTable {
    type Output = TensorSpec;

    fn index(&self, index: usize) -> &TensorSpec {
        &self.tensors[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;

    fn graph() -> Graph {
        let mut graph = Graph::new(Shape::new(3, 4, 4));
        let conv = graph.conv("conv1", Graph::INPUT, 2, 3, 1);
        let norm = graph.batch_norm("bn1", conv);
        let pooled = graph.global_avg_pool("avgpool", norm);
        graph.linear("fc", pooled, 5);
        graph
    }

    #[test]
    fn parameters_and_statistics_are_each_flat_and_without_gaps() {
        let table = TensorTable::of(&graph());
        let mut ends = [0, 0];
        for tensor in &table {
            let end = &mut ends[usize::from(tensor.role.is_parameter())];
            assert_eq!(tensor.range.start, *end, "{}", tensor.name);
            *end = tensor.range.end;
            assert_eq!(tensor.len(), tensor.shape.iter().product::<usize>(), "{}", tensor.name);
        }
        assert_eq!(ends, [table.statistics_len(), table.parameter_len()]);
        assert_eq!(ends, [2 * 2, 2 * 3 * 9 + 2 * 2 + 5 * 2 + 5]);
    }

    #[test]
    fn names_are_pytorchs() {
        let table = TensorTable::of(&graph());
        let names: Vec<_> = table.iter().map(|tensor| tensor.name.as_str()).collect();
        let norm = ["bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"];
        assert_eq!(names, [&["conv1.weight"][..], &norm, &["fc.weight", "fc.bias"]].concat());
        assert_eq!(table.range(2, Role::NormBias), 56..58);
        assert!(table.get(1, Role::Bias).is_none());
    }
}
