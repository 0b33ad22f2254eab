//! What a trained network is, from a run to a file that is copied elsewhere.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use resnet::arch::{Network, Shape, Shortcut, initial_state};
use resnet::data::{Images, Normalizer, Preprocess, Splits};
use resnet::engine::{self, Alone, Options};
use resnet::model::{Draft, Model};
use resnet::train::{Changes, Kept, Layers, Run, RunDir};
use resnet::weights::{self, Metadata, safetensors};

fn names(classes: usize) -> Vec<String> {
    (0..classes).map(|class| format!("class {class}")).collect()
}

/// Two images of each class in each part.
fn data(classes: Vec<String>) -> Splits {
    let shape = Shape::new(3, 32, 32);
    let labels: Vec<u32> = (0..2 * classes.len() as u32).map(|image| image / 2).collect();
    let pixels = (0..labels.len() * shape.len()).map(|index| (index * index / 7) as u8).collect();
    let images = Arc::new(Images::new(shape, classes, labels, pixels).expect("sizes agree"));
    Splits { name: "few".into(), train: images.clone(), test: images }
}

/// Trains two steps with the mean image subtracted.
fn run(parent: &Path, settings: &str, data: Splits) -> RunDir {
    let model = if settings.contains("model = ") { "" } else { "model = 'cifar-resnet8'\n" };
    let settings = format!(
        "{model}batch = 8\niterations = 2\nlr = 0.05\nprecision = 'f32'\nthreads = 1\n\
         preprocess.kind = 'pixel-mean'\n{settings}"
    );
    let config = Layers::new().table(settings.parse().expect("TOML")).resolve().expect("valid");
    let run = Run::create(config, data, parent, Some("run")).expect("created");
    let dir = run.dir().clone();
    let graph = run.network().graph().expect("a network");
    let mut engine = engine::open("native", graph, run.weights(), Options::default()).expect("opened");
    run.train(engine.as_mut(), &mut Alone, &false.into(), &mut |_| ()).expect("trained");
    dir
}

/// A run's file as an earlier version left it: with the network's name, and nothing else of use.
fn forget_description(path: &Path) {
    let mut weights = safetensors::read(path).expect("readable");
    weights.metadata.retain(|key, _| ["model", "data", "iteration"].contains(&key.as_str()));
    safetensors::write(path, &weights.state, &weights.metadata).expect("written");
}

#[test]
fn a_copied_file_is_the_model_of_its_run() {
    for (settings, shortcut, classes) in [
        ("model = 'cifar-resnet8'", Some(Shortcut::A), 10),
        ("model = 'cifar-resnet8'\nshortcut = 'b'", Some(Shortcut::B), 10),
        ("model = 'cifar-resnet8'\nshortcut = 'c'", Some(Shortcut::C), 20),
        ("model = 'cifar-plain8'", None, 3),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = run(folder.path(), settings, data(names(classes)));
        let copy = folder.path().join("copy.safetensors");
        std::fs::copy(dir.best(), &copy).expect("copied");
        let (of_run, of_file) = (Model::open(dir.path()).expect("a model"), Model::open(&copy).expect("a model"));
        assert_eq!(of_run, of_file);
        assert_eq!((of_file.network.shortcut, of_file.network.classes), (shortcut, classes));
        assert_eq!(of_file.classes, names(classes));
        assert_eq!(of_file.preprocessing, dir.normalizer().expect("kept"));
        assert_eq!(of_file.provenance.data.as_deref(), Some("few"));
        assert_eq!(of_file.provenance.iteration, Some(2));
        assert!(of_file.provenance.test_error.is_some_and(|error| (0.0..=1.0).contains(&error)));
    }
}

/// Others load the file with `load_state_dict(strict=True)`: nothing may lie beside the network's tensors.
#[test]
fn a_described_file_holds_the_networks_tensors_and_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = run(folder.path(), "shortcut = 'b'", data(names(3)));
    for file in [dir.best(), dir.last()] {
        let found = safetensors::read(&file).expect("readable");
        let graph = dir.network().expect("known").graph().expect("a network");
        found.state.check(&graph).expect("exactly the network's tensors");
    }
}

#[test]
fn what_is_saved_opens_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = Model::open(run(folder.path(), "", data(names(4))).path()).expect("a model");
    let path = folder.path().join("saved.safetensors");
    model.save(&path).expect("written");
    let again = Model::open(&path).expect("a model");
    assert_eq!(again, model);
    let image = vec![0.5; model.network.input.len()];
    let logits = |model: &Model| model.engine(Options::default()).expect("opened").infer(&image).expect("one image");
    assert_eq!(logits(&again), logits(&model));
}

#[test]
fn parts_that_do_not_fit_make_no_model() {
    let network = Network::named("cifar-resnet8").expect("a network");
    let state = initial_state(&network, 0).expect("a network");
    let normalizer = |shape| Preprocess::ImageMean.without_images(shape).expect("it fits").expect("no statistics");
    let refused = |state, normalizer: Normalizer, classes| {
        Model::new(network.clone(), state, normalizer, names(classes)).expect_err("refused").to_string()
    };
    let input = network.input;
    assert!(refused(state.clone(), normalizer(input), 9).contains("10 classes apart, but 9 are named"));
    assert!(refused(state.clone(), normalizer(Shape::new(1, 28, 28)), 10).contains("1x28x28"));
    assert!(refused(resnet::StateDict::new(), normalizer(input), 10).contains("missing: conv1.weight"));

    let mut model = Model::new(network.clone(), state, normalizer(input), names(10)).expect("it fits");
    model.network.classes = 11;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    assert!(model.save(&path).is_err() && !path.exists());
}

fn weights_from_elsewhere(folder: &Path) -> PathBuf {
    let path = folder.join("elsewhere.safetensors");
    let mut network = Network::named("cifar-resnet8").expect("a network");
    network.classes = 3;
    safetensors::write(&path, &initial_state(&network, 0).expect("a network"), &Metadata::new()).expect("written");
    path
}

#[test]
fn what_weights_from_elsewhere_do_not_say_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = weights_from_elsewhere(folder.path());
    let mut draft = Draft::open(&path).expect("readable");
    let missing = |draft: &Draft| draft.clone().build().expect_err("incomplete").to_string();
    for part in ["elsewhere.safetensors", "--model", "card.network"] {
        assert!(missing(&draft).contains(part), "{part} in {}", missing(&draft));
    }
    let network = draft.named("cifar-resnet8").expect("a network");
    assert_eq!(network.classes, 3, "as many as the weights tell apart");
    draft.card.network = Some(network.clone());
    assert!(missing(&draft).contains("--mean and --std, or --preprocess"), "{}", missing(&draft));
    draft.card.preprocessing = Preprocess::ImageMean.without_images(network.input).expect("it fits");
    assert!(missing(&draft).contains("--data"), "{}", missing(&draft));
    draft.name_classes(&data(names(3))).expect("as many");
    let model = draft.build().expect("complete");
    assert_eq!((model.network, model.classes), (network, names(3)));
}

#[test]
fn a_converted_file_keeps_what_was_given() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut draft = Draft::open(&weights_from_elsewhere(folder.path())).expect("readable");
    draft.card.network = Some(draft.named("cifar-resnet8").expect("a network"));
    let path = folder.path().join("known.safetensors");
    draft.save(&path).expect("written");
    assert_eq!(Draft::open(&path).expect("readable").card, draft.card);
}

#[test]
fn runs_of_earlier_versions_are_models_once_their_classes_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = run(folder.path(), "shortcut = 'b'", data(names(3)));
    let expected = Model::open(dir.path()).expect("a model");
    forget_description(&dir.best());
    assert!(Model::open(dir.path()).expect_err("no classes").to_string().contains("card.classes"));
    let mut draft = Draft::from_run(&dir, Kept::Best).expect("readable");
    draft.name_classes(&data(names(3))).expect("as many");
    let model = draft.build().expect("complete");
    assert_eq!(model, Model { provenance: model.provenance.clone(), ..expected });
}

#[test]
fn data_of_other_classes_are_not_measured_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = run(folder.path(), "", data(vec!["cat".into(), "dog".into()]));
    let model = Model::open(dir.path()).expect("a model");
    model.check_classes(&["cat".into(), "dog".into()]).expect("the same");
    let message = model.check_classes(&["dog".into(), "kitten".into()]).expect_err("renamed").to_string();
    assert!(message.contains("not in the data: cat; only in the data: kitten"), "{message}");
    let mut draft = Draft::open(&dir.last()).expect("readable");
    let message = draft.name_classes(&data(vec!["dog".into(), "cat".into()])).expect_err("swapped").to_string();
    assert!(message.contains("last.safetensors") && message.contains("class 0 was cat and is dog"), "{message}");
    // Unnamed classes can only be counted.
    forget_description(&dir.last());
    let mut draft = Draft::from_run(&dir, Kept::Last).expect("readable");
    let message = draft.name_classes(&data(names(3))).expect_err("three").to_string();
    assert!(message.contains("2 classes apart, but few has 3"), "{message}");
    draft.name_classes(&data(names(2))).expect("two");
}

#[test]
fn a_hostile_description_is_refused_with_file_and_entry() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = run(folder.path(), "", data(names(3)));
    let good = safetensors::read(&dir.best()).expect("readable");
    let path = folder.path().join("hostile.safetensors");
    let huge = usize::MAX.to_string();
    let network = &good.metadata["network"];
    let cases = [
        ("network", network.replace("\"blocks\":1", &format!("\"blocks\":{huge}"))),
        ("network", network.replace("\"channels\":64", &format!("\"channels\":{huge}"))),
        ("network", network.replace("\"width\":32", &format!("\"width\":{huge}"))),
        ("network", network.replace("\"classes\":3", &format!("\"classes\":{huge}"))),
        ("classes", "[]".into()),
        ("preprocessing", good.metadata["preprocessing"].replace("pixel", "voxel")),
    ];
    for (key, text) in cases {
        assert_ne!(text, good.metadata[key], "the case changes something");
        let mut metadata = good.metadata.clone();
        metadata.insert(key.into(), text);
        safetensors::write(&path, &good.state, &metadata).expect("written");
        let message = Model::open(&path).expect_err(key).to_string();
        assert!(message.contains(&format!("hostile.safetensors: metadata '{key}'")), "{message}");
    }
    // A network that could be, but is not this file's.
    let mut metadata = good.metadata.clone();
    metadata.insert("network".into(), network.replace("\"channels\":64", "\"channels\":65"));
    safetensors::write(&path, &good.state, &metadata).expect("written");
    assert!(Model::open(&path).expect_err("another").to_string().contains("expected shape [65, 32, 3, 3]"));
    assert_eq!(weights::read(&path, None).expect("the tensors are good").state, good.state);
}

#[test]
fn a_run_goes_on_where_its_data_have_moved() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = "checkpoint-interval = 1";
    let dir = run(folder.path(), config, data(names(3)));
    let last = std::fs::read(dir.last()).expect("readable");
    let moved = || Changes { data: Some("/new/place".into()), ..Changes::default() };
    let before = dir.config().expect("valid").data;
    assert_ne!(before, "/new/place");

    let refused = |data| Run::resume(dir.clone(), data, moved()).err().expect("refused").to_string();
    let message = refused(data(names(4)));
    assert!(message.contains("resume.safetensors") && message.contains("only in the data: class 3"), "{message}");
    let swapped = {
        let train = data(names(3)).train;
        let order = (0..train.len()).rev().collect();
        let train = Arc::new(resnet::data::Subset::new(train, order).expect("in range"));
        Splits { train, ..data(names(3)) }
    };
    assert!(refused(swapped).contains("of the training images, their labels or their order changed"));
    assert_eq!(dir.config().expect("valid").data, before, "nothing is changed by a refusal");

    let run = Run::resume(dir.clone(), data(names(3)), moved()).expect("the same data");
    assert_eq!(run.config().data, "/new/place");
    drop(run);
    assert_eq!(dir.config().expect("valid").data, "/new/place");
    // Stopped before its next checkpoint, which still names the old place.
    Run::resume(dir.clone(), data(names(3)), Changes::default()).expect("resumable");
    assert_eq!(std::fs::read(dir.last()).expect("readable"), last);
}
