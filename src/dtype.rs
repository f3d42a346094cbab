//! How tensors are stored: 32-bit floats, or one of two 16-bit formats.
//!
//! Only q, k, v and the output are stored in a [`Dtype`]; scores, probabilities, sums and the log-sum-exp are f32 in
//! every kernel. A 16-bit number is read exactly as it is stored; an output is rounded once, to the nearest and to even
//! in a tie, and beyond the largest f16 becomes an infinity.

use std::fmt;

use half::{bf16, f16};

/// Storage of q, k, v and the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Dtype {
    /// IEEE 754 binary32.
    #[default]
    F32,
    /// The upper half of an f32: 8 bits of exponent, 7 of fraction.
    Bf16,
    /// IEEE 754 binary16: 5 bits of exponent, 10 of fraction; the largest number is 65504.
    F16,
}

impl Dtype {
    /// Every storage type.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::F16];

    /// Name in specs and in every text form.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// The storage type of that name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// Whether this is f32, which text forms leave out.
    pub const fn is_f32(&self) -> bool {
        matches!(self, Self::F32)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}

    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
}

/// An element of q, k, v and the output: `f32`, [`half::bf16`] or [`half::f16`].
pub trait Element:
    sealed::Sealed + Copy + Default + fmt::Debug + PartialEq + Send + Sync + zerocopy::FromZeros + 'static
{
    /// Its storage type.
    const DTYPE: Dtype;

    /// The number, exactly.
    fn widen(self) -> f32;

    /// The nearest element, even in a tie; NaN stays NaN.
    fn nearest(x: f32) -> Self;

    /// The nearest element of a double, rounded once.
    fn nearest_f64(x: f64) -> Self;

    /// From bytes as they stand in a little-endian file; `bytes` holds [`Dtype::bytes`] of them.
    fn from_le(bytes: &[u8]) -> Self;

    /// Appends the bytes of a little-endian file.
    fn to_le(self, bytes: &mut Vec<u8>);
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;

    fn widen(self) -> f32 {
        self
    }

    fn nearest(x: f32) -> Self {
        x
    }

    fn nearest_f64(x: f64) -> Self {
        x as f32
    }

    fn from_le(bytes: &[u8]) -> Self {
        let mut word = [0; 4];
        word.copy_from_slice(bytes);
        Self::from_le_bytes(word)
    }

    fn to_le(self, bytes: &mut Vec<u8>) {
        bytes.extend(self.to_le_bytes());
    }
}

/// `x` cut to f32, with the last bit set where that lost anything: rounding the result to a format with at least two
/// bits less is then the same as rounding `x` (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded
/// sums").
fn round_to_odd(x: f64) -> f32 {
    let near = x as f32;
    let back = f64::from(near);
    if back == x || x.is_nan() {
        return near;
    }
    let toward_zero = if back.abs() > x.abs() { near.to_bits() - 1 } else { near.to_bits() };
    f32::from_bits(toward_zero | 1)
}

macro_rules! half_element {
    ($type:ty, $dtype:ident) => {
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;

            fn widen(self) -> f32 {
                self.to_f32()
            }

            fn nearest(x: f32) -> Self {
                Self::from_f32(x)
            }

            fn nearest_f64(x: f64) -> Self {
                Self::from_f32(round_to_odd(x))
            }

            fn from_le(bytes: &[u8]) -> Self {
                let mut word = [0; 2];
                word.copy_from_slice(bytes);
                Self::from_le_bytes(word)
            }

            fn to_le(self, bytes: &mut Vec<u8>) {
                bytes.extend(self.to_le_bytes());
            }
        }
    };
}

half_element!(bf16, Bf16);
half_element!(f16, F16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_again() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::find(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::find("f64"), None);
    }

    #[test]
    fn doubles_are_rounded_once() {
        // Just above half of the last place of 1: rounded to f32 first it would be a tie, which goes down to 1.
        let above = |half_place: f64| 1.0 + half_place + f64::from(f32::EPSILON) / 64.0;
        assert_eq!(bf16::nearest_f64(above(1.0 / 256.0)).to_f64(), 1.0 + 1.0 / 128.0);
        assert_eq!(f16::nearest_f64(above(1.0 / 2048.0)).to_f64(), 1.0 + 1.0 / 1024.0);
        assert_eq!(bf16::nearest((1.0 + 1.0 / 256.0) as f32).to_f64(), 1.0);
        assert_eq!(f16::nearest(65520.0), f16::INFINITY);
        assert_eq!(f16::nearest(65519.0), f16::MAX);
    }
}
