//! `resnet train` as a person meets it, Ctrl-C and kill included.

use std::path::Path;

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use resnet::train::{Checkpoint, RunDir, SETTINGS, Setting, Values, metrics};

const ITERATIONS: u64 = 30;

/// A run of seconds: a shallow network, small batches, few images to evaluate on.
const TINY: [&str; 12] = [
    "cifar-resnet8",
    "--batch=8",
    "--iterations=30",
    "--validation-images=40",
    "--eval-interval=10",
    "--checkpoint-interval=1",
    "--schedule=multi-step",
    "--lr=0.05",
    "--set",
    "log-interval=5",
    "--threads",
    "1",
];

fn resnet(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("resnet").unwrap();
    command.current_dir(folder).arg("train").args(arguments);
    command
}

fn tiny(folder: &Path, more: &[&str]) -> Command {
    resnet(folder, &[&TINY[..], more].concat())
}

#[test]
fn a_run_says_what_it_does_and_leaves_what_it_promises() {
    let folder = tempfile::tempdir().unwrap();
    tiny(folder.path(), &[])
        .assert()
        .success()
        .stderr(contains("cifar-resnet8").and(contains("9,960 training and 40 validation images")))
        .stderr(contains("30/30").and(contains("test error")))
        .stdout(contains("accuracy").and(contains("resnet eval runs/cifar-resnet8-synthetic")));
    let run = folder.path().join("runs/cifar-resnet8-synthetic");
    for file in [
        "config.toml",
        "metrics.jsonl",
        "curves.png",
        "curves.svg",
        "checkpoints/best.safetensors",
        "checkpoints/last.safetensors",
        "checkpoints/preprocess.safetensors",
        "checkpoints/resume.safetensors",
    ] {
        assert!(run.join(file).is_file(), "{file}");
    }
    let events = std::fs::read_dir(&run)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("events.out.tfevents."));
    assert_eq!(events.count(), 1);
    let recorded: Vec<_> = metrics::read(&run.join("metrics.jsonl")).unwrap().iter().map(|r| r.iteration).collect();
    assert_eq!(recorded, [5, 10, 15, 20, 25, 30]);

    // The next run of the same kind goes beside it; a name is taken once.
    tiny(folder.path(), &["--set=iterations=1", "--json"])
        .assert()
        .success()
        .stdout(contains("cifar-resnet8-synthetic-2"));
    tiny(folder.path(), &["--name=cifar-resnet8-synthetic"]).assert().failure().stderr(contains("exists already"));
    resnet(folder.path(), &["--resume=runs/cifar-resnet8-synthetic"])
        .assert()
        .success()
        .stderr(contains("finished already"));
}

#[test]
fn the_summary_is_json() {
    let folder = tempfile::tempdir().unwrap();
    let output = tiny(folder.path(), &["--json", "--set=iterations=3", "--name=run", "--out=here"]).assert().success();
    let summary: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!(summary["run"], "here/run");
    assert_eq!((&summary["finished"], &summary["iteration"]), (&true.into(), &3.into()));
    assert!(summary["test_error"].as_f64().is_some_and(|error| (0.0..=1.0).contains(&error)), "{summary}");
}

#[test]
fn the_printed_settings_give_the_same_settings() {
    let folder = tempfile::tempdir().unwrap();
    let print = |arguments: &[&str]| {
        let output = resnet(folder.path(), &[arguments, &["--print-config"]].concat()).assert().success();
        String::from_utf8(output.get_output().stdout.clone()).unwrap()
    };
    let text = print(&["resnet110", "--recipe=paper-cifar", "--iterations=4000", "--shortcut=b", "--set", "seed=3"]);
    for line in ["model = \"resnet110\"", "shortcut = \"b\"", "milestones = [2000, 3000]", "seed = 3"] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    std::fs::write(folder.path().join("mine.toml"), &text).unwrap();
    assert_eq!(print(&["--config=mine.toml"]), text);
    assert!(print(&["--config=mine.toml", "--lr=0.5", "resnet20", "--set=optimizer.kind=adam"]).contains("lr = 0.5"));
    assert!(!folder.path().join("runs").exists());
}

/// A value of the setting that no other has by default.
fn sample(setting: &Setting) -> &'static str {
    match setting.values {
        Values::Text => "elsewhere",
        Values::Switch => "false",
        Values::Choice(choices) => choices[1].name,
        Values::Count { .. } => "7",
        Values::Positive | Values::NotNegative | Values::Share => "0.25",
        Values::Numbers => "0.5,0.25,0.125",
    }
}

#[test]
fn a_flag_does_the_same_by_each_of_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let print = |arguments: &[&str]| {
        let output = resnet(folder.path(), &[arguments, &["--print-config"]].concat()).assert().success();
        String::from_utf8(output.get_output().stdout.clone()).unwrap()
    };
    let default = print(&[]);
    for setting in SETTINGS {
        let value = sample(setting);
        let aliases = setting.aliases.iter().map(|alias| format!("--{alias}"));
        let names: Vec<_> = aliases.chain(setting.short.map(|short| format!("-{short}"))).collect();
        if names.is_empty() {
            continue;
        }
        let expected = print(&[&format!("--{}", setting.flag), value]);
        assert_ne!(expected, default, "--{} does nothing", setting.flag);
        for name in &names {
            assert_eq!(print(&[name, value]), expected, "{name}");
        }
    }
    assert_eq!(print(&["--model=plain20"]), print(&["plain20"]));
    let statistics = print(&["--mean=-0.5,0.25,0.125", "--std=0.5,0.25,0.125"]);
    assert!(statistics.contains("kind = \"channel\"") && statistics.contains("mean = [-0.5, 0.25, 0.125]"));
}

#[test]
fn epochs_are_counted_on_the_data_and_kept_as_iterations() {
    let folder = tempfile::tempdir().unwrap();
    // The 9,960 images that are left make 100 iterations, a fortieth of them 2.5.
    let flags = ["cifar-resnet8", "--epochs=0.025", "-b=100", "--validation-images=40", "--name=run", "-j=1"];
    resnet(folder.path(), &flags).assert().success().stderr(contains("3 iterations of 100 images"));
    let config = RunDir::open(&folder.path().join("runs/run")).unwrap().config().unwrap();
    assert_eq!((config.iterations, config.batch, config.workers), (3, 100, 1));
    resnet(folder.path(), &["--resume=runs/run", "--workers=2", "--threads=1"]).assert().success();

    let output = resnet(folder.path(), &["--recipe=paper-cifar", "--data=synthetic", "--epochs=10", "--print-config"])
        .assert()
        .success()
        .stdout(contains("iterations = 790").and(contains("milestones = [395, 593]")));
    assert!(!String::from_utf8_lossy(&output.get_output().stdout).contains("epochs"));
}

#[test]
fn wrong_use_is_explained_and_leaves_no_run() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine.toml"), "batch = 0\n").unwrap();
    let cases: [(&[&str], &str); 21] = [
        (&["resnet21"], "resnet21"),
        (&["--recipe=imagenet"], "quick, fast, paper-cifar"),
        (&["--config=mine.toml"], "mine.toml: batch must be at least 1"),
        (&["--config=absent.toml"], "absent.toml"),
        (&["--precision=f64"], "f32, tf32, bf16"),
        (&["--set=batch"], "SETTING=VALUE"),
        (&["--set=learning-rate=1"], "unknown field `learning-rate`: did you mean `lr`?"),
        (&["--set=schedule.rize=0.5"], "did you mean `rise`?"),
        (&["--batch=many"], "'many' for '--batch <N>': expected a whole number"),
        (&["--threads=-1"], "'-1' for '--threads <N>': must be from 0 to 1024"),
        (&["--lr", "-1"], "'-1' for '--lr <X>': must be positive"),
        (&["--schedule=step"], "multi-step, cosine, one-cycle, plateau"),
        (&["--shortcut=d"], "possible values: a, b, c"),
        (&["--epochs=0"], "'0' for '--epochs <N>': must be positive"),
        (&["--epochs=1", "--iterations=1"], "'--iterations <N>'"),
        (&["--epochs=1", "--validation-images=10000"], "validation-images must be below"),
        (&["--optimizer=adam", "--momentum=0.5"], "momentum"),
        (&["--data=absent"], "absent"),
        (&["--classes=7"], "7 classes"),
        (&["--resume=absent"], "absent: not a run"),
        (&["--resume=absent", "--lr=1"], "--threads"),
    ];
    for (arguments, message) in cases {
        resnet(folder.path(), arguments).assert().failure().stderr(contains(message));
    }
    tiny(folder.path(), &[]).env("RESNET_ISA", "sse").assert().failure().stderr(contains("RESNET_ISA"));
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn divergence_is_a_failure_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    tiny(folder.path(), &["--set=lr=1e30"])
        .assert()
        .failure()
        .stderr(contains("diverged at iteration").and(contains("lower learning rate")));
}

#[cfg(unix)]
mod stopped {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    /// Starts a run or goes on with it.
    fn spawn(folder: &Path, dir: &Path) -> Child {
        let resume = ["--resume", dir.to_str().unwrap()];
        let arguments = if dir.join("config.toml").is_file() { &resume[..] } else { &TINY };
        std::process::Command::new(env!("CARGO_BIN_EXE_resnet"))
            .current_dir(folder)
            .arg("train")
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn iteration(dir: &Path) -> u64 {
        let path = dir.join("checkpoints/resume.safetensors");
        if path.exists() { Checkpoint::read(&path).expect("a whole checkpoint").progress.iteration } else { 0 }
    }

    /// Waits for a checkpoint of a later iteration, or the end.
    fn wait_beyond(child: &mut Child, dir: &Path, last: u64) {
        while child.try_wait().unwrap().is_none() && iteration(dir) <= last {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Weights and measurements, without the time they took.
    #[derive(Debug, PartialEq)]
    struct Outcome {
        last: Vec<u8>,
        best: Vec<u8>,
        measured: Vec<(u64, f64, Option<metrics::TestRecord>)>,
    }

    fn outcome(dir: &Path) -> Outcome {
        let dir = RunDir::open(dir).unwrap();
        let records = metrics::read(&dir.metrics()).unwrap();
        Outcome {
            last: std::fs::read(dir.last()).unwrap(),
            best: std::fs::read(dir.best()).unwrap(),
            measured: records.iter().map(|record| (record.iteration, record.train_loss, record.test)).collect(),
        }
    }

    /// How a run ends that nothing disturbs.
    fn undisturbed(folder: &Path) -> Outcome {
        tiny(folder, &["--out=undisturbed", "--name=run"]).assert().success();
        outcome(&folder.join("undisturbed/run"))
    }

    #[test]
    fn ctrl_c_writes_a_checkpoint_to_go_on_from() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("runs/cifar-resnet8-synthetic");
        let mut child = spawn(folder.path(), &dir);
        wait_beyond(&mut child, &dir, 3);
        let interrupt = ["-s", "INT", &child.id().to_string()].map(str::to_owned);
        assert!(std::process::Command::new("kill").args(interrupt).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let stopped = iteration(&dir);
        assert!((4..ITERATIONS).contains(&stopped), "stopped after {stopped}");
        resnet(folder.path(), &["--resume", dir.to_str().unwrap()])
            .assert()
            .success()
            .stderr(contains(format!("going on after iteration {stopped}")));
        assert_eq!(outcome(&dir), undisturbed(folder.path()));
    }

    /// Kills at moments that drift over a step and its checkpoint: before, while and after files are
    /// written and renamed.
    #[test]
    fn a_killed_run_always_has_a_whole_checkpoint_and_ends_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("runs/cifar-resnet8-synthetic");
        let mut killed = 0;
        while iteration(&dir) < ITERATIONS {
            let last = iteration(&dir);
            let mut child = spawn(folder.path(), &dir);
            wait_beyond(&mut child, &dir, last + 2);
            let moment = Instant::now() + Duration::from_micros(2500) * killed;
            while Instant::now() < moment {
                std::hint::spin_loop();
            }
            child.kill().unwrap();
            if child.wait().unwrap().signal().is_some() {
                killed += 1;
            }
            for file in ["best.safetensors", "last.safetensors"] {
                let path = dir.join("checkpoints").join(file);
                assert!(!path.exists() || resnet::weights::read(&path, None).is_ok(), "{file}");
            }
        }
        assert!(killed >= 3, "killed {killed} times only");
        // A kill after the last checkpoint leaves its copies to be made.
        resnet(folder.path(), &["--resume", dir.to_str().unwrap()]).assert().success();
        assert_eq!(outcome(&dir), undisturbed(folder.path()));
    }
}
