//! Opening a data set, with a bar while one is downloaded.

use std::cell::RefCell;

use indicatif::{ProgressBar, ProgressStyle};
use resnet::data::{OpenOptions, Splits};

/// Opens the data set of that name or in that folder.
pub fn open(spec: &str) -> resnet::Result<Splits> {
    let bars = RefCell::new(Vec::<(String, ProgressBar)>::new());
    let progress = |progress: resnet::data::fetch::Progress| {
        let mut bars = bars.borrow_mut();
        if bars.last().is_none_or(|(file, _)| file != progress.file) {
            bars.push((progress.file.to_owned(), bar(progress.file, progress.total)));
        }
        if let Some((_, bar)) = bars.last() {
            bar.set_position(progress.done);
        }
    };
    let splits = resnet::data::open(spec, &OpenOptions { progress: &progress, ..OpenOptions::default() });
    bars.take().iter().for_each(|(_, bar)| bar.finish());
    splits
}

/// A bar that stays; without a terminal a line at the start.
fn bar(file: &str, bytes: u64) -> ProgressBar {
    let template = "{msg}  {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(bytes).with_style(style).with_message(format!("downloading {file}"));
    if bar.is_hidden() {
        eprintln!("downloading {file}, {} MB", bytes / 1_000_000);
    }
    bar
}
