//! Engines by name: the one place that opens them.

use super::{Engine, Native, Precision};
use crate::arch::Graph;
use crate::{Error, Result, StateDict};

/// How an engine runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Threads; 0 for one a core. The results are the same for any number.
    pub threads: usize,
    /// Precision of training and inference.
    pub precision: Precision,
}

/// An engine that can be opened.
pub struct EngineChoice {
    /// What settings and flags call it.
    pub name: &'static str,
    /// Opens it for a network with these weights.
    open: fn(Graph, &StateDict, Options) -> Result<Box<dyn Engine>>,
    /// The precision in which it trains fastest on this machine, to the same accuracy.
    fastest: fn() -> Precision,
    /// What somebody who asks for a precision should know about it on this machine.
    note: fn(Precision) -> Result<Option<String>>,
}

/// The engines there are; the first is the default.
pub const ENGINES: [EngineChoice; 1] = [EngineChoice {
    name: "native",
    open: |graph, state, options| Ok(Box::new(Native::new(graph, state, options)?)),
    fastest: Native::fastest_precision,
    note: Native::precision_note,
}];

/// Name of the default engine.
pub fn default_name() -> String {
    ENGINES[0].name.into()
}

/// The precision in which the default engine trains fastest on this machine, to the same accuracy.
pub fn fastest_precision() -> Precision {
    (ENGINES[0].fastest)()
}

/// The engine of that name.
///
/// # Errors
/// When there is none; the message lists those there are.
pub fn named(name: &str) -> Result<&'static EngineChoice> {
    const CHOICES: &[EngineChoice] = &ENGINES;
    CHOICES.iter().find(|engine| engine.name == name).ok_or_else(|| {
        let names: Vec<_> = CHOICES.iter().map(|engine| engine.name).collect();
        Error::Config(format!("unknown engine '{name}': expected {}", names.join(", ")))
    })
}

/// Opens the engine of that name for `graph`, a whole network or a [cut](Graph::until) one, with the
/// weights of `state`.
///
/// # Errors
/// When there is no such engine, it cannot run the network, the state does not fit or threads cannot be
/// started.
pub fn open(name: &str, graph: Graph, state: &StateDict, options: Options) -> Result<Box<dyn Engine>> {
    (named(name)?.open)(graph, state, options)
}

impl EngineChoice {
    /// What somebody who asks for a precision should know about it on this machine, such as that
    /// another one is faster.
    ///
    /// # Errors
    /// When the engine cannot run on this machine as its environment asks.
    pub fn precision_note(&self, precision: Precision) -> Result<Option<String>> {
        (self.note)(precision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_engine_is_refused_with_those_there_are() {
        let message = named("abacus").err().expect("unknown").to_string();
        assert!(message.contains("'abacus'") && message.contains("native"), "{message}");
        assert_eq!(named(&default_name()).expect("known").name, "native");
    }
}
