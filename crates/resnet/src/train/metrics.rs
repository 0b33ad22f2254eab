//! What a run measured: `metrics.jsonl`, one JSON object a line.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::write_atomically;
use crate::{Error, Result};

/// The state of a run after a number of iterations.
///
/// Training figures are means since the last record, over augmented images and with the weights as
/// they were at each step: the training error of the paper's figure 6.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Steps taken.
    pub iteration: u64,
    /// Passes over the training images.
    pub epoch: f64,
    /// Time of the run up to here, in seconds, over all its resumptions.
    pub seconds: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Mean training loss.
    pub train_loss: f64,
    /// Share of training images classified wrongly, 0 to 1.
    pub train_error: f64,
    /// Training images a second, evaluations not counted.
    pub images_per_second: f64,
    /// What the evaluation found, when there was one.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub test: Option<TestRecord>,
}

/// One evaluation on the images held out: the test set, or the validation images where a run holds
/// some of its training images back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TestRecord {
    /// Mean cross-entropy, without label smoothing.
    pub test_loss: f64,
    /// Share of images classified wrongly, 0 to 1.
    pub test_error: f64,
}

/// Reads all records. A last line without its end, as a killed run leaves it, is passed over.
///
/// # Errors
/// When the file cannot be read or another line is not a record; names the line.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| {
                Error::format(path, format!("line {}: expected a record of a training run: {error}", index + 1))
            })
        })
        .collect()
}

/// Appends records to a run's file.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
}

impl Writer {
    /// Continues the file at `path` after `iteration`: later records, of steps that will be taken
    /// again, are dropped. A file that is not there is made.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(path: &Path, iteration: u64) -> Result<Self> {
        let kept: Vec<_> = match path.try_exists().map_err(Error::io(path))? {
            true => read(path)?.into_iter().filter(|record| record.iteration <= iteration).collect(),
            false => Vec::new(),
        };
        write_atomically(path, |file| kept.iter().try_for_each(|record| write_line(file, record)))?;
        let file = File::options().append(true).open(path).map_err(Error::io(path))?;
        Ok(Self { path: path.into(), file })
    }

    /// Adds a record.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        // In one piece: whoever reads meanwhile, or after a kill, sees whole lines and at most one start.
        let mut line = Vec::new();
        write_line(&mut line, record).and_then(|()| self.file.write_all(&line)).map_err(Error::io(&self.path))
    }

    /// Waits until all records are on disk.
    ///
    /// # Errors
    /// When the system cannot.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path))
    }
}

fn write_line(file: &mut impl Write, record: &Record) -> std::io::Result<()> {
    serde_json::to_writer(&mut *file, record)?;
    file.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(iteration: u64) -> Record {
        Record {
            iteration,
            epoch: iteration as f64 / 391.0,
            seconds: 0.1 * iteration as f64,
            lr: 0.1,
            train_loss: 1.0 / 3.0,
            train_error: 0.5,
            images_per_second: 1234.5,
            test: iteration.is_multiple_of(2).then_some(TestRecord { test_loss: 0.7, test_error: 0.25 }),
        }
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        let mut writer = Writer::open(&path, 0).expect("opened");
        let records: Vec<_> = (1..=4).map(record).collect();
        for record in &records {
            writer.write(record).expect("written");
        }
        assert_eq!(read(&path).expect("readable"), records);
    }

    #[test]
    fn a_test_record_is_flat_and_absent_without_an_evaluation() {
        let line = |iteration| serde_json::to_string(&record(iteration)).expect("serialisable");
        assert!(line(2).contains(r#""test_error":0.25"#), "{}", line(2));
        assert!(!line(1).contains("test"), "{}", line(1));
    }

    #[test]
    fn continuing_drops_later_records_and_half_a_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        let mut writer = Writer::open(&path, 0).expect("opened");
        for iteration in 1..=5 {
            writer.write(&record(iteration)).expect("written");
        }
        let mut file = File::options().append(true).open(&path).expect("opened");
        file.write_all(br#"{"iteration":6,"epo"#).expect("written");
        assert_eq!(read(&path).expect("readable").len(), 5);

        let mut writer = Writer::open(&path, 3).expect("opened");
        writer.write(&record(4)).expect("written");
        assert_eq!(read(&path).expect("readable"), (1..=4).map(record).collect::<Vec<_>>());
    }

    #[test]
    fn a_damaged_line_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{}\n").expect("written");
        let message = read(&path).expect_err("not a record").to_string();
        assert!(message.contains("metrics.jsonl: line 1"), "{message}");
    }
}
