//! From the floating-point types of weight files to `f32`.

/// A floating-point type, stored little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Float {
    F16,
    BF16,
    F32,
    F64,
}

impl Float {
    /// The values in `bytes`, rounded to `f32` where they are finer.
    pub(super) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F16 => decode(bytes, |b| f16_to_f32(u16::from_le_bytes(b))),
            Self::BF16 => decode(bytes, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            Self::F32 => decode(bytes, f32::from_le_bytes),
            Self::F64 => decode(bytes, |b| f64::from_le_bytes(b) as f32),
        }
    }
}

fn decode<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&chunk| value(chunk)).collect()
}

/// IEEE 754 binary16: 5 bits of exponent (bias 15), 10 of fraction. Every value is an `f32`.
fn f16_to_f32(bits: u16) -> f32 {
    let fraction = f32::from(bits & 0x3ff);
    let magnitude = match (bits >> 10) & 0x1f {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        exponent => (1024.0 + fraction) * 2f32.powi(i32::from(exponent) - 25),
    };
    if bits >> 15 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_values_are_exact() {
        let cases = [
            (0x0000, 0.0),
            (0x8000, -0.0),
            (0x0001, 5.960_464_5e-8), // smallest subnormal, 2^-24
            (0x0400, 6.103_515_6e-5), // smallest normal, 2^-14
            (0x3c00, 1.0),
            (0xc248, -3.140_625),
            (0x7bff, 65504.0),
            (0xfc00, f32::NEG_INFINITY),
        ];
        for (bits, value) in cases {
            assert_eq!(f16_to_f32(bits).to_bits(), f32::to_bits(value), "{bits:#06x}");
        }
        assert!(f16_to_f32(0x7e01).is_nan());
    }

    #[test]
    fn every_type_gives_the_same_numbers() {
        let expected = [1.5, -0.25];
        let bytes = |parts: [&[u8]; 2]| parts.concat();
        assert_eq!(Float::F16.decode(&bytes([&[0x00, 0x3e], &[0x00, 0xb4]])), expected);
        assert_eq!(Float::BF16.decode(&bytes([&[0xc0, 0x3f], &[0x80, 0xbe]])), expected);
        assert_eq!(Float::F32.decode(&bytes([&1.5f32.to_le_bytes(), &(-0.25f32).to_le_bytes()])), expected);
        assert_eq!(Float::F64.decode(&bytes([&1.5f64.to_le_bytes(), &(-0.25f64).to_le_bytes()])), expected);
    }
}
