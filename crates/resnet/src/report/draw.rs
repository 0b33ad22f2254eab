//! How the curves look.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::canvas::{Drawing, Drawn, FINE, TYPEFACE};
use super::curves::{Figure, Lines, Point, clip};

/// One colour a run; told apart by colour-blind readers too (Okabe and Ito's palette).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(60, 60, 60),
];
const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(110, 110, 110);
const GRID: RGBColor = RGBColor(228, 228, 228);

const TEXT: u32 = 26 * FINE;
const SMALL_TEXT: u32 = 22 * FINE;
const BOLD: u32 = 3 * FINE;
const THIN: u32 = 3 * FINE / 2;

type Chart<'a, B> = ChartContext<'a, B, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

impl Drawing for Figure {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Drawn<B> {
        area.fill(&WHITE)?;
        let unit = Unit::of(self.iterations);
        let mut chart = ChartBuilder::on(area)
            .margin(20 * FINE)
            .margin_right(36 * FINE)
            .x_label_area_size(72 * FINE)
            .y_label_area_size(84 * FINE)
            .build_cartesian_2d(0.0..self.iterations / unit.size, 0.0..self.max_error)?;
        axes(&mut chart, &unit)?;
        for &iteration in &self.lr_drops {
            lr_drop(&chart, iteration / unit.size, self.max_error)?;
        }
        // All light lines first: no run's training error hides another's test error.
        for (lines, style) in self.lines.iter().zip(styles(0.45, THIN)) {
            line(&mut chart, &lines.train, unit.size, self.max_error, style)?;
        }
        for (lines, style) in self.lines.iter().zip(styles(1.0, BOLD)) {
            line(&mut chart, &lines.test, unit.size, self.max_error, style)?;
        }
        for (lines, style) in self.lines.iter().zip(styles(1.0, BOLD)) {
            legend_entry(&mut chart, label(lines), style)?;
        }
        legend_entry(&mut chart, "test error".into(), FAINT.stroke_width(BOLD))?;
        legend_entry(&mut chart, "training error".into(), FAINT.mix(0.6).stroke_width(THIN))?;
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .margin(10 * FINE)
            .legend_area_size(60 * FINE)
            .background_style(WHITE.mix(0.85))
            .label_font(text(SMALL_TEXT, &INK))
            .draw()
    }
}

/// The runs' colours, one after the other.
fn styles(opacity: f64, width: u32) -> impl Iterator<Item = ShapeStyle> {
    COLOURS.iter().cycle().map(move |colour| colour.mix(opacity).stroke_width(width))
}

/// A run's name with its last test error.
fn label(lines: &Lines) -> String {
    match lines.test.last() {
        Some((_, error)) => format!("{} ({error:.2}%)", lines.name),
        None => lines.name.clone(),
    }
}

/// An entry of the legend, in the order they are added.
fn legend_entry<'a, B: DrawingBackend + 'a>(chart: &mut Chart<'a, B>, label: String, style: ShapeStyle) -> Drawn<B> {
    let sample = move |(x, y)| PathElement::new([(x, y), (x + 46 * FINE as i32, y)], style);
    chart.draw_series(std::iter::empty::<PathElement<(f64, f64)>>())?.label(label).legend(sample);
    Ok(())
}

/// What one on the horizontal axis stands for.
struct Unit {
    size: f64,
    label: String,
}

impl Unit {
    /// Ten thousand iterations as in the paper, thousands or single ones for shorter runs.
    fn of(iterations: f64) -> Self {
        match iterations {
            10_000.0.. => Self { size: 1e4, label: "iter. (1e4)".into() },
            1_000.0.. => Self { size: 1e3, label: "iter. (1e3)".into() },
            _ => Self { size: 1.0, label: "iter.".into() },
        }
    }
}

fn text<'a>(size: u32, colour: &'a RGBColor) -> TextStyle<'a> {
    (TYPEFACE, size).into_font().color(colour)
}

fn axes<B: DrawingBackend>(chart: &mut Chart<B>, unit: &Unit) -> Drawn<B> {
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.stroke_width(FINE))
        .axis_style(INK.stroke_width(FINE))
        .set_all_tick_mark_size(6 * FINE)
        .x_labels(9)
        .y_labels(9)
        .x_desc(&unit.label)
        .y_desc("error (%)")
        .axis_desc_style(text(TEXT, &INK))
        .label_style(text(SMALL_TEXT, &INK))
        .x_label_formatter(&|x| tidy(*x))
        .y_label_formatter(&|y| tidy(*y))
        .draw()
}

/// A number without the digits that rounding errors leave: `0.30000000000000004` is `0.3`.
fn tidy(number: f64) -> String {
    format!("{}", (number * 1e6).round() / 1e6)
}

fn line<B: DrawingBackend>(chart: &mut Chart<B>, points: &[Point], unit: f64, max: f64, style: ShapeStyle) -> Drawn<B> {
    for part in clip(points, max) {
        let part: Vec<_> = part.into_iter().map(|(iteration, error)| (iteration / unit, error)).collect();
        match part[..] {
            [point] => chart.plotting_area().draw(&Circle::new(point, 2 * style.stroke_width, style.filled()))?,
            _ => drop(chart.draw_series(LineSeries::new(part, style))?),
        }
    }
    Ok(())
}

/// A dashed line over the whole height.
fn lr_drop<B: DrawingBackend>(chart: &Chart<B>, x: f64, max: f64) -> Drawn<B> {
    let dashes = 60;
    let y = |at: u32| max * f64::from(at) / f64::from(2 * dashes);
    for dash in 0..dashes {
        let ends = vec![(x, y(2 * dash)), (x, y(2 * dash + 1))];
        chart.plotting_area().draw(&PathElement::new(ends, FAINT.mix(0.5).stroke_width(FINE)))?;
    }
    Ok(())
}
