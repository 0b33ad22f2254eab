//! `resnet bench` as a person meets it.

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("resnet").unwrap();
    command.args(["bench", "cifar-resnet8", "--batch=5", "--threads=1", "--seconds=0"]).args(arguments);
    command
}

#[test]
fn the_json_has_speeds_memory_and_every_layer_in_every_precision() {
    for precision in ["f32", "tf32", "bf16"] {
        let output = bench(&["--json", "--precision", precision]).assert().success().get_output().stdout.clone();
        let report: serde_json::Value = serde_json::from_slice(&output).unwrap();
        assert_eq!((report["model"].as_str(), report["batch"].as_u64()), (Some("cifar-resnet8"), Some(5)));
        assert!(report["engine"].as_str().unwrap().contains(precision));
        for job in ["training", "inference"] {
            assert!(report[job]["images_per_second"].as_f64().unwrap() > 0.0);
            assert!(report[job]["steps"].as_u64().unwrap() >= 3);
        }
        assert!(report["peak_gmacs"].as_f64().unwrap() > 0.0 && report["arena_bytes"].as_u64().unwrap() > 0);
        let parts = report["parts"].as_array().unwrap();
        let has = |work: &str, layer: &str| parts.iter().any(|part| part["work"] == work && part["layer"] == layer);
        assert!(has("load images", "") && has("forward", "conv1") && has("backward, weights", "layer3.0.conv1"));
        assert!(has("update", "") && !has("backward", "conv1"), "nobody needs the gradient of the images");
        let convolution = parts.iter().find(|part| part["layer"] == "layer2.0.conv2").unwrap();
        assert!(convolution["gmacs"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn a_person_sees_the_step_by_kind_of_work_or_by_layer() {
    bench(&[]).assert().success().stdout(contains("training").and(contains("backward, weights")).and(contains("MB")));
    bench(&["--layers"]).assert().success().stdout(contains("layer1.0.conv1").and(contains("% of peak")));
}

#[test]
fn wrong_use_is_explained() {
    bench(&["--precision", "f64"]).assert().failure().stderr(contains("f32, tf32, bf16"));
    bench(&["--seconds=-1"]).assert().failure().stderr(contains("--seconds"));
    bench(&[])
        .env("RESNET_ISA", "sse")
        .assert()
        .failure()
        .stderr(contains("RESNET_ISA").and(contains("portable, avx2")));
}

#[test]
fn bf16_without_its_instructions_runs_and_says_that_it_is_slow() {
    bench(&["--precision", "bf16"])
        .env("RESNET_ISA", "portable")
        .assert()
        .success()
        .stdout(contains("portable bf16"))
        .stderr(contains("AMX"));
}
