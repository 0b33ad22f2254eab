//! The way of a convolution over the pixels: which tiles of pixels it writes and what each of them reads, worked
//! out once.
//!
//! A tile has 16 rows. A row of what is written is a pixel of 32 channels or, where a layer has no more than 16,
//! two pixels side by side: in both cases two *halves* of 16 values. A row of what is read is a *window*: as many
//! pixels as 32 values make, so that the taps which fall into it are multiplied at once. In single precision a tile
//! is up to 16 pixels of a row and a window is one pixel.

use super::numbers::{narrow, widen};
use super::pixels::{Format, NARROW_BLOCK, Pixels, TILE_ROWS, WIDE_BLOCK};
use super::tiles::{HALF, TILE};
use crate::geometry::Conv2d;

/// One window that every row of a tile reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Words from a tile's [`from`](PixelTile::from).
    pub from: isize,
    /// Which halves of what is written it adds to.
    pub halves: [bool; 2],
    /// Channels of the block read that exist.
    pub channels: usize,
    /// Block of channels read.
    block: usize,
    /// Row of the kernel.
    row: usize,
    /// Column of the first pixel of the window, from the first pixel written to times the stride.
    column: isize,
}

/// Up to 16 rows written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PixelTile {
    /// Word of the pixel under the first row written, in the first block and plane read.
    pub from: isize,
    /// Word of the first row written, in a block's first plane.
    pub to: usize,
    /// For each half, the rows that are pixels: the others lie in the border.
    pub valid: [u16; 2],
}

/// A convolution from one layout to another.
#[derive(Clone, Debug)]
pub struct Windows {
    /// The convolution.
    pub(crate) conv: Conv2d,
    /// Layout of what it reads.
    pub(crate) from: Pixels,
    /// Layout of what it writes.
    pub(crate) to: Pixels,
    /// What each row of a tile reads.
    pub(crate) reads: Vec<Window>,
    /// What is written, together every pixel once.
    pub(crate) tiles: Vec<PixelTile>,
    /// Words of the packed weights of one block written.
    pub(crate) packed_len: usize,
}

impl Windows {
    /// The way of `conv`.
    ///
    /// # Panics
    /// When the layouts are not those of the convolution, or their borders too narrow for it.
    pub fn new(conv: Conv2d, from: Pixels, to: Pixels) -> Self {
        assert!(from.shape == conv.input() && to.shape == conv.output() && from.format == to.format);
        assert!(to.block >= NARROW_BLOCK, "blocks written are whole vectors");
        let mut windows = Self { conv, from, to, reads: Vec::new(), tiles: Vec::new(), packed_len: 0 };
        windows.reads = windows.list_reads();
        windows.tiles = windows.list_tiles();
        windows.packed_len = windows.reads.iter().map(|window| windows.weights_of(window)).sum();
        windows.check_halo();
        windows
    }

    /// Words of the packed weights of one block written.
    pub fn packed_len(&self) -> usize {
        self.packed_len
    }

    /// Pixels of a row of a tile written.
    fn pixels_written(&self) -> usize {
        match self.to.format {
            Format::Single => 1,
            Format::Planes(_) => WIDE_BLOCK / self.to.block,
        }
    }

    /// Pixels of a window.
    fn window(&self) -> usize {
        match self.from.format {
            Format::Single => 1,
            Format::Planes(_) => WIDE_BLOCK / self.from.block,
        }
    }

    /// Words from row to row of a tile read.
    pub(crate) fn row_step(&self) -> usize {
        self.pixels_written() * self.conv.horizontal.stride * self.from.pixel_len()
    }

    /// Halves of a row written: pixels or chunks of channels.
    fn halves(&self) -> usize {
        match self.to.format {
            Format::Single => 1,
            Format::Planes(_) => 2,
        }
    }

    /// Column of a tap for one half of a row, from the row's first pixel times the stride.
    fn tap_column(&self, half: usize, tap: usize) -> isize {
        let pixel = if self.pixels_written() == 2 { half } else { 0 };
        let along = &self.conv.horizontal;
        (pixel * along.stride + tap) as isize - along.padding as isize
    }

    /// First column of the window that a column falls into. Windows of two pixels begin where cache lines do.
    fn window_of(&self, column: isize) -> isize {
        let window = self.window() as isize;
        let first = if window <= 2 { 0 } else { self.conv.horizontal.padding as isize };
        (column + first).div_euclid(window) * window - first
    }

    fn list_reads(&self) -> Vec<Window> {
        let kernel = self.conv.vertical.kernel;
        let columns = |half| (0..kernel).map(move |tap| self.window_of(self.tap_column(half, tap)));
        let mut windows: Vec<isize> = (0..self.halves()).flat_map(columns).collect();
        windows.sort_unstable();
        windows.dedup();
        let mut reads = Vec::new();
        // Block by block, so that what all rows of the kernel read of one stays in the first-level cache.
        for block in 0..self.from.blocks() {
            for (row, &column) in (0..kernel).flat_map(|row| windows.iter().map(move |column| (row, column))) {
                let y = row as isize - self.conv.vertical.padding as isize;
                let within = self.from.word(y, column) - self.from.word(0, 0);
                reads.push(Window {
                    from: (block * self.from.block_len()) as isize + within,
                    halves: [0, 1].map(|half| half < self.halves() && columns(half).any(|c| c == column)),
                    channels: self.from.channels_of(block),
                    block,
                    row,
                    column,
                });
            }
        }
        reads
    }

    /// Tiles row by row of the image or, where that takes fewer, in one sequence over all rows with the border
    /// between them.
    fn list_tiles(&self) -> Vec<PixelTile> {
        let (shape, per_tile) = (self.to.shape, TILE_ROWS * self.pixels_written());
        let by_row = shape.height * shape.width.div_ceil(per_tile);
        let in_sequence = ((shape.height - 1) * self.to.pitch + shape.width).div_ceil(per_tile);
        let same_positions = self.conv.horizontal.stride == 1 && self.from.pitch == self.to.pitch;
        if self.to.format != Format::Single && same_positions && in_sequence < by_row {
            let pitch = self.to.pitch;
            let exists = |position| position % pitch < shape.width && position / pitch < shape.height;
            (0..in_sequence).map(|tile| self.tile(0, tile * per_tile, exists)).collect()
        } else {
            let columns = || (0..shape.width).step_by(per_tile);
            let tile = |(y, x)| self.tile(y, x, |position| position < shape.width);
            (0..shape.height).flat_map(|y| columns().map(move |x| (y, x))).map(tile).collect()
        }
    }

    /// The tile that begins `x` positions after the start of row `y`, which may be beyond the row's end.
    fn tile(&self, y: usize, x: usize, exists: impl Fn(usize) -> bool) -> PixelTile {
        let (stride, pixels) = (self.conv.horizontal.stride, self.pixels_written());
        let mut valid = [0; 2];
        for (half, valid) in valid.iter_mut().enumerate().take(self.halves()) {
            let rows = (0..TILE_ROWS).filter(|row| exists(x + row * pixels + half % pixels));
            *valid = rows.map(|row| 1 << row).sum();
        }
        let word = |pixels: &Pixels, stride: usize| pixels.word((y * stride) as isize, (x * stride) as isize);
        PixelTile { from: word(&self.from, stride), to: word(&self.to, 1) as usize, valid }
    }

    /// Kernels read and write where the lists say: all of it has to lie inside.
    fn check_halo(&self) {
        let rows = (TILE_ROWS - 1) * self.row_step() + self.from.format.words(self.window() * self.from.block);
        for tile in &self.tiles {
            for window in &self.reads {
                let within = tile.from + window.from - (window.block * self.from.block_len()) as isize;
                assert!(within >= 0 && within as usize + rows <= self.from.plane_len(), "a border too narrow");
            }
        }
        let rows = TILE_ROWS * self.to.format.words(self.pixels_written() * self.to.block);
        assert!(
            self.tiles.iter().all(|tile| tile.to + rows <= self.to.plane_len()),
            "too little room after the pixels"
        );
    }

    /// Words of a window's packed weights.
    fn weights_of(&self, window: &Window) -> usize {
        match self.from.format {
            Format::Single => window.channels * self.to.block,
            Format::Planes(planes) => window.halves.iter().filter(|&&half| half).count() * planes * TILE,
        }
    }

    /// Packs weights `[out][in][row][column]` for all blocks written: `[block written][window]`, and then
    /// `[channel read][channel written]` in single precision; else, for the halves that the window adds to, a tile for each
    /// plane, 16 rows of pairs of values read by 16 channels written.
    pub fn pack(&self, weights: &[f32], packed: &mut [f32]) {
        for (block, packed) in packed.chunks_exact_mut(self.packed_len).enumerate() {
            let mut rest = packed;
            for window in &self.reads {
                match self.from.format {
                    Format::Single => rest = self.pack_rows(weights, block, window, rest),
                    Format::Planes(planes) => {
                        for half in (0..2).filter(|&half| window.halves[half]) {
                            let (tiles, after) = rest.split_at_mut(planes * TILE);
                            self.pack_tiles(weights, (block, half), window, tiles);
                            rest = after;
                        }
                    }
                }
            }
        }
    }

    fn pack_rows<'a>(&self, weights: &[f32], block: usize, window: &Window, packed: &'a mut [f32]) -> &'a mut [f32] {
        let (rows, rest) = packed.split_at_mut(window.channels * self.to.block);
        for (channel, row) in rows.chunks_exact_mut(self.to.block).enumerate() {
            for (lane, value) in row.iter_mut().enumerate() {
                *value = self.weight(weights, window, (channel, 0), (block * self.to.block + lane, 0));
            }
        }
        rest
    }

    fn pack_tiles(&self, weights: &[f32], (block, half): (usize, usize), window: &Window, tiles: &mut [f32]) {
        let (pixels, first) = (self.pixels_written(), block * self.to.block);
        let (first, pixel) = if pixels == 2 { (first, half) } else { (first + half * HALF, 0) };
        for word in 0..TILE {
            let (pair, lane) = (word / HALF, word % HALF);
            let mut values = [0, 1].map(|which| {
                let read = 2 * pair + which;
                self.weight(weights, window, (read % self.from.block, read / self.from.block), (first + lane, pixel))
            });
            for tile in tiles.chunks_exact_mut(TILE) {
                tile[word] = narrow(values);
                let rounded = widen(tile[word]);
                values = [values[0] - rounded[0], values[1] - rounded[1]];
            }
        }
    }

    /// The weight between a channel of the window's block in a pixel of its window and a channel in a pixel written;
    /// zero where there is none.
    fn weight(
        &self,
        weights: &[f32],
        window: &Window,
        (channel, slot): (usize, usize),
        (to, pixel): (usize, usize),
    ) -> f32 {
        let (conv, from) = (&self.conv, window.block * self.from.block + channel);
        let along = &conv.horizontal;
        let column = window.column + slot as isize + along.padding as isize - (pixel * along.stride) as isize;
        if from >= conv.inputs || to >= conv.outputs || !(0..along.kernel as isize).contains(&column) {
            return 0.0;
        }
        weights[((to * conv.inputs + from) * conv.vertical.kernel + window.row) * along.kernel + column as usize]
    }
}
