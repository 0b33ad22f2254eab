//! What may be changed about a named network.

use serde::{Deserialize, Serialize};

use super::{Network, ProjectionInit, Shortcut};
use crate::{Error, Result};

/// Changes to a network; what is absent stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Overrides {
    /// Shortcuts of a residual network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortcut: Option<Shortcut>,
    /// How projections start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projection_init: Option<ProjectionInit>,
    /// Number of classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Channels of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_channels: Option<usize>,
}

impl Overrides {
    /// The network of that name, changed.
    ///
    /// # Errors
    /// When no network has that name, or it is a plain one and shortcuts are given.
    pub fn build(&self, name: &str) -> Result<Network> {
        let mut network = Network::named(name)?;
        self.apply(&mut network)?;
        Ok(network)
    }

    /// Changes `network`.
    ///
    /// # Errors
    /// When it is a plain network and shortcuts are given.
    pub fn apply(&self, network: &mut Network) -> Result<()> {
        if let Some(shortcut) = self.shortcut {
            if network.shortcut.is_none() {
                let message = format!("shortcut: '{}' is a plain network, it has none", network.name);
                return Err(Error::Config(message));
            }
            network.shortcut = Some(shortcut);
        }
        network.projection_init = self.projection_init.unwrap_or(network.projection_init);
        network.classes = self.classes.unwrap_or(network.classes);
        network.input.channels = self.in_channels.unwrap_or(network.input.channels);
        Ok(())
    }
}
