//! TensorBoard event files: the few protocol buffer messages of `tensorflow/core/util/event.proto` and
//! `summary.proto` that scalars need, in the record framing of `tensorflow/core/lib/io`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::metrics::Record;
use crate::{Error, Result};

/// Appends a run's records as scalars.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    file: File,
}

impl Writer {
    /// Starts an event file in a run's folder; what earlier files there say of the steps after
    /// `iteration` is taken back.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(folder: &Path, iteration: u64) -> Result<Self> {
        // TensorBoard reads the files of a folder in the order of their names.
        let path = folder.join(format!("events.out.tfevents.{:016}.resnet", now().as_micros()));
        let file = File::create_new(&path).map_err(Error::io(&path))?;
        let mut writer = Self { path, file };
        writer.event(0, What::FileVersion("brain.Event:2".into()))?;
        if iteration > 0 {
            writer.event(iteration + 1, What::SessionLog(SessionLog { status: SESSION_START }))?;
        }
        Ok(writer)
    }

    /// Adds a record's figures.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let mut value = vec![
            scalar("train/loss", record.train_loss),
            scalar("train/error", record.train_error),
            scalar("lr", record.lr),
            scalar("images_per_second", record.images_per_second),
        ];
        if let Some(test) = record.test {
            value.extend([scalar("test/loss", test.test_loss), scalar("test/error", test.test_error)]);
        }
        self.event(record.iteration, What::Summary(Summary { value }))
    }

    fn event(&mut self, step: u64, what: What) -> Result<()> {
        let event = Event { wall_time: now().as_secs_f64(), step: step as i64, what: Some(what) };
        self.file.write_all(&framed(&event.encode_to_vec())).map_err(Error::io(&self.path))
    }
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn scalar(tag: &str, value: f64) -> Value {
    Value { tag: tag.into(), simple_value: Some(value as f32) }
}

/// Length, its checksum, the data, their checksum.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), data, &masked_crc(data)].concat()
}

/// The CRC-32C, rotated and moved, since the checksum of data that hold a checksum is weak.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    /// Optional as it stands in a `oneof` there: a zero must be written, too.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SessionLog.SessionStatus.START`: events of this step and later ones, in earlier files, are void.
const SESSION_START: i32 = 1;

#[cfg(test)]
mod tests {
    use super::super::metrics::TestRecord;
    use super::*;

    fn events(path: &Path) -> Vec<Event> {
        let bytes = std::fs::read(path).expect("readable");
        let mut rest = &bytes[..];
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().expect("8 bytes")) as usize;
            let data = &rest[12..12 + length];
            assert_eq!(rest[..16 + length], framed(data));
            events.push(Event::decode(data).expect("an event"));
            rest = &rest[16 + length..];
        }
        events
    }

    #[test]
    fn a_resumed_run_takes_back_later_steps_and_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = Writer::create(folder.path(), 40).expect("created");
        let test = Some(TestRecord { test_loss: 0.0, test_error: 0.25 });
        let record = Record {
            iteration: 50,
            epoch: 1.0,
            seconds: 2.0,
            lr: 0.1,
            train_loss: 1.5,
            train_error: 0.5,
            images_per_second: 1000.0,
            test,
        };
        writer.write(&record).expect("written");
        let events = events(&writer.path);
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".into())));
        assert_eq!((events[1].step, &events[1].what), (41, &Some(What::SessionLog(SessionLog { status: 1 }))));
        let Some(What::Summary(summary)) = &events[2].what else { panic!("{:?}", events[2]) };
        assert_eq!(events[2].step, 50);
        let found: Vec<_> = summary.value.iter().map(|value| (value.tag.as_str(), value.simple_value)).collect();
        let expected = [
            ("train/loss", 1.5),
            ("train/error", 0.5),
            ("lr", 0.1),
            ("images_per_second", 1000.0),
            ("test/loss", 0.0),
            ("test/error", 0.25),
        ];
        assert_eq!(found, expected.map(|(tag, value)| (tag, Some(value))));
    }

    /// The header of a 24-byte record as TensorFlow writes it.
    #[test]
    fn the_checksum_of_a_length_is_tensorflows() {
        let length = 24u64.to_le_bytes();
        assert_eq!(masked_crc(&length), [0xa3, 0x7f, 0x4b, 0x22]);
    }
}
