//! Recipes, and how settings are laid over each other: recipe < file < flags.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::Config;
use super::settings::{EPOCHS, SETTINGS};
use crate::{Error, Result};

/// A way to train, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// What `--recipe` takes.
    pub name: &'static str,
    /// What it is for and how long it takes, in a line.
    pub summary: &'static str,
    /// A whole [`Config`] in TOML, with its reasons.
    pub toml: &'static str,
}

/// The recipes there are; the first is the default.
pub const RECIPES: [Recipe; 3] = [
    Recipe {
        name: "quick",
        summary: "a first look, on built-in images: about a minute on two cores",
        toml: include_str!("recipes/quick.toml"),
    },
    Recipe {
        name: "fast",
        summary: "the paper's accuracy on CIFAR-10 in a third of its epochs",
        toml: include_str!("recipes/fast.toml"),
    },
    Recipe { name: "paper-cifar", summary: "section 4.2 of the paper", toml: include_str!("recipes/paper-cifar.toml") },
];

/// Settings from several places, the later over the earlier.
///
/// A layer need not say all. Where it changes the number of `iterations`, what the schedule of earlier
/// layers counts in iterations is scaled with it: half of `paper-cifar` drops the learning rate at 16k
/// and 24k. Where it gives another `kind` of schedule, optimizer or preprocessing, the earlier one is
/// replaced as a whole. In place of `iterations` it may give a number of `epochs`, which
/// [`resolve_with`](Layers::resolve_with) turns into iterations.
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
    /// When a setting is unknown or means nothing; names it, and the file where it is one's fault. When
    /// a layer gives `epochs`.
    pub fn resolve(self) -> Result<Config> {
        self.resolve_with(|_| {
            let message = "epochs can be counted only where the data are known: expected iterations";
            Err(Error::Config(message.into()))
        })
    }

    /// As [`resolve`](Self::resolve), with `epochs` of any layer as iterations: `ceil(epochs * iterations
    /// of an epoch)`. `train_images` is asked only where there are some: for the number of images in the
    /// training part of the data of these settings, whose iterations are still the recipe's.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve), and those of `train_images`.
    pub fn resolve_with(mut self, train_images: impl FnOnce(&Config) -> Result<usize>) -> Result<Config> {
        let mut epochs = Vec::new();
        for (path, layer) in &mut self.layers {
            epochs.push(take_epochs(layer).map_err(|error| in_file(path.as_deref(), error))?);
        }
        if epochs.iter().any(Option::is_some) {
            let config = self.clone().lay()?;
            let per_epoch = config.iterations_per_epoch(train_images(&config)?)?;
            for ((_, layer), epochs) in self.layers.iter_mut().zip(epochs) {
                if let Some(epochs) = epochs {
                    layer.insert("iterations".into(), iterations_of(epochs, per_epoch).into());
                }
            }
        }
        self.lay()
    }

    /// Lays the layers over each other; none gives `epochs`.
    fn lay(self) -> Result<Config> {
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
            Some((path, error)) => Err(in_file(path.as_deref(), error)),
        }
    }
}

/// Says which file is at fault, where a layer comes from one.
fn in_file(path: Option<&Path>, error: Error) -> Error {
    match path {
        Some(path) => Error::format(path, error.to_string()),
        None => error,
    }
}

/// Takes the number of epochs out of a layer that gives one.
fn take_epochs(layer: &mut Table) -> Result<Option<f64>> {
    let Some(value) = layer.remove(EPOCHS.key) else { return Ok(None) };
    if layer.contains_key("iterations") {
        return Err(Error::Config("epochs and iterations are both given: expected one of them".into()));
    }
    // Through text, which takes 3 for 3.0.
    let epochs = EPOCHS.parse(&value.to_string());
    let epochs = epochs.map_err(|error| Error::Config(format!("epochs: {error}, found {value}")))?;
    Ok(epochs.as_float())
}

/// A part of an iteration counts as one, but not what rounding adds: 0.07 * 100 is above 7.
fn iterations_of(epochs: f64, per_epoch: u64) -> i64 {
    (epochs * per_epoch as f64 * (1.0 - 4.0 * f64::EPSILON)).ceil() as i64
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
    settings.try_into().map_err(|error| in_file(path, Error::Config(explain(&error))))
}

/// What serde says, in a line. Where a name is wrong, with the one that was probably meant in place of
/// all there are.
fn explain(error: &toml::de::Error) -> String {
    // unknown field `wrong`, expected one of `this`, `that`
    // in `place`
    let text = error.to_string();
    let mut lines = text.lines();
    let (message, place) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    match (meant(message, place), message.split_once(',')) {
        (Some(name), Some((wrong, _))) => format!("{}: did you mean `{name}`?", format!("{wrong} {place}").trim_end()),
        _ => text.trim_end().replace('\n', ": "),
    }
}

/// The setting whose flag goes by the wrong name, or else the most similar of the names expected.
fn meant<'a>(message: &'a str, place: &str) -> Option<&'a str> {
    const SIMILAR: f64 = 0.8;
    let mut names = message.strip_prefix("unknown ")?.split('`').skip(1).step_by(2);
    let wrong = names.next()?;
    // A setting of another kind of optimizer or schedule may stand in the right place.
    let here = format!("{}.{wrong}", place.trim_start_matches("in `").trim_end_matches('`'));
    let flag = SETTINGS.iter().find(|setting| setting.flag == wrong || setting.aliases.contains(&wrong));
    let elsewhere = flag.map(|setting| setting.key).filter(|key| *key != here);
    let similar = names.map(|name| (strsim::jaro_winkler(wrong, name), name)).filter(|(by, _)| *by > SIMILAR);
    elsewhere.or_else(|| similar.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, name)| name))
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
    if let Some(new) = iterations(&layer)
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
        let named = paper("iterations = 4000\nschedule.kind = 'multi-step'").expect("valid");
        assert_eq!(milestones(&named), [2000, 3000]);
    }

    #[test]
    fn epochs_are_iterations_once_the_images_are_known() {
        let resolved = |settings: &str, images| {
            let layers = Layers::new().recipe("paper-cifar").table(table(settings));
            layers.table(table("batch = 100\nvalidation-images = 5000")).resolve_with(|config| {
                assert_eq!((config.data.as_str(), config.batch), ("cifar10", 100), "settled before");
                Ok(images)
            })
        };
        for (epochs, images, iterations) in [
            ("2", 50_000, 900),
            ("2", 49_901, 900), // 44,901 images make 449 whole batches and a part of one
            ("0.5", 5_300, 2),
            ("0.07", 15_000, 7),
            ("1e-9", 50_000, 1),
        ] {
            let config = resolved(&format!("epochs = {epochs}"), images).expect(epochs);
            assert_eq!(config.iterations, iterations, "{epochs} epochs of {images} images");
        }
        let config = resolved("epochs = 20", 50_000).expect("valid");
        let counted = paper("iterations = 9000\nbatch = 100\nvalidation-images = 5000").expect("valid");
        assert_eq!(config, counted, "milestones scale alike");
        assert_eq!(milestones(&config), [4500, 6750]);
        assert!(!config.to_toml().expect("TOML").contains("epochs"));
        let later = resolved("schedule.milestones = [1, 2]\nepochs = 20", 50_000).expect("valid");
        assert_eq!(milestones(&later), [1, 2]);
    }

    #[test]
    fn epochs_that_cannot_be_counted_are_explained() {
        let message = |settings: &str, images| {
            let layers = Layers::new().table(table(settings));
            layers.resolve_with(|_| Ok(images)).expect_err(settings).to_string()
        };
        assert!(message("epochs = 0", 10).contains("epochs: must be positive"));
        assert!(message("epochs = 'many'", 10).contains("epochs: expected a number"));
        assert!(message("epochs = 1\niterations = 1", 10).contains("both"));
        assert!(message("epochs = 1\nvalidation-images = 10", 10).contains("validation-images"));
        let unknown = Layers::new().table(table("epochs = 3")).resolve().expect_err("no data").to_string();
        assert!(unknown.contains("epochs"), "{unknown}");
        let config = Layers::new().resolve_with(|_| panic!("nobody counts epochs")).expect("valid");
        assert_eq!(config.iterations, 1000);
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
            ("learning-rate = 1", "did you mean `lr`?"),
            ("momentum = 0.5", "did you mean `optimizer.momentum`?"),
            ("log-intervall = 5", "did you mean `log-interval`?"),
            ("schedule.gama = 0.2", "unknown field `gama` in `schedule`: did you mean `gamma`?"),
            ("optimizer.kind = 'adan'", "did you mean `adam`?"),
            ("optimizer.kind = 'adam'\noptimizer.momentum = 0.5", "`momentum`, expected one of `beta1`"),
            ("zzz = 1", "expected one of `recipe`"),
            ("threads = 5000", "threads must be from 0 to 1024, found 5000"),
            ("optimizer.weight-decay = -1.0", "optimizer.weight-decay must be at least 0"),
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
