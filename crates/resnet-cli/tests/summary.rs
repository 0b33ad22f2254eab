//! `resnet summary` as a person meets it.

use assert_cmd::Command;
use predicates::str::contains;

fn summary(arguments: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("resnet").unwrap().arg("summary").args(arguments).assert()
}

#[test]
fn totals_are_the_papers() {
    let table = [
        ("resnet20", "269,722", "(0.27M)"),
        ("resnet32", "464,154", "(0.46M)"),
        ("resnet44", "658,586", "(0.66M)"),
        ("resnet56", "853,018", "(0.85M)"),
        ("resnet110", "1,727,962", "(1.7M)"),
        ("resnet1202", "19,421,274", "(19.4M)"),
    ];
    for (model, exact, short) in table {
        summary(&[model]).success().stdout(contains(exact).count(1)).stdout(contains(short));
    }
}

#[test]
fn a_row_says_what_a_layer_is_and_costs() {
    let output = summary(&["resnet20", "--shortcut", "b"]).success().get_output().stdout.clone();
    let text = String::from_utf8(output).unwrap();
    let row = text.lines().find(|line| line.trim_start().starts_with("layer2.0.downsample.0")).unwrap();
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells, ["layer2.0.downsample.0", "conv", "1x1", "/2", "32x16x16", "512", "131,072"]);
    assert!(text.contains("40,813,184  (40.8M)"));
}

#[test]
fn flags_change_the_network() {
    summary(&["cifar-resnet38", "--classes", "100", "--in-channels", "1"])
        .success()
        .stdout(contains("cifar-resnet38: 1x32x32 images, 100 classes, shortcuts A"));
}

#[test]
fn json_has_the_exact_numbers() {
    let output = summary(&["plain20", "--json"]).success().get_output().stdout.clone();
    let value: serde_json::Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(value["model"], "plain20");
    assert_eq!(value["parameters"], 269_722);
    assert_eq!(value["multiply_adds"], 40_551_040);
    assert_eq!(value["layers"][0]["output"]["channels"], 16);
}

#[test]
fn a_model_that_does_not_exist_is_an_error_that_says_what_does() {
    summary(&["resnet21"]).failure().stderr(contains("error: unknown model 'resnet21': expected resnet20, "));
    summary(&["cifar-resnet21"]).failure().stderr(contains("depth must be 6n+2 between 8 and 6002, found 21"));
}

#[test]
fn wrong_flags_are_errors() {
    summary(&["resnet20", "--shortcut", "d"]).failure().code(2).stderr(contains("[possible values: a, b, c]"));
    summary(&["resnet20", "--classes", "0"]).failure().stderr(contains("must be from 1 to"));
    summary(&["plain20", "--shortcut", "a"]).failure().stderr(contains("'plain20' is a plain network"));
    summary(&[]).failure().stderr(contains("<MODEL>"));
}

/// What `resnet summary resnet1202 | head -1` does to it.
#[test]
fn a_reader_that_stops_early_is_no_error() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("resnet"))
        .args(["summary", "resnet1202"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::with_capacity(64, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("resnet1202"));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
