//! What a person looks at: plots of what runs measured.

mod canvas;
mod curves;
mod draw;

pub use curves::{CurvesOptions, RunCurves, curves};
