//! How good a network is: accuracy, loss, and what it takes for what.

mod score;

use std::borrow::Borrow;

use serde::{Deserialize, Serialize};

use crate::engine::{Batch, Engine};
use crate::{Error, Result};
use score::{Score, score};

/// What a network did on a data set.
///
/// Shares are between 0 and 1. An image with a NaN among its logits has no prediction: it counts as
/// wrong and stands in no column of the confusion matrix, and the loss is NaN (`null` in JSON).
/// Between equal logits the first class wins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Images seen.
    pub total: usize,
    /// Images whose largest logit was their class.
    pub correct: usize,
    /// Images whose class was among the five largest logits.
    pub correct_top5: usize,
    /// `correct / total`.
    pub top1: f64,
    /// `correct_top5 / total`; always 1 for five classes or fewer, but for images without prediction.
    pub top5: f64,
    /// Mean cross-entropy, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// One entry a class, by label.
    pub per_class: Vec<ClassEvaluation>,
    /// Images by class (row) and prediction (column).
    pub confusion: Vec<Vec<usize>>,
}

/// What a network did on the images of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassEvaluation {
    /// The class.
    pub name: String,
    /// Its images.
    pub total: usize,
    /// Those predicted right.
    pub correct: usize,
}

impl ClassEvaluation {
    /// Share predicted right; `None` for a class without images.
    pub fn accuracy(&self) -> Option<f64> {
        (self.total > 0).then(|| self.correct as f64 / self.total as f64)
    }
}

/// One kind of mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion<'a> {
    /// What the images show.
    pub class: &'a str,
    /// What they were taken for.
    pub prediction: &'a str,
    /// How many.
    pub images: usize,
    /// Of how many of that class.
    pub of: usize,
}

impl Evaluation {
    /// `1 - top1`.
    pub fn error(&self) -> f64 {
        1.0 - self.top1
    }

    /// All kinds of mistakes that were made, the most frequent first.
    pub fn confusions(&self) -> Vec<Confusion<'_>> {
        let mut all = Vec::new();
        for (label, (row, counts)) in self.per_class.iter().zip(&self.confusion).enumerate() {
            for (prediction, (column, &images)) in self.per_class.iter().zip(counts).enumerate() {
                if images > 0 && prediction != label {
                    all.push(Confusion { class: &row.name, prediction: &column.name, images, of: row.total });
                }
            }
        }
        all.sort_by_key(|confusion| std::cmp::Reverse(confusion.images)); // stable: ties by label
        all
    }
}

/// Runs a network over all `batches` and counts. `classes` are the names by label, as many as the
/// network has; `progress` is told the number of images done after each batch.
///
/// # Errors
/// When a batch cannot be read or does not fit the network, a label is out of range, or there is no
/// image at all.
pub fn evaluate<B: Borrow<Batch>>(
    engine: &mut dyn Engine,
    batches: impl IntoIterator<Item = Result<B>>,
    classes: &[String],
    mut progress: impl FnMut(usize),
) -> Result<Evaluation> {
    let mut tally = Tally::new(classes.len());
    for batch in batches {
        let batch = batch?;
        let batch = batch.borrow();
        let labels =
            batch.targets.labels().ok_or_else(|| Error::Config("an evaluation needs one class an image".into()))?;
        tally.add(&engine.infer(&batch.images)?, labels)?;
        progress(tally.total);
    }
    tally.finish(classes)
}

/// Counts on the way to an [`Evaluation`].
struct Tally {
    total: usize,
    correct_top5: usize,
    loss: f64,
    per_class: Vec<usize>,
    confusion: Vec<Vec<usize>>,
}

impl Tally {
    fn new(classes: usize) -> Self {
        Self {
            total: 0,
            correct_top5: 0,
            loss: 0.0,
            per_class: vec![0; classes],
            confusion: vec![vec![0; classes]; classes],
        }
    }

    /// Counts a batch: `logits` are `[labels.len(), classes]`.
    fn add(&mut self, logits: &[f32], labels: &[u32]) -> Result<()> {
        let classes = self.per_class.len();
        if classes == 0 || logits.len() != labels.len() * classes {
            return Err(Error::Config(format!(
                "{} images of {classes} classes need {} logits, the network gave {}",
                labels.len(),
                labels.len() * classes,
                logits.len()
            )));
        }
        for (logits, &label) in logits.chunks_exact(classes).zip(labels) {
            let label = label as usize;
            let Some(Score { loss, rank, prediction }) = score(logits, label) else {
                return Err(Error::Config(format!("label {label} is out of range: there are {classes} classes")));
            };
            self.total += 1;
            self.loss += loss;
            self.per_class[label] += 1;
            self.correct_top5 += usize::from(rank.is_some_and(|rank| rank < 5));
            if let Some(prediction) = prediction {
                self.confusion[label][prediction] += 1;
            }
        }
        Ok(())
    }

    fn finish(self, classes: &[String]) -> Result<Evaluation> {
        if self.total == 0 {
            return Err(Error::Config("there are no images to evaluate on".into()));
        }
        let total = self.total as f64;
        let per_class: Vec<_> = classes
            .iter()
            .enumerate()
            .map(|(label, name)| ClassEvaluation {
                name: name.clone(),
                total: self.per_class[label],
                correct: self.confusion[label][label],
            })
            .collect();
        let correct = per_class.iter().map(|class| class.correct).sum();
        Ok(Evaluation {
            total: self.total,
            correct,
            correct_top5: self.correct_top5,
            top1: correct as f64 / total,
            top5: self.correct_top5 as f64 / total,
            loss: self.loss / total,
            per_class,
            confusion: self.confusion,
        })
    }
}

/// JSON has no NaN: it was written as `null`.
fn null_is_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests;
