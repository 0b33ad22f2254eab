//! Recipes, and how settings are laid over each other: recipe < file < flags.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::Config;
use crate::{Error, Result};

/// A way to train, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// What `--recipe` takes.
    pub name: &'static str,
    /// A whole [`Config`] in TOML, with its reasons.
    pub toml: &'static str,
}

/// The recipes there are; the first is the default.
pub const RECIPES: [Recipe; 3] = [
    Recipe { name: "quick", toml: include_str!("recipes/quick.toml") },
    Recipe { name: "fast", toml: include_str!("recipes/fast.toml") },
    Recipe { name: "paper-cifar", toml: include_str!("recipes/paper-cifar.toml") },
];

/// Settings from several places, the later over the earlier.
///
/// A layer need not say all. Where it changes the number of `iterations` and gives no `schedule`, what
/// earlier layers count in iterations is scaled with it: half of `paper-cifar` drops the learning rate
/// at 16k and 24k. Where it gives another `kind` of schedule, optimizer or preprocessing, the earlier
/// one is replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    recipe: Option<String>,
    /// Where each layer comes from, for messages, and what it says.
    layers: Vec<(Option<PathBuf>, Table)>,
}

impl Layers {
    /// No layer but the default recipe.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts from the recipe of that name, whatever the layers name.
    pub fn recipe(mut self, name: &str) -> Self {
        self.recipe = Some(name.into());
        self
    }

    /// Lays a TOML file over the layers so far.
    ///
    /// # Errors
    /// When it cannot be read or is not TOML; names the file and the line.
    pub fn file(mut self, path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let table = text.parse().map_err(|error: toml::de::Error| Error::format(path, error.to_string()))?;
        self.layers.push((Some(path.into()), table));
        Ok(self)
    }

    /// Lays settings of the caller's own over the layers so far.
    pub fn table(mut self, table: Table) -> Self {
        self.layers.push((None, table));
        self
    }

    /// The settings that all layers give together.
    ///
    /// # Errors
    /// When a setting is unknown or means nothing; names it, and the file where it is one's fault.
    pub fn resolve(self) -> Result<Config> {
        let mut settings = base(self.recipe, &self.layers)?;
        let mut config = parse(settings.clone(), None)?;
        let mut at_fault = None;
        for (path, layer) in self.layers {
            lay_over(&mut settings, layer);
            config = parse(settings.clone(), path.as_deref())?;
            // A later layer may put right what an earlier one got wrong.
            at_fault = config.check().err().map(|error| at_fault.unwrap_or((path, error)));
        }
        match at_fault {
            None => Ok(config),
            Some((Some(path), error)) => Err(Error::format(path, error.to_string())),
            Some((None, error)) => Err(error),
        }
    }
}

/// The recipe that `name` or, without, the last layer to name one stands on.
fn base(name: Option<String>, layers: &[(Option<PathBuf>, Table)]) -> Result<Table> {
    let named = layers.iter().rev().find_map(|(_, layer)| layer.get("recipe")).and_then(Value::as_str);
    let name = name.as_deref().or(named).unwrap_or(RECIPES[0].name);
    let recipe = RECIPES.iter().find(|recipe| recipe.name == name).ok_or_else(|| {
        let known = RECIPES.map(|recipe| recipe.name).join(", ");
        Error::Config(format!("unknown recipe '{name}': expected one of {known}"))
    })?;
    recipe.toml.parse().map_err(|error| Error::Config(format!("recipe '{name}': {error}")))
}

fn parse(settings: Table, path: Option<&Path>) -> Result<Config> {
    settings.try_into().map_err(|error: toml::de::Error| {
        // The value has no place in a text any more; the setting's name stands on the last line.
        let message = error.to_string().trim_end().replace('\n', ": ");
        match path {
            Some(path) => Error::format(path, message),
            None => Error::Config(message),
        }
    })
}

/// Lays `layer` over `settings`.
fn lay_over(settings: &mut Table, mut layer: Table) {
    // `model` and `network` say the same thing.
    for (given, replaced) in [("model", "network"), ("network", "model")] {
        if layer.contains_key(given) {
            settings.remove(replaced);
        }
    }
    if layer.get("recipe").is_some_and(Value::is_str) {
        layer.remove("recipe"); // The base is laid already.
    }
    if let (Some(new), None) = (iterations(&layer), layer.get("schedule"))
        && let Some(old) = iterations(settings)
        && let Some(Value::Table(schedule)) = settings.get_mut("schedule")
    {
        for name in ["milestones", "warmup"] {
            if let Some(value) = schedule.get_mut(name) {
                scale(value, new, old);
            }
        }
    }
    merge(settings, layer);
}

/// The number of iterations, where it is one to scale by.
fn iterations(settings: &Table) -> Option<i64> {
    settings.get("iterations").and_then(Value::as_integer).filter(|&iterations| iterations > 0)
}

/// Scales whole numbers, also in arrays, by `new / old`, to the nearest; others are left alone.
fn scale(value: &mut Value, new: i64, old: i64) {
    match value {
        Value::Integer(count) => {
            let scaled = (i128::from(*count) * i128::from(new) + i128::from(old) / 2) / i128::from(old);
            *count = i64::try_from(scaled).unwrap_or(i64::MAX);
        }
        Value::Array(values) => values.iter_mut().for_each(|value| scale(value, new, old)),
        _ => {}
    }
}

fn merge(below: &mut Table, above: Table) {
    for (name, value) in above {
        match (below.get_mut(&name), value) {
            (Some(Value::Table(old)), Value::Table(new)) if !is_other_kind(old, &new) => merge(old, new),
            (_, value) => {
                below.insert(name, value);
            }
        }
    }
}

fn is_other_kind(old: &Table, new: &Table) -> bool {
    new.get("kind").is_some_and(|kind| old.get("kind") != Some(kind))
}

#[cfg(test)]
mod tests {
    use super::super::{Optimizer, Schedule};
    use super::*;

    fn table(text: &str) -> Table {
        text.parse().expect("TOML")
    }

    fn paper(text: &str) -> Result<Config> {
        Layers::new().recipe("paper-cifar").table(table(text)).resolve()
    }

    fn milestones(config: &Config) -> &[u64] {
        match &config.schedule {
            Schedule::MultiStep { milestones, .. } => milestones,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_recipe_is_whole_and_names_itself() {
        for recipe in RECIPES {
            let config = Layers::new().recipe(recipe.name).resolve().expect(recipe.name);
            assert_eq!(config.recipe, recipe.name);
        }
    }

    #[test]
    fn the_paper_recipe_is_the_papers() {
        let config = paper("").expect("valid");
        assert_eq!((config.batch, config.iterations, config.lr), (128, 64_000, 0.1));
        assert_eq!(config.optimizer, Optimizer::Sgd { momentum: 0.9, weight_decay: 1e-4, nesterov: false });
        assert_eq!(milestones(&config), [32_000, 48_000]);
    }

    #[test]
    fn fewer_iterations_bring_the_milestones_forward() {
        assert_eq!(milestones(&paper("iterations = 4000").expect("valid")), [2000, 3000]);
        let given = paper("iterations = 4000\nschedule.milestones = [1000]").expect("valid");
        assert_eq!(milestones(&given), [1000]);
    }

    #[test]
    fn what_is_resolved_resolves_to_itself() {
        for settings in ["", "iterations = 4000", "optimizer.kind = 'adam'", "schedule.kind = 'plateau'"] {
            let config = paper(settings).expect("valid");
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("config.toml");
            std::fs::write(&path, config.to_toml().expect("TOML")).expect("written");
            assert_eq!(Layers::new().file(&path).expect("readable").resolve().expect("valid"), config);
        }
    }

    #[test]
    fn a_network_in_full_replaces_a_model_and_the_other_way_round() {
        let mut config = paper("").expect("valid");
        config.network = Some(crate::arch::Network::named("plain32").expect("known"));
        config.model = None;
        let full: Table = config.to_toml().expect("TOML").parse().expect("TOML");
        let resolved = Layers::new().table(full.clone()).resolve().expect("valid");
        assert_eq!(resolved, config);
        let named = Layers::new().table(full).table(table("model = 'resnet44'")).resolve().expect("valid");
        assert_eq!(named.network().expect("valid").name, "resnet44");
    }

    #[test]
    fn another_kind_replaces_what_belongs_to_the_old_one() {
        let config = paper("optimizer.kind = 'adam'\nschedule.kind = 'cosine'").expect("valid");
        assert!(matches!(config.optimizer, Optimizer::Adam { beta1: 0.9, weight_decay: 0.0, .. }));
        assert_eq!(config.schedule, Schedule::Cosine { warmup: 0 });
    }

    #[test]
    fn a_file_names_the_recipe_it_stands_on() {
        assert_eq!(Layers::new().table(table("recipe = 'paper-cifar'")).resolve().expect("valid").iterations, 64_000);
    }

    #[test]
    fn wrong_settings_are_named() {
        for (settings, part) in [
            ("learning-rate = 1", "learning-rate"),
            ("batch = 'many'", "batch"),
            ("batch = 0", "batch must be at least 1"),
            ("lr = -1.0", "lr must be positive"),
            ("label-smoothing = 1.0", "label-smoothing"),
            ("optimizer.momentum = 1.5", "optimizer.momentum"),
            ("optimizer.dampening = 0.1", "dampening"),
            ("schedule.milestones = [3, 2]", "schedule.milestones must ascend"),
            ("schedule.kind = 'steps'", "steps"),
            ("recipe = 'imagenet'", "expected one of quick, fast, paper-cifar"),
            ("model = 'resnet21'", "resnet21"),
            ("model = 'plain20'\nshortcut = 'b'", "plain network"),
        ] {
            let result = match settings.starts_with("recipe") {
                true => Layers::new().table(table(settings)).resolve(),
                false => paper(settings),
            };
            let message = result.expect_err(settings).to_string();
            assert!(message.contains(part), "{settings}: {message}");
        }
    }

    #[test]
    fn a_file_at_fault_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mine.toml");
        for text in ["batch = \n", "batch = 'many'\n", "batch = 0\n"] {
            std::fs::write(&path, text).expect("written");
            let result = Layers::new().file(&path).and_then(Layers::resolve);
            let message = result.expect_err("wrong").to_string();
            assert!(message.contains("mine.toml") && message.contains("batch"), "{message}");
        }
    }
}
