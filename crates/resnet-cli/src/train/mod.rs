//! `resnet train`: trains a network, in a folder of its own.

mod screen;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use indicatif::HumanDuration;
use resnet::arch::Summary;
use resnet::data::Splits;
use resnet::engine::{self, Alone, Engine, Options};
use resnet::report::{CurvesOptions, RunCurves, curves};
use resnet::train::{Best, Config, Progress, Run, RunDir};
use serde::Serialize;

use crate::args::precision::check_speed;
use crate::args::training::TrainingArgs;
use crate::data;
use crate::terminal::{grouped, print, print_json, short};
use screen::Screen;

const EXAMPLES: &str = "\
Examples:
  resnet train
  resnet train resnet56 --data cifar10 --recipe paper-cifar
  resnet train resnet20 --data cifar10 --recipe fast
  resnet train plain20 --data cifar-10-batches-bin --recipe paper-cifar --iterations 4000
  resnet train --recipe paper-cifar --print-config > mine.toml
  resnet train --config mine.toml --schedule cosine --set schedule.warmup=400
  resnet train --resume runs/resnet20-cifar10
  resnet train --resume runs/photos --data /new/place/photos

Without a model, data and recipe: resnet20 on built-in images, about a minute on two cores.

Ctrl-C writes a checkpoint and stops; a run that is resumed ends with the very weights it
would have had without the stop.";

/// What a shell expects of a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// Train a network
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    settings: TrainingArgs,
    /// Name of the run; model and data by default
    #[arg(long, conflicts_with = "resume")]
    name: Option<String>,
    /// Folder that runs are kept in
    #[arg(
        long,
        visible_aliases = ["output-dir", "output"],
        value_name = "FOLDER",
        default_value = "runs",
        conflicts_with = "resume"
    )]
    out: PathBuf,
    /// Go on with a run that was stopped, with its own settings; --data for data that have moved
    #[arg(long, value_name = "RUN")]
    resume: Option<PathBuf>,
    /// Print all settings as TOML for --config, and do nothing
    #[arg(long, conflicts_with = "resume")]
    print_config: bool,
    /// Print a summary as JSON at the end
    #[arg(long)]
    json: bool,
}

/// How a run ended, for programs.
#[derive(Serialize)]
struct Outcome<'a> {
    run: &'a Path,
    model: &'a str,
    data: &'a str,
    finished: bool,
    iteration: u64,
    iterations: u64,
    seconds: f64,
    test_loss: Option<f64>,
    test_error: Option<f64>,
    best: Option<Best>,
    best_weights: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.print_config {
        let config = args.settings.resolve(|config| Ok(open(config)?.train.len()))?;
        print(config.to_toml()?.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let run = match &args.resume {
        Some(path) => resume(args, path)?,
        None => create(args)?,
    };
    let options = Options { threads: run.config().threads, precision: run.config().precision };
    let mut engine = engine::open(&run.config().engine, run.network().graph()?, run.weights(), options)?;
    introduce(&run, engine.as_ref())?;

    let (dir, config) = (run.dir().clone(), run.config().clone());
    let (model, data) = (run.network().name.clone(), run.data().name.clone());
    let stop = stop_on_signals()?;
    let mut screen = Screen::new(config.iterations, run.progress().iteration, &stop);
    let result = run.train(engine.as_mut(), &mut Alone, &stop, &mut |event| screen.show(event));
    screen.finish();
    let pictured = draw(&dir);
    let progress = result?;
    pictured?;

    let finished = progress.iteration >= config.iterations;
    if args.json {
        print_json(&Outcome {
            run: dir.path(),
            model: &model,
            data: &data,
            finished,
            iteration: progress.iteration,
            iterations: config.iterations,
            seconds: progress.seconds,
            test_loss: progress.test.map(|test| test.test_loss),
            test_error: progress.test.map(|test| test.test_error),
            best: progress.best,
            best_weights: progress.best.map(|_| dir.best()),
        })?;
    } else {
        print(conclusion(&dir, &progress, finished))?;
    }
    Ok(if finished { ExitCode::SUCCESS } else { ExitCode::from(INTERRUPTED) })
}

fn create(args: &Args) -> anyhow::Result<Run> {
    let mut counted = None; // the data, where epochs were counted in them
    let mut config = args.settings.resolve(|config| {
        let splits = counted.insert(open(config)?);
        Ok(splits.train.len())
    })?;
    check_speed(&config.engine, config.precision)?;
    let splits = counted.map_or_else(|| open(&config), Ok)?;
    config.data = from_anywhere(&config.data)?;
    Ok(Run::create(config, splits, &args.out, args.name.as_deref())?)
}

fn resume(args: &Args, path: &Path) -> anyhow::Result<Run> {
    let mut changes = args.settings.changes().with_context(|| {
        format!("--resume goes on with the run's own settings ({})", path.join("config.toml").display())
    })?;
    changes.data = changes.data.as_deref().map(from_anywhere).transpose()?;
    let dir = RunDir::open(path)?;
    let mut config = dir.config()?;
    config.data = changes.data.clone().unwrap_or(config.data);
    check_speed(&config.engine, config.precision)?;
    let splits = open(&config).with_context(|| match &changes.data {
        Some(data) => format!("--data {data}"),
        None => format!("cannot open the data of {}; if they have moved, --data says where to", path.display()),
    })?;
    Ok(Run::resume(dir, splits, changes)?)
}

/// A data set's name, or its folder's absolute path: the run is to be resumed and evaluated from any
/// other.
fn from_anywhere(data: &str) -> std::io::Result<String> {
    if resnet::data::names().any(|name| name == data) {
        return Ok(data.into());
    }
    Ok(std::path::absolute(data)?.to_string_lossy().into_owned())
}

fn open(config: &Config) -> resnet::Result<Splits> {
    data::open(&config.data)
}

/// A flag that the first Ctrl-C (or request to terminate) sets; the second ends the program at once.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag not set yet.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// Says what is going to happen.
fn introduce(run: &Run, engine: &dyn Engine) -> anyhow::Result<()> {
    let (config, data) = (run.config(), run.data());
    let parameters = Summary::of(run.network())?.parameters as u64;
    let measured_on = if config.validation_images > 0 { "validation" } else { "test" };
    let (train, test) = (grouped(data.train.len() as u64), grouped(data.test.len() as u64));
    eprintln!("model    {}, {} parameters", run.network().name, short(parameters));
    eprintln!("data     {}, {train} training and {test} {measured_on} images", data.name);
    eprintln!("engine   {}", engine.describe());
    eprintln!("recipe   {}, {} iterations of {} images", config.recipe, grouped(config.iterations), config.batch);
    eprintln!("run      {}", run.dir().path().display());
    match run.progress().iteration {
        0 => {}
        _ if run.is_finished() => eprintln!("this run is finished already"),
        first => eprintln!("going on after iteration {first}"),
    }
    eprintln!();
    Ok(())
}

/// Leaves the run's curves beside its measurements; a run stopped before the first has none.
fn draw(dir: &RunDir) -> anyhow::Result<()> {
    if resnet::train::metrics::read(&dir.metrics())?.is_empty() {
        return Ok(());
    }
    let runs = [RunCurves::read(dir.path())?];
    for picture in [dir.curves_png(), dir.curves_svg()] {
        curves(&runs, &CurvesOptions::default(), &picture)?;
    }
    Ok(())
}

/// What came of it, where it is and what to do next.
fn conclusion(dir: &RunDir, progress: &Progress, finished: bool) -> String {
    let run = dir.path().display();
    let time = HumanDuration(Duration::try_from_secs_f64(progress.seconds).unwrap_or_default());
    let done = if finished { "finished" } else { "stopped" };
    let mut lines = vec![format!("{done} after {} iterations, {time}", grouped(progress.iteration))];
    if let Some(test) = progress.test {
        let accuracy = 100.0 * (1.0 - test.test_error);
        lines.push(format!(
            "accuracy     {accuracy:.2}% (error {:.2}%, loss {:.4})",
            100.0 * test.test_error,
            test.test_loss
        ));
    }
    if let Some(best) = progress.best {
        let accuracy = 100.0 * (1.0 - best.test_error);
        lines.push(format!("best         {accuracy:.2}% after iteration {}: {}", best.iteration, dir.best().display()));
    }
    lines.push(format!("last         {}", dir.last().display()));
    if dir.curves_png().is_file() {
        lines.push(format!("curves       {}", dir.curves_png().display()));
    }
    lines.push(String::new());
    if !finished {
        lines.push(format!("go on        resnet train --resume {run}"));
    }
    lines.push(format!("evaluate     resnet eval {run}"));
    lines.push(format!("plot         resnet plot {run} -o curves.svg"));
    lines.join("\n")
}
