//! Published CIFAR-10 weights on the real test images: what they score is known (9173 of 10,000), and every
//! instruction set and precision has to give it.
//!
//! The weights and images are not part of the project. They are looked for in `../shared/data` beside the
//! workspace, or where `RESNET_SHARED` says; without them the tests say so and pass.

use std::path::{Path, PathBuf};

use assert_cmd::Command;

/// The folder with `weights/` and `cifar-10-batches-bin/`, where there is one.
fn shared() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let data = std::env::var_os("RESNET_SHARED").map_or(beside, PathBuf::from).join("data");
    let found = data.join("weights/resnet20-12fca82f.th").is_file() && data.join("cifar-10-batches-bin").is_dir();
    if !found {
        eprintln!("skipped: no published weights and CIFAR-10 in {}", data.display());
    }
    found.then_some(data)
}

/// Images classified correctly, or none where this machine lacks the instruction set.
fn correct(data: &Path, isa: Option<&str>, precision: &str) -> Option<u64> {
    let mut command = Command::cargo_bin("resnet").expect("the command");
    command.arg("eval").arg(data.join("weights/resnet20-12fca82f.th"));
    command.arg("--data").arg(data.join("cifar-10-batches-bin"));
    command.args(["--model", "resnet20", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]);
    command.args(["--json", "--precision", precision]);
    if let Some(isa) = isa {
        command.env("RESNET_ISA", isa);
    }
    let output = command.output().expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("this machine has no") {
        eprintln!("skipped: {}", errors.trim());
        return None;
    }
    assert!(output.status.success(), "{errors}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(found["total"], 10_000);
    Some(found["correct"].as_u64().expect("a count"))
}

/// A test for an instruction set in single precision.
macro_rules! scores_9173_on {
    ($($isa:ident)*) => {
        $(#[test]
        fn $isa() {
            let Some(data) = shared() else { return };
            if let Some(correct) = correct(&data, Some(stringify!($isa)), "f32") {
                assert_eq!(correct, 9173);
            }
        })*
    };
}
scores_9173_on!(portable avx2 avx512 amx);

#[test]
fn fewer_digits_change_ten_images_at_most() {
    let Some(data) = shared() else { return };
    for precision in ["tf32", "bf16"] {
        let correct = correct(&data, None, precision).expect("the machine's own instruction set");
        assert!((9163..=9183).contains(&correct), "{precision}: {correct}");
    }
}
