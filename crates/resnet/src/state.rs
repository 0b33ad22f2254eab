//! Named tensors: what crosses between engines, files and other frameworks.

use std::fmt;

use resnet_graph::Graph;

/// A dense row-major tensor of `f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl Tensor {
    /// A tensor of `shape` over `data`; `None` when their sizes differ.
    pub fn new(shape: Vec<usize>, data: Vec<f32>) -> Option<Self> {
        (values_in(&shape)? == data.len()).then_some(Self { shape, data })
    }

    /// A tensor of one repeated value.
    pub fn full(shape: Vec<usize>, value: f32) -> Self {
        let len = shape.iter().product();
        Self { shape, data: vec![value; len] }
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Values in row-major order.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Values in row-major order, to change.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// The values, without the shape.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }

    /// The tensor, borrowed.
    pub fn view(&self) -> TensorView<'_> {
        TensorView { shape: &self.shape, data: &self.data }
    }
}

/// A dense row-major tensor of `f32` that lies elsewhere, such as in an engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorView<'a> {
    shape: &'a [usize],
    data: &'a [f32],
}

impl<'a> TensorView<'a> {
    /// A tensor of `shape` over `data`; `None` when their sizes differ.
    pub fn new(shape: &'a [usize], data: &'a [f32]) -> Option<Self> {
        (values_in(shape)? == data.len()).then_some(Self { shape, data })
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Values in row-major order.
    pub fn data(&self) -> &'a [f32] {
        self.data
    }

    /// A copy of its own.
    pub fn to_tensor(&self) -> Tensor {
        Tensor { shape: self.shape.to_vec(), data: self.data.to_vec() }
    }
}

/// Number of values of a tensor; `None` beyond what can be counted.
fn values_in(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |values, &extent| values.checked_mul(extent))
}

/// Tensors by name that lie elsewhere: a state without a copy of it. Each name stands once.
pub type StateView<'a> = Vec<(String, TensorView<'a>)>;

/// Tensors by name, in the order they were inserted. Names and layouts are PyTorch's, with
/// torchvision's spelling (`layer1.0.downsample.0.weight`, `fc.weight`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateDict {
    entries: indexmap::IndexMap<String, Tensor>,
}

impl StateDict {
    /// A state with no tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor; gives back the one it replaces.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) -> Option<Tensor> {
        self.entries.insert(name.into(), tensor)
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.entries.get(name)
    }

    /// Names and tensors, in order of insertion.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The tensors, borrowed, in order of insertion.
    pub fn view(&self) -> StateView<'_> {
        self.iter().map(|(name, tensor)| (name.to_owned(), tensor.view())).collect()
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Checks that this is exactly the state of `graph`: every tensor there, of the right shape, and
    /// none besides.
    ///
    /// # Errors
    /// Lists all that is missing, extra or of another shape.
    pub fn check(&self, graph: &Graph) -> Result<(), StateMismatch> {
        let mut mismatch = StateMismatch::default();
        let mut known = std::collections::HashSet::new();
        let tensors = graph.tensors();
        for spec in &tensors {
            match self.get(&spec.name) {
                None => mismatch.missing.push(spec.name.clone()),
                Some(tensor) if tensor.shape() != spec.shape => {
                    mismatch.reshaped.push((spec.name.clone(), spec.shape.clone(), tensor.shape().to_vec()));
                }
                Some(_) => {}
            }
            known.insert(spec.name.as_str());
        }
        mismatch.extra = self.iter().map(|(name, _)| name).filter(|&n| !known.contains(n)).map(Into::into).collect();
        if mismatch == StateMismatch::default() { Ok(()) } else { Err(mismatch) }
    }
}

impl FromIterator<(String, Tensor)> for StateDict {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(iter: I) -> Self {
        Self { entries: iter.into_iter().collect() }
    }
}

impl From<StateView<'_>> for StateDict {
    fn from(view: StateView<'_>) -> Self {
        view.into_iter().map(|(name, tensor)| (name, tensor.to_tensor())).collect()
    }
}

impl IntoIterator for StateDict {
    type Item = (String, Tensor);
    type IntoIter = indexmap::map::IntoIter<String, Tensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

/// How a state differs from what a network needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateMismatch {
    /// Needed, not there.
    pub missing: Vec<String>,
    /// There, not needed.
    pub extra: Vec<String>,
    /// Name, shape needed, shape found.
    pub reshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl std::error::Error for StateMismatch {}

impl fmt::Display for StateMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the tensors do not fit the network")?;
        if !self.missing.is_empty() {
            write!(f, "\n  missing: {}", self.missing.join(", "))?;
        }
        if !self.extra.is_empty() {
            write!(f, "\n  extra: {}", self.extra.join(", "))?;
        }
        for (name, expected, found) in &self.reshaped {
            write!(f, "\n  {name}: expected shape {expected:?}, found {found:?}")?;
        }
        Ok(())
    }
}
