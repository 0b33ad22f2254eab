//! Whole training runs of a small network: stopped, resumed, diverged.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use resnet::data::{Splits, synthetic};
use resnet::engine::{self, Alone, Options};
use resnet::train::{Changes, Checkpoint, Config, Event, Layers, Progress, Run, RunDir, metrics};

const ITERATIONS: u64 = 14;

/// Three epochs of five batches, the last of each smaller, but for one step.
fn config(more: &str) -> Config {
    let settings = format!(
        "model = 'cifar-resnet8'\nbatch = 8\niterations = {ITERATIONS}\nlr = 0.05\n\
         log-interval = 3\neval-interval = 6\ncheckpoint-interval = 4\nthreads = 1\n{more}"
    );
    Layers::new().table(settings.parse().expect("TOML")).resolve().expect("valid")
}

fn data() -> Splits {
    synthetic::splits(0, 36, 20).expect("in memory")
}

fn train(run: Run, stop_after: u64) -> resnet::Result<Progress> {
    let stop = AtomicBool::new(false);
    let options = Options { threads: run.config().threads, precision: run.config().precision };
    let mut engine = engine::open(&run.config().engine, run.network().graph()?, run.weights(), options)?;
    run.train(engine.as_mut(), &mut Alone, &stop, &mut |event| {
        if let Event::Stepped { progress, .. } = event {
            stop.store(progress.iteration == stop_after, Ordering::Relaxed);
        }
    })
}

fn start(config: &Config, parent: &Path, name: &str, stop_after: u64) -> (RunDir, Progress) {
    let run = Run::create(config.clone(), data(), parent, Some(name)).expect("created");
    let dir = run.dir().clone();
    (dir, train(run, stop_after).expect("trained"))
}

fn resume(dir: &RunDir, stop_after: u64) -> Progress {
    train(Run::resume(dir.clone(), data(), Changes::default()).expect("resumable"), stop_after).expect("trained")
}

/// All of a run that does not tell the time.
fn outcome(dir: &RunDir) -> (Vec<u8>, Vec<u8>, Checkpoint, Vec<metrics::Record>) {
    let bytes = |path| std::fs::read(path).expect("readable");
    let mut checkpoint = Checkpoint::read(&dir.resume()).expect("readable");
    checkpoint.progress.seconds = 0.0;
    let mut records = metrics::read(&dir.metrics()).expect("readable");
    for record in &mut records {
        (record.seconds, record.images_per_second) = (0.0, 0.0);
    }
    (bytes(dir.best()), bytes(dir.last()), checkpoint, records)
}

#[test]
fn a_run_that_was_stopped_ends_as_one_that_was_not() {
    let parent = tempfile::tempdir().expect("a folder");
    for (index, settings) in [
        "precision = 'f32'\nschedule.kind = 'one-cycle'\noptimizer.nesterov = true\naugment.alternate = true",
        "precision = 'tf32'\nschedule.kind = 'one-cycle'",
        "precision = 'bf16'\nschedule.kind = 'one-cycle'",
        "optimizer.kind = 'adam'\nschedule = { kind = 'plateau', patience = 0 }",
        "validation-images = 6\nlabel-smoothing = 0.1\n\
         schedule = { kind = 'multi-step', milestones = [5], warmup = { lr = 0.01, until-train-error = 1.0 } }",
    ]
    .into_iter()
    .enumerate()
    {
        let config = config(settings);
        let (whole, progress) = start(&config, parent.path(), &format!("whole-{index}"), u64::MAX);
        assert_eq!(progress.iteration, ITERATIONS);
        let expected = outcome(&whole);
        let recorded: Vec<_> = expected.3.iter().map(|record| record.iteration).collect();
        assert_eq!(recorded, [3, 6, 9, 12, 14]);

        // In the first epoch, at its end, at a record, at an evaluation, at a checkpoint, before the end.
        for stop_after in [1, 5, 3, 6, 8, ITERATIONS - 1] {
            let (dir, progress) = start(&config, parent.path(), &format!("{index}-{stop_after}"), stop_after);
            assert_eq!(progress.iteration, stop_after);
            resume(&dir, stop_after + 2);
            resume(&dir, u64::MAX);
            assert_eq!(outcome(&dir), expected, "{settings}, stopped after {stop_after}");
        }
    }
}

/// A kill may come between any two of the files a checkpoint changes.
#[test]
fn what_was_copied_from_a_checkpoint_is_put_right_on_resuming() {
    let parent = tempfile::tempdir().expect("a folder");
    let (whole, _) = start(&config(""), parent.path(), "whole", u64::MAX);
    let expected = outcome(&whole);

    let (dir, progress) = start(&config(""), parent.path(), "killed", 6);
    assert_eq!(progress.best.expect("evaluated").iteration, 6);
    std::fs::remove_file(dir.best()).expect("removed");
    std::fs::remove_file(dir.last()).expect("removed");
    // What a run killed later has written ahead of its checkpoint.
    let ahead = expected.3.iter().filter(|record| record.iteration > 6);
    let mut writer = metrics::Writer::open(&dir.metrics(), 6).expect("writable");
    ahead.for_each(|record| writer.write(record).expect("written"));
    let unfinished = dir.checkpoints().join(".unfinished-abc");
    std::fs::write(&unfinished, "half of a checkpoint").expect("written");
    resume(&dir, 7);
    assert!(dir.best().is_file() && dir.last().is_file() && !unfinished.exists());
    resume(&dir, u64::MAX);
    assert_eq!(outcome(&dir), expected);
}

#[test]
fn a_run_killed_before_its_first_checkpoint_starts_again() {
    let parent = tempfile::tempdir().expect("a folder");
    let (whole, _) = start(&config(""), parent.path(), "whole", u64::MAX);
    let run = Run::create(config(""), data(), parent.path(), Some("killed")).expect("created");
    let dir = run.dir().clone();
    drop(run);
    resume(&dir, u64::MAX);
    assert_eq!(outcome(&dir), outcome(&whole));
}

#[test]
fn a_finished_run_has_nothing_left_to_do() {
    let parent = tempfile::tempdir().expect("a folder");
    let (dir, progress) = start(&config(""), parent.path(), "run", u64::MAX);
    let before = outcome(&dir);
    let run = Run::resume(dir.clone(), data(), Changes::default()).expect("resumable");
    assert!(run.is_finished());
    let again = train(run, u64::MAX).expect("nothing to do");
    assert_eq!((again.iteration, again.best, again.test), (progress.iteration, progress.best, progress.test));
    assert_eq!(outcome(&dir), before);
}

#[test]
fn divergence_ends_a_run_and_keeps_its_last_good_checkpoint() {
    let parent = tempfile::tempdir().expect("a folder");
    let (dir, _) = start(&config("schedule.kind = 'multi-step'"), parent.path(), "run", 5);
    // As if the schedule had chosen a learning rate that cannot end well.
    let mut checkpoint = Checkpoint::read(&dir.resume()).expect("readable");
    let wild = Config { lr: 1e37, ..dir.config().expect("valid") };
    checkpoint.config = wild.to_toml().expect("TOML");
    checkpoint.write(&dir.resume()).expect("written");
    std::fs::write(dir.config_file(), &checkpoint.config).expect("written");

    let run = Run::resume(dir.clone(), data(), Changes::default()).expect("resumable");
    let message = train(run, u64::MAX).expect_err("diverged").to_string();
    for part in ["diverged at iteration", "learning rate of", "after iteration 5", "last.safetensors", "--lr"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert_eq!(Checkpoint::read(&dir.resume()).expect("readable").progress.iteration, 5);
}

#[test]
fn a_run_resumes_with_its_own_settings_and_data_only() {
    let parent = tempfile::tempdir().expect("a folder");
    let (dir, _) = start(&config(""), parent.path(), "run", 5);
    let fewer_classes = {
        let data = data();
        let shape = data.train.shape().expect("one shape");
        let pixels = vec![0; 2 * shape.len()];
        let images = resnet::data::Images::new(shape, vec!["a".into(), "b".into()], vec![0, 1], pixels);
        let images = std::sync::Arc::new(images.expect("two images"));
        Splits { name: "two".into(), train: images.clone(), test: images }
    };
    let refused = |data| Run::resume(dir.clone(), data, Changes::default()).err().expect("refused").to_string();
    assert!(refused(fewer_classes).contains("10 classes"), "classes");
    let fewer_images = synthetic::splits(0, 30, 20).expect("in memory");
    assert!(refused(fewer_images).contains("36 images of synthetic, now there are 30"), "images");

    let text = std::fs::read_to_string(dir.config_file()).expect("readable");
    std::fs::write(dir.config_file(), text.replace("lr = 0.05", "lr = 0.06")).expect("written");
    let message = refused(data());
    assert!(message.contains("config.toml") && message.contains("settings"), "{message}");

    std::fs::write(dir.config_file(), text.replace("threads = 1", "threads = 2")).expect("written");
    assert!(Run::resume(dir.clone(), data(), Changes::default()).is_ok(), "threads do not change the result");
    std::fs::write(dir.config_file(), text).expect("written");
    let run = Run::resume(dir, data(), Changes { workers: Some(3), ..Changes::default() }).expect("nor do workers");
    assert_eq!((run.config().threads, run.config().workers), (1, 3));
}

#[test]
fn a_damaged_checkpoint_is_refused_by_name() {
    let parent = tempfile::tempdir().expect("a folder");
    let (dir, _) = start(&config(""), parent.path(), "run", 5);
    let mut bytes = std::fs::read(dir.resume()).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(dir.resume(), bytes).expect("written");
    let message = Run::resume(dir, data(), Changes::default()).err().expect("damaged").to_string();
    assert!(message.contains("resume.safetensors") && message.contains("damaged"), "{message}");
}
