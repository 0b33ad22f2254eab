//! The built-in data set: ten shapes on cluttered backgrounds, drawn by the program.
//!
//! A class is a shape and nothing else: place, size, rotation, colours, background, an occluding
//! stroke and noise are drawn from the same distributions for all of them. So averages of pixels
//! say next to nothing, and a linear model stays near chance.
//!
//! An image depends only on (seed, split, index). Only operations that IEEE 754 rounds exactly are
//! used (no sines, no logarithms), so the images are the same on every machine.

use std::sync::Arc;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use resnet_graph::Shape;

use super::{Images, Splits};
use crate::data::random::{Purpose, stream};
use crate::{Error, Result};

/// Training images of the built-in data set.
pub const TRAIN_IMAGES: usize = 10_000;
/// Test images of the built-in data set.
pub const TEST_IMAGES: usize = 2_000;

/// Name of the data set.
pub const NAME: &str = "synthetic";

const SIDE: usize = 32;
const SHAPE: Shape = Shape::new(3, SIDE, SIDE);

/// Generates a data set; classes take turns, so they are balanced.
///
/// # Errors
/// When the images do not fit in memory.
pub fn splits(seed: u64, train: usize, test: usize) -> Result<Splits> {
    Ok(Splits {
        name: NAME.into(),
        train: Arc::new(generate(seed, TRAIN, train)?),
        test: Arc::new(generate(seed, TEST, test)?),
    })
}

/// A part of the data set: the number its random streams begin with, and its name.
type Part = (u64, &'static str);
const TRAIN: Part = (0, "train");
const TEST: Part = (1, "test");

fn generate(seed: u64, (split, part): Part, images: usize) -> Result<Images> {
    let bytes = images.checked_mul(SHAPE.len()).filter(|&bytes| bytes <= isize::MAX as usize);
    let bytes = bytes.ok_or_else(|| Error::Config(format!("{images} synthetic images do not fit in memory")))?;
    let labels: Vec<u32> = (0..images).map(|index| (index % FIGURES.len()) as u32).collect();
    let mut pixels = vec![0; bytes];
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = images.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for (chunk, pixels) in pixels.chunks_mut(share * SHAPE.len()).enumerate() {
            scope.spawn(move || {
                for (offset, image) in pixels.chunks_exact_mut(SHAPE.len()).enumerate() {
                    let index = chunk * share + offset;
                    let rng = stream(seed, Purpose::Synthetic, split, index as u64);
                    draw(FIGURES[index % FIGURES.len()].figure, Pen(rng), image);
                }
            });
        }
    });
    let classes = FIGURES.iter().map(|named| named.name.into()).collect();
    Ok(Images::new(SHAPE, classes, labels, pixels)?.from_files([(format!("{NAME}/{part}"), images)]))
}

/// A class.
struct Named {
    name: &'static str,
    figure: Figure,
}

/// An outline, about 1 in radius around the origin.
#[derive(Clone, Copy)]
enum Figure {
    Disc,
    Ring,
    Crescent,
    Polygon(&'static [Point]),
}

type Point = [f32; 2];

const FIGURES: [Named; 10] = [
    Named { name: "disc", figure: Figure::Disc },
    Named { name: "ring", figure: Figure::Ring },
    Named { name: "crescent", figure: Figure::Crescent },
    Named { name: "triangle", figure: Figure::Polygon(&[[0.0, 1.0], [-0.866, -0.5], [0.866, -0.5]]) },
    Named { name: "square", figure: Figure::Polygon(&[[0.75, 0.75], [-0.75, 0.75], [-0.75, -0.75], [0.75, -0.75]]) },
    Named { name: "star", figure: Figure::Polygon(&STAR) },
    Named { name: "cross", figure: Figure::Polygon(&CROSS) },
    Named { name: "arrow", figure: Figure::Polygon(&ARROW) },
    Named { name: "hourglass", figure: Figure::Polygon(&[[0.7, 0.9], [-0.7, -0.9], [0.7, -0.9], [-0.7, 0.9]]) },
    Named { name: "corner", figure: Figure::Polygon(&CORNER) },
];

const STAR: [Point; 10] = [
    [0.0, 1.05],
    [-0.247, 0.34],
    [-0.998, 0.324],
    [-0.4, -0.13],
    [-0.617, -0.849],
    [0.0, -0.42],
    [0.617, -0.849],
    [0.4, -0.13],
    [0.998, 0.324],
    [0.247, 0.34],
];

const CROSS: [Point; 12] = [
    [0.3, 0.95],
    [-0.3, 0.95],
    [-0.3, 0.3],
    [-0.95, 0.3],
    [-0.95, -0.3],
    [-0.3, -0.3],
    [-0.3, -0.95],
    [0.3, -0.95],
    [0.3, -0.3],
    [0.95, -0.3],
    [0.95, 0.3],
    [0.3, 0.3],
];

const ARROW: [Point; 7] =
    [[0.0, 1.05], [-0.8, 0.1], [-0.28, 0.1], [-0.28, -0.95], [0.28, -0.95], [0.28, 0.1], [0.8, 0.1]];

const CORNER: [Point; 6] = [[-0.75, 0.95], [-0.75, -0.75], [0.95, -0.75], [0.95, -0.2], [-0.2, -0.2], [-0.2, 0.95]];

impl Figure {
    /// Distance of a point from the outline, negative inside.
    fn distance(self, point: Point) -> f32 {
        match self {
            Self::Disc => length(point) - 0.85,
            Self::Ring => (length(point) - 0.72).abs() - 0.22,
            Self::Crescent => (length(point) - 0.95).max(0.75 - length([point[0] - 0.45, point[1]])),
            Self::Polygon(corners) => distance_to_polygon(corners, point),
        }
    }
}

fn distance_to_polygon(corners: &[Point], point: Point) -> f32 {
    let mut nearest = f32::INFINITY;
    let mut inside = false;
    for (&a, &b) in corners.iter().zip(corners.iter().cycle().skip(1)) {
        nearest = nearest.min(squared_distance_to_segment(a, b, point));
        // A ray to the right crosses the outline an odd number of times from inside.
        if (a[1] > point[1]) != (b[1] > point[1]) && point[0] < (b[0] - a[0]) * (point[1] - a[1]) / (b[1] - a[1]) + a[0]
        {
            inside = !inside;
        }
    }
    if inside { -nearest.sqrt() } else { nearest.sqrt() }
}

fn squared_distance_to_segment(a: Point, b: Point, point: Point) -> f32 {
    let along = [b[0] - a[0], b[1] - a[1]];
    let from = [point[0] - a[0], point[1] - a[1]];
    let share = (dot(from, along) / dot(along, along)).clamp(0.0, 1.0);
    let off = [from[0] - share * along[0], from[1] - share * along[1]];
    dot(off, off)
}

fn dot(a: Point, b: Point) -> f32 {
    a[0] * b[0] + a[1] * b[1]
}

fn length(point: Point) -> f32 {
    dot(point, point).sqrt()
}

/// Draws the random quantities of one image.
struct Pen(ChaCha8Rng);

impl Pen {
    fn uniform(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// Evenly distributed over the unit circle, by rejection.
    fn direction(&mut self) -> Point {
        loop {
            let point = [self.uniform(-1.0, 1.0), self.uniform(-1.0, 1.0)];
            let length = length(point);
            if (0.1..=1.0).contains(&length) {
                return [point[0] / length, point[1] / length];
            }
        }
    }

    fn colour(&mut self) -> Colour {
        [0; 3].map(|_| self.uniform(0.0, 255.0))
    }

    fn position(&mut self, margin: f32) -> Point {
        [0; 2].map(|_| self.uniform(margin, SIDE as f32 - margin))
    }

    /// About normal, with mean 0 and standard deviation 1: the sum of four bytes.
    fn noise(&mut self) -> f32 {
        let sum: i32 = self.0.next_u32().to_le_bytes().iter().map(|&byte| i32::from(byte)).sum();
        (sum - 510) as f32 / 147.8
    }
}

type Colour = [f32; 3];

/// Colours row by row, before noise.
type Canvas = [[Colour; SIDE]; SIDE];

/// Paints `colour` where `distance`, in pixels, is negative, with a soft edge one pixel wide.
fn paint(canvas: &mut Canvas, colour: Colour, opacity: f32, distance: impl Fn(Point) -> f32) {
    for (y, row) in canvas.iter_mut().enumerate() {
        for (x, pixel) in row.iter_mut().enumerate() {
            let share = opacity * (0.5 - distance([x as f32 + 0.5, y as f32 + 0.5])).clamp(0.0, 1.0);
            for (value, colour) in pixel.iter_mut().zip(colour) {
                *value += share * (colour - *value);
            }
        }
    }
}

fn stroke(canvas: &mut Canvas, pen: &mut Pen) {
    let (a, b) = (pen.position(0.0), pen.position(0.0));
    let half_width = pen.uniform(0.4, 1.3);
    paint(canvas, pen.colour(), 0.8, |point| squared_distance_to_segment(a, b, point).sqrt() - half_width);
}

fn draw(figure: Figure, mut pen: Pen, image: &mut [u8]) {
    let mut canvas = background(&mut pen);
    // Between none and many: the easy images are where a network finds out what to look for.
    let strokes = pen.uniform(0.0, 5.0) as usize;
    for _ in 0..strokes {
        stroke(&mut canvas, &mut pen);
    }
    draw_figure(figure, &mut canvas, &mut pen);
    if pen.uniform(0.0, 1.0) < 0.5 {
        stroke(&mut canvas, &mut pen);
    }
    let noise = pen.uniform(0.0, 20.0);
    for (c, plane) in image.chunks_exact_mut(SIDE * SIDE).enumerate() {
        for (target, pixel) in plane.iter_mut().zip(canvas.as_flattened()) {
            *target = (pixel[c] + noise * pen.noise()).round_ties_even() as u8;
        }
    }
}

/// A smooth transition between a colour in each corner.
fn background(pen: &mut Pen) -> Canvas {
    let corners = [0; 4].map(|_| pen.colour());
    let mix = |a: f32, b: f32, share: usize| a + (b - a) * share as f32 / (SIDE - 1) as f32;
    let mut canvas = [[[0.0; 3]; SIDE]; SIDE];
    for (y, row) in canvas.iter_mut().enumerate() {
        for (x, pixel) in row.iter_mut().enumerate() {
            for (c, value) in pixel.iter_mut().enumerate() {
                *value = mix(mix(corners[0][c], corners[1][c], x), mix(corners[2][c], corners[3][c], x), y);
            }
        }
    }
    canvas
}

fn draw_figure(figure: Figure, canvas: &mut Canvas, pen: &mut Pen) {
    let radius = pen.uniform(7.0, 11.0);
    let centre = pen.position(11.0);
    let axis = pen.direction();
    let [x, y] = centre.map(|at| at as usize);
    let behind = canvas[y][x];
    // A colour that differs from what is behind, or the figure would not be there.
    let colour = loop {
        let colour = pen.colour();
        let contrast: f32 = colour.iter().zip(behind).map(|(a, b)| (a - b).abs()).sum();
        if contrast > 150.0 {
            break colour;
        }
    };
    paint(canvas, colour, 1.0, |point| {
        let from = [point[0] - centre[0], point[1] - centre[1]].map(|at| at / radius);
        let turned = [dot(from, axis), from[1] * axis[0] - from[0] * axis[1]];
        radius * figure.distance(turned)
    });
}
