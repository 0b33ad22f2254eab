//! A trained network with all that using it takes.
//!
//! ```
//! use resnet::arch::{Network, Shape, initial_state};
//! use resnet::data::{Framing, Image, Preprocess, Scratch};
//! use resnet::engine::Options;
//! use resnet::model::Model;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let file = folder.path().join("model.safetensors");
//! let network = Network::named("cifar-resnet8")?;
//! let state = initial_state(&network, 0)?;
//! let preprocessing = Preprocess::ImageMean.without_images(network.input)?.expect("needs no statistics");
//! let classes = (0..10).map(|class| format!("class {class}")).collect();
//! Model::new(network, state, preprocessing, classes)?.save(&file)?;
//!
//! let model = Model::open(&file)?; // or the folder of a run
//! let mut engine = model.engine(Options::default())?;
//! let photograph = Image::new(Shape::new(3, 48, 64), vec![128; 3 * 48 * 64])?;
//! let view = Framing::Fill.view(photograph.shape(), model.network.input);
//! let mut input = vec![0.0; model.network.input.len()];
//! model.preprocessing.render(&photograph, &view, &mut Scratch::default(), &mut input)?;
//! let logits = engine.infer(&input)?;
//! let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("ten classes");
//! println!("{}", model.classes[best]);
//! # Ok(())
//! # }
//! ```
//!
//! Weights from elsewhere do not say everything. A [`Draft`] takes the rest:
//!
//! ```no_run
//! use resnet::arch::Network;
//! use resnet::data::Preprocess;
//! use resnet::model::Draft;
//!
//! # fn main() -> resnet::Result<()> {
//! let mut draft = Draft::open("resnet20-12fca82f.th".as_ref())?;
//! let network = draft.card.network.insert(Network::named("resnet20")?);
//! let statistics = Preprocess::Channel {
//!     mean: Some(vec![0.485, 0.456, 0.406]),
//!     std: Some(vec![0.229, 0.224, 0.225]),
//! };
//! draft.card.preprocessing = statistics.without_images(network.input)?;
//! draft.card.classes = Some((0..10).map(|class| class.to_string()).collect());
//! let model = draft.build()?;
//! # Ok(())
//! # }
//! ```

mod draft;

use std::path::Path;

pub use draft::Draft;

use crate::arch::Network;
use crate::data::Normalizer;
use crate::engine::{self, Engine, Options};
use crate::weights::{Card, Metadata, Provenance, fit, safetensors};
use crate::{Result, StateDict, same_classes};

/// A trained network with all that using it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The network.
    pub network: Network,
    /// Its parameters and running statistics, in the order of its tensors.
    pub state: StateDict,
    /// How images were normalised in training.
    pub preprocessing: Normalizer,
    /// Names of the classes, by label.
    pub classes: Vec<String>,
    /// Where the weights come from.
    pub provenance: Provenance,
}

impl Model {
    /// A model of its parts, of unknown provenance.
    ///
    /// # Errors
    /// When they do not fit each other.
    pub fn new(network: Network, state: StateDict, preprocessing: Normalizer, classes: Vec<String>) -> Result<Self> {
        let state = fit(state, &network.graph()?)?;
        let model = Self { network, state, preprocessing, classes, provenance: Provenance::default() };
        model.card().check()?;
        Ok(model)
    }

    /// The model at `path`: the folder of a run, of which it takes the best weights, or a file of weights
    /// that describes itself, such as a run's `best.safetensors` and `last.safetensors`.
    ///
    /// # Errors
    /// When it cannot be read, is damaged or does not say everything; a [`Draft`] takes what is missing.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Draft::open(path.as_ref())?.build()
    }

    /// Replaces the file at `path` by this model: ordinary safetensors, with a [`Card`] in its header.
    ///
    /// # Errors
    /// When the parts do not fit each other or the file cannot be written; what was there stays then.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.state.check(&self.network.graph()?)?;
        safetensors::write(path.as_ref(), &self.state, &self.card().metadata()?)
    }

    /// The default engine, with these weights.
    ///
    /// # Errors
    /// When it cannot run the network, the weights do not fit or threads cannot be started.
    pub fn engine(&self, options: Options) -> Result<Box<dyn Engine>> {
        engine::open(&engine::default_name(), self.network.graph()?, &self.state, options)
    }

    /// Checks that data of these `classes` can be measured with the model.
    ///
    /// # Errors
    /// When the names or their order differ; tells which do.
    pub fn check_classes(&self, classes: &[String]) -> Result<()> {
        Ok(same_classes(&self.classes, classes)?)
    }

    fn card(&self) -> Card {
        Card {
            network: Some(self.network.clone()),
            preprocessing: Some(self.preprocessing.clone()),
            classes: Some(self.classes.clone()),
            provenance: self.provenance.clone(),
            other: Metadata::new(),
        }
    }
}
