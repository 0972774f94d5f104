//! The data set: ten metrics of a small machine room that walk at random, one instant a second, sealed into batches
//! exactly as agents seal them. The same seed gives the same bytes.

use bytes::Bytes;
use fleet_schemas::{
    DeviceId, MetricName, StreamId, VERSION,
    batch::{Batch, Clock},
    cbor::{self, Packer},
    limits,
    telemetry::{Builder, Sample},
};

/// Metrics of an instant.
pub(super) const METRICS: usize = 10;
/// Between instants.
pub(super) const INSTANT_MS: i64 = 1_000;
/// What the machine says of its boot.
pub(super) const BOOT: [u8; 8] = *b"fl-bench";
/// When its session began, milliseconds after the boot; batches are sealed later.
pub(super) const BORN_UP_MS: u64 = 1_000;

/// How one metric walks: name, unit, where it starts and stays around, the largest step, decimals.
type Walk = (&'static str, &'static str, f64, f64, i32);

const WALKS: [Walk; METRICS] = [
    ("temperature", "Cel", 21.5, 0.15, 2),
    ("humidity", "%", 48.0, 0.6, 2),
    ("pressure", "hPa", 1_013.2, 0.3, 2),
    ("co2", "[ppm]", 620.0, 9.0, 0),
    ("voltage", "V", 12.6, 0.04, 3),
    ("current", "A", 0.84, 0.03, 3),
    ("power", "W", 10.6, 0.5, 2),
    ("cpu_percent", "%", 17.0, 6.0, 1),
    ("mem_used_bytes", "By", 180_000_000.0, 900_000.0, 0),
    ("rssi", "dBm", -71.0, 2.0, 0),
];

/// The batches of one stream, ready to be sent.
#[derive(Debug)]
pub(super) struct Stock {
    /// The stream.
    pub(super) stream: StreamId,
    /// Batch `i` has the number `i + 1`.
    pub(super) batches: Vec<Bytes>,
    /// Samples of each.
    pub(super) samples: u64,
    /// The first instant, Unix milliseconds.
    pub(super) start_ms: i64,
}

/// The walk itself.
#[derive(Debug)]
pub(super) struct Walker {
    seed: u64,
    values: [f64; METRICS],
    time_ms: i64,
}

impl Walker {
    pub(super) fn new(seed: u64, start_ms: i64) -> Self {
        let values = WALKS.map(|(_, _, start, _, _)| start);
        Self { seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, values, time_ms: start_ms }
    }

    /// The samples of the next instant.
    pub(super) fn instant(&mut self) -> impl Iterator<Item = (&'static str, &'static str, i64, f64)> + '_ {
        let time_ms = self.time_ms;
        self.time_ms += INSTANT_MS;
        (0..METRICS).map(move |at| {
            let (name, unit, start, step, decimals) = WALKS[at];
            // Marsaglia's xorshift: good enough noise, and the same everywhere.
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            let noise = (self.seed >> 11) as f64 / (1_u64 << 53) as f64 * 2.0 - 1.0;
            let pull = (start - self.values[at]) * 0.01;
            self.values[at] += noise * step + pull;
            let scale = 10_f64.powi(decimals);
            (name, unit, time_ms, (self.values[at] * scale).round() / scale)
        })
    }
}

impl Stock {
    /// Milliseconds between the first instants of two batches.
    pub(super) fn span_ms(&self) -> i64 {
        span_ms(self.samples)
    }

    /// Seals `count` batches of `samples` samples (a multiple of [`METRICS`]); the last instant is a little before
    /// `now_ms`.
    pub(super) fn seal(stream: StreamId, seed: u64, count: usize, samples: u64, now_ms: i64) -> Self {
        let length = i64::try_from(count).expect("a stock is small") * span_ms(samples);
        let start_ms = now_ms - length - INSTANT_MS;
        let mut walker = Walker::new(seed, start_ms);
        let mut packer = Packer::new(limits::ZSTD_LEVEL);
        let batches = (1..=count as u64).map(|seq| {
            let mut builder = Builder::default();
            for _ in 0..samples / METRICS as u64 {
                for (metric, unit, time_ms, value) in walker.instant() {
                    let metric = MetricName::parse(metric).expect("the names are short");
                    let unit = Some(MetricName::parse(unit).expect("the units are short"));
                    let full =
                        builder.push(Sample { time_ms, device: DeviceId::node(), metric, unit, value });
                    assert!(full.is_none(), "the batch is within the limits");
                }
            }
            let batch = Batch {
                v: VERSION,
                stream,
                seq,
                seq_to: None,
                first: (seq - 1) * samples + 1,
                count: samples,
                boot: BOOT,
                up_ms: BORN_UP_MS + seq,
                clock: Clock::Synced,
                sealed_ms: walker.time_ms,
                lost: None,
                body: builder.build().encode(),
            };
            Bytes::from(packer.pack(cbor::encode(&batch)))
        });
        Self { stream, batches: batches.collect(), samples, start_ms }
    }
}

fn span_ms(samples: u64) -> i64 {
    i64::try_from(samples).expect("a batch is small") / METRICS as i64 * INSTANT_MS
}

#[cfg(test)]
mod tests {
    use fleet_schemas::{batch::Envelope, cbor::Unpacker, telemetry::Samples};

    use super::*;

    #[test]
    fn a_stock_is_whole_and_the_same_for_the_same_seed() {
        let stock = Stock::seal(StreamId([1; 16]), 7, 3, 1_000, 1_790_000_000_000);
        let mut unpacker = Unpacker::default();
        let mut next = 1;
        for (at, payload) in stock.batches.iter().enumerate() {
            let Ok(Envelope::Known(batch)) = Batch::decode(unpacker.unpack(payload).unwrap()) else {
                panic!()
            };
            assert_eq!((batch.seq, batch.first), (at as u64 + 1, next));
            next = batch.next_record();
            let samples = Samples::decode(&batch.body).unwrap();
            assert_eq!(samples.count(), batch.count);
            assert_eq!(samples.times()[0], stock.start_ms + at as i64 * stock.span_ms());
        }
        assert_eq!(Stock::seal(StreamId([1; 16]), 7, 3, 1_000, 1_790_000_000_000).batches, stock.batches);
        assert_ne!(Stock::seal(StreamId([1; 16]), 8, 3, 1_000, 1_790_000_000_000).batches, stock.batches);
    }
}
