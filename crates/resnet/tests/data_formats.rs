//! Every file format, whole and damaged.

use std::fs::File;
use std::path::{Path, PathBuf};

use resnet::data::{OpenOptions, Splits, open};

fn open_path(path: &Path) -> resnet::Result<Splits> {
    open(path.to_str().unwrap(), &OpenOptions::default())
}

/// What opening says is wrong.
fn complaint(path: &Path) -> String {
    open_path(path).err().expect("opening should fail").to_string()
}

/// A file of zeros that takes no space.
fn zeros(path: impl AsRef<Path>, len: u64) {
    File::create(path).unwrap().set_len(len).unwrap();
}

fn overwrite(path: impl AsRef<Path>, at: u64, bytes: &[u8]) {
    use std::io::{Seek, Write};
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(std::io::SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

fn pixels(dataset: &dyn resnet::data::Dataset, index: usize) -> Vec<u8> {
    let mut pixels = vec![0; dataset.shape().len()];
    dataset.read(index, &mut pixels).unwrap();
    pixels
}

/// Real data beside the project, where there is any.
fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: there is no {}", path.display());
    None
}

fn cifar10_binary() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        zeros(folder.path().join(file).with_extension("bin"), 30_730_000);
    }
    folder
}

#[test]
fn cifar10_binary_is_read() {
    let folder = cifar10_binary();
    overwrite(folder.path().join("data_batch_2.bin"), 3073, &[9, 1, 2, 3]);
    let splits = open_path(folder.path()).unwrap();
    assert_eq!((splits.name.as_str(), splits.train.len(), splits.test.len()), ("cifar10", 50_000, 10_000));
    assert_eq!(splits.train.label(10_001), 9);
    assert_eq!(pixels(&*splits.train, 10_001)[..4], [1, 2, 3, 0]);
    assert_eq!(splits.train.classes()[9], "truck");
}

#[test]
fn damaged_cifar10_binary_is_refused_by_name_and_size() {
    let folder = cifar10_binary();
    let file = folder.path().join("data_batch_4.bin");
    overwrite(&file, 2 * 3073, &[10]);
    let message = complaint(folder.path());
    assert!(message.contains("data_batch_4.bin: image 2 has label 10"), "{message}");
    zeros(&file, 30_730_000 - 3073);
    let message = complaint(folder.path());
    assert!(message.contains("data_batch_4.bin: expected 30730000 bytes, found 30726927"), "{message}");
    std::fs::remove_file(&file).unwrap();
    assert!(complaint(folder.path()).contains("data_batch_4.bin"));
}

#[test]
fn cifar100_binary_is_read_by_fine_label() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    zeros(path("train.bin"), 50_000 * 3074);
    zeros(path("test.bin"), 10_000 * 3074);
    overwrite(path("test.bin"), 3074, &[19, 99, 5]);
    let names: Vec<String> = (0..100).map(|i| format!("class{i}\n")).collect();
    std::fs::write(path("fine_label_names.txt"), names.concat()).unwrap();
    let splits = open_path(folder.path()).unwrap();
    assert_eq!((splits.name.as_str(), splits.train.len(), splits.test.len()), ("cifar100", 50_000, 10_000));
    assert_eq!((splits.test.label(1), pixels(&*splits.test, 1)[0]), (99, 5));
    assert_eq!(splits.test.classes()[99], "class99");

    overwrite(path("train.bin"), 3074 * 7, &[0, 100]);
    assert!(complaint(folder.path()).contains("train.bin: image 7 has label 100"));
    std::fs::write(path("fine_label_names.txt"), names[1..].concat()).unwrap();
    assert!(complaint(folder.path()).contains("expected 100 class names, found 99"));
    std::fs::remove_file(path("fine_label_names.txt")).unwrap();
    assert!(complaint(folder.path()).contains("fine_label_names.txt"));
}

#[test]
fn the_real_cifar10_is_balanced_and_has_its_known_mean() {
    let Some(folder) = shared("cifar-10-batches-bin") else { return };
    let splits = open_path(&folder).unwrap();
    for (dataset, each) in [(&splits.train, 5000), (&splits.test, 1000)] {
        for class in 0..10 {
            assert_eq!((0..dataset.len()).filter(|&i| dataset.label(i) == class).count(), each);
        }
    }
    let fitted = resnet::data::Preprocess::Channel { mean: None, std: None }.fit(&*splits.train).unwrap();
    let state = fitted.state();
    let published = [("preprocess.mean", [0.4914, 0.4822, 0.4465]), ("preprocess.std", [0.2470, 0.2435, 0.2616])];
    for (name, expected) in published {
        for (found, expected) in state.get(name).unwrap().data().iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4, "{name}: {found}, expected {expected}");
        }
    }
}

#[test]
fn folders_without_a_data_set_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(complaint(folder.path()).contains("no data set"));
    assert!(complaint(&folder.path().join("absent")).contains("absent"));
}
