use super::*;
use crate::StateDict;
use crate::arch::{TensorSpec, TensorTable};
use crate::engine::{Loss, OptimizerState, OptimizerView, Outcome, Part, Update};

/// An engine whose logits are its images.
struct Echo;

impl Engine for Echo {
    fn describe(&self) -> String {
        "echo".into()
    }
    fn threads(&self) -> usize {
        1
    }
    fn tensors(&self) -> &TensorTable {
        unimplemented!("evaluation only infers")
    }
    fn forward_backward(&mut self, _: &Batch, _: &Loss, _: Part) -> Result<Outcome> {
        unimplemented!("evaluation only infers")
    }
    fn gradients(&mut self) -> &mut [f32] {
        &mut []
    }
    fn parameters(&self) -> &[f32] {
        &[]
    }
    fn apply(&mut self, _: &Update) -> Result<()> {
        Ok(())
    }
    fn infer(&mut self, images: &[f32]) -> Result<Vec<f32>> {
        Ok(images.to_vec())
    }
    fn values(&self, _: &TensorSpec) -> &[f32] {
        &[]
    }
    fn load_state(&mut self, _: &StateDict) -> Result<()> {
        Ok(())
    }
    fn optimizer_view(&self) -> OptimizerView<'_> {
        OptimizerView::default()
    }
    fn load_optimizer_state(&mut self, _: &OptimizerState) -> Result<()> {
        Ok(())
    }
}

fn names(classes: usize) -> Vec<String> {
    (0..classes).map(|class| format!("class {class}")).collect()
}

fn run(classes: usize, batches: &[(&[f32], &[u32])]) -> Result<Evaluation> {
    let batches =
        batches.iter().map(|(logits, labels)| Ok(Batch { images: logits.to_vec(), targets: labels.to_vec().into() }));
    evaluate(&mut Echo, batches, &names(classes), |_| ())
}

#[test]
fn counts_add_up_over_batches_of_any_size() {
    let batches: [(&[f32], &[u32]); 2] = [(&[3.0, 1.0, 0.0, 0.0, 2.0, 1.0], &[0, 2]), (&[0.0, 0.0, 9.0], &[2])];
    let result = run(3, &batches).unwrap();
    assert_eq!((result.total, result.correct, result.correct_top5), (3, 2, 3));
    assert_eq!(result.confusion, [[1, 0, 0], [0, 0, 0], [0, 1, 1]]);
    assert_eq!(result.per_class[2], ClassEvaluation { name: "class 2".into(), total: 2, correct: 1 });
    assert_eq!(result.per_class[1].accuracy(), None);
    assert!((result.error() - 1.0 / 3.0).abs() < 1e-12);
    let mistakes = result.confusions();
    assert_eq!(mistakes, [Confusion { class: "class 2", prediction: "class 1", images: 1, of: 2 }]);
}

#[test]
fn loss_is_the_mean_cross_entropy() {
    let result = run(2, &[(&[0.0, 0.0, 1.0, 3.0], &[0, 0])]).unwrap();
    let expected = (2f64.ln() + (1.0 + 2f64.exp()).ln()) / 2.0;
    assert!((result.loss - expected).abs() < 1e-12, "{} is not {expected}", result.loss);
}

#[test]
fn large_logits_do_not_overflow() {
    let result = run(2, &[(&[3e38, -3e38, -1e4, -1e4], &[0, 1])]).unwrap();
    assert!((result.loss - 2f64.ln() / 2.0).abs() < 1e-12);
}

#[test]
fn top5_is_the_five_largest_logits() {
    let logits: Vec<f32> = (0..7).map(|class| class as f32).collect();
    for (label, among) in [(6, 1), (2, 1), (1, 0)] {
        assert_eq!(run(7, &[(&logits, &[label])]).unwrap().correct_top5, among, "label {label}");
    }
}

#[test]
fn the_first_of_equal_logits_wins() {
    let equal = [0.0; 12];
    let result = run(6, &[(&equal, &[0, 5])]).unwrap();
    assert_eq!((result.correct, result.correct_top5), (1, 1));
    assert_eq!(result.confusion[5][0], 1);
}

#[test]
fn an_image_with_a_nan_logit_is_never_correct() {
    let result = run(2, &[(&[f32::NAN, 1.0, 5.0, f32::NAN, f32::NAN, f32::NAN, 1.0, 0.0], &[1, 0, 0, 0])]).unwrap();
    assert_eq!((result.total, result.correct, result.correct_top5), (4, 1, 1));
    assert_eq!(result.confusion, [[1, 0], [0, 0]]);
    assert!(result.loss.is_nan());
}

#[test]
fn a_nan_loss_survives_json() {
    let result = run(2, &[(&[f32::NAN, 1.0], &[0])]).unwrap();
    let read: Evaluation = serde_json::from_str(&serde_json::to_string(&result).unwrap()).unwrap();
    assert!(read.loss.is_nan());
    assert_eq!(read.confusion, result.confusion);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let message = |result: Result<Evaluation>| result.unwrap_err().to_string();
    assert_eq!(message(run(2, &[(&[0.0, 1.0], &[2])])), "label 2 is out of range: there are 2 classes");
    assert!(message(run(3, &[(&[0.0, 1.0], &[0])])).contains("need 3 logits, the network gave 2"));
    assert!(message(run(0, &[(&[], &[0])])).contains("0 classes"));
    assert_eq!(message(run(2, &[])), "there are no images to evaluate on");
    let broken = std::iter::once(Err::<Batch, _>(Error::Config("unreadable".into())));
    assert_eq!(message(evaluate(&mut Echo, broken, &names(2), |_| ())), "unreadable");
}
