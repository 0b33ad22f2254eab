//! Those who train the same network on other images: what stands between a gradient and its update.

use crate::Result;

/// The processes that train one network together, each with its share of every batch.
///
/// Every method is called by all of them at the same point of the loop.
pub trait Peers {
    /// Which of them this one is, from 0.
    fn rank(&self) -> usize;

    /// How many they are.
    fn size(&self) -> usize;

    /// Replaces gradients by their mean over all peers.
    ///
    /// # Errors
    /// When a peer cannot be reached.
    fn average(&mut self, gradients: &mut [f32]) -> Result<()>;

    /// Replaces counts and sums by their sum over all peers.
    ///
    /// # Errors
    /// When a peer cannot be reached.
    fn add_up(&mut self, values: &mut [f64]) -> Result<()>;
}

/// One process, which has nobody to average with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Peers for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn average(&mut self, _gradients: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn add_up(&mut self, _values: &mut [f64]) -> Result<()> {
        Ok(())
    }
}
