//! Preprocessing, batches and the built-in data set, through the public interface.

use std::sync::Arc;

use resnet::arch::Shape;
use resnet::data::{
    Augment, Batch, Dataset, Framing, Image, Images, Loader, Normalizer, Preprocess, Scratch, Shard, Subset, Workers,
    split, synthetic,
};
use resnet::{Result, StateDict};

fn labels_of(batch: &Batch) -> &[u32] {
    batch.targets.labels().expect("one class an image")
}

/// Images whose pixels tell which image, channel, row and column they are.
fn counted(images: usize, shape: Shape) -> Arc<dyn Dataset> {
    let pixels = (0..images * shape.len()).map(|i| (i * 7 % 251) as u8).collect();
    let labels = (0..images as u32).map(|i| i % 3).collect();
    Arc::new(Images::new(shape, ["a", "b", "c"].map(Into::into).to_vec(), labels, pixels).unwrap())
}

fn workers() -> Workers {
    Workers::new(2).unwrap()
}

/// Of images that all have one shape.
fn shape(dataset: &dyn Dataset) -> Shape {
    dataset.shape().unwrap()
}

fn fit(preprocess: &Preprocess, dataset: &dyn Dataset) -> Result<Normalizer> {
    preprocess.fit(dataset, shape(dataset), &workers())
}

fn normalizer(dataset: &dyn Dataset, preprocess: &Preprocess) -> Arc<Normalizer> {
    Arc::new(fit(preprocess, dataset).unwrap())
}

fn image(dataset: &dyn Dataset, index: usize) -> Image {
    let mut image = Image::default();
    dataset.read(index, &mut image).unwrap();
    image
}

fn pixels(dataset: &dyn Dataset, index: usize) -> Vec<u8> {
    image(dataset, index).pixels().to_vec()
}

/// An image normalised, and nothing else.
fn normalised(normalizer: &Normalizer, image: &Image) -> Vec<f32> {
    let view = Framing::Pad.view(image.shape(), normalizer.shape());
    let mut out = vec![f32::NAN; normalizer.shape().len()];
    normalizer.render(image, &view, &mut Scratch::default(), &mut out).unwrap();
    out
}

fn train_loader(images: usize, batch: usize, seed: u64) -> Loader {
    let dataset = counted(images, Shape::new(3, 8, 8));
    let normalizer = normalizer(&*dataset, &Preprocess::PixelMean);
    Loader::train(dataset, normalizer, batch, Augment::default(), seed, &workers()).unwrap()
}

fn take(loader: &Loader, start: u64, n: usize) -> Vec<Batch> {
    loader.batches(start).take(n).collect::<Result<_>>().unwrap()
}

#[test]
fn an_epoch_shows_every_image_once_and_ends_with_a_partial_batch() {
    let dataset = counted(10, Shape::new(1, 2, 2));
    let normalizer = normalizer(&*dataset, &Preprocess::ImageMean);
    let loader = Loader::train(dataset.clone(), normalizer.clone(), 4, Augment::NONE, 1, &workers()).unwrap();
    assert_eq!(loader.iterations_per_epoch(), 3);
    let mut expected: Vec<Vec<f32>> = (0..10).map(|i| normalised(&normalizer, &image(&*dataset, i))).collect();
    expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
    for epoch in 0..3 {
        let batches = take(&loader, epoch * 3, 3);
        assert_eq!(batches.iter().map(Batch::len).collect::<Vec<_>>(), [4, 4, 2]);
        let mut seen: Vec<Vec<f32>> =
            batches.iter().flat_map(|batch| batch.images.chunks(4).map(<[f32]>::to_vec)).collect();
        seen.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert_eq!(seen, expected);
    }
    assert_ne!(take(&loader, 0, 3), take(&loader, 3, 3), "the order changes from epoch to epoch");
}

#[test]
fn batches_are_the_same_from_any_start() {
    let loader = train_loader(50, 16, 7);
    let all = take(&loader, 0, 14);
    for start in 0..10 {
        assert_eq!(take(&loader, start, 4), all[start as usize..][..4]);
    }
    assert_ne!(take(&train_loader(50, 16, 8), 0, 4), all[..4], "the seed matters");
}

#[test]
fn the_last_iteration_there_is_can_be_asked_for() {
    assert!(train_loader(5, 2, 0).batches(u64::MAX - 1).count() <= 1);
    assert_eq!(train_loader(5, 2, 0).batches(u64::MAX).count(), 0);
}

#[test]
fn dropping_unread_batches_ends_their_threads() {
    for n in 0..5 {
        drop(take(&train_loader(50, 16, 7), 3, n));
    }
}

#[test]
fn batches_and_statistics_are_the_same_on_any_number_of_threads() {
    let dataset = counted(50, Shape::new(3, 8, 8));
    let made = |threads| {
        let workers = Workers::new(threads).unwrap();
        let channel = Preprocess::Channel { mean: None, std: None };
        let [pixel, channel] = [Preprocess::PixelMean, channel]
            .map(|preprocess| preprocess.fit(&*dataset, Shape::new(3, 8, 8), &workers).unwrap());
        let loader = Loader::train(dataset.clone(), Arc::new(pixel), 16, Augment::default(), 7, &workers).unwrap();
        (channel.state(), take(&loader, 0, 8))
    };
    let one = made(1);
    for threads in [2, 7, 0] {
        assert!(made(threads) == one, "{threads} threads");
    }
}

#[test]
fn the_shards_of_all_ranks_are_the_whole_batch_in_order() {
    let whole = train_loader(50, 16, 7);
    let epoch = take(&whole, 0, 8);
    for ranks in [1, 2, 3] {
        let shards = (0..ranks).map(|rank| take(&whole.clone().with_shard(Shard::new(rank, ranks).unwrap()), 0, 8));
        let shards: Vec<Vec<Batch>> = shards.collect();
        for (iteration, batch) in epoch.iter().enumerate() {
            let parts: Vec<&Batch> = shards.iter().map(|batches| &batches[iteration]).collect();
            assert!(parts.iter().all(|part| part.len().abs_diff(batch.len() / ranks) <= 1), "fair shares");
            let images: Vec<f32> = parts.iter().flat_map(|part| part.images.clone()).collect();
            let labels: Vec<u32> = parts.iter().flat_map(|part| labels_of(part).to_vec()).collect();
            assert_eq!((images, labels.as_slice()), (batch.images.clone(), labels_of(batch)));
        }
    }
    assert!(Shard::new(2, 2).is_err());
}

#[test]
fn evaluation_goes_through_the_images_once_in_order_and_unchanged() {
    let dataset = counted(10, Shape::new(3, 4, 4));
    let normalizer = normalizer(&*dataset, &Preprocess::PixelMean);
    let loader = Loader::evaluation(dataset.clone(), normalizer.clone(), 4, &workers()).unwrap();
    let batches: Vec<Batch> = loader.once().collect::<Result<_>>().unwrap();
    let labels: Vec<u32> = batches.iter().flat_map(|batch| labels_of(batch).to_vec()).collect();
    assert_eq!(labels, (0..10).map(|i| dataset.label(i)).collect::<Vec<_>>());
    let images: Vec<f32> = batches.iter().flat_map(|batch| batch.images.clone()).collect();
    for (i, seen) in images.chunks(48).enumerate() {
        assert_eq!(seen, normalised(&normalizer, &image(&*dataset, i)));
    }
}

#[test]
fn an_unreadable_image_is_an_error_in_its_batch() {
    struct Broken(Arc<dyn Dataset>);
    impl Dataset for Broken {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn shape(&self) -> Option<Shape> {
            self.0.shape()
        }
        fn classes(&self) -> &[String] {
            self.0.classes()
        }
        fn label(&self, index: usize) -> u32 {
            self.0.label(index)
        }
        fn origin(&self, index: usize) -> String {
            format!("{index}.png")
        }
        fn read(&self, index: usize, image: &mut Image) -> Result<()> {
            match index {
                4 => image.reshape(Shape::new(2, 4, 4)).fill(0),
                5 => return Err(resnet::Error::format("five.png", "expected an image")),
                6 => panic!("a decoder's mistake"),
                _ => image.reshape(Shape::new(3, 4, 4)).fill(0),
            }
            Ok(())
        }
    }
    let dataset = Arc::new(Broken(counted(8, Shape::new(3, 4, 4))));
    let normalizer = normalizer(&*counted(8, Shape::new(3, 4, 4)), &Preprocess::PixelMean);
    let batches: Vec<_> = Loader::evaluation(dataset, normalizer, 1, &workers()).unwrap().once().collect();
    assert_eq!(batches.len(), 8);
    assert!(batches[..4].iter().chain(&batches[7..]).all(Result::is_ok));
    let message = |batch: usize| batches[batch].as_ref().unwrap_err().to_string();
    assert!(message(4).contains("4.png: the image has 2 channels"), "{}", message(4));
    assert!(message(5).contains("five.png"));
    assert!(message(6).contains("batch 6 has stopped unexpectedly"));
}

#[test]
fn loaders_refuse_what_makes_no_sense() {
    let (dataset, workers) = (counted(4, Shape::new(3, 4, 4)), workers());
    let fitted = normalizer(&*dataset, &Preprocess::PixelMean);
    let other = normalizer(&*counted(4, Shape::new(3, 3, 4)), &Preprocess::PixelMean);
    let empty: Arc<dyn Dataset> = Arc::new(Subset::new(dataset.clone(), vec![]).unwrap());
    let wide = Augment { crop_padding: usize::MAX, ..Augment::default() };
    assert!(Loader::evaluation(dataset.clone(), fitted.clone(), 0, &workers).is_err());
    assert!(Loader::evaluation(dataset.clone(), other, 1, &workers).is_err());
    assert!(Loader::evaluation(empty.clone(), fitted.clone(), 1, &workers).is_err());
    assert!(Loader::train(dataset, fitted, 1, wide, 0, &workers).is_err());
    assert!(fit(&Preprocess::PixelMean, &*empty).is_err());
}

#[test]
fn pixel_mean_is_the_mean_image_of_the_training_set() {
    let dataset = counted(5, Shape::new(3, 2, 2));
    let normalizer = normalizer(&*dataset, &Preprocess::PixelMean);
    let mut sum = vec![0.0f64; 12];
    for i in 0..5 {
        for (sum, x) in sum.iter_mut().zip(normalised(&normalizer, &image(&*dataset, i))) {
            *sum += f64::from(x);
        }
    }
    assert!(sum.iter().all(|sum| sum.abs() < 1e-6), "{sum:?}");
    let first = f32::from(pixels(&*dataset, 0)[3]) / 255.0;
    assert_eq!(
        normalised(&normalizer, &image(&*dataset, 0))[3],
        first - normalizer.state().get(Normalizer::MEAN).unwrap().data()[3]
    );
}

#[test]
fn channel_statistics_give_mean_zero_and_variance_one() {
    let dataset = counted(6, Shape::new(3, 5, 4));
    let normalizer = normalizer(&*dataset, &Preprocess::Channel { mean: None, std: None });
    let mut values = vec![vec![]; 3];
    for i in 0..6 {
        for (channel, plane) in normalised(&normalizer, &image(&*dataset, i)).chunks(20).enumerate() {
            values[channel].extend(plane.iter().map(|&x| f64::from(x)));
        }
    }
    for channel in values {
        let n = channel.len() as f64;
        let mean = channel.iter().sum::<f64>() / n;
        let variance = channel.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5, "{mean} {variance}");
    }
}

#[test]
fn given_channel_statistics_are_applied_as_torchvision_does() {
    let given = Preprocess::Channel { mean: Some(vec![0.485, 0.456, 0.406]), std: Some(vec![0.229, 0.224, 0.225]) };
    let images = Images::new(Shape::new(3, 1, 1), vec!["a".into()], vec![0], vec![17, 200, 255]).unwrap();
    let out = normalised(&fit(&given, &images).unwrap(), &image(&images, 0));
    let expected = [(17.0, 0.485, 0.229), (200.0, 0.456, 0.224), (255.0f32, 0.406, 0.225f32)]
        .map(|(x, mean, std)| (x / 255.0 - mean) / std);
    assert_eq!(out, expected);
}

#[test]
fn statistics_that_do_not_fit_are_refused() {
    let dataset = counted(4, Shape::new(3, 2, 2));
    let channel = |mean: Vec<f32>, std: Vec<f32>| Preprocess::Channel { mean: Some(mean), std: Some(std) };
    assert!(fit(&channel(vec![0.5], vec![0.2]), &*dataset).is_err());
    assert!(fit(&channel(vec![0.5; 3], vec![0.2, 0.0, 0.2]), &*dataset).is_err());
    assert!(fit(&channel(vec![0.5, f32::NAN, 0.5], vec![0.2; 3]), &*dataset).is_err());
}

#[test]
fn a_channel_of_one_value_is_not_divided_by_zero() {
    let black = Images::new(Shape::new(1, 2, 2), vec!["a".into()], vec![0], vec![0; 4]).unwrap();
    let fitted = fit(&Preprocess::Channel { mean: None, std: None }, &black).unwrap();
    assert_eq!(normalised(&fitted, &image(&black, 0)), [0.0; 4]);
}

#[test]
fn statistics_survive_a_state_dict() {
    let dataset = counted(4, Shape::new(3, 4, 4));
    for preprocess in [Preprocess::PixelMean, Preprocess::ImageMean, Preprocess::Channel { mean: None, std: None }] {
        let fitted = fit(&preprocess, &*dataset).unwrap();
        assert_eq!(Normalizer::from_state(shape(&*dataset), &fitted.state()).unwrap(), fitted);
        assert!(Normalizer::from_state(Shape::new(1, 4, 4), &fitted.state()).is_err());
    }
    assert!(Normalizer::from_state(shape(&*dataset), &StateDict::new()).is_err());
}

#[test]
fn choices_survive_a_config_file() {
    for (preprocess, json) in [
        (Preprocess::PixelMean, r#"{"kind":"pixel-mean"}"#),
        (Preprocess::Channel { mean: None, std: Some(vec![0.5]) }, r#"{"kind":"channel","std":[0.5]}"#),
    ] {
        assert_eq!(serde_json::to_string(&preprocess).unwrap(), json);
        assert_eq!(serde_json::from_str::<Preprocess>(json).unwrap(), preprocess);
    }
    assert!(serde_json::from_str::<Preprocess>(r#"{"kind":"channel","stdev":[0.5]}"#).is_err());
    assert_eq!(
        serde_json::from_str::<Augment>(r#"{"flip":false}"#).unwrap(),
        Augment { flip: false, ..Augment::default() }
    );
}

#[test]
fn a_split_is_repeatable_and_leaves_nothing_out() {
    let dataset = counted(50, Shape::new(1, 1, 1));
    let seen = |subset: &Subset| (0..subset.len()).map(|i| pixels(subset, i)[0]).collect::<Vec<_>>();
    let (rest, held) = split(&dataset, 5, 3).unwrap();
    assert_eq!((rest.len(), held.len()), (45, 5));
    let mut all = [seen(&rest), seen(&held)].concat();
    all.sort_unstable();
    let mut expected: Vec<u8> = (0..50).map(|i| pixels(&*dataset, i)[0]).collect();
    expected.sort_unstable();
    assert_eq!(all, expected);
    assert_eq!(seen(&split(&dataset, 5, 3).unwrap().1), seen(&held));
    assert_ne!(seen(&split(&dataset, 5, 4).unwrap().1), seen(&held));
    assert!(split(&dataset, 50, 3).is_err());
}

#[test]
fn an_image_says_where_it_came_from() {
    let images = Images::new(Shape::new(1, 1, 1), vec!["a".into()], vec![0; 5], vec![0; 5]).unwrap();
    assert_eq!(images.origin(3), "image 3");
    let images = images.from_files([("one.bin".into(), 2), ("none.bin".into(), 0), ("two.bin".into(), 3)]);
    let origins: Vec<String> = (0..5).map(|index| images.origin(index)).collect();
    assert_eq!(origins[..3], ["image 0 of one.bin", "image 1 of one.bin", "image 0 of two.bin"]);
    let some = Subset::new(Arc::new(images), vec![4]).unwrap();
    assert_eq!(some.origin(0), "image 2 of two.bin");
    assert_eq!(synthetic::splits(0, 1, 8).unwrap().test.origin(7), "image 7 of synthetic/test");
}

#[test]
fn images_must_match_their_labels_and_classes() {
    let shape = Shape::new(1, 1, 2);
    assert!(Images::new(shape, vec!["a".into()], vec![0, 0], vec![0; 3]).is_err());
    assert!(Images::new(shape, vec!["a".into()], vec![0, 1], vec![0; 4]).is_err());
    assert!(Images::new(Shape::new(0, 1, 2), vec!["a".into()], vec![0], vec![]).is_err());
}

#[test]
fn synthetic_images_depend_on_seed_split_and_index_alone() {
    let few = synthetic::splits(5, 30, 10).unwrap();
    let many = synthetic::splits(5, 80, 10).unwrap();
    let other = synthetic::splits(6, 30, 10).unwrap();
    for i in 0..30 {
        assert_eq!(pixels(&*few.train, i), pixels(&*many.train, i));
        assert_ne!(pixels(&*few.train, i), pixels(&*other.train, i));
    }
    assert_ne!(pixels(&*few.train, 3), pixels(&*few.test, 3));
    for class in 0..10 {
        assert_eq!((0..80).filter(|&i| many.train.label(i) == class).count(), 8);
    }
}

/// The very numbers, so that results on the built-in data stay comparable from version to version.
#[test]
fn the_built_in_set_never_changes() {
    let splits = synthetic::splits(0, 20, 20).unwrap();
    let sum = |dataset: &dyn Dataset| -> u64 {
        (0..20).flat_map(|i| pixels(dataset, i)).enumerate().map(|(at, x)| (at as u64 % 251 + 1) * u64::from(x)).sum()
    };
    assert_eq!((sum(&*splits.train), sum(&*splits.test)), (958_121_242, 1_009_408_468));
}

/// Softmax regression on the pixels, the best a linear model does.
#[test]
fn a_linear_model_does_badly_on_the_synthetic_set() {
    const INPUTS: usize = 3 * 32 * 32;
    let splits = synthetic::splits(0, 3000, 1000).unwrap();
    let fitted = normalizer(&*splits.train, &Preprocess::PixelMean);
    let loader = Loader::train(splits.train, fitted.clone(), 100, Augment::default(), 0, &workers()).unwrap();
    let mut weights = vec![0.0f32; 10 * INPUTS];
    let logits = |weights: &[f32], image: &[f32]| -> Vec<f32> {
        weights.chunks(INPUTS).map(|row| row.iter().zip(image).map(|(w, x)| w * x).sum()).collect()
    };
    for batch in loader.batches(0).take(10 * 30) {
        let batch = batch.unwrap();
        for (image, &label) in batch.images.chunks(INPUTS).zip(labels_of(&batch)) {
            let exp: Vec<f32> = logits(&weights, image).iter().map(|x| x.exp()).collect();
            let total: f32 = exp.iter().sum();
            for (class, row) in weights.chunks_mut(INPUTS).enumerate() {
                let gradient = exp[class] / total - f32::from(u8::from(class as u32 == label));
                row.iter_mut().zip(image).for_each(|(w, x)| *w -= 1e-4 * gradient * x);
            }
        }
    }
    let mut correct = 0;
    for batch in Loader::evaluation(splits.test, fitted, 100, &workers()).unwrap().once() {
        let batch = batch.unwrap();
        for (image, &label) in batch.images.chunks(INPUTS).zip(labels_of(&batch)) {
            let logits = logits(&weights, image);
            let best = (0..10).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            correct += usize::from(best as u32 == label);
        }
    }
    println!("linear model: {correct} of 1000");
    assert!(correct < 450, "{correct} of 1000");
}
