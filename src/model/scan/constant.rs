//! A tensor as its bytes declare it, with its values where there are few: enough to know what a node would make of it.

use super::{Wire, varint};

/// Values that are kept. A shape has no more dimensions.
const VALUES_KEPT: usize = 64;

/// Numbers as they are found in a field, one by one or packed.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// How many there are.
    pub(super) count: u64,
    /// The first of them.
    values: Vec<f64>,
}

impl Held {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_wrap, reason = "only its magnitude is asked for")]
    pub(super) fn integers(&mut self, value: Wire<'_>) {
        match value {
            Wire::Number(number) => self.push(number as i64 as f64),
            Wire::Bytes(mut packed) => {
                while self.values.len() < VALUES_KEPT
                    && let Some(number) = varint(&mut packed)
                {
                    self.push(number as i64 as f64);
                }
                // The last byte of each number is the one below 0x80.
                self.count += packed.iter().filter(|byte| **byte < 0x80).count() as u64;
            }
            Wire::Four(_) | Wire::Eight(_) => (),
        }
    }

    pub(super) fn floats(&mut self, value: Wire<'_>) {
        match value {
            Wire::Four(bytes) => self.push(f32::from_le_bytes(bytes).into()),
            Wire::Bytes(packed) => self.packed(packed, |bytes: [u8; 4]| f32::from_le_bytes(bytes).into()),
            Wire::Number(_) | Wire::Eight(_) => (),
        }
    }

    pub(super) fn doubles(&mut self, value: Wire<'_>) {
        match value {
            Wire::Eight(bytes) => self.push(f64::from_le_bytes(bytes)),
            Wire::Bytes(packed) => self.packed(packed, f64::from_le_bytes),
            Wire::Number(_) | Wire::Four(_) => (),
        }
    }

    fn packed<const N: usize>(&mut self, bytes: &[u8], read: impl Fn([u8; N]) -> f64) {
        let (chunks, _) = bytes.as_chunks::<N>();
        self.count += chunks.len() as u64;
        let room = VALUES_KEPT - self.values.len();
        self.values.extend(chunks.iter().take(room).map(|chunk| read(*chunk)));
    }

    fn push(&mut self, value: f64) {
        self.count += 1;
        if self.values.len() < VALUES_KEPT {
            self.values.push(value);
        }
    }

    /// A list in an attribute, as a tensor of 64-bit numbers.
    pub(super) fn into_constant(self) -> Constant {
        let size = ElementSize { bytes: 8, is_packed: false };
        Constant { size, dims: Vec::new(), values: self.values, declared: 0, held: 0 }
    }
}

/// A tensor.
#[derive(Debug)]
pub(super) struct Constant {
    size: ElementSize,
    pub(super) dims: Vec<f64>,
    /// The first of its values; all of them where it is a shape.
    pub(super) values: Vec<f64>,
    /// Bytes its dimensions ask for, and those that are there.
    declared: u64,
    held: u64,
}

#[derive(Clone, Copy, Debug)]
struct ElementSize {
    bytes: u64,
    /// Two elements to a byte.
    is_packed: bool,
}

impl Constant {
    /// A tensor of the type `data_type` and dimensions `dims`, whose data is `raw`, or else `held`.
    pub(super) fn new(data_type: u64, dims: Held, held: Held, raw: Option<&[u8]>) -> Result<Self, &'static str> {
        if dims.count > VALUES_KEPT as u64 || dims.values.iter().any(|size| *size < 0.0) {
            return Err("its dimensions are none");
        }
        let size = ElementSize::of(data_type);
        let elements = dims.values.iter().product::<f64>();
        // Saturates: a tensor of 2^64 bytes and one that is larger are refused alike.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be no less than 0")]
        let declared = size.bytes_of(elements as u64);
        let values = raw.map_or(held.values, |raw| values_of(data_type, raw));
        let held = raw.map_or(size.bytes_of(held.count), |raw| raw.len() as u64);
        Ok(Self { size, dims: dims.values, values, declared, held })
    }

    /// Bytes it declares and does not hold.
    pub(super) fn unbacked(&self) -> u64 {
        self.declared.saturating_sub(self.held)
    }

    /// How many elements its dimensions make.
    pub(super) fn elements(&self) -> f64 {
        self.dims.iter().product()
    }

    /// Bytes of one element.
    #[expect(clippy::cast_precision_loss, reason = "16 at most")]
    pub(super) fn element_bytes(&self) -> f64 {
        self.size.bytes as f64
    }

    /// Its values as the sizes of a shape, multiplied.
    pub(super) fn product(&self) -> f64 {
        self.values.iter().map(|value| value.max(0.0)).product()
    }

    pub(super) fn first(&self) -> Option<f64> {
        self.values.first().copied()
    }
}

impl ElementSize {
    /// By `TensorProto.DataType`. A text counts as one byte.
    fn of(data_type: u64) -> Self {
        let bytes = match data_type {
            15 => 16,
            7 | 11 | 13 | 14 => 8,
            1 | 6 | 12 => 4,
            4 | 5 | 10 | 16 => 2,
            _ => 1,
        };
        Self { bytes, is_packed: data_type >= 21 }
    }

    fn bytes_of(self, elements: u64) -> u64 {
        if self.is_packed { elements.div_ceil(2) } else { elements.saturating_mul(self.bytes) }
    }
}

/// The first values in raw data, for the types that sizes and scales come in.
#[expect(clippy::cast_precision_loss, reason = "only its magnitude is asked for")]
fn values_of(data_type: u64, raw: &[u8]) -> Vec<f64> {
    match data_type {
        1 => first_of(raw, |bytes| f32::from_le_bytes(bytes).into()),
        6 => first_of(raw, |bytes| i32::from_le_bytes(bytes).into()),
        7 => first_of(raw, |bytes| i64::from_le_bytes(bytes) as f64),
        11 => first_of(raw, f64::from_le_bytes),
        _ => Vec::new(),
    }
}

fn first_of<const N: usize>(raw: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    raw.as_chunks::<N>().0.iter().take(VALUES_KEPT).map(|chunk| read(*chunk)).collect()
}
