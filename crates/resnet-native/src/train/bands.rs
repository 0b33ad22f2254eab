//! How a step is cut into bands of rows.

/// Height of the bands of rows that an operation is cut into: the tallest that divides the height
/// and gives about `bands` bands over all groups. It depends on the batch alone, never on the number
/// of threads, and with it so does the order of every sum.
pub fn band_rows(height: usize, groups: usize, bands: usize) -> usize {
    let wanted = bands.div_ceil(groups.max(1)).clamp(1, height);
    (1..=height).rev().find(|rows| height.is_multiple_of(*rows) && height / rows >= wanted).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_cover_the_height_evenly() {
        assert_eq!(band_rows(32, 8, 32), 8);
        assert_eq!(band_rows(8, 8, 32), 2);
        assert_eq!(band_rows(7, 1, 4), 1);
        assert_eq!(band_rows(1, 8, 32), 1);
        assert_eq!(band_rows(32, 64, 32), 32);
    }
}
