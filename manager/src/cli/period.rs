//! Periods as people write them: `90s`, `15m`, `1h`, `7d`, `1h30m`. Pure.

use std::time::Duration;

/// Longest period: the range of 5-minute rollups, with a margin.
const LONGEST: Duration = Duration::from_secs(4 * 366 * 86_400);

/// Reads a period.
///
/// # Errors
/// A sentence with an example.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no period; examples are 90s, 15m, 1h30m, 7d");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let ms = match &rest[digits..unit] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(ms).map(Duration::from_millis).ok_or_else(wrong)?;
        total = total.checked_add(part).filter(|total| *total <= LONGEST).ok_or_else(wrong)?;
        rest = &rest[unit..];
    }
    if total.is_zero() { Err(wrong()) } else { Ok(total) }
}

/// Whole milliseconds.
#[must_use]
pub(super) fn ms(period: Duration) -> i64 {
    i64::try_from(period.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_read() {
        for (text, seconds) in
            [("90s", 90), ("15m", 900), ("1h30m", 5_400), ("7d", 604_800), ("2w", 1_209_600)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "0s", "h", "1", "1y", "-1h", "1 h", "99999999999999999999s", "9999w", "ä", "1ä"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
