//! `resnet eval` as a person meets it.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;
use resnet::arch::{Network, initial_state};
use resnet::data::synthetic;
use resnet::engine::{self, Alone, Options};
use resnet::train::{Layers, Run};
use resnet::weights::{Metadata, safetensors};

fn eval(arguments: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("resnet").unwrap().arg("eval").args(arguments).assert()
}

/// Untrained weights of `model`, and a metadata entry.
fn write_weights(folder: &Path, model: &str, metadata: Option<(&str, &str)>) -> PathBuf {
    let path = folder.join(format!("{model}.safetensors"));
    let state = initial_state(&Network::named(model).unwrap(), 1).unwrap();
    let metadata: Metadata = metadata.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    safetensors::write(&path, &state, &metadata).unwrap();
    path
}

const SYNTHETIC: [&str; 4] = ["--data", "synthetic", "--preprocess", "image-mean"];

/// A run of two steps on a few synthetic images.
fn write_run(parent: &Path) -> PathBuf {
    let settings = "model = 'cifar-resnet8'\niterations = 2\nbatch = 8\nlr = 0.01";
    let config = Layers::new().table(settings.parse().unwrap()).resolve().unwrap();
    let run = Run::create(config, synthetic::splits(0, 20, 20).unwrap(), parent, Some("run")).unwrap();
    let path = run.dir().path().to_owned();
    let graph = run.network().graph().unwrap();
    let mut engine = engine::open("native", graph, run.weights(), Options::default()).unwrap();
    run.train(engine.as_mut(), &mut Alone, &false.into(), &mut |_| ()).unwrap();
    path
}

#[test]
fn a_run_needs_no_flags() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(folder.path());
    for (flags, file) in [(&[][..], "best.safetensors"), (&["--checkpoint", "last"], "last.safetensors")] {
        let output = eval(&[&[run.to_str().unwrap(), "--json"], flags].concat()).success().get_output().stdout.clone();
        let value: serde_json::Value = serde_json::from_slice(&output).unwrap();
        assert_eq!((&value["model"], &value["data"]), (&"cifar-resnet8".into(), &"synthetic".into()));
        assert_eq!(value["total"], synthetic::TEST_IMAGES);
        assert!(value["weights"].as_str().unwrap().ends_with(file));
    }
}

#[test]
fn a_run_is_not_told_what_it_knows() {
    let folder = tempfile::tempdir().unwrap();
    let run = write_run(folder.path());
    let with = |more: &[&str]| eval(&[&[run.to_str().unwrap()], more].concat()).failure();
    with(&["--model", "resnet20"]).stderr(contains("is a run and knows its network"));
    with(&["--shortcut", "b"]).stderr(contains("is a run and knows its network"));
    std::fs::remove_file(run.join("checkpoints/best.safetensors")).unwrap();
    with(&[]).stderr(contains("best.safetensors: No such file"));
    std::fs::remove_file(run.join("config.toml")).unwrap();
    with(&[]).stderr(contains("not a run: expected a folder with a config.toml"));
}

#[test]
fn json_counts_the_whole_test_set() {
    let folder = tempfile::tempdir().unwrap();
    let weights = write_weights(folder.path(), "cifar-resnet8", Some(("model", "cifar-resnet8")));
    let output = eval(&[&[weights.to_str().unwrap(), "--json"], &SYNTHETIC[..]].concat()).success();
    let value: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!((&value["model"], &value["data"]), (&"cifar-resnet8".into(), &"synthetic".into()));
    let (total, correct) = (value["total"].as_u64().unwrap(), value["correct"].as_u64().unwrap());
    let confusion = value["confusion"].as_array().unwrap();
    let count = |row: &serde_json::Value| row.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
    assert_eq!(confusion.iter().map(count).sum::<u64>(), total);
    let diagonal = confusion.iter().enumerate().map(|(label, row)| row[label].as_u64().unwrap()).sum::<u64>();
    assert_eq!(diagonal, correct);
    assert_eq!(value["top1"].as_f64().unwrap(), correct as f64 / total as f64);
    assert!(value["loss"].as_f64().unwrap() > 0.0);
}

#[test]
fn the_report_reads_well_and_shows_no_bar_in_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let weights = write_weights(folder.path(), "cifar-resnet8", None);
    let arguments = [&[weights.to_str().unwrap(), "--model", "cifar-resnet8"], &SYNTHETIC[..]].concat();
    eval(&arguments)
        .success()
        .stdout(contains("cifar-resnet8 on synthetic: 2,000 test images"))
        .stdout(contains("top-1").and(contains("top-5")).and(contains("loss")).and(contains("confusions")))
        .stderr("");
}

#[test]
fn given_statistics_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let weights = write_weights(folder.path(), "cifar-resnet8", Some(("model", "cifar-resnet8")));
    let loss = |mean: &str| {
        let arguments = [weights.to_str().unwrap(), "--data", "synthetic", "--json", "--mean", mean, "--std", "1,1,1"];
        let output = eval(&arguments).success().get_output().stdout.clone();
        serde_json::from_slice::<serde_json::Value>(&output).unwrap()["loss"].as_f64().unwrap()
    };
    assert_ne!(loss("0.5,0.5,0.5"), loss("-1,0,1"));
}

#[test]
fn what_the_file_does_not_say_must_be_given() {
    let folder = tempfile::tempdir().unwrap();
    let weights = write_weights(folder.path(), "cifar-resnet8", None);
    let path = weights.to_str().unwrap();
    eval(&[path, "--data", "synthetic"])
        .failure()
        .stderr(contains("does not say what network it is for: give --model"));
    eval(&[path, "--data", "synthetic", "--model", "cifar-resnet8"])
        .failure()
        .stderr(contains("give --mean and --std, or --preprocess"));
    eval(&[path, "--model", "cifar-resnet8", "--preprocess", "channel"]).failure().stderr(contains("Give --data"));
}

#[test]
fn weights_of_another_network_are_listed_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let weights = write_weights(folder.path(), "cifar-resnet8", None);
    let with = |more: &[&str]| eval(&[&[weights.to_str().unwrap()], &SYNTHETIC[..], more].concat()).failure();
    with(&["--model", "cifar-resnet14"]).stderr(contains("missing: layer1.1.conv1.weight, layer1.1.bn1.weight"));
    with(&["--model", "cifar-resnet8", "--shortcut", "b"]).stderr(contains("missing: layer2.0.downsample.0.weight"));
    with(&["--model", "cifar-resnet8", "--in-channels", "1"])
        .stderr(contains("conv1.weight: expected shape [16, 1, 3, 3], found [16, 3, 3, 3]"));
    with(&["--model", "cifar-resnet8", "--classes", "7"])
        .stderr(contains("fc.weight: expected shape [7, 64], found [10, 64]"));
    with(&["--model", "vgg16"]).stderr(contains("unknown model 'vgg16'"));
}

#[test]
fn damaged_and_missing_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let weights = write_weights(folder.path(), "cifar-resnet8", None);
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let with = |path: &str| eval(&[&[path, "--model", "cifar-resnet8"], &SYNTHETIC[..]].concat()).failure();
    with(weights.to_str().unwrap()).stderr(contains("error: ").and(contains("cifar-resnet8.safetensors")));
    with("nowhere.safetensors").stderr("error: nowhere.safetensors: No such file or directory (os error 2)\n");
    std::fs::write(&weights, "").unwrap();
    with(weights.to_str().unwrap()).stderr(contains("cifar-resnet8.safetensors"));
}

#[test]
fn wrong_flags_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let weights = write_weights(folder.path(), "cifar-resnet8", Some(("model", "cifar-resnet8")));
    let with = |more: &[&str]| eval(&[&[weights.to_str().unwrap()], more].concat()).failure();
    with(&["--data", "synthetic", "--mean", "0.5,0.5,0.5"]).code(2).stderr(contains("--std"));
    with(&["--data", "synthetic", "--mean", "0.5,x", "--std", "1"])
        .code(2)
        .stderr(contains("'0.5,x'").and(contains("expected numbers")));
    with(&["--data", "synthetic", "--mean", "0.5", "--std", "1"]).stderr(contains("a mean of 1 values and a std of 1"));
    with(&["--data", "synthetic", "--mean", "0,0,0", "--std", "1,0,1"])
        .stderr(contains("positive standard deviations"));
    with(&["--data", "synthetic", "--preprocess", "none"]).code(2).stderr(contains("pixel-mean"));
    with(&["--data", "synthetic", "--preprocess", "channel", "--checkpoint", "last"]).stderr(contains("is not a run"));
    with(&["--data", "nowhere", "--preprocess", "channel"]).stderr(contains("nowhere"));
}
