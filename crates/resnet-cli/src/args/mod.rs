//! Flags that commands share, made from the library's table of settings.

pub mod network;
pub mod precision;
pub mod preprocess;
pub mod training;

use std::ops::Deref;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser, ValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Command};
use resnet::train::{Choice, Group, SETTINGS, Setting, Values};
use toml::{Table, Value};

/// What the flags of some groups of settings make.
pub trait FromSettings: Sized {
    /// The groups.
    const GROUPS: &[Group];

    /// From what was given, as a layer over other settings.
    fn from_layer(layer: Table) -> anyhow::Result<Self>;

    /// Adds what holds between flags.
    fn relate(command: Command) -> Command {
        command
    }
}

/// The flags that make a `T`, to be flattened into a command's arguments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flags<T>(T);

impl<T> Deref for Flags<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: FromSettings> clap::Args for Flags<T> {
    fn augment_args(command: Command) -> Command {
        T::relate(command.args(settings::<T>().map(arg)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: FromSettings> clap::FromArgMatches for Flags<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut layer = Table::new();
        for setting in settings::<T>() {
            if let Some(value) = matches.get_one::<Value>(setting.flag) {
                setting.put(&mut layer, value.clone());
            }
        }
        T::from_layer(layer).map(Self).map_err(|error| clap::Error::raw(ErrorKind::ValueValidation, error))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn settings<T: FromSettings>() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(|setting| T::GROUPS.contains(&setting.group))
}

fn arg(setting: &'static Setting) -> Arg {
    let arg = Arg::new(setting.flag)
        .long(setting.flag)
        .visible_aliases(setting.aliases)
        .value_name(setting.value_name)
        .help(setting.help)
        .help_heading(setting.group.heading())
        .value_parser(parser(setting))
        .ignore_case(true)
        // A negative number is a value, for its setting to refuse or take.
        .allow_negative_numbers(true)
        .allow_hyphen_values(setting.values == Values::Numbers);
    match setting.short {
        Some(short) => arg.short(short),
        None => arg,
    }
}

fn parser(setting: &'static Setting) -> ValueParser {
    let parse = |text: &str| setting.parse(text);
    match setting.values {
        Values::Choice(choices) => names(choices).try_map(move |text| parse(&text)).into(),
        Values::Switch => PossibleValuesParser::new(["true", "false"]).try_map(move |text| parse(&text)).into(),
        _ => parse.into(),
    }
}

/// One of some names, which help lists with what they mean.
fn names(choices: &'static [Choice]) -> PossibleValuesParser {
    let name = |choice: &Choice| PossibleValue::new(choice.name).help(choice.help);
    PossibleValuesParser::new(choices.iter().map(name))
}
