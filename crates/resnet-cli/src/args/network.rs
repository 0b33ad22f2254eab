//! Which network: the flags that every command naming one shares.

use resnet::arch::Overrides;
use resnet::train::Group;
use toml::Table;

use super::{Flags, FromSettings};

/// What may be changed about a named network.
///
/// The name itself is each command's own: positional where it is the subject, `--model` where a
/// file is.
pub type NetworkArgs = Flags<Overrides>;

/// Help of an argument that names a network.
pub const MODEL: &str = "Network: resnet20, 32, 44, 56, 110, 1202, plain20 to plain110, cifar-resnet<6n+2>, \
                         cifar-plain<6n+2>";

impl FromSettings for Overrides {
    const GROUPS: &[Group] = &[Group::Network];

    fn from_layer(layer: Table) -> anyhow::Result<Self> {
        Ok(layer.try_into()?)
    }
}
