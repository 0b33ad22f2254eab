//! Numbers shorter than single precision: bf16, and the 24 bits of two planes.

/// The two values of a word.
pub fn widen(word: f32) -> [f32; 2] {
    [f32::from_bits(word.to_bits() << 16), f32::from_bits(word.to_bits() & 0xffff_0000)]
}

/// Two values rounded to bf16, to the nearest and to even.
pub fn narrow([low, high]: [f32; 2]) -> f32 {
    let round = |value: f32| {
        let bits = value.to_bits();
        bits.wrapping_add(0x7fff + (bits >> 16 & 1))
    };
    f32::from_bits(round(low) >> 16 | round(high) & 0xffff_0000)
}

/// The two values of a word of upper halves and a pair of third bytes.
pub fn widen_24(word: f32, bytes: u16) -> [f32; 2] {
    let [low, high] = widen(word).map(f32::to_bits);
    let bytes = u32::from(bytes);
    [f32::from_bits(low | (bytes & 0xff) << 8), f32::from_bits(high | bytes & 0xff00)]
}

/// The reverse of [`widen_24`], rounding to the nearest; ties go away from zero.
pub fn narrow_24(values: [f32; 2]) -> (f32, u16) {
    let [low, high] = values.map(|value| value.to_bits().wrapping_add(0x80));
    (f32::from_bits(low >> 16 | high & 0xffff_0000), (low >> 8 & 0xff | high & 0xff00) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_bf16_is_to_the_nearest_and_to_even() {
        let rounded = |bits| widen(narrow([f32::from_bits(bits), 0.0]))[0].to_bits();
        assert_eq!(rounded(0x3f80_8000), 0x3f80_0000);
        assert_eq!(rounded(0x3f81_8000), 0x3f82_0000);
        assert_eq!(rounded(0x3f80_8001), 0x3f81_0000);
        assert!(f32::from_bits(rounded(f32::NAN.to_bits())).is_nan());
    }

    #[test]
    fn rounding_to_24_bits_is_to_the_nearest() {
        for (value, rounded) in [(0x3f81_237f, 0x3f81_2300), (0x3f81_2380, 0x3f81_2400), (0xbf81_ffff, 0xbf82_0000)] {
            let (word, bytes) = narrow_24([f32::from_bits(value), 1.0]);
            assert_eq!(widen_24(word, bytes).map(f32::to_bits), [rounded, 0x3f80_0000]);
            let (word, bytes) = narrow_24([-1.0, f32::from_bits(value)]);
            assert_eq!(widen_24(word, bytes).map(f32::to_bits), [0xbf80_0000, rounded]);
        }
    }
}
