//! Weights and data away from where a run was made: copied, moved, renamed.

use std::path::Path;

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;

fn resnet(folder: &Path, arguments: &[&str]) -> Assert {
    Command::cargo_bin("resnet").unwrap().current_dir(folder).args(arguments).assert()
}

/// A folder of small images: `images` of each class in `train`, one in `test`.
fn photographs(folder: &Path, classes: &[String], images: usize) {
    for (part, images) in [("train", images), ("test", 1)] {
        for (label, class) in classes.iter().enumerate() {
            let folder = folder.join(part).join(class);
            std::fs::create_dir_all(&folder).unwrap();
            for image in 0..images {
                write_png(&folder.join(format!("{image}.png")), (label * 37 + image * 11) as u8);
            }
        }
    }
}

/// A gradient from a shade.
fn write_png(path: &Path, shade: u8) {
    let mut encoder = png::Encoder::new(std::fs::File::create(path).unwrap(), 32, 32);
    encoder.set_color(png::ColorType::Rgb);
    let pixels: Vec<u8> = (0..32 * 32 * 3).map(|index| shade.wrapping_add((index / 96) as u8)).collect();
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
}

fn classes(count: usize) -> Vec<String> {
    (0..count).map(|class| format!("class-{class:02}")).collect()
}

/// Trains two steps on `photos`, to the run `runs/run`.
fn train(folder: &Path, more: &[&str]) {
    let arguments = [
        "train",
        "--data=photos",
        "--name=run",
        "--batch=8",
        "--iterations=2",
        "--precision=f32",
        "--preprocess=pixel-mean",
        "--threads=1",
    ];
    let model = if more.contains(&"cifar-plain8") { &[][..] } else { &["cifar-resnet8"] };
    resnet(folder, &[&arguments, model, more].concat()).success();
}

/// What `resnet eval --json` measures, without the path of the weights.
fn figures(folder: &Path, arguments: &[&str]) -> serde_json::Value {
    let output = resnet(folder, &[&["eval", "--json"], arguments].concat()).success();
    let mut figures: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert!(figures.as_object_mut().unwrap().remove("weights").is_some());
    figures
}

#[test]
fn weights_copied_elsewhere_alone_measure_as_their_run() {
    for (more, count) in
        [(&["--shortcut=b"][..], 3), (&["--shortcut=c"], 3), (&[], 20), (&["--shortcut=c"], 20), (&["cifar-plain8"], 2)]
    {
        let (home, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        photographs(&home.path().join("photos"), &classes(count), 2);
        train(home.path(), more);
        let of_run = figures(home.path(), &["runs/run"]);
        let data = home.path().join("photos");
        std::fs::copy(home.path().join("runs/run/checkpoints/best.safetensors"), away.path().join("best.safetensors"))
            .unwrap();
        let of_file = figures(away.path(), &["best.safetensors", "--data", data.to_str().unwrap()]);
        assert_eq!(of_file, of_run, "{more:?}, {count} classes");
        assert_eq!(of_run["confusion"].as_array().unwrap().len(), count);
    }
}

#[test]
fn a_file_that_knows_itself_is_asked_for_its_data_alone() {
    let folder = tempfile::tempdir().unwrap();
    photographs(&folder.path().join("photos"), &classes(3), 2);
    train(folder.path(), &[]);
    let best = "runs/run/checkpoints/best.safetensors";
    resnet(folder.path(), &["eval", best])
        .failure()
        .stderr(contains("Give --data, such as the photos it was trained on"));
    resnet(folder.path(), &["eval", best, "--data=photos", "--shortcut=b"])
        .failure()
        .stderr(contains("best.safetensors knows its network: leave out --model"));
    // A normalisation that is given goes before the file's.
    let own = figures(folder.path(), &[best, "--data=photos"]);
    assert_ne!(figures(folder.path(), &[best, "--data=photos", "--preprocess=image-mean"])["loss"], own["loss"]);
    assert_eq!(figures(folder.path(), &[best, "--data=photos", "--preprocess=pixel-mean"]), own);
}

#[test]
fn renamed_classes_are_refused_by_eval_and_resume() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    photographs(&photos, &["cat".into(), "dog".into(), "emu".into()], 4);
    train(folder.path(), &[]);
    let refused = |message: &str| {
        for arguments in [
            &["eval", "runs/run"][..],
            &["eval", "runs/run/checkpoints/last.safetensors", "--data=photos"],
            &["train", "--resume=runs/run"],
        ] {
            resnet(folder.path(), arguments).failure().stderr(
                contains(message).and(contains("trained on 3 classes (cat, dog, emu)")).and(contains(".safetensors: ")),
            );
        }
    };
    let rename = |from: &str, to: &str| {
        for part in ["train", "test"] {
            std::fs::rename(photos.join(part).join(from), photos.join(part).join(to)).unwrap();
        }
    };
    rename("cat", "kitten");
    refused("not in the data: cat; only in the data: kitten");
    rename("kitten", "cat");
    photographs(&photos, &["fox".into()], 1);
    refused("only in the data: fox");
    for part in ["train", "test"] {
        std::fs::remove_dir_all(photos.join(part).join("fox")).unwrap();
    }
    rename("emu", ".emu"); // hidden
    refused("not in the data: emu");
    rename(".emu", "emu");
    resnet(folder.path(), &["eval", "runs/run"]).success();
}

#[test]
fn a_run_goes_on_with_data_that_have_moved() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    photographs(&photos, &classes(3), 4);
    train(folder.path(), &[]);
    std::fs::rename(&photos, folder.path().join("elsewhere")).unwrap();
    resnet(folder.path(), &["train", "--resume=runs/run"])
        .failure()
        .stderr(contains("photos").and(contains("--data says where")));
    resnet(folder.path(), &["train", "--resume=runs/run", "--data=elsewhere", "--lr=1"])
        .failure()
        .stderr(contains("for data that have moved, --data"));

    // Other images of the same number and names.
    photographs(&folder.path().join("others"), &classes(3), 4);
    write_png(&folder.path().join("others/train/class-00/0.png"), 200);
    resnet(folder.path(), &["train", "--resume=runs/run", "--data=others"])
        .failure()
        .stderr(contains("others is not the data set").and(contains("image 0 has other pixels")));
    photographs(&folder.path().join("more"), &classes(3), 5);
    resnet(folder.path(), &["train", "--resume=runs/run", "--data=more"])
        .failure()
        .stderr(contains("12 images of more, now there are 15"));

    resnet(folder.path(), &["train", "--resume=runs/run", "--data=elsewhere"])
        .success()
        .stderr(contains("finished already"));
    let config = std::fs::read_to_string(folder.path().join("runs/run/config.toml")).unwrap();
    assert!(config.contains(folder.path().join("elsewhere").to_str().unwrap()), "{config}");
    // From now on it knows the new place.
    resnet(folder.path(), &["train", "--resume=runs/run"]).success();
    resnet(folder.path(), &["eval", "runs/run"]).success();
}
