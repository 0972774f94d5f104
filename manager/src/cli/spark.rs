//! Sparklines: a row of points as eighth blocks. Pure.

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws points between `from_ms` and `to_ms` into `width` characters: each is the mean of its slice of time, a
/// slice without points is a space. A constant series is drawn at half height.
#[must_use]
pub(super) fn line(points: &[(i64, f64)], from_ms: i64, to_ms: i64, width: usize) -> String {
    let slices = means(points, from_ms, to_ms, width);
    let low = slices.iter().flatten().copied().fold(f64::INFINITY, f64::min);
    let high = slices.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
    let span = high - low;
    let block = |value: f64| {
        if span > 0.0 && span.is_finite() {
            // Seven steps between eight blocks; the cast keeps whole steps within them.
            BLOCKS[(((value - low) / span * 7.0).round() as usize).min(7)]
        } else {
            BLOCKS[3]
        }
    };
    slices.iter().map(|slice| slice.map_or(' ', block)).collect()
}

/// The mean of each of `width` equal slices of time.
#[must_use]
pub(super) fn means(points: &[(i64, f64)], from_ms: i64, to_ms: i64, width: usize) -> Vec<Option<f64>> {
    let mut sums = vec![(0.0, 0_u32); width];
    let span = i128::from(to_ms) - i128::from(from_ms);
    for (time, value) in points {
        let offset = i128::from(*time) - i128::from(from_ms);
        if width == 0 || span <= 0 || offset < 0 || offset > span || !value.is_finite() {
            continue;
        }
        let index = usize::try_from(offset * width as i128 / span).unwrap_or(0).min(width - 1);
        sums[index].0 += value;
        sums[index].1 += 1;
    }
    sums.into_iter().map(|(sum, count)| (count > 0).then(|| sum / f64::from(count))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ramp_climbs_through_all_blocks() {
        let points: Vec<_> = (0..8).map(|i| (i64::from(i) * 10, f64::from(i))).collect();
        assert_eq!(line(&points, 0, 80, 8), "▁▂▃▄▅▆▇█");
    }

    #[test]
    fn gaps_are_spaces_and_constants_are_half_high() {
        assert_eq!(line(&[(0, 5.0), (75, 5.0)], 0, 100, 4), "▄  ▄");
        assert_eq!(line(&[], 0, 100, 3), "   ");
    }

    #[test]
    fn odd_input_is_drawn_without_panic() {
        assert_eq!(line(&[(5, f64::NAN), (i64::MAX, 1.0)], 0, 0, 2), "  ");
        assert_eq!(line(&[(0, f64::MAX), (1, f64::MIN)], 0, 1, 0), "");
        let extremes = line(&[(i64::MIN, f64::MAX), (i64::MAX, f64::MIN)], i64::MIN, i64::MAX, 2);
        assert_eq!(extremes.chars().count(), 2);
    }

    #[test]
    fn means_are_per_slice() {
        assert_eq!(means(&[(0, 1.0), (1, 3.0), (9, 5.0)], 0, 10, 2), [Some(2.0), Some(5.0)]);
    }
}
