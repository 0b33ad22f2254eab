//! An evaluation for a person to read.

use comfy_table::Table;
use resnet::eval::{ClassEvaluation, Evaluation};

use super::Measurement;
use crate::terminal::{Align, grouped, table};

/// Up to so many classes a confusion matrix fits a terminal.
const MATRIX_CLASSES: usize = 12;

/// Up to so many classes each has its line.
const LISTED_CLASSES: usize = 20;

/// Lines of what is shown only in part.
const WORST: usize = 10;

/// Letters of a class name above a column of the matrix.
const COLUMN_LETTERS: usize = 6;

/// Characters of a full bar.
const BAR: f64 = 20.0;

/// The whole report.
pub fn text(measurement: &Measurement) -> String {
    let Measurement { model, data, result, .. } = measurement;
    let mut sections = vec![
        format!("{model} on {data}: {} test images", grouped(result.total as u64)),
        totals(result).trim_fmt(),
        classes(result),
    ];
    if result.per_class.len() <= MATRIX_CLASSES {
        sections.push(format!("confusions: a row a class, a column a prediction\n{}", matrix(result).trim_fmt()));
    } else {
        sections.push(format!("most frequent confusions\n{}", confusions(result).trim_fmt()));
    }
    sections.join("\n\n")
}

fn totals(result: &Evaluation) -> Table {
    let mut totals = Table::new();
    totals.load_style(comfy_table::presets::NOTHING);
    let share = |share: f64, correct: usize| {
        [percent(share), format!("{} of {}", grouped(correct as u64), grouped(result.total as u64))]
    };
    let [top1, count1] = share(result.top1, result.correct);
    let [top5, count5] = share(result.top5, result.correct_top5);
    totals.add_row(["top-1", &top1, &count1, &format!("error {}", percent(result.error()))]);
    totals.add_row(["top-5", &top5, &count5, &format!("error {}", percent(1.0 - result.top5))]);
    totals.add_row(["loss", &format!("{:.4}", result.loss)]);
    totals
}

/// Each class with a bar; the worst ones where there are many.
fn classes(result: &Evaluation) -> String {
    let mut shown: Vec<&ClassEvaluation> = result.per_class.iter().filter(|class| class.total > 0).collect();
    let all = shown.len();
    let title = if all > LISTED_CLASSES {
        format!("the {WORST} worst of {all} classes (all with --json)\n")
    } else {
        String::new()
    };
    if all > LISTED_CLASSES {
        shown.sort_by(|a, b| a.accuracy().unwrap_or(0.0).total_cmp(&b.accuracy().unwrap_or(0.0)));
        shown.truncate(WORST);
    }
    let mut classes =
        table(&[("class", Align::Left), ("accuracy", Align::Right), ("", Align::Left), ("correct", Align::Right)]);
    for class in shown {
        let accuracy = class.accuracy().unwrap_or(0.0);
        let count = format!("{} of {}", grouped(class.correct as u64), grouped(class.total as u64));
        classes.add_row([class.name.clone(), percent(accuracy), bar(accuracy), count]);
    }
    title + &classes.trim_fmt()
}

fn matrix(result: &Evaluation) -> Table {
    let short = |name: &str| name.chars().take(COLUMN_LETTERS).collect::<String>();
    let names: Vec<_> = result.per_class.iter().map(|class| short(&class.name)).collect();
    let columns = names.iter().map(|name| (name.as_str(), Align::Right));
    let mut matrix = table(&std::iter::once(("", Align::Left)).chain(columns).collect::<Vec<_>>());
    for (class, counts) in result.per_class.iter().zip(&result.confusion) {
        let counts = counts.iter().map(|&count| if count == 0 { "·".into() } else { count.to_string() });
        matrix.add_row(std::iter::once(class.name.clone()).chain(counts));
    }
    matrix
}

fn confusions(result: &Evaluation) -> Table {
    let mut confusions = table(&[("class", Align::Left), ("taken for", Align::Left), ("images", Align::Right)]);
    for mistake in result.confusions().into_iter().take(WORST) {
        let count = format!("{} of {}", grouped(mistake.images as u64), grouped(mistake.of as u64));
        confusions.add_row([mistake.class, mistake.prediction, &count]);
    }
    confusions
}

fn percent(share: f64) -> String {
    format!("{:.2}%", 100.0 * share)
}

/// A bar as long as the share, in eighths of a character.
fn bar(share: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * BAR * 8.0).round() as usize;
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(classes: usize) -> Measurement {
        let class = |label: usize| ClassEvaluation { name: format!("class-{label:03}"), total: 10, correct: 9 };
        let mut confusion = vec![vec![0; classes]; classes];
        for (label, row) in confusion.iter_mut().enumerate() {
            row[label] = 9;
            row[(label + 1) % classes] = 1;
        }
        let result = Evaluation {
            total: 10 * classes,
            correct: 9 * classes,
            correct_top5: 10 * classes,
            top1: 0.9,
            top5: 1.0,
            loss: 0.25,
            per_class: (0..classes).map(class).collect(),
            confusion,
        };
        Measurement { model: "resnet20".into(), weights: "w".into(), data: "cifar10".into(), result }
    }

    #[test]
    fn few_classes_have_all_their_lines_and_the_matrix() {
        let text = text(&evaluation(10));
        for expected in ["top-1", "90.00%", "90 of 100", "error 10.00%", "0.2500", "class-009", "██████████████████ "]
        {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
        assert_eq!(text.matches("class-009").count(), 2, "its accuracy and its row:\n{text}");
    }

    #[test]
    fn many_classes_show_the_worst() {
        let text = text(&evaluation(100));
        assert!(text.contains("the 10 worst of 100 classes"), "{text}");
        assert!(text.contains("most frequent confusions"), "{text}");
        assert!(text.lines().count() < 40, "{text}");
    }

    #[test]
    fn bars_are_as_long_as_the_share() {
        assert_eq!(bar(0.0), "");
        assert_eq!(bar(1.0).chars().count(), 20);
        assert_eq!(bar(0.53), "██████████▋");
    }
}
