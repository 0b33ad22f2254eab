//! The folder a run leaves: what lies where, and reading it back.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Component, Path, PathBuf};

use super::Config;
use super::recipe::Layers;
use crate::arch::Network;
use crate::data::Normalizer;
use crate::files::write_atomically;
use crate::weights::{Metadata, safetensors};
use crate::{Error, Result, StateDict};

/// A run's folder.
///
/// [`Card`]: crate::weights::Card
///
/// | | |
/// |---|---|
/// | `config.toml` | all settings, [`Config`] |
/// | `metrics.jsonl` | what was measured, [`metrics`](super::metrics) |
/// | `events.out.tfevents.*` | the same for TensorBoard |
/// | `curves.png`, `curves.svg` | training and test error over iterations |
/// | `checkpoints/best.safetensors` | weights of the lowest test error, PyTorch names, with their [`Card`] |
/// | `checkpoints/last.safetensors` | weights of the last checkpoint, the same way |
/// | `checkpoints/preprocess.safetensors` | the statistics images are normalised with |
/// | `checkpoints/resume.safetensors` | all that going on needs, in one file: [`Checkpoint`](super::Checkpoint) |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

/// Which of the weights that a run keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kept {
    /// Those of the lowest test error.
    #[default]
    Best,
    /// Those of the last checkpoint.
    Last,
}

impl RunDir {
    /// The run at `path`.
    ///
    /// # Errors
    /// When there is no run there.
    pub fn open(path: &Path) -> Result<Self> {
        let run = Self { path: path.into() };
        match run.config_file().is_file() {
            true => Ok(run),
            false => Err(Error::format(path, "not a run: expected a folder with a config.toml")),
        }
    }

    /// Makes the folder of a new run in `parent`: `name`, or where none is given the first of
    /// `default`, `default-2`, `default-3`, ... that is free. It is a run only with its configuration:
    /// [`start`](RunDir::start).
    ///
    /// # Errors
    /// When `name` exists already or is not the name of a folder.
    pub(super) fn create(parent: &Path, name: Option<&str>, default: &str) -> Result<Self> {
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
        if let Some(name) = name {
            let mut parts = Path::new(name).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(Error::Config(format!("'{name}' cannot be the name of a run: expected a single folder")));
            }
            let path = parent.join(name);
            return match std::fs::create_dir(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    let path = path.display();
                    Err(Error::Config(format!("{path} exists already: choose another --name, or --resume {path}")))
                }
                made => made.map_err(Error::io(&path)).map(|()| Self { path }),
            };
        }
        let mut count = 1u64;
        loop {
            let path = parent.join(if count == 1 { default.into() } else { format!("{default}-{count}") });
            match std::fs::create_dir(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => count += 1,
                made => return made.map_err(Error::io(&path)).map(|()| Self { path }),
            }
        }
    }

    /// Writes what a run is known by.
    pub(super) fn start(&self, config: &Config) -> Result<()> {
        let folder = self.checkpoints();
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        self.write_config(config)
    }

    /// Replaces `config.toml`.
    pub(super) fn write_config(&self, config: &Config) -> Result<()> {
        let text = config.to_toml()?;
        write_atomically(&self.config_file(), |file| file.write_all(text.as_bytes()))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder's name.
    pub fn name(&self) -> String {
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// `config.toml`
    pub fn config_file(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// `metrics.jsonl`
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// `curves.png`
    pub fn curves_png(&self) -> PathBuf {
        self.path.join("curves.png")
    }

    /// `curves.svg`
    pub fn curves_svg(&self) -> PathBuf {
        self.path.join("curves.svg")
    }

    /// `checkpoints`
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// `checkpoints/best.safetensors`
    pub fn best(&self) -> PathBuf {
        self.checkpoints().join("best.safetensors")
    }

    /// `checkpoints/last.safetensors`
    pub fn last(&self) -> PathBuf {
        self.checkpoints().join("last.safetensors")
    }

    /// The file of some weights.
    pub fn weights(&self, kept: Kept) -> PathBuf {
        match kept {
            Kept::Best => self.best(),
            Kept::Last => self.last(),
        }
    }

    /// `checkpoints/resume.safetensors`
    pub fn resume(&self) -> PathBuf {
        self.checkpoints().join("resume.safetensors")
    }

    fn preprocess(&self) -> PathBuf {
        self.checkpoints().join("preprocess.safetensors")
    }

    /// The run's settings.
    ///
    /// # Errors
    /// When `config.toml` cannot be read or a setting is wrong; names it.
    pub fn config(&self) -> Result<Config> {
        Layers::new().file(&self.config_file())?.resolve()
    }

    /// The network that is trained.
    ///
    /// # Errors
    /// As [`config`](RunDir::config).
    pub fn network(&self) -> Result<Network> {
        self.config()?.network()
    }

    /// What images are normalised with.
    ///
    /// # Errors
    /// When the statistics cannot be read or do not fit the network.
    pub fn normalizer(&self) -> Result<Normalizer> {
        let path = self.preprocess();
        let state = safetensors::read(&path)?.state;
        Normalizer::from_state(self.network()?.input, &state).map_err(|error| Error::format(path, error.to_string()))
    }

    /// Keeps what images are normalised with.
    pub(super) fn save_preprocess(&self, statistics: &StateDict) -> Result<()> {
        safetensors::write(&self.preprocess(), statistics, &Metadata::new())
    }

    /// Keeps other processes from training the same run, until the file is dropped or the process
    /// ends.
    ///
    /// # Errors
    /// When one is at it.
    pub(super) fn lock(&self) -> Result<File> {
        let path = self.path.join(".lock");
        let file = File::create(&path).map_err(Error::io(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                Err(Error::Config(format!("{}: another process is training this run", self.path.display())))
            }
            Err(TryLockError::Error(error)) => Err(Error::io(&path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted_and_never_taken_twice() {
        let parent = tempfile::tempdir().expect("a folder");
        let create = |name: Option<&str>| RunDir::create(parent.path(), name, "resnet20-synthetic");
        let names: Vec<_> = (0..3).map(|_| create(None).expect("free").name()).collect();
        assert_eq!(names, ["resnet20-synthetic", "resnet20-synthetic-2", "resnet20-synthetic-3"]);
        assert_eq!(create(Some("mine")).expect("free").name(), "mine");
        let message = create(Some("mine")).expect_err("taken").to_string();
        assert!(message.contains("mine exists already"), "{message}");
        for name in ["", "..", "a/b", "/a"] {
            assert!(create(Some(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_run_is_what_has_a_configuration() {
        let parent = tempfile::tempdir().expect("a folder");
        let run = RunDir::create(parent.path(), Some("run"), "").expect("free");
        let message = RunDir::open(run.path()).expect_err("no configuration").to_string();
        assert!(message.contains("config.toml"), "{message}");
        let config = Layers::new().resolve().expect("valid");
        run.start(&config).expect("started");
        assert_eq!(RunDir::open(run.path()).expect("a run").config().expect("valid"), config);
    }

    #[test]
    fn one_process_trains_a_run() {
        let parent = tempfile::tempdir().expect("a folder");
        let run = RunDir::create(parent.path(), Some("run"), "").expect("free");
        let lock = run.lock().expect("free");
        assert!(run.lock().is_err());
        drop(lock);
        run.lock().expect("free again");
    }
}
