//! A column of numbers: an RFC 8746 typed array of the narrowest integers that hold the values exactly (scaled
//! to whole numbers, as differences where that is narrower), else of 64-bit floats.

use std::borrow::Cow;

use ciborium::tag::Captured;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_bytes::ByteBuf;

/// A column as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// The numbers that are present, in order.
    pub a: TypedArray,
    /// Decimal places: the value is the number divided by 10^s. Absent: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s: Option<u8>,
    /// When present, the numbers are differences: the first counts from `d`, each other from the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d: Option<i64>,
    /// When present, bit `i` (of byte `i / 8`, lowest first) says that row `i` has no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<ByteBuf>,
}

/// The number types of RFC 8746 that we write and read: little-endian, and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Kind {
    U8 = 64,
    U16 = 69,
    U32 = 70,
    I8 = 72,
    I16 = 77,
    I32 = 78,
    I64 = 79,
    F32 = 85,
    F64 = 86,
}

impl Kind {
    const ALL: [Self; 9] =
        [Self::U8, Self::U16, Self::U32, Self::I8, Self::I16, Self::I32, Self::I64, Self::F32, Self::F64];

    fn width(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }

    fn narrowest(low: i64, high: i64) -> Self {
        let fits = |min: i64, max: i64| low >= min && high <= max;
        if fits(0, u8::MAX.into()) {
            Self::U8
        } else if fits(i8::MIN.into(), i8::MAX.into()) {
            Self::I8
        } else if fits(0, u16::MAX.into()) {
            Self::U16
        } else if fits(i16::MIN.into(), i16::MAX.into()) {
            Self::I16
        } else if fits(0, u32::MAX.into()) {
            Self::U32
        } else if fits(i32::MIN.into(), i32::MAX.into()) {
            Self::I32
        } else {
            Self::I64
        }
    }
}

/// Numbers in a byte string under a tag that tells their type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypedArray {
    kind: Kind,
    bytes: Vec<u8>,
}

impl TypedArray {
    /// How many numbers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.kind.width()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl Serialize for TypedArray {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Captured(Some(self.kind as u64), serde_bytes::Bytes::new(&self.bytes)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TypedArray {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Captured(tag, bytes) = Captured::<ByteBuf>::deserialize(deserializer)?;
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| Some(*kind as u64) == tag)
            .ok_or_else(|| de::Error::custom("a column is not a typed array of a known kind (RFC 8746)"))?;
        if bytes.len() % kind.width() != 0 {
            return Err(de::Error::custom("a typed array ends inside a number"));
        }
        Ok(Self { kind, bytes: bytes.into_vec() })
    }
}

/// Why columns do not make sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ColumnError {
    /// `s` above 15, or `s` or `d` on floats.
    #[error("scale or delta is out of range")]
    Scale,
    /// The bitmap's length is not that of the rows, or the values are not as many as it says.
    #[error("a column and its rows differ in length")]
    Length,
    /// NaN or infinite.
    #[error("a value is not finite")]
    NotFinite,
    /// A time column with nulls or fractions.
    #[error("the time column has nulls or fractions")]
    Time,
    /// More rows, series or values than the limits allow.
    #[error("more rows, series or values than allowed")]
    Large,
}

/// Most decimal places a scaled column may have: 10^15 is exact in a float.
const SCALE_MAX: u8 = 15;
/// Most decimal places we look for when we encode: sensors give fewer.
const SCALE_TRIED: u8 = 6;
/// 2^53: beyond it integers are no longer exact in a float.
const EXACT: f64 = 9_007_199_254_740_992.0;

impl Column {
    /// A column of whole numbers without nulls.
    #[must_use]
    pub fn of_integers(numbers: &[i64]) -> Self {
        Self::narrow(numbers, None, None)
    }

    /// A column of numbers, NaN where there is none. Gives back exactly what was put in, −0.0 included.
    #[must_use]
    pub fn of_numbers(values: &[f64]) -> Self {
        let nulls = values.iter().filter(|value| value.is_nan()).count();
        let bitmap = (nulls > 0).then(|| {
            let mut bitmap = vec![0_u8; values.len().div_ceil(8)];
            for (row, _) in values.iter().enumerate().filter(|(_, value)| value.is_nan()) {
                bitmap[row / 8] |= 1 << (row % 8);
            }
            ByteBuf::from(bitmap)
        });
        let present: Cow<'_, [f64]> = if nulls == 0 {
            Cow::Borrowed(values)
        } else {
            values.iter().copied().filter(|value| !value.is_nan()).collect()
        };
        let mut numbers = Vec::with_capacity(present.len());
        for scale in 0..=SCALE_TRIED {
            if scaled(&present, scale, &mut numbers) {
                return Self::narrow(&numbers, (scale > 0).then_some(scale), bitmap);
            }
        }
        let bytes = present.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { a: TypedArray { kind: Kind::F64, bytes }, s: None, d: None, n: bitmap }
    }

    fn narrow(numbers: &[i64], s: Option<u8>, n: Option<ByteBuf>) -> Self {
        let range = |numbers: &[i64]| {
            let (low, high) = numbers.iter().fold((0, 0), |(low, high), n| (*n.min(&low), *n.max(&high)));
            Kind::narrowest(low, high)
        };
        let plain = range(numbers);
        let first = numbers.first().copied().unwrap_or(0);
        let differences: Option<Vec<i64>> = (numbers.iter().zip([first].iter().chain(numbers)))
            .map(|(number, before)| number.checked_sub(*before))
            .collect();
        let (kind, numbers, d) = match &differences {
            Some(differences) if range(differences).width() < plain.width() => {
                (range(differences), &differences[..], Some(first))
            }
            Some(_) | None => (plain, numbers, None),
        };
        let mut bytes = Vec::with_capacity(numbers.len() * kind.width());
        for number in numbers {
            bytes.extend_from_slice(&number.to_le_bytes()[..kind.width()]);
        }
        Self { a: TypedArray { kind, bytes }, s, d, n }
    }

    /// How many values are present.
    #[must_use]
    pub fn present(&self) -> usize {
        self.a.len()
    }

    pub(super) fn is_fractional(&self) -> bool {
        self.a.kind.is_float() || self.s.is_some()
    }

    /// Checks the column against the number of rows (`None`: the values are the rows) and gives that number.
    pub(super) fn check(&self, rows: Option<usize>) -> Result<usize, ColumnError> {
        let rows = rows.unwrap_or(self.a.len());
        let nulls = match &self.n {
            None => 0,
            Some(bitmap) if bitmap.len() == rows.div_ceil(8) => {
                let within =
                    |byte: usize| if byte == rows / 8 { (1_u16 << (rows % 8)) as u8 - 1 } else { 0xff };
                (bitmap.iter().enumerate()).map(|(at, byte)| (byte & within(at)).count_ones() as usize).sum()
            }
            Some(_) => return Err(ColumnError::Length),
        };
        if self.a.len() + nulls != rows {
            return Err(ColumnError::Length);
        }
        if self.s.is_some_and(|scale| scale > SCALE_MAX) {
            return Err(ColumnError::Scale);
        }
        if self.a.kind.is_float() {
            if self.s.is_some() || self.d.is_some() {
                return Err(ColumnError::Scale);
            }
            let mut values = Vec::new();
            self.floats(&mut values);
            if !values.iter().all(|value| value.is_finite()) {
                return Err(ColumnError::NotFinite);
            }
        }
        Ok(rows)
    }

    /// The whole numbers of a column without nulls; sums that overflow stay at the ends of the range.
    pub(super) fn integers(&self, into: &mut Vec<i64>) {
        let bytes = &self.a.bytes;
        match self.a.kind {
            Kind::U8 => into.extend(bytes.iter().map(|byte| i64::from(*byte))),
            Kind::I8 => into.extend(bytes.iter().map(|byte| i64::from(byte.cast_signed()))),
            Kind::U16 => into.extend(chunks(bytes).map(|n| i64::from(u16::from_le_bytes(n)))),
            Kind::I16 => into.extend(chunks(bytes).map(|n| i64::from(i16::from_le_bytes(n)))),
            Kind::U32 => into.extend(chunks(bytes).map(|n| i64::from(u32::from_le_bytes(n)))),
            Kind::I32 => into.extend(chunks(bytes).map(|n| i64::from(i32::from_le_bytes(n)))),
            Kind::I64 => into.extend(chunks(bytes).map(i64::from_le_bytes)),
            Kind::F32 | Kind::F64 => {}
        }
        if let Some(first) = self.d {
            let mut number = first;
            for difference in into {
                number = number.saturating_add(*difference);
                *difference = number;
            }
        }
    }

    fn floats(&self, into: &mut Vec<f64>) {
        match self.a.kind {
            Kind::F32 => into.extend(chunks(&self.a.bytes).map(|n| f64::from(f32::from_le_bytes(n)))),
            Kind::F64 => into.extend(chunks(&self.a.bytes).map(f64::from_le_bytes)),
            Kind::U8 | Kind::U16 | Kind::U32 | Kind::I8 | Kind::I16 | Kind::I32 | Kind::I64 => {
                let mut numbers = Vec::with_capacity(self.a.len());
                self.integers(&mut numbers);
                let divisor = 10_f64.powi(self.s.unwrap_or(0).into());
                into.extend(numbers.into_iter().map(|number| number as f64 / divisor));
            }
        }
    }

    /// One value a row, NaN where there is none.
    pub(super) fn numbers(&self, rows: usize, into: &mut Vec<f64>) {
        let Some(bitmap) = &self.n else {
            into.reserve(rows);
            return self.floats(into);
        };
        let mut present = Vec::with_capacity(self.a.len());
        self.floats(&mut present);
        let mut present = present.into_iter();
        into.extend((0..rows).map(|row| {
            let null = bitmap[row / 8] >> (row % 8) & 1 == 1;
            if null { f64::NAN } else { present.next().unwrap_or(f64::NAN) }
        }));
    }
}

/// Multiplies by 10^scale; false when that does not give back every value exactly.
fn scaled(values: &[f64], scale: u8, into: &mut Vec<i64>) -> bool {
    into.clear();
    let factor = 10_f64.powi(scale.into());
    for value in values {
        let number = (value * factor).round();
        // Through the integer, so that −0.0 is found out.
        if number.abs() > EXACT || (number as i64 as f64 / factor).to_bits() != value.to_bits() {
            return false;
        }
        into.push(number as i64);
    }
    true
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks().0.iter().copied()
}
