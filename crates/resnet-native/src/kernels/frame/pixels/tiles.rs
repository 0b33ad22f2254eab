//! Convolution in planes of bf16: the sums of two tiles, both halves of each, stay in four registers while the windows read
//! go by. A value is the sum of its planes, so a product is one of every two planes, of which those too small to count are
//! left out.

use std::mem::MaybeUninit;

use super::number::{Number, Planes};
use crate::infer::{PixelTile, Term, Walk};
use crate::kernels::PixelConv;
use crate::kernels::frame::Vector;
use crate::kernels::frame::tiled::{Tile, TileUnit};
use crate::layout::{HALF, TILE};

/// Tiles of sums: two of pixels by two halves.
type Sums = MaybeUninit<[Tile; 4]>;

/// Computes a block.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn conv<U: TileUnit, const PLANES: usize>(band: PixelConv<'_>) {
    // SAFETY: passed on from the caller.
    unsafe {
        match (band.residual.is_some(), band.relu) {
            (false, false) => run::<U, PLANES, false, false>(band),
            (false, true) => run::<U, PLANES, false, true>(band),
            (true, false) => run::<U, PLANES, true, false>(band),
            (true, true) => run::<U, PLANES, true, true>(band),
        }
    }
}

/// # Safety
/// As for [`conv`].
#[inline(always)]
unsafe fn run<U: TileUnit, const PLANES: usize, const RESIDUAL: bool, const RELU: bool>(band: PixelConv<'_>) {
    let walk = band.walk;
    let mut pass = Pass::<U, PLANES> {
        // SAFETY: passed on from the caller.
        unit: unsafe { U::new() },
        walk,
        input: band.input.as_ptr(),
        weights: band.weights.as_ptr(),
        plane_len: walk.from.plane_len(),
        row_bytes: walk.row_step() * size_of::<f32>(),
    };
    let writer = Writer {
        bias: band.bias.as_ptr(),
        // A second bias follows the first where the halves are channels.
        bias_step: walk.to.block - HALF,
        residual: band.residual.map_or(band.output.as_ptr(), <[f32]>::as_ptr),
        output: band.output.as_mut_ptr(),
        plane_len: walk.to.plane_len(),
    };
    let mut sums: [Sums; 2] = [const { MaybeUninit::uninit() }; 2];
    let mut before: Option<&[PixelTile]> = None;
    for (index, tiles) in walk.tiles.chunks(2).enumerate() {
        let [even, odd] = &mut sums;
        let (now, last) = if index % 2 == 0 { (even, odd) } else { (odd, even) };
        // While the matrix unit works on these tiles, the vector units write those before them.
        // SAFETY: the walk's lists lie inside the layouts; sums are written before they are read.
        unsafe {
            match *tiles {
                [first, second] => pass.multiply::<true>([first.from, second.from], now.as_mut_ptr().cast()),
                [only] => pass.multiply::<false>([only.from; 2], now.as_mut_ptr().cast()),
                _ => {}
            }
            if let Some(tiles) = before {
                writer.write::<U, PLANES, RESIDUAL, RELU>(tiles, last.as_ptr().cast());
            }
        }
        before = Some(tiles);
    }
    if let Some(tiles) = before {
        let last = &sums[(walk.tiles.len().div_ceil(2) - 1) % 2];
        // SAFETY: as above.
        unsafe { writer.write::<U, PLANES, RESIDUAL, RELU>(tiles, last.as_ptr().cast()) };
    }
}

/// The matrix unit and what it works on.
struct Pass<'a, U, const PLANES: usize> {
    unit: U,
    walk: &'a Walk,
    input: *const f32,
    weights: *const f32,
    /// Words of a plane read.
    plane_len: usize,
    /// From row to row of a tile read.
    row_bytes: usize,
}

impl<U: TileUnit, const PLANES: usize> Pass<'_, U, PLANES> {
    /// Sums up two tiles, or one.
    ///
    /// # Safety
    /// `from` are words of tiles of the walk, `sums` has room for four tiles.
    #[inline(always)]
    unsafe fn multiply<const PAIR: bool>(&mut self, from: [isize; 2], sums: *mut f32) {
        // SAFETY: passed on from the caller; weights hold tiles for all terms.
        unsafe {
            self.unit.zero::<0>();
            self.unit.zero::<1>();
            if PAIR {
                self.unit.zero::<2>();
                self.unit.zero::<3>();
            }
            let mut weights = self.weights;
            for term in &self.walk.terms {
                let rows = [0, 1].map(|which| self.input.wrapping_offset(from[which] + term.from));
                weights = self.add_term::<PAIR>(rows, term, weights);
            }
            self.unit.store::<0>(sums);
            self.unit.store::<1>(sums.add(TILE));
            if PAIR {
                self.unit.store::<2>(sums.add(2 * TILE));
                self.unit.store::<3>(sums.add(3 * TILE));
            }
        }
    }

    /// Adds the products of a term; returns the weights after its own.
    ///
    /// # Safety
    /// As for [`multiply`](Self::multiply).
    #[inline(always)]
    unsafe fn add_term<const PAIR: bool>(&mut self, rows: [*const f32; 2], term: &Term, weights: *const f32) -> *const f32 {
        let second = weights.wrapping_add(if term.halves[0] { PLANES * TILE } else { 0 });
        let mut loaded = [PLANES; 2];
        for &[plane, of_weights] in products(PLANES) {
            // SAFETY: passed on from the caller.
            unsafe {
                if loaded[0] != plane {
                    self.unit.load_rows::<4>(rows[0].add(plane * self.plane_len), self.row_bytes);
                    if PAIR {
                        self.unit.load_rows::<5>(rows[1].add(plane * self.plane_len), self.row_bytes);
                    }
                }
                if term.halves[0] {
                    if loaded[1] != of_weights {
                        self.unit.load::<6>(weights.add(of_weights * TILE));
                    }
                    self.unit.dot::<0, 4, 6>();
                    if PAIR {
                        self.unit.dot::<2, 5, 6>();
                    }
                }
                if term.halves[1] {
                    if loaded[1] != of_weights {
                        self.unit.load::<7>(second.add(of_weights * TILE));
                    }
                    self.unit.dot::<1, 4, 7>();
                    if PAIR {
                        self.unit.dot::<3, 5, 7>();
                    }
                }
            }
            loaded = [plane, of_weights];
        }
        second.wrapping_add(if term.halves[1] { PLANES * TILE } else { 0 })
    }
}

/// The planes of what is read and of the weights that are multiplied, each product next to one that it shares a plane with.
#[inline(always)]
const fn products(planes: usize) -> &'static [[usize; 2]] {
    match planes {
        1 => &[[0, 0]],
        2 => &[[1, 0], [0, 0], [0, 1]],
        _ => &[[2, 0], [1, 0], [1, 1], [0, 1], [0, 2], [0, 0]],
    }
}

/// What sums become.
struct Writer {
    bias: *const f32,
    /// Floats from the first half's bias to the second's.
    bias_step: usize,
    residual: *const f32,
    output: *mut f32,
    /// Words of a plane written.
    plane_len: usize,
}

impl Writer {
    /// Adds bias and residual, rectifies, rounds and writes the rows that are pixels.
    ///
    /// # Safety
    /// `sums` are those of the tiles, and the tiles are the walk's.
    #[inline(always)]
    unsafe fn write<U: TileUnit, const PLANES: usize, const RESIDUAL: bool, const RELU: bool>(
        &self,
        tiles: &[PixelTile],
        sums: *const f32,
    ) {
        for (which, tile) in tiles.iter().enumerate() {
            for half in 0..2 {
                for part in (0..HALF).step_by(U::Vector::LANES) {
                    // SAFETY: passed on from the caller.
                    unsafe {
                        let sums = sums.add((2 * which + half) * TILE + part);
                        let bias = U::Vector::load(self.bias.add(half * self.bias_step + part));
                        for row in 0..16 {
                            if tile.valid[half] & 1 << row == 0 {
                                continue;
                            }
                            let at = 2 * tile.to + (2 * row + half) * HALF + part;
                            let mut value = U::Vector::load(sums.add(row * HALF)).add(bias);
                            if RESIDUAL {
                                value = value.add(Planes::<U, PLANES>::load(self.residual, at, self.plane_len));
                            }
                            if RELU {
                                value = value.relu();
                            }
                            Planes::<U, PLANES>::store(value, self.output, at, self.plane_len);
                        }
                    }
                }
            }
        }
    }
}
