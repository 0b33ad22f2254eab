//! Weights on their way to a model, while not everything is known yet.

use std::path::{Path, PathBuf};

use super::Model;
use crate::arch::Network;
use crate::data::{Normalizer, Splits};
use crate::train::{Kept, RunDir};
use crate::weights::{self, Card, Weights, safetensors};
use crate::{Error, Result, StateDict, same_classes};

/// Name of the classifier's weights, `[classes, features]`.
const CLASSIFIER: &str = "fc.weight";

/// Weights and what is known about them. What their file does not say is put into the
/// [`card`](Draft::card); then [`build`](Draft::build) makes a [`Model`].
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// The tensors, under torchvision's names.
    pub state: StateDict,
    /// What is known about them.
    pub card: Card,
    file: PathBuf,
}

impl Draft {
    /// The weights at `path`: the best ones of a run, or a file of any kind that [`weights::read`] takes.
    ///
    /// # Errors
    /// When they cannot be read, are damaged, or say something about themselves that cannot be true.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() { Self::from_run(&RunDir::open(path)?, Kept::Best) } else { Self::from_file(path) }
    }

    /// Weights of a run. Runs of earlier versions know network and preprocessing, too, but not their
    /// classes.
    ///
    /// # Errors
    /// As [`open`](Draft::open).
    pub fn from_run(run: &RunDir, kept: Kept) -> Result<Self> {
        let mut draft = Self::from_file(&run.weights(kept))?;
        if draft.card.network.is_none() {
            draft.card.network = Some(run.network()?);
        }
        if draft.card.preprocessing.is_none() {
            draft.card.preprocessing = Some(run.normalizer()?);
        }
        Ok(draft)
    }

    fn from_file(path: &Path) -> Result<Self> {
        let Weights { state, metadata } = weights::read(path, None)?;
        let card = Card::of(path, metadata, state.len())?;
        Ok(Self { state, card, file: path.into() })
    }

    /// The file of the weights.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The network of that name, with as many classes as the weights tell apart.
    ///
    /// # Errors
    /// When no network has that name.
    pub fn named(&self, model: &str) -> Result<Network> {
        let mut network = Network::named(model)?;
        if let Some(&classes) = self.state.get(CLASSIFIER).and_then(|classifier| classifier.shape().first()) {
            network.classes = classes;
        }
        Ok(network)
    }

    /// The network that the weights are for.
    ///
    /// # Errors
    /// When it is not known.
    pub fn network(&self) -> Result<&Network> {
        self.known(self.card.network.as_ref(), "what network it is for: give --model", "card.network")
    }

    /// How images were normalised.
    ///
    /// # Errors
    /// When it is not known.
    pub fn preprocessing(&self) -> Result<&Normalizer> {
        let missing = "how images were normalised: give --mean and --std, or --preprocess";
        self.known(self.card.preprocessing.as_ref(), missing, "card.preprocessing")
    }

    /// Names of the classes, by label.
    ///
    /// # Errors
    /// When they are not known.
    pub fn classes(&self) -> Result<&[String]> {
        self.known(self.card.classes.as_deref(), "what its classes are called: give --data", "card.classes")
    }

    fn known<T>(&self, found: Option<T>, missing: &str, field: &str) -> Result<T> {
        found.ok_or_else(|| Error::format(&self.file, format!("it does not say {missing} ({field} in Rust)")))
    }

    /// Brings the tensors into the network's order.
    ///
    /// # Errors
    /// When the network is not known or they are not exactly its tensors: then all missing, extra and
    /// wrongly shaped ones are listed.
    pub fn fit(&mut self) -> Result<()> {
        let graph = self.network()?.graph()?;
        self.state.check(&graph)?;
        self.state = weights::in_order(std::mem::take(&mut self.state), &graph);
        Ok(())
    }

    /// Calls the classes what `data` call them, where it is not known; else checks that the names are the
    /// same.
    ///
    /// # Errors
    /// When the network is not known, or the classes of `data` are others; tells which.
    pub fn name_classes(&mut self, data: &Splits) -> Result<()> {
        let (expected, found) = (self.network()?.classes, data.train.classes());
        if let Some(known) = &self.card.classes {
            return same_classes(known, found).map_err(|error| Error::format(&self.file, error.to_string()));
        }
        if expected != found.len() {
            let message = format!("it tells {expected} classes apart, but {} has {}", data.name, found.len());
            return Err(Error::format(&self.file, message));
        }
        self.card.classes = Some(found.to_vec());
        Ok(())
    }

    /// The model, once all is known.
    ///
    /// # Errors
    /// When something is not known, with what gives it; or when the parts do not fit each other.
    pub fn build(self) -> Result<Model> {
        let (network, preprocessing) = (self.network()?.clone(), self.preprocessing()?.clone());
        let classes = self.classes()?.to_vec();
        let mut model = Model::new(network, self.state, preprocessing, classes)?;
        model.provenance = self.card.provenance;
        Ok(model)
    }

    /// Replaces the file at `path` by these weights and what is known about them.
    ///
    /// # Errors
    /// When they do not fit the network, where it is known, or the file cannot be written; what was there
    /// stays then.
    pub fn save(&self, path: &Path) -> Result<()> {
        if let Some(network) = &self.card.network {
            self.state.check(&network.graph()?)?;
        }
        safetensors::write(path, &self.state, &self.card.metadata()?)
    }
}
