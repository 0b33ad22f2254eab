//! Every file format, whole and damaged.

use std::fs::File;
use std::path::{Path, PathBuf};

use resnet::arch::Shape;
use resnet::data::{Dataset, Framing, Image, OpenOptions, Scratch, Splits, Workers, open};

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

fn pixels(dataset: &dyn Dataset, index: usize) -> Vec<u8> {
    let mut image = Image::default();
    dataset.read(index, &mut image).unwrap();
    image.pixels().to_vec()
}

/// An image as an evaluation sees it on a canvas.
fn framed(dataset: &dyn Dataset, index: usize, canvas: Shape) -> Vec<u8> {
    let mut image = Image::default();
    dataset.read(index, &mut image).unwrap();
    let view = Framing::of(dataset, canvas).unwrap().view(image.shape(), canvas);
    view.frame(&image, &mut Scratch::default()).unwrap().to_vec()
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
    assert_eq!(splits.train.origin(10_001), "image 1 of data_batch_2.bin");
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

/// A batch as Python 2 wrote it for the official archive, all black.
fn python2_batch(labels_key: &str, images: usize, label: u8) -> Vec<u8> {
    let [rows, columns] = [images, 3072].map(|n| [&b"J"[..], &(n as i32).to_le_bytes()].concat());
    let key = |key: &str| [b"U", &[key.len() as u8][..], key.as_bytes()].concat();
    [
        b"\x80\x02}q\x01(",
        &key("batch_label")[..],
        b"q\x02U\x15training batch 1 of 5q\x03",
        &key(labels_key),
        b"q\x04]q\x05(",
        &[b'K', label].repeat(images),
        b"e",
        &key("data"),
        b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09(K\x01",
        &rows,
        &columns,
        b"\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T",
        &(images as i32 * 3072).to_le_bytes(),
        &vec![0; images * 3072],
        b"tbu.",
    ]
    .concat()
}

#[test]
fn cifar10_python_is_read() {
    let folder = tempfile::tempdir().unwrap();
    for (label, file) in
        ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"].iter().enumerate()
    {
        std::fs::write(folder.path().join(file), python2_batch("labels", 10_000, label as u8)).unwrap();
    }
    let test = folder.path().join("test_batch");
    std::fs::write(&test, python2_batch("labels", 10_000, 9)).unwrap();
    let splits = open_path(folder.path()).unwrap();
    assert_eq!((splits.name.as_str(), splits.train.len(), splits.test.len()), ("cifar10", 50_000, 10_000));
    assert_eq!((splits.train.label(9_999), splits.train.label(40_000), splits.test.label(0)), (0, 4, 9));

    for (bytes, complaint_has) in [
        (python2_batch("labels", 9_999, 0), "expected `data` of 10000 x 3072, found 9999 x 3072"),
        (python2_batch("fine_labels", 10_000, 0), "a list `labels`"),
        (python2_batch("labels", 10_000, 10), "image 0 has label 10"),
        (b"]".to_vec(), "it ends at byte 1"),
        (vec![0; 10_000 * 4096 + 1], "expected at most"),
    ] {
        std::fs::write(&test, bytes).unwrap();
        let message = complaint(folder.path());
        assert!(message.contains("test_batch") && message.contains(complaint_has), "{message}");
    }
}

#[test]
fn cifar100_python_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("train"), python2_batch("fine_labels", 50_000, 3)).unwrap();
    std::fs::write(path("test"), python2_batch("fine_labels", 10_000, 99)).unwrap();
    let names = |n| [&b"\x80\x02}U\x10fine_label_names]("[..], &b"U\x03cat".repeat(n), b"es."].concat();
    std::fs::write(path("meta"), names(100)).unwrap();
    let splits = open_path(folder.path()).unwrap();
    assert_eq!((splits.name.as_str(), splits.train.len(), splits.test.label(0)), ("cifar100", 50_000, 99));
    assert_eq!(splits.test.classes()[99], "cat");
    std::fs::write(path("meta"), names(99)).unwrap();
    assert!(complaint(folder.path()).contains("meta: expected 100 class names, found 99"));
}

fn idx(extents: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, extents.len() as u8];
    bytes.extend(extents.iter().flat_map(|extent| extent.to_be_bytes()));
    bytes.extend(values);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Six training images and two test images of 28x28, compressed and plain.
fn idx_folder(root: &Path) -> PathBuf {
    let folder = root.join("fashion-mnist");
    std::fs::create_dir(&folder).unwrap();
    let pixels: Vec<u8> = (0..6 * 784).map(|i| (i % 255) as u8).collect();
    std::fs::write(folder.join("train-images-idx3-ubyte.gz"), gzip(&idx(&[6, 28, 28], &pixels))).unwrap();
    std::fs::write(folder.join("train-labels-idx1-ubyte.gz"), gzip(&idx(&[6], &[0, 1, 2, 9, 4, 5]))).unwrap();
    std::fs::write(folder.join("t10k-images-idx3-ubyte"), idx(&[2, 28, 28], &pixels[..1568])).unwrap();
    std::fs::write(folder.join("t10k-labels-idx1-ubyte"), idx(&[2], &[3, 7])).unwrap();
    folder
}

#[test]
fn idx_is_read_compressed_and_plain() {
    let root = tempfile::tempdir().unwrap();
    let splits = open_path(&idx_folder(root.path())).unwrap();
    assert_eq!((splits.name.as_str(), splits.train.len(), splits.test.len()), ("fashion-mnist", 6, 2));
    assert_eq!(splits.train.shape(), Some(Shape::new(1, 28, 28)));
    assert_eq!(splits.train.origin(5), "image 5 of train-images-idx3-ubyte");
    assert_eq!((splits.train.label(3), splits.test.label(1)), (9, 7));
    assert_eq!(pixels(&*splits.train, 5)[..3], [95, 96, 97]);
    assert_eq!(splits.train.classes()[9], "Ankle boot");
    assert_eq!(framed(&*splits.train, 0, Shape::new(3, 32, 32)).len(), 3 * 32 * 32);
}

#[test]
fn damaged_idx_is_refused_by_name_and_size() {
    let root = tempfile::tempdir().unwrap();
    let folder = idx_folder(root.path());
    let compressed = gzip(&idx(&[6, 28, 28], &(0..4704).map(|i| (i * i) as u8).collect::<Vec<_>>()));
    let truncated = &compressed[..compressed.len() / 2];
    let images = "train-images-idx3-ubyte.gz";
    let plain = "t10k-images-idx3-ubyte";
    for (name, bytes, complaint_has) in [
        (images, gzip(&idx(&[6, 28, 28], &[0; 4703])), "expected 4704 bytes of values, found 4703"),
        (images, gzip(&idx(&[6, 28, 28], &[0; 4705])), "found more"),
        (images, truncated.to_vec(), "expected 4704 bytes of values, found "),
        (images, gzip(&[0, 0, 8]), "expected 16 bytes of header, found 3"),
        (images, vec![1, 2, 3], "expected 16 bytes of header, found 0"),
        (images, gzip(&idx(&[u32::MAX; 3], &[])), "more than"),
        (images, gzip(&idx(&[5, 28, 28], &[0; 3920])), "expected 5 labels, one for each image, found 6"),
        (plain, idx(&[2], &[0; 40]), "expected the IDX start [0, 0, 8, 3], found [0, 0, 8, 1]"),
        (plain, idx(&[2, 28, 28], &[0; 1567]), "expected 1568 bytes of values, found 1567"),
        (plain, idx(&[2, 0, 28], &[]), "expected images"),
    ] {
        let path = folder.join(name);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let message = complaint(&folder);
        assert!(message.contains(complaint_has), "{message}");
        std::fs::write(&path, good).unwrap();
    }
    std::fs::remove_file(folder.join("t10k-labels-idx1-ubyte")).unwrap();
    assert!(complaint(&folder).contains("t10k-labels-idx1-ubyte: the file is missing"));
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name)).unwrap()
}

/// Writes files, with the folders they are in.
fn image_folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    folder
}

#[test]
fn class_folders_are_read_in_alphabetical_order() {
    let png = fixture("colour.png");
    let folder = image_folder(&[
        ("train/dog/2.PNG", &png),
        ("train/dog/1.png", &png),
        ("train/cat/a.jpeg", &fixture("colour.jpg")),
        ("train/cat/notes.txt", b"not an image"),
        ("train/.hidden/a.png", b""),
        ("val/dog/1.png", &png),
    ]);
    let splits = open_path(folder.path()).unwrap();
    assert_eq!(splits.train.classes(), ["cat", "dog"]);
    assert_eq!(splits.test.classes(), ["cat", "dog"]);
    assert_eq!((0..3).map(|i| splits.train.label(i)).collect::<Vec<_>>(), [0, 1, 1]);
    assert_eq!((splits.test.len(), splits.test.label(0)), (1, 1));
    assert_eq!(splits.train.origin(2), folder.path().join("train/dog/2.PNG").to_str().unwrap());
    assert_eq!(splits.train.shape(), None);
    assert_eq!(pixels(&*splits.train, 2), pixels(&*splits.test, 0));
}

#[test]
fn one_folder_of_classes_is_split_in_two() {
    let png = fixture("colour.png");
    let names: Vec<String> = (0..10).map(|i| format!("class{}/{i}.png", i % 2)).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &png[..])).collect();
    let folder = image_folder(&files);
    let splits = open_path(folder.path()).unwrap();
    assert_eq!((splits.train.len(), splits.test.len()), (8, 2));
}

#[test]
fn images_are_cropped_and_scaled_as_pillow_does() {
    let names = ["colour.png", "colour.jpg", "progressive.jpg", "transparent.png", "grey.jpg", "palette.png"];
    // What a JPEG of this quality or 64 colours lose; PNG is exact but for rounding.
    let tolerance = [1, 8, 12, 1, 255, 40];
    let (colour, grey) = (fixture("scaled.bin"), fixture("scaled-grey.bin"));
    for (name, tolerance) in names.into_iter().zip(tolerance) {
        let bytes = fixture(name);
        let folder = image_folder(&[("train/a/x.png", &bytes), ("test/a/x.png", &bytes)]);
        for (channels, expected) in [(3, &colour), (1, &grey)] {
            let tolerance = if (name, channels) == ("grey.jpg", 1) { 8 } else { tolerance };
            let splits = open_path(folder.path()).unwrap();
            let found = framed(&*splits.train, 0, Shape::new(channels, 16, 16));
            let worst = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= tolerance, "{name}, {channels} channels: off by {worst}");
        }
        if name == "grey.jpg" {
            let splits = open_path(folder.path()).unwrap();
            let found = framed(&*splits.train, 0, Shape::new(3, 16, 16));
            assert!(
                found[..256] == found[256..512] && found[..256] == found[512..],
                "grey is the same in every channel"
            );
        }
    }
}

#[test]
fn damaged_images_are_named() {
    let (png, jpeg) = (fixture("colour.png"), fixture("colour.jpg"));
    // A header that promises 2^31 - 1 pixels a side; its checksum is not looked at before the size.
    let huge = [&png[..16], &[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff], &png[24..]].concat();
    for (bytes, complaint_has) in [
        (&b""[..], "empty file"),
        (b"GIF89a", "something else"),
        (&png[..png.len() / 2], "damaged PNG"),
        (&jpeg[..jpeg.len() / 2], "damaged JPEG"),
        (&jpeg[..10], "damaged JPEG"),
        (&huge, "PNG"),
    ] {
        let folder = image_folder(&[("train/a/x.png", bytes), ("test/a/x.png", bytes)]);
        let splits = open_path(folder.path()).unwrap();
        let message = splits.train.read(0, &mut Image::default()).unwrap_err().to_string();
        assert!(message.contains("x.png") && message.contains(complaint_has), "{message}");
    }
}

#[test]
fn damaged_images_do_no_harm() {
    for name in ["colour.png", "colour.jpg", "progressive.jpg", "palette.png"] {
        let good = fixture(name);
        let folder = image_folder(&[("train/a/x.png", &good), ("test/a/x.png", &good)]);
        let splits = open_path(folder.path()).unwrap();
        let mut image = Image::default();
        for at in (0..good.len()).step_by(3) {
            let mut bytes = good.clone();
            bytes[at] ^= 0x5a;
            std::fs::write(folder.path().join("train/a/x.png"), bytes).unwrap();
            let _ = splits.train.read(0, &mut image);
        }
    }
}

#[test]
fn class_folders_that_make_no_sense_are_refused() {
    let png = fixture("colour.png");
    for (files, complaint_has) in [
        (&[("train/a/x.png", &png[..])][..], "expected a folder of test images"),
        (&[("train/a/x.png", &png), ("test/b/x.png", &png)], "there is no such class"),
        (&[("train/a/x.txt", &png), ("test/a/x.png", &png)], "found none"),
        (&[("a/x.png", &png)], "none would be left"),
    ] {
        let message = complaint(image_folder(files).path());
        assert!(message.contains(complaint_has), "{message}");
    }
}

#[test]
fn real_photographs_are_read() {
    let Some(sample) = shared("imagenet-sample") else { return };
    let folder = tempfile::tempdir().unwrap();
    for part in ["train/a", "test/a"] {
        std::fs::create_dir_all(folder.path().join(part)).unwrap();
    }
    for (i, file) in std::fs::read_dir(sample).unwrap().enumerate() {
        let part = if i % 2 == 0 { "train/a" } else { "test/a" };
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(part).join(file.file_name())).unwrap();
    }
    let splits = open_path(folder.path()).unwrap();
    for dataset in [splits.train, splits.test] {
        for i in 0..dataset.len() {
            let image = framed(&*dataset, i, Shape::new(3, 64, 64));
            assert!(image.iter().any(|&x| x != image[0]));
        }
    }
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
    let channel = resnet::data::Preprocess::Channel { mean: None, std: None };
    let fitted = channel.fit(&*splits.train, Shape::new(3, 32, 32), &Workers::new(0).unwrap()).unwrap();
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
    assert!(complaint(&folder.path().join("absent")).contains("there is no data set"));
}
