//! Option A shortcut (arXiv:1512.03385, section 3.3), which moves whole lane groups of pixels.

use crate::kernels::PadShortcut;
use crate::layout::LANE_GROUP;

/// Keeps every `stride`-th pixel and puts zero channels on both sides.
pub fn pad_shortcut(group: PadShortcut<'_>) {
    let len = group.narrow.channels * LANE_GROUP;
    group.output.fill(0.0);
    for (kept, pixel) in group.kept_pixels() {
        let (from, to) = (kept * len, (pixel * group.wide.channels + group.first_channel()) * LANE_GROUP);
        group.output[to..][..len].copy_from_slice(&group.input[from..][..len]);
    }
}

/// The gradient of what [`pad_shortcut`] reads: what it drops gets none.
pub fn pad_shortcut_backward(group: PadShortcut<'_>) {
    let len = group.narrow.channels * LANE_GROUP;
    group.output.fill(0.0);
    for (kept, pixel) in group.kept_pixels() {
        let (from, to) = ((pixel * group.wide.channels + group.first_channel()) * LANE_GROUP, kept * len);
        group.output[to..][..len].copy_from_slice(&group.input[from..][..len]);
    }
}
