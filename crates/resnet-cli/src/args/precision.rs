//! In which precision: the flag that every command that runs a network shares.

use clap::builder::{TypedValueParser, ValueParser, ValueParserFactory};
use resnet::engine::{self, Precision};
use resnet::train::PRECISIONS;
use toml::Value;

use super::names;

/// `--precision` of a command that does not train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrecisionArg(Precision);

impl ValueParserFactory for PrecisionArg {
    type Parser = ValueParser;

    fn value_parser() -> ValueParser {
        names(PRECISIONS).try_map(|name| Value::from(name).try_into().map(Self)).into()
    }
}

impl From<PrecisionArg> for Precision {
    fn from(arg: PrecisionArg) -> Self {
        arg.0
    }
}

/// Says so where a precision is slow on this machine.
///
/// # Errors
/// When the engine cannot run here as its environment asks.
pub fn check_speed(engine: &str, precision: Precision) -> anyhow::Result<()> {
    if let Some(note) = engine::named(engine)?.precision_note(precision)? {
        eprintln!("note: {note}");
    }
    Ok(())
}
