//! Which network: the flags that every command naming one shares.

use clap::ValueEnum;
use resnet::arch::{Network, ProjectionInit, Shortcut};

/// What may be changed about a named network.
///
/// The name itself is each command's own: positional where it is the subject, `--model` where a
/// file is.
#[derive(clap::Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Network")]
pub struct NetworkArgs {
    /// Shortcuts of a residual network
    #[arg(long, value_name = "KIND", ignore_case = true)]
    pub shortcut: Option<ShortcutArg>,
    /// How the weights of projection shortcuts start
    #[arg(long, value_name = "KIND")]
    pub projection_init: Option<ProjectionInitArg>,
    /// Number of classes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub classes: Option<u32>,
    /// Channels of an image: 3 for colour, 1 for grey
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub in_channels: Option<u16>,
}

/// `--shortcut`: table 3 of the paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShortcutArg {
    /// zero padding where dimensions change, no parameters
    A,
    /// projection where dimensions change
    B,
    /// projection everywhere
    C,
}

/// `--projection-init`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProjectionInitArg {
    /// He normal, like every other convolution
    He,
    /// 1/N in every weight: the mean of the N input channels
    Average,
}

impl NetworkArgs {
    /// The network of that name, changed as the flags say.
    pub fn build(&self, name: &str) -> anyhow::Result<Network> {
        let mut network = Network::named(name)?;
        self.apply(&mut network)?;
        Ok(network)
    }

    /// Changes what the flags name and leaves the rest.
    pub fn apply(&self, network: &mut Network) -> anyhow::Result<()> {
        if let Some(shortcut) = self.shortcut {
            anyhow::ensure!(
                network.shortcut.is_some(),
                "--shortcut: '{}' is a plain network, it has none",
                network.name
            );
            network.shortcut = Some(shortcut.into());
        }
        if let Some(init) = self.projection_init {
            network.projection_init = init.into();
        }
        if let Some(classes) = self.classes {
            network.classes = classes as usize;
        }
        if let Some(channels) = self.in_channels {
            network.input.channels = channels.into();
        }
        Ok(())
    }
}

impl From<ShortcutArg> for Shortcut {
    fn from(arg: ShortcutArg) -> Self {
        match arg {
            ShortcutArg::A => Self::A,
            ShortcutArg::B => Self::B,
            ShortcutArg::C => Self::C,
        }
    }
}

impl From<ProjectionInitArg> for ProjectionInit {
    fn from(arg: ProjectionInitArg) -> Self {
        match arg {
            ProjectionInitArg::He => Self::He,
            ProjectionInitArg::Average => Self::Average,
        }
    }
}
