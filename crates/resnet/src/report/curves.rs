//! Training curves in the manner of the paper's figure 6: error over iterations.

use std::path::Path;

use super::canvas::Format;
use crate::train::metrics::{self, Record};
use crate::{Error, Result};

/// A run's name and what it measured: one colour of the figure.
#[derive(Clone, Debug, PartialEq)]
pub struct RunCurves {
    /// Name in the legend.
    pub name: String,
    /// Records in the order they were written.
    pub records: Vec<Record>,
}

/// What of the curves is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CurvesOptions {
    /// Upper end of the error axis in percent (20 in the paper); by itself three times the last test
    /// error, so that the end of training can be read, and no less than the paper's.
    pub max_error: Option<f64>,
}

impl RunCurves {
    /// Reads a run directory or a `metrics.jsonl` by itself. A run is called after its directory, a
    /// file of another name after itself.
    ///
    /// # Errors
    /// When the records cannot be read or there is none.
    pub fn read(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("metrics.jsonl") } else { path.to_owned() };
        let records = metrics::read(&file)?;
        if records.is_empty() {
            return Err(Error::format(&file, "holds no record yet, there is nothing to plot"));
        }
        let whole = std::path::absolute(&file).map_err(Error::io(&file))?; // the folder may be `.`
        let name = match whole.file_name() {
            Some(name) if name == "metrics.jsonl" => whole.parent().and_then(Path::file_name),
            _ => whole.file_stem(),
        };
        let name = name.unwrap_or_default();
        Ok(Self { name: name.to_string_lossy().into_owned(), records })
    }

    /// Iterations and training error in percent, each the mean over a window of 1% of the records,
    /// which leaves the steps of a schedule sharp.
    pub(super) fn train(&self) -> Vec<Point> {
        let raw: Vec<Point> = self.points(|record| Some(record.train_error));
        let reach = raw.len() / 200;
        let windows = (0..raw.len()).map(|at| &raw[at.saturating_sub(reach)..(at + reach + 1).min(raw.len())]);
        let mean = |window: &[Point]| window.iter().map(|&(_, error)| error).sum::<f64>() / window.len() as f64;
        raw.iter().zip(windows).map(|(&(iteration, _), window)| (iteration, mean(window))).collect()
    }

    /// Iterations and test error in percent, where there was an evaluation.
    pub(super) fn test(&self) -> Vec<Point> {
        self.points(|record| record.test.map(|test| test.test_error))
    }

    fn points(&self, error: impl Fn(&Record) -> Option<f64>) -> Vec<Point> {
        let point = |record: &Record| Some((record.iteration as f64, 100.0 * error(record)?));
        self.records.iter().filter_map(point).filter(|(_, error)| error.is_finite()).collect()
    }

    /// Iterations after which a piecewise constant learning rate fell.
    pub(super) fn lr_drops(&self) -> Vec<f64> {
        let falls = |four: &[Record]| four[0].lr == four[1].lr && four[1].lr > four[2].lr && four[2].lr == four[3].lr;
        self.records.windows(4).filter(|four| falls(four)).map(|four| four[1].iteration as f64).collect()
    }
}

/// Iteration and error in percent.
pub(super) type Point = (f64, f64);

/// Draws the curves of one or more runs into a `.png` or `.svg`: test error bold, training error
/// light, one colour a run, dashed lines where the learning rate drops. The file is replaced whole.
///
/// # Errors
/// When the name ends otherwise, there is nothing to draw, or the file cannot be written.
pub fn curves(runs: &[RunCurves], options: &CurvesOptions, path: &Path) -> Result<()> {
    let format = Format::of(path)?;
    let figure = Figure::new(runs, options)?;
    format.save(path, &figure)
}

/// All that is drawn, in percent and iterations.
pub(super) struct Figure {
    pub lines: Vec<Lines>,
    pub lr_drops: Vec<f64>,
    pub iterations: f64,
    pub max_error: f64,
}

/// One run's lines.
pub(super) struct Lines {
    pub name: String,
    pub train: Vec<Point>,
    pub test: Vec<Point>,
}

impl Figure {
    fn new(runs: &[RunCurves], options: &CurvesOptions) -> Result<Self> {
        let lines: Vec<_> = runs
            .iter()
            .map(|run| Lines { name: run.name.clone(), train: run.train(), test: run.test() })
            .filter(|lines| !(lines.train.is_empty() && lines.test.is_empty()))
            .collect();
        if lines.is_empty() {
            return Err(Error::Config("there is no error measured yet, nothing to plot".into()));
        }
        let points = || lines.iter().flat_map(|lines| lines.train.iter().chain(&lines.test));
        let max_error = match options.max_error {
            Some(percent) if percent > 0.0 && percent <= 100.0 => percent,
            Some(percent) => {
                return Err(Error::Config(format!(
                    "the largest error shown must be within 0 to 100 %, found {percent}"
                )));
            }
            None => readable_max(&lines),
        };
        let mut lr_drops: Vec<f64> = runs.iter().flat_map(RunCurves::lr_drops).collect();
        lr_drops.sort_by(f64::total_cmp);
        lr_drops.dedup();
        Ok(Self {
            iterations: points().map(|&(iteration, _)| iteration).fold(1.0, f64::max),
            max_error,
            lr_drops,
            lines,
        })
    }
}

/// Three times the worst run's last error or 20, in whole steps of five percent, and no more than there is.
fn readable_max(lines: &[Lines]) -> f64 {
    let last = |lines: &Lines| lines.test.last().or(lines.train.last()).map_or(0.0, |&(_, error)| error);
    let all = lines.iter().flat_map(|lines| lines.train.iter().chain(&lines.test));
    let highest = all.map(|&(_, error)| error).fold(0.0, f64::max);
    let wanted = (3.0 * lines.iter().map(last).fold(0.0, f64::max)).max(20.0);
    (wanted.min(highest) / 5.0).ceil().clamp(1.0, 20.0) * 5.0
}

/// The parts of a line at or below `max`, cut where it crosses.
pub(super) fn clip(line: &[Point], max: f64) -> Vec<Vec<Point>> {
    let mut parts: Vec<Vec<Point>> = vec![Vec::new()];
    for (index, &point) in line.iter().enumerate() {
        let crossing = index.checked_sub(1).and_then(|before| crossing(line[before], point, max));
        let inside = point.1 <= max;
        if inside && crossing.is_some() {
            parts.push(Vec::new());
        }
        if let Some(part) = parts.last_mut() {
            part.extend(crossing);
            part.extend(inside.then_some(point));
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Where the way from one point to the next passes `max`.
fn crossing((x0, y0): Point, (x1, y1): Point, max: f64) -> Option<Point> {
    ((y0 > max) != (y1 > max)).then(|| (x0 + (x1 - x0) * (max - y0) / (y1 - y0), max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::metrics::TestRecord;

    fn record(iteration: u64, lr: f64, train_error: f64, test_error: Option<f64>) -> Record {
        Record {
            iteration,
            epoch: 0.0,
            seconds: 0.0,
            lr,
            train_loss: 1.0,
            train_error,
            images_per_second: 1.0,
            test: test_error.map(|test_error| TestRecord { test_loss: 1.0, test_error }),
        }
    }

    fn run(records: Vec<Record>) -> RunCurves {
        RunCurves { name: "a run".into(), records }
    }

    #[test]
    fn both_errors_are_in_percent_where_they_were_measured() {
        let run = run(vec![record(100, 0.1, 0.5, None), record(200, 0.1, 0.25, Some(0.375))]);
        assert_eq!(run.train(), [(100.0, 50.0), (200.0, 25.0)]);
        assert_eq!(run.test(), [(200.0, 37.5)]);
    }

    #[test]
    fn training_error_is_smoothed_over_one_percent_of_the_records() {
        let noisy = run((0..400).map(|i| record(i, 0.1, if i % 2 == 0 { 0.2 } else { 0.4 }, None)).collect());
        let smooth = noisy.train();
        assert_eq!(smooth.len(), 400);
        assert!(smooth[10..390].iter().all(|&(_, error)| (error - 30.0).abs() < 2.1), "five records each");
    }

    #[test]
    fn what_is_not_a_number_is_left_out() {
        assert!(run(vec![record(1, 0.1, f64::NAN, Some(f64::NAN))]).test().is_empty());
        let nothing = curves(&[run(vec![record(1, 0.1, f64::NAN, None)])], &CurvesOptions::default(), "a.png".as_ref());
        assert!(nothing.unwrap_err().to_string().contains("nothing to plot"));
    }

    #[test]
    fn only_steps_of_the_learning_rate_are_drops() {
        let rates = |rates: &[f64]| {
            let records = rates.iter().zip(1..).map(|(&lr, iteration)| record(iteration, lr, 0.5, None));
            run(records.collect()).lr_drops()
        };
        assert_eq!(rates(&[0.01, 0.01, 0.1, 0.1, 0.1, 0.01, 0.01]), [5.0]);
        assert!(rates(&[0.1, 0.09, 0.05, 0.01, 0.001, 0.0]).is_empty());
    }

    #[test]
    fn the_axis_shows_the_end_of_training() {
        let max = |errors: &[f64]| {
            let records = errors.iter().zip(1..).map(|(&error, at)| record(at, 0.1, 0.9, Some(error)));
            Figure::new(&[run(records.collect())], &CurvesOptions::default()).unwrap().max_error
        };
        assert_eq!(max(&[0.6, 0.0875]), 30.0);
        assert_eq!(max(&[0.9, 0.8]), 90.0);
        assert_eq!(max(&[0.9, 0.0]), 20.0);
    }

    #[test]
    fn lines_are_cut_at_the_top() {
        let line = [(0.0, 40.0), (1.0, 20.0), (2.0, 10.0), (3.0, 30.0), (4.0, 30.0), (5.0, 20.0)];
        assert_eq!(
            clip(&line, 20.0),
            [vec![(0.0 + 1.0, 20.0), (1.0, 20.0), (2.0, 10.0), (2.5, 20.0)], vec![(5.0, 20.0), (5.0, 20.0)]]
        );
        assert_eq!(clip(&[(0.0, 30.0)], 20.0), Vec::<Vec<Point>>::new());
    }

    #[test]
    fn png_and_svg_are_written_whole_and_other_names_refused() {
        let folder = tempfile::tempdir().unwrap();
        let runs = [run((1..50).map(|i| record(i * 100, 0.1, 0.9 / i as f64, Some(0.95 / i as f64))).collect())];
        let save = |name: &str| curves(&runs, &CurvesOptions::default(), &folder.path().join(name));
        save("curves.png").unwrap();
        let png = std::fs::read(folder.path().join("curves.png")).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 5_000);
        save("curves.SVG").unwrap();
        let svg = std::fs::read_to_string(folder.path().join("curves.SVG")).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for word in ["a run", "error (%)", "iter. (1e3)"] {
            assert!(svg.contains(word), "{word}");
        }
        let message = save("curves.jpg").unwrap_err().to_string();
        assert!(message.contains("curves.jpg") && message.contains(".png or .svg"), "{message}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_largest_error_out_of_range_is_refused() {
        let runs = [run(vec![record(1, 0.1, 0.5, None)])];
        for percent in [0.0, -5.0, 101.0, f64::NAN] {
            let options = CurvesOptions { max_error: Some(percent) };
            assert!(curves(&runs, &options, "a.png".as_ref()).unwrap_err().to_string().contains("0 to 100"));
        }
    }

    #[test]
    fn a_run_is_named_after_its_folder_or_its_own_file() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("resnet20-b");
        std::fs::create_dir(&run).unwrap();
        let line = serde_json::to_string(&record(1, 0.1, 0.5, None)).unwrap() + "\n";
        let (inside, alone) = (run.join("metrics.jsonl"), folder.path().join("plain20.jsonl"));
        std::fs::write(&inside, &line).unwrap();
        std::fs::write(&alone, &line).unwrap();
        let name = |path: &Path| RunCurves::read(path).unwrap().name;
        assert_eq!(
            (name(&run), name(&inside), name(&alone)),
            ("resnet20-b".into(), "resnet20-b".into(), "plain20".into())
        );
        std::fs::write(&inside, "").unwrap();
        assert!(RunCurves::read(&run).unwrap_err().to_string().contains("holds no record yet"));
    }
}
