//! From a name to a network: one rule for each family.

use super::{Block, Network, ProjectionInit, Shape, Shortcut, Stage, Stem};
use crate::{Error, Result};

/// Depths of section 4.2 that go by their short names.
const CIFAR_RESNETS: [usize; 6] = [20, 32, 44, 56, 110, 1202];
const CIFAR_PLAINS: [usize; 5] = [20, 32, 44, 56, 110];

impl Network {
    /// The network of that name, for 3x32x32 images, 10 classes and the family's own shortcuts
    /// (CIFAR: option A).
    ///
    /// Names: `resnet20` `resnet32` `resnet44` `resnet56` `resnet110` `resnet1202`, `plain20` ...
    /// `plain110`, and `cifar-resnet<6n+2>`, `cifar-plain<6n+2>` for any other depth.
    ///
    /// # Errors
    /// When no network has that name; the message lists those that exist.
    pub fn named(name: &str) -> Result<Self> {
        let unknown = || {
            Error::Config(format!(
                "unknown model '{name}': expected resnet20, 32, 44, 56, 110 or 1202, plain20, 32, 44, 56 or 110, \
                 or cifar-resnet<depth> or cifar-plain<depth> with a depth of 6n+2"
            ))
        };
        let split = name.find(|c: char| c.is_ascii_digit()).ok_or_else(unknown)?;
        let (family, depth) = name.split_at(split);
        let depth: usize = depth.parse().map_err(|_| unknown())?;
        match family {
            "resnet" if CIFAR_RESNETS.contains(&depth) => Self::cifar(name, depth, Some(Shortcut::A)),
            "plain" if CIFAR_PLAINS.contains(&depth) => Self::cifar(name, depth, None),
            "cifar-resnet" => Self::cifar(name, depth, Some(Shortcut::A)),
            "cifar-plain" => Self::cifar(name, depth, None),
            _ => Err(unknown()),
        }
    }

    /// Section 4.2: a 3x3 convolution, then 6n layers on maps of 32, 16 and 8 pixels with 16, 32 and
    /// 64 channels, then average pooling and the classifier: 6n+2 layers with weights.
    fn cifar(name: &str, depth: usize, shortcut: Option<Shortcut>) -> Result<Self> {
        const MAX_DEPTH: usize = 6 * 1000 + 2; // bounds what a name can make us allocate
        if !(8..=MAX_DEPTH).contains(&depth) || depth % 6 != 2 {
            return Err(Error::Config(format!("{name}: depth must be 6n+2 between 8 and {MAX_DEPTH}, found {depth}")));
        }
        let blocks = (depth - 2) / 6;
        let stage = |channels, stride| Stage { blocks, channels, stride };
        Ok(Self {
            name: name.into(),
            input: Shape::new(3, 32, 32),
            stem: Stem::Conv3x3 { channels: 16 },
            block: Block::Basic,
            shortcut,
            projection_init: ProjectionInit::He,
            classes: 10,
            stages: vec![stage(16, 1), stage(32, 2), stage(64, 2)],
        })
    }
}
