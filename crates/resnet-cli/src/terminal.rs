//! What every command prints with: text that survives a closed pipe, JSON, tables, counts.

use std::io::Write;

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};

/// Prints to standard output. Unlike `println!` a closed pipe (`resnet ... | head`) is an error to
/// return, not a panic; `main` takes it for a quiet end.
pub fn print(text: impl std::fmt::Display) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Prints a value as indented JSON.
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    Ok(print(serde_json::to_string_pretty(value)?)?)
}

/// Whether an error is a reader that has seen enough.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

/// An error with its causes in one line. A cause that its error already tells is not told twice.
pub fn message(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.ends_with(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

/// How a column stands.
#[derive(Clone, Copy)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table with these columns and a line under their names.
pub fn table(columns: &[(&str, Align)]) -> Table {
    let mut table = Table::new();
    let line = LineStyle::none().fill('─').junction('─');
    table.load_style(TableStyle::new().header_separator(line).bottom_border(line));
    table.set_header(columns.iter().map(|(name, _)| name));
    for (column, (_, align)) in table.column_iter_mut().zip(columns) {
        column.set_cell_alignment(match align {
            Align::Left => CellAlignment::Left,
            Align::Right => CellAlignment::Right,
        });
    }
    table
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count as the paper writes it: `0.27M`, `19.4M`, `3.8G`; exact below ten thousand.
pub fn short(number: u64) -> String {
    let millions = number as f64 / 1e6;
    match number {
        0..10_000 => number.to_string(),
        10_000..995_000 => format!("{millions:.2}M"),
        995_000..999_950_000 => format!("{millions:.1}M"),
        _ => format!("{:.1}G", millions / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_each_cause_once() {
        let missing = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let error = anyhow::Error::new(resnet::Error::io("a.toml")(missing)).context("reading a run");
        assert_eq!(message(&error), "reading a run: a.toml: no such file");
    }

    #[test]
    fn digits_are_grouped_by_three() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (19_421_274, "19,421,274")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn counts_read_as_in_the_paper() {
        let cases = [(650, "650"), (269_722, "0.27M"), (999_000, "1.0M"), (1_727_962, "1.7M"), (3_800_000_000, "3.8G")];
        for (number, text) in cases {
            assert_eq!(short(number), text);
        }
    }
}
