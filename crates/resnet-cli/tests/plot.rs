//! `resnet plot` as a person meets it.

use std::path::Path;

use assert_cmd::Command;
use predicates::str::contains;
use resnet::train::metrics::{Record, TestRecord};

/// Plots in `folder`, so that relative names and the default output land there.
fn plot(folder: &Path, arguments: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("resnet").unwrap().current_dir(folder).arg("plot").args(arguments).assert()
}

fn write_run(folder: &Path, iterations: u64) {
    std::fs::create_dir_all(folder).unwrap();
    let record = |iteration: u64| Record {
        iteration,
        epoch: iteration as f64 / 391.0,
        seconds: 1.0,
        lr: 0.1,
        train_loss: 1.0,
        train_error: 9.0 / (10.0 + iteration as f64),
        images_per_second: 1000.0,
        test: iteration.is_multiple_of(20).then_some(TestRecord { test_loss: 1.0, test_error: 0.125 }),
    };
    let lines = (1..=iterations / 10).map(|at| serde_json::to_string(&record(at * 10)).unwrap() + "\n");
    std::fs::write(folder.join("metrics.jsonl"), lines.collect::<String>()).unwrap();
}

#[test]
fn several_runs_stand_in_one_figure() {
    let folder = tempfile::tempdir().unwrap();
    write_run(&folder.path().join("plain20"), 400);
    write_run(&folder.path().join("resnet20"), 400);
    plot(folder.path(), &["plain20", "resnet20/metrics.jsonl", "-o", "both.svg"]).success().stdout("both.svg\n");
    let svg = std::fs::read_to_string(folder.path().join("both.svg")).unwrap();
    for text in ["plain20 (12.50%)", "resnet20 (12.50%)", "test error", "training error", "error (%)"] {
        assert!(svg.contains(text), "{text}");
    }
}

#[test]
fn without_a_name_it_writes_curves_png() {
    let folder = tempfile::tempdir().unwrap();
    write_run(&folder.path().join("run"), 40);
    plot(folder.path(), &["run", "--max-error", "20"]).success();
    assert!(std::fs::read(folder.path().join("curves.png")).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn wrong_use_is_explained_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    write_run(&folder.path().join("run"), 40);
    write_run(&folder.path().join("empty"), 0);
    std::fs::write(folder.path().join("notes.txt"), "not metrics\n").unwrap();
    let cases: [(&[&str], &str); 7] = [
        (&["missing"], "missing"),
        (&["empty"], "holds no record yet"),
        (&["notes.txt"], "notes.txt: line 1"),
        (&["run", "-o", "curves.jpg"], "curves.jpg: a plot's name ends in .png or .svg"),
        (&["run", "-o", "nowhere/curves.png"], "nowhere/curves.png"),
        (&["run", "--max-error", "0"], "within 0 to 100 %"),
        (&[], "<RUN>"),
    ];
    for (arguments, message) in cases {
        plot(folder.path(), arguments).failure().stderr(contains("error: ")).stderr(contains(message));
    }
    assert!(!folder.path().join("curves.png").exists());
}
