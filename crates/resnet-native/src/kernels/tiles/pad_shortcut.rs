//! Option A shortcut (arXiv:1512.03385, section 3.3) on tiles, a pixel at a time.

use super::pixel::{Channels, Pixel};
use super::{Simd, TileUnit};
use crate::kernels::PadShortcut;
use crate::layout::Layout;
use crate::layout::tiles::{HALF, Tiling};

/// Keeps every `stride`-th pixel and puts zero channels on both sides.
#[inline(always)]
pub fn pad_shortcut<U: TileUnit, const PLANES: usize>(simd: Simd<U>, group: PadShortcut<'_>) {
    group.check(Layout::Tiles { planes: PLANES });
    let (narrow, wide) = (Tiling::new(group.narrow), Tiling::new(group.wide));
    let first = group.first_channel();
    let mut values = channels(narrow, wide, first);
    group.output.fill(0.0);
    for (kept, pixel) in group.kept_pixels() {
        Pixel::<PLANES>::new(narrow, kept).read(simd.vector(), group.input, &mut values, first);
        Pixel::<PLANES>::new(wide, pixel).write(simd, group.output, &values, 0);
    }
}

/// The gradient of what [`pad_shortcut`] reads: what it drops gets none.
#[inline(always)]
pub fn pad_shortcut_backward<U: TileUnit, const PLANES: usize>(simd: Simd<U>, group: PadShortcut<'_>) {
    group.check(Layout::Tiles { planes: PLANES });
    let (narrow, wide) = (Tiling::new(group.narrow), Tiling::new(group.wide));
    let first = group.first_channel();
    let mut values = channels(narrow, wide, first);
    group.output.fill(0.0);
    for (kept, pixel) in group.kept_pixels() {
        Pixel::<PLANES>::new(wide, pixel).read(simd.vector(), group.input, &mut values, 0);
        values.clear_from(first + group.narrow.channels);
        Pixel::<PLANES>::new(narrow, kept).write(simd, group.output, &values, first);
    }
}

/// Room for the channels of a pixel of either tensor, the narrow one's from `first` on.
fn channels(narrow: Tiling, wide: Tiling, first: usize) -> Channels {
    Channels::new(wide.chunks().max(narrow.chunks() + 1 + first / HALF))
}
