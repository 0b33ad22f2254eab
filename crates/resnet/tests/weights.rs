//! Weight files as people save them, good, damaged and hostile. The files come from
//! `fixtures/generate_checkpoints.py`.

use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use resnet::arch::{Block, Graph, Network, ProjectionInit, Shape, Shortcut, Stage, Stem, initial_state};
use resnet::weights::{self, safetensors};
use resnet::{Error, StateDict, Tensor};

const GOOD: [&str; 12] = [
    "expected.safetensors",
    "zip.pth",
    "legacy.pth",
    "training-script.th",
    "model-state-dict.pt",
    "model.pt",
    "net.pt",
    "float16.pth",
    "bfloat16.pth",
    "float64.pth",
    "views.pth",
    "views-legacy.pth",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints").join(name)
}

/// The network of the files.
fn example() -> Network {
    Network {
        name: "example".into(),
        input: Shape::new(3, 8, 8),
        stem: Stem::Conv3x3 { channels: 2 },
        block: Block::Basic,
        shortcut: Some(Shortcut::B),
        projection_init: ProjectionInit::He,
        classes: 3,
        stages: vec![Stage { blocks: 1, channels: 2, stride: 1 }, Stage { blocks: 1, channels: 4, stride: 2 }],
    }
}

fn graph() -> Graph {
    example().graph().expect("a network")
}

/// What every good file holds: the generator's formula.
fn expected() -> StateDict {
    // PyTorch counts `num_batches_tracked` among the tensors of a batch norm: the fifth of them.
    let mut index = 0;
    let mut state = StateDict::new();
    for spec in &graph().tensors() {
        let data = (0..spec.len()).map(|i| ((i * 7 + index * 5) % 97) as f32 / 64.0 - 0.75).collect();
        index += if spec.name.ends_with("running_var") { 2 } else { 1 };
        state.insert(spec.name.as_str(), Tensor::new(spec.shape.clone(), data).expect("sizes agree"));
    }
    state
}

fn assert_same(found: &StateDict, expected: &StateDict, file: &str) {
    let names = |state: &StateDict| state.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{file}");
    for (name, tensor) in expected.iter() {
        assert_eq!(found.get(name), Some(tensor), "{file}: {name}");
    }
}

#[test]
fn every_way_of_saving_a_network_gives_the_same_state() {
    for file in GOOD.into_iter().chain(["parameters.pth"]) {
        let found = weights::read(&fixture(file), Some(&graph())).unwrap_or_else(|e| panic!("{e}"));
        assert_same(&found.state, &expected(), file);
    }
}

#[test]
fn without_a_network_all_tensors_come_under_the_same_names() {
    for file in GOOD {
        let found = weights::read(&fixture(file), None).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(found.state, expected(), "{file}");
    }
}

#[test]
fn what_does_not_fit_is_listed_by_name() {
    let mut network = example();
    network.classes = 5;
    network.stages[1].blocks = 2;
    network.shortcut = Some(Shortcut::A);
    let graph = network.graph().expect("a network");
    let Err(Error::State(mismatch)) = weights::read(&fixture("zip.pth"), Some(&graph)) else {
        panic!("another network's weights were accepted");
    };
    assert!(mismatch.missing.contains(&"layer2.1.conv1.weight".to_string()));
    assert!(mismatch.extra.contains(&"layer2.0.downsample.1.running_var".to_string()));
    assert_eq!(mismatch.reshaped[0], ("fc.weight".to_string(), vec![5, 4], vec![3, 4]));
}

#[test]
fn what_is_read_can_be_written_and_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("converted.safetensors");
    let found = weights::read(&fixture("training-script.th"), Some(&graph())).expect("readable");
    safetensors::write(&path, &found.state, &found.metadata).expect("written");
    assert_eq!(weights::read(&path, Some(&graph())).expect("readable"), found);
}

#[test]
fn hostile_files_are_refused_and_nothing_in_them_runs() {
    let mut tried = 0;
    for entry in std::fs::read_dir(fixture("")).expect("the fixtures") {
        let path = entry.expect("a file").path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("hostile-") && name != "hostile-call-beside-tensors.pth" {
            tried += 1;
            let message = weights::read(&path, None).expect_err(&name).to_string();
            assert!(message.contains(&name), "{message}");
        }
    }
    assert!(tried >= 9, "only {tried} hostile files found");
    // A call beside the tensors is left out like any other object of unknown contents.
    let found = weights::read(&fixture("hostile-call-beside-tensors.pth"), Some(&graph())).expect("tensors");
    assert_same(&found.state, &expected(), "hostile-call-beside-tensors.pth");
    assert!(!Path::new("executed-by-a-checkpoint").exists());
}

#[test]
fn deep_nesting_does_not_exhaust_the_stack() {
    let depth = 1_000_000;
    let pickle = [b"\x80\x02".as_slice(), &vec![b'('; depth], &vec![b't'; depth], b"."].concat();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("nested.pth");
    std::fs::write(&path, pickle).expect("written");
    assert!(weights::read(&path, None).is_err());
}

#[test]
fn other_files_are_refused_with_what_was_expected() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notes.pth");
    for contents in ["", "hello", "{\"not\": \"weights\"}"] {
        std::fs::write(&path, contents).expect("written");
        let message = weights::read(&path, None).expect_err(contents).to_string();
        assert!(message.contains("notes.pth") && message.contains("safetensors"), "{message}");
    }
    assert!(weights::read(&folder.path().join("absent.pth"), None).is_err());
    assert!(weights::read(folder.path(), None).is_err());
}

/// What a damaged file may do: be refused, or give tensors if the damage is where no check reaches.
fn read_bytes(path: &Path, bytes: &[u8]) -> resnet::Result<weights::Weights> {
    let _ = std::fs::remove_file(path); // some file systems wait for the disk when a file is cut to nothing
    std::fs::write(path, bytes).expect("written");
    weights::read(path, Some(&graph()))
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("short");
    for file in ["views.pth", "views-legacy.pth", "expected.safetensors"] {
        let bytes = std::fs::read(fixture(file)).expect("the fixture");
        for len in 0..bytes.len() {
            assert!(read_bytes(&path, &bytes[..len]).is_err(), "{file} cut to {len} of {} bytes", bytes.len());
        }
    }
}

#[test]
fn no_damage_makes_the_reader_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("damaged");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for file in ["views.pth", "views-legacy.pth", "training-script.th", "expected.safetensors"] {
        let good = std::fs::read(fixture(file)).expect("the fixture");
        for _ in 0..2000 {
            let mut bytes = good.clone();
            for _ in 0..rng.random_range(1..4) {
                // Names, shapes and offsets stand at the start or the end; values need little attention.
                let span = if rng.random_range(0..4) == 0 { good.len() } else { good.len().min(1500) };
                let at = rng.random_range(0..span);
                let at = if rng.random() { at } else { good.len() - 1 - at };
                bytes[at] = rng.random();
            }
            let _ = read_bytes(&path, &bytes);
        }
    }
}

#[test]
fn published_weights_fit_their_network() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/weights/resnet20-12fca82f.th");
    if !shared.exists() {
        eprintln!("skipped: {} is not there", shared.display());
        return;
    }
    let network = Network::named("resnet20").expect("a network");
    let graph = network.graph().expect("a network");
    let found = weights::read(&shared, Some(&graph)).expect("readable");
    assert_eq!(found.state.len(), graph.tensors().len());
    // Trained weights, not the ones a network starts from.
    let start = initial_state(&network, 0).expect("a network");
    assert_ne!(found.state.get("bn1.weight"), start.get("bn1.weight"));
}
