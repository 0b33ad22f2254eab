//! Exchange formats: reading and writing the weights everyone else uses.

mod card;
mod decode;
mod names;
mod pytorch;
pub mod safetensors;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

pub use card::{Card, Provenance};

use crate::arch::Graph;
use crate::{Error, Result, StateDict};

/// What a file says about its tensors, as text by key (`model`: `resnet20`).
pub type Metadata = BTreeMap<String, String>;

/// Tensors and what their file says about them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    /// The tensors.
    pub state: StateDict,
    /// What the file says about them; only safetensors files say anything.
    pub metadata: Metadata,
}

/// Reads a network's weights from a safetensors or PyTorch file (`.pth`, `.pt`, `.th`), told apart by
/// their contents, whatever their extension. Nothing a file says is ever run.
///
/// Tensors become `f32` under torchvision's names: wrappers (`module.`), nesting (`state_dict`) and
/// other spellings (`linear`, `shortcut`) are understood, and what is stored beside the network is
/// left out. With `graph`, the result is exactly that network's state, in its order.
///
/// # Errors
/// When the file cannot be read, is damaged or of another kind, or does not fit `graph`: then all
/// missing, extra and wrongly shaped tensors are listed.
pub fn read(path: &Path, graph: Option<&Graph>) -> Result<Weights> {
    let mut start = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    file.take(9).read_to_end(&mut start).map_err(Error::io(path))?;
    let found = if safetensors::recognise(&start) {
        safetensors::read(path)?
    } else if pytorch::recognise(&start) {
        Weights { state: pytorch::read(path)?, metadata: Metadata::new() }
    } else {
        let message = "expected weights: a safetensors file, or one of PyTorch (.pth, .pt, .th)";
        return Err(Error::format(path, message));
    };
    let Weights { state, metadata } = network_of(path, found)?;
    let state = match graph {
        Some(graph) => fit(state, graph)?,
        None => state,
    };
    Ok(Weights { state, metadata })
}

/// The network's tensors under their canonical names. What a file with more in it says about itself,
/// like a checkpoint about its training, is not about them.
fn network_of(path: &Path, Weights { state, metadata }: Weights) -> Result<Weights> {
    let nest = names::nest_of(&state.iter().map(|(name, _)| name).collect::<Vec<_>>());
    let mut renamed = StateDict::new();
    for (name, tensor) in state {
        let Some(canonical) = names::canonical(&name, &nest) else { continue };
        if renamed.insert(canonical.as_str(), tensor).is_some() {
            return Err(Error::format(path, format!("more than one tensor stands for '{canonical}'")));
        }
    }
    if renamed.is_empty() {
        return Err(Error::format(path, "it holds no weights"));
    }
    Ok(Weights { state: renamed, metadata: if nest.is_empty() { metadata } else { Metadata::new() } })
}

/// The state in the order of `graph`, once it is known to fit.
pub(crate) fn fit(state: StateDict, graph: &Graph) -> Result<StateDict> {
    state.check(graph)?;
    Ok(in_order(state, graph))
}

/// A state that fits `graph`, in its order.
pub(crate) fn in_order(state: StateDict, graph: &Graph) -> StateDict {
    let mut tensors: std::collections::HashMap<_, _> = state.into_iter().collect();
    graph.tensors().iter().filter_map(|spec| tensors.remove_entry(&spec.name)).collect()
}
