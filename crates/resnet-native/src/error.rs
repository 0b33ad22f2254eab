//! What the engine refuses to run.

/// Why the engine cannot run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `RESNET_ISA` names an instruction set that does not exist or that this machine lacks.
    #[error("{0}")]
    Isa(String),
    /// The graph has a layer in a place where the engine cannot run it.
    #[error("{0}")]
    Graph(String),
    /// The batch does not fit the network.
    #[error("{0}")]
    Batch(String),
    /// The update does not fit the network.
    #[error("{0}")]
    Update(String),
    /// Threads could not be started.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// The system's reason.
        reason: String,
    },
}

/// Result with the engine's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
