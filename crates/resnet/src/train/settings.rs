//! The settings that have a flag, each defined once: flag, help, values, place in a [`Config`].
//!
//! A program makes its flags from [`SETTINGS`] and lays what they say over other settings with
//! [`Layers`](super::Layers); a [`Config`](super::Config) is checked against the same rows.

use toml::{Table, Value};

use crate::{Error, Result};

/// A setting that has a flag.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its place in a [`Config`](super::Config), for example `optimizer.weight-decay`.
    pub key: &'static str,
    /// Its flag, without dashes.
    pub flag: &'static str,
    /// Its flag of one letter.
    pub short: Option<char>,
    /// What torchvision, timm and others call the flag.
    pub aliases: &'static [&'static str],
    /// What it is about.
    pub group: Group,
    /// What help calls a value.
    pub value_name: &'static str,
    /// What it can be.
    pub values: Values,
    /// What it is, in a line.
    pub help: &'static str,
}

/// What settings are about; in this order in help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The images.
    Data,
    /// Steps and what they minimise.
    Training,
    /// What is measured and kept, and when.
    Records,
    /// How the machine is used.
    Machine,
    /// What is changed about a named network.
    Network,
    /// How images are normalised.
    Preprocessing,
}

/// The values a setting takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Any text.
    Text,
    /// `true` or `false`.
    Switch,
    /// One of these.
    Choice(&'static [Choice]),
    /// A whole number from `min` to `max`.
    Count {
        /// The lowest.
        min: i64,
        /// The highest.
        max: i64,
    },
    /// A number above 0.
    Positive,
    /// A number of at least 0.
    NotNegative,
    /// A number from 0 to below 1.
    Share,
    /// Numbers with commas between them.
    Numbers,
}

/// A value that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its name, in lower case.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
}

/// A number of epochs in place of `iterations`; [`Layers::resolve_with`](super::Layers::resolve_with)
/// turns one into the other.
pub const EPOCHS: Setting = Setting::new(
    "epochs",
    Group::Training,
    "N",
    Values::Positive,
    "Passes over the training images, in place of --iterations; may be 0.5",
);

/// Precisions in which a network is trained or run.
pub const PRECISIONS: &[Choice] = &[
    Choice { name: "f32", help: "single precision throughout" },
    Choice { name: "tf32", help: "activations as sums of two numbers in bf16: 16 bits of mantissa" },
    Choice { name: "bf16", help: "activations in bf16; sums, weights, statistics and the head in single precision" },
];

/// Every setting that has a flag, in the order of help.
pub static SETTINGS: &[Setting] = &[
    Setting::new("data", Group::Data, "NAME|FOLDER", Values::Text, "Data set: a name or a folder").aliases(&[
        "dataset",
        "data-path",
        "data-dir",
    ]),
    Setting::new(
        "validation-images",
        Group::Data,
        "N",
        AT_LEAST_0,
        "Training images held back to evaluate on instead of the test images (5000 in the paper)",
    ),
    Setting::new(
        "augment.crop-padding",
        Group::Data,
        "N",
        AT_LEAST_0,
        "Pixels of padding for the random crop; 0 for no crop",
    )
    .flag("crop-padding"),
    Setting::new(
        "augment.flip",
        Group::Data,
        "true|false",
        Values::Switch,
        "Whether half of the training images are mirrored",
    )
    .flag("flip"),
    EPOCHS,
    Setting::new("iterations", Group::Training, "N", AT_LEAST_1, "Steps; the recipe's milestones are scaled"),
    Setting::new("batch", Group::Training, "N", AT_LEAST_1, "Images of a step").short('b').aliases(&["batch-size"]),
    Setting::new("lr", Group::Training, "X", Values::Positive, "Learning rate").aliases(&["learning-rate"]),
    Setting::new("schedule.kind", Group::Training, "KIND", SCHEDULES, "How the learning rate moves")
        .flag("schedule")
        .aliases(&["sched", "lr-scheduler"]),
    Setting::new("optimizer.kind", Group::Training, "KIND", OPTIMIZERS, "What turns gradients into steps")
        .flag("optimizer")
        .aliases(&["opt"]),
    Setting::new(
        "optimizer.momentum",
        Group::Training,
        "SHARE",
        Values::Share,
        "Share of the last step that sgd keeps",
    )
    .flag("momentum"),
    Setting::new("optimizer.weight-decay", Group::Training, "X", Values::NotNegative, "L2 penalty")
        .flag("weight-decay")
        .aliases(&["wd"]),
    Setting::new(
        "label-smoothing",
        Group::Training,
        "SHARE",
        Values::Share,
        "Share of the target spread over all classes",
    )
    .aliases(&["smoothing"]),
    Setting::new("seed", Group::Training, "N", AT_LEAST_0, "Seed of all that is random"),
    Setting::new("log-interval", Group::Records, "N", AT_LEAST_1, "Iterations between records of the training loss")
        .aliases(&["print-freq"]),
    Setting::new("eval-interval", Group::Records, "N", AT_LEAST_1, "Iterations between evaluations"),
    Setting::new("checkpoint-interval", Group::Records, "N", AT_LEAST_1, "Iterations between checkpoints"),
    Setting::new(
        "precision",
        Group::Machine,
        "NAME",
        Values::Choice(PRECISIONS),
        "Precision [default: the fastest on this machine]",
    ),
    Setting::new(
        "threads",
        Group::Machine,
        "N",
        Values::Count { min: 0, max: 1024 },
        "Threads that compute; 0 for one a core. They do not change the result",
    ),
    Setting::new(
        "workers",
        Group::Machine,
        "N",
        Values::Count { min: 0, max: 1024 },
        "Threads that decode and augment images; 0 to go by the cores. They do not change the result",
    )
    .short('j')
    .aliases(&["num-workers"]),
    Setting::new("shortcut", Group::Network, "KIND", SHORTCUTS, "Shortcuts of a residual network"),
    Setting::new(
        "projection-init",
        Group::Network,
        "KIND",
        PROJECTION_INITS,
        "How the weights of projection shortcuts start",
    ),
    Setting::new("classes", Group::Network, "N", Values::Count { min: 1, max: 1_000_000 }, "Number of classes")
        .aliases(&["num-classes"]),
    Setting::new(
        "in-channels",
        Group::Network,
        "N",
        Values::Count { min: 1, max: 1024 },
        "Channels of an image: 3 for colour, 1 for grey",
    )
    .aliases(&["in-chans"]),
    Setting::new(
        "preprocess.kind",
        Group::Preprocessing,
        "KIND",
        PREPROCESSINGS,
        "How images are normalised, with statistics of the data's training part",
    )
    .flag("preprocess"),
    Setting::new(
        "preprocess.mean",
        Group::Preprocessing,
        "R,G,B",
        Values::Numbers,
        "Mean of each channel, pixels being 0 to 1, for example 0.485,0.456,0.406",
    )
    .flag("mean"),
    Setting::new(
        "preprocess.std",
        Group::Preprocessing,
        "R,G,B",
        Values::Numbers,
        "Standard deviation of each channel, for example 0.229,0.224,0.225",
    )
    .flag("std"),
];

const AT_LEAST_0: Values = Values::Count { min: 0, max: i64::MAX };
const AT_LEAST_1: Values = Values::Count { min: 1, max: i64::MAX };

const SCHEDULES: Values = Values::Choice(&[
    Choice { name: "multi-step", help: "drops at milestones (the paper)" },
    Choice { name: "cosine", help: "falls to 0 along half a cosine" },
    Choice { name: "one-cycle", help: "rises for a while, then falls to almost 0" },
    Choice { name: "plateau", help: "drops when the test error falls no more" },
]);
const OPTIMIZERS: Values = Values::Choice(&[
    Choice { name: "sgd", help: "stochastic gradient descent with momentum" },
    Choice { name: "adam", help: "Adam, with its authors' defaults" },
]);
const SHORTCUTS: Values = Values::Choice(&[
    Choice { name: "a", help: "zero padding where dimensions change, no parameters" },
    Choice { name: "b", help: "projection where dimensions change" },
    Choice { name: "c", help: "projection everywhere" },
]);
const PROJECTION_INITS: Values = Values::Choice(&[
    Choice { name: "he", help: "He normal, like every other convolution" },
    Choice { name: "average", help: "1/N in every weight: the mean of the N input channels" },
]);
const PREPROCESSINGS: Values = Values::Choice(&[
    Choice { name: "pixel-mean", help: "subtract the mean image (the paper)" },
    Choice { name: "channel", help: "subtract each channel's mean and divide by its standard deviation" },
    Choice { name: "image-mean", help: "subtract from each image its own mean" },
]);

impl Setting {
    /// A setting whose flag is its key.
    const fn new(
        key: &'static str,
        group: Group,
        value_name: &'static str,
        values: Values,
        help: &'static str,
    ) -> Self {
        Self { key, flag: key, short: None, aliases: &[], group, value_name, values, help }
    }

    const fn flag(self, flag: &'static str) -> Self {
        Self { flag, ..self }
    }

    const fn short(self, short: char) -> Self {
        Self { short: Some(short), ..self }
    }

    const fn aliases(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    /// The value that the text after its flag gives.
    ///
    /// # Errors
    /// When it is not one of [`values`](Self::values); says what was expected and not of what.
    pub fn parse(&self, text: &str) -> Result<Value> {
        let value = self.values.parse(text)?;
        self.values.check(&value)?;
        Ok(value)
    }

    /// Puts a value at its place in `layer`.
    pub fn put(&self, layer: &mut Table, value: Value) {
        match self.key.split_once('.') {
            None => {
                layer.insert(self.key.into(), value);
            }
            Some((table, name)) => {
                let table = layer.entry(table).or_insert_with(|| Table::new().into());
                if let Value::Table(table) = table {
                    table.insert(name.into(), value);
                }
            }
        }
    }

    /// Its value in `settings`, where they have it.
    pub fn get<'a>(&self, settings: &'a Table) -> Option<&'a Value> {
        match self.key.split_once('.') {
            None => settings.get(self.key),
            Some((table, name)) => settings.get(table)?.get(name),
        }
    }

    /// # Errors
    /// When `settings` give it a value that it cannot have; names it.
    pub(super) fn check(&self, settings: &Table) -> Result<()> {
        let Some(value) = self.get(settings) else { return Ok(()) };
        self.values.check(value).map_err(|error| Error::Config(format!("{} {error}, found {value}", self.key)))
    }
}

impl Group {
    /// Its heading in help.
    pub const fn heading(self) -> &'static str {
        match self {
            Self::Data => "Data",
            Self::Training => "Training",
            Self::Records => "Records",
            Self::Machine => "Machine",
            Self::Network => "Network",
            Self::Preprocessing => "Preprocessing",
        }
    }
}

impl Values {
    fn parse(&self, text: &str) -> Result<Value> {
        let number = |text: &str, what| text.trim().parse().map(Value::Float).map_err(|_| expected(what));
        match self {
            Self::Text => Ok(text.into()),
            Self::Switch => {
                text.to_ascii_lowercase().parse().map(Value::Boolean).map_err(|_| expected("true or false"))
            }
            Self::Choice(choices) => {
                let names = choices.iter().map(|choice| choice.name);
                let found = names.clone().find(|name| name.eq_ignore_ascii_case(text)).map(Value::from);
                found.ok_or_else(|| expected(&names.collect::<Vec<_>>().join(", ")))
            }
            Self::Count { .. } => {
                text.parse().map(Value::Integer).map_err(|error| expected(&format!("a whole number: {error}")))
            }
            Self::Positive | Self::NotNegative | Self::Share => number(text, "a number"),
            Self::Numbers => {
                let numbers = text.split(',').map(|text| number(text, "numbers with commas between them"));
                numbers.collect::<Result<_>>().map(Value::Array)
            }
        }
    }

    /// # Errors
    /// When a number is outside the bounds. Whether it is a number at all is the type's to say.
    fn check(&self, value: &Value) -> Result<()> {
        let (good, bounds) = match (self, value) {
            (&Self::Count { min, max: i64::MAX }, &Value::Integer(count)) => (count >= min, format!("at least {min}")),
            (&Self::Count { min, max }, Value::Integer(count)) => {
                ((min..=max).contains(count), format!("from {min} to {max}"))
            }
            (Self::Positive, &Value::Float(x)) => (x.is_finite() && x > 0.0, "positive".into()),
            (Self::NotNegative, &Value::Float(x)) => (x.is_finite() && x >= 0.0, "at least 0".into()),
            (Self::Share, Value::Float(x)) => ((0.0..1.0).contains(x), "from 0 to below 1".into()),
            _ => return Ok(()),
        };
        if good { Ok(()) } else { Err(Error::Config(format!("must be {bounds}"))) }
    }
}

fn expected(what: &str) -> Error {
    Error::Config(format!("expected {what}"))
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Layers};
    use super::*;

    /// Text that gives a setting another value than the default recipe does.
    fn sample(setting: &Setting) -> &'static str {
        match setting.values {
            Values::Text => "elsewhere",
            Values::Switch => "false",
            Values::Choice(choices) => choices[0].name,
            Values::Count { .. } => "7",
            Values::Positive | Values::NotNegative | Values::Share => "0.25",
            Values::Numbers => "0.5,0.25,0.125",
        }
    }

    fn laid(setting: &Setting, value: Value) -> Result<Config> {
        let mut layer = Table::new();
        if setting.group == Group::Preprocessing {
            layer.insert("preprocess".into(), Table::from_iter([("kind".into(), "channel".into())]).into());
        }
        setting.put(&mut layer, value);
        Layers::new().table(layer).resolve_with(|_| Ok(1280))
    }

    #[test]
    fn each_setting_with_a_flag_is_one_that_a_config_has() {
        for setting in SETTINGS {
            let value = setting.parse(sample(setting)).expect(setting.flag);
            let config = laid(setting, value.clone()).expect(setting.flag);
            let settings = Table::try_from(&config).expect("TOML");
            if setting.key == EPOCHS.key {
                assert_eq!(config.iterations, 3, "a quarter of ten iterations");
            } else {
                assert_eq!(setting.get(&settings), Some(&value), "{}", setting.key);
            }
        }
    }

    #[test]
    fn each_choice_is_one_and_none_is_left_out() {
        for setting in SETTINGS {
            let Values::Choice(choices) = setting.values else { continue };
            for choice in choices {
                laid(setting, choice.name.into()).expect(choice.name);
            }
            // Serde says: unknown variant `?`, expected one of `this`, `that`: in `key`
            let message = laid(setting, "?".into()).expect_err("no choice").to_string();
            let (_, list) = message.split_once("expected ").expect("a list");
            let list = list.split(": in ").next().expect("before the place");
            let known: Vec<_> = list.split('`').skip(1).step_by(2).collect();
            assert_eq!(known, choices.iter().map(|choice| choice.name).collect::<Vec<_>>(), "{message}");
        }
    }

    #[test]
    fn a_flag_and_its_aliases_are_its_own() {
        let mut names: Vec<_> =
            SETTINGS.iter().flat_map(|setting| setting.aliases.iter().chain([&setting.flag])).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn wrong_values_say_what_was_expected() {
        for (flag, text, message) in [
            ("batch", "many", "expected a whole number"),
            ("batch", "0.5", "expected a whole number"),
            ("batch", "99999999999999999999", "number too large"),
            ("batch", "0", "must be at least 1"),
            ("threads", "-1", "must be from 0 to 1024"),
            ("lr", "fast", "expected a number"),
            ("lr", "inf", "must be positive"),
            ("lr", "nan", "must be positive"),
            ("weight-decay", "-1e-4", "must be at least 0"),
            ("momentum", "1", "must be from 0 to below 1"),
            ("flip", "maybe", "expected true or false"),
            ("shortcut", "d", "expected a, b, c"),
            ("mean", "0.5,,0.5", "expected numbers with commas"),
        ] {
            let setting = SETTINGS.iter().find(|setting| setting.flag == flag).expect(flag);
            let found = setting.parse(text).expect_err(text).to_string();
            assert!(found.contains(message), "--{flag} {text}: {found}");
        }
    }
}
