//! `resnet convert` as a person meets it.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::str::contains;
use resnet::arch::{Network, initial_state};
use resnet::model::Draft;
use resnet::weights::{self, Metadata, safetensors};

fn convert(input: &Path, output: &Path, flags: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("resnet").unwrap().arg("convert").args([input, output]).args(flags).assert()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../resnet/tests/fixtures/checkpoints").join(name)
}

/// Weights of a ResNet-20, in a folder of their own.
fn resnet20() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resnet20.safetensors");
    let state = initial_state(&Network::named("resnet20").unwrap(), 0).unwrap();
    safetensors::write(&path, &state, &Metadata::from([("note".into(), "kept".into())])).unwrap();
    (folder, path)
}

#[test]
fn a_pytorch_checkpoint_becomes_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("converted.safetensors");
    convert(&fixture("training-script.th"), &output, &[])
        .success()
        .stdout(contains("converted.safetensors: 32 tensors, 401 parameters"));
    let converted = weights::read(&output, None).unwrap();
    assert_eq!(converted.state, weights::read(&fixture("expected.safetensors"), None).unwrap().state);
}

#[test]
fn weights_are_checked_against_a_model_that_is_named() {
    let (_folder, path) = resnet20();
    convert(&path, &path, &["--model", "resnet20"]).success().stdout(contains("97 tensors, 269,722 parameters"));
    let metadata = weights::read(&path, None).unwrap().metadata;
    assert_eq!((metadata["model"].as_str(), metadata["note"].as_str()), ("resnet20", "kept"));
    assert_eq!(Draft::open(&path).unwrap().network().unwrap(), &Network::named("resnet20").unwrap());
    let before = std::fs::read(&path).unwrap();
    convert(&path, &path, &["--model", "resnet20", "--shortcut", "b", "--classes", "5"])
        .failure()
        .stderr(contains("missing: layer2.0.downsample.0.weight"))
        .stderr(contains("fc.weight: expected shape [5, 64], found [10, 64]"));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn what_is_known_or_given_is_kept() {
    let (folder, path) = resnet20();
    let output = folder.path().join("known.safetensors");
    let statistics = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"];
    convert(&path, &output, &statistics).failure().stderr(contains("give --model"));
    convert(&path, &output, &["--model", "resnet20", "--preprocess", "pixel-mean"])
        .failure()
        .stderr(contains("give --mean and --std"));
    convert(&path, &output, &[&["--model", "resnet20"], &statistics[..]].concat()).success();
    let known = Draft::open(&output).unwrap();
    let preprocessing = known.preprocessing().unwrap().state();
    assert_eq!(preprocessing.get("preprocess.mean").unwrap().data(), [0.485, 0.456, 0.406]);

    let again = folder.path().join("again.safetensors");
    convert(&output, &again, &[]).success();
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&output).unwrap());
}

#[test]
fn converting_again_gives_the_same_bytes() {
    let (folder, path) = resnet20();
    let again = folder.path().join("again.safetensors");
    convert(&path, &again, &[]).success();
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
}

#[test]
fn wrong_use_is_an_error_that_says_what_to_do() {
    let (folder, path) = resnet20();
    let absent = folder.path().join("absent.pth");
    let output = folder.path().join("out.safetensors");
    convert(&path, &folder.path().join("out.pth"), &[]).failure().stderr(contains("only safetensors can be written"));
    convert(&absent, &output, &[]).failure().stderr(contains("absent.pth"));
    convert(&path, &output, &["--classes", "5"]).failure().stderr(contains("--model"));
    convert(&path, &output, &["--model", "resnet21"]).failure().stderr(contains("unknown model"));
    convert(Path::new(file!()), &output, &[]).failure();
    assert!(!output.exists());
}
