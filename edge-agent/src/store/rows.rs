//! The bytes of the outbox's rows: frozen formats, each with its layout above it.

use fleet_schemas::{DeviceId, MetricName, cbor, telemetry::Sample};

/// A sealed batch as it lies in the table `batches` under `(lane, stream number, seq)`.
///
/// Layout, little-endian: format `u8` = 1, tombstone `u8`, `seq_to u64` (equal to `seq` unless a tombstone),
/// `first u64`, `count u64`, `sealed_ms i64`, digest of the payload (8 bytes), the payload as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Whether it stands for records that are gone.
    pub tombstone: bool,
    /// Last batch number it covers.
    pub seq_to: u64,
    /// Number of its first record.
    pub first: u64,
    /// How many records.
    pub count: u64,
    /// When it was sealed by the node's wall clock, Unix milliseconds.
    pub sealed_ms: i64,
    /// The payload as it travels.
    pub payload: Vec<u8>,
}

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 42;
const FORMAT: u8 = 1;

/// A row that cannot be what we wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a row of the outbox is damaged")]
pub struct Damaged;

impl Held {
    /// The row's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut row = Vec::with_capacity(HEADER_BYTES + self.payload.len());
        row.extend([FORMAT, u8::from(self.tombstone)]);
        row.extend(self.seq_to.to_le_bytes());
        row.extend(self.first.to_le_bytes());
        row.extend(self.count.to_le_bytes());
        row.extend(self.sealed_ms.to_le_bytes());
        row.extend(fleet_schemas::batch::digest(&self.payload));
        row.extend(&self.payload);
        row
    }

    /// Its size in the file, keys aside.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        (HEADER_BYTES + self.payload.len()) as u64
    }

    /// Reads the header alone: `payload` stays empty and is not checked.
    ///
    /// # Errors
    /// [`Damaged`] when it is too short or of another format.
    pub fn decode_header(row: &[u8]) -> Result<Self, Damaged> {
        let number = |at: usize| row[at..].first_chunk().copied().map(u64::from_le_bytes).ok_or(Damaged);
        if row.len() < HEADER_BYTES || row[0] != FORMAT {
            return Err(Damaged);
        }
        Ok(Self {
            tombstone: row[1] == 1,
            seq_to: number(2)?,
            first: number(10)?,
            count: number(18)?,
            sealed_ms: number(26)?.cast_signed(),
            payload: Vec::new(),
        })
    }

    /// Reads the whole row and checks the payload's digest.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn decode(row: &[u8]) -> Result<Self, Damaged> {
        let header = Self::decode_header(row)?;
        let (head, payload) = row.split_at(HEADER_BYTES);
        if head[34..] != fleet_schemas::batch::digest(payload) {
            return Err(Damaged);
        }
        Ok(Self { payload: payload.to_vec(), ..header })
    }
}

type SampleRow<'a> = (i64, &'a str, &'a str, Option<&'a str>, f64);
type SampleRowOwned = (i64, DeviceId, MetricName, Option<MetricName>, f64);

/// Samples that were accepted together, as they lie in the table `rows`: the first 8 bytes of the SHA-256 of the
/// rest, then a CBOR array of `[time_ms, device, metric, unit or null, value]`.
#[must_use]
pub fn encode_samples(samples: &[Sample]) -> Vec<u8> {
    let rows: Vec<SampleRow<'_>> = samples
        .iter()
        .map(|s| {
            (
                s.time_ms,
                s.device.as_str(),
                s.metric.as_str(),
                s.unit.as_ref().map(MetricName::as_str),
                s.value,
            )
        })
        .collect();
    let body = cbor::encode(&rows);
    let mut row = fleet_schemas::batch::digest(&body).to_vec();
    row.extend(body);
    row
}

/// Reads what [`encode_samples`] wrote.
///
/// # Errors
/// [`Damaged`].
pub fn decode_samples(row: &[u8]) -> Result<Vec<Sample>, Damaged> {
    let (digest, body) = row.split_at_checked(8).ok_or(Damaged)?;
    if digest != fleet_schemas::batch::digest(body) {
        return Err(Damaged);
    }
    let rows: Vec<SampleRowOwned> = cbor::decode(body).map_err(|_| Damaged)?;
    let sample = |(time_ms, device, metric, unit, value)| Sample { time_ms, device, metric, unit, value };
    Ok(rows.into_iter().map(sample).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Held {
        Held { tombstone: false, seq_to: 3, first: 7, count: 2, sealed_ms: -5, payload: vec![1, 2, 3] }
    }

    #[test]
    fn batches_round_trip_and_keep_their_format() {
        let row = held().encode();
        assert_eq!(Held::decode(&row), Ok(held()));
        assert_eq!(row.len(), HEADER_BYTES + 3);
        assert_eq!(
            row[..34],
            [
                1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 251, 255, 255,
                255, 255, 255, 255, 255
            ]
        );
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let row = held().encode();
        for bit in HEADER_BYTES * 8..row.len() * 8 {
            let mut damaged = row.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Held::decode(&damaged), Err(Damaged));
        }
        assert_eq!(Held::decode(&row[..HEADER_BYTES - 1]), Err(Damaged));
    }

    #[test]
    fn samples_round_trip() {
        let sample = Sample {
            time_ms: 5,
            device: DeviceId::parse("dht22").unwrap(),
            metric: MetricName::parse("temperature").unwrap(),
            unit: Some(MetricName::parse("Cel").unwrap()),
            value: 23.5,
        };
        let samples = vec![Sample { unit: None, ..sample.clone() }, sample];
        let row = encode_samples(&samples);
        assert_eq!(decode_samples(&row), Ok(samples));
        for cut in 0..row.len() {
            assert_eq!(decode_samples(&row[..cut]), Err(Damaged));
        }
    }
}
