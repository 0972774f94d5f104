//! The text format of Prometheus exporters (0.0.4, and what OpenMetrics adds to a line), a line at a time.
//!
//! Pure and bounded: what it gives borrows from the page. A line that is wrong is told and passed over.

/// Most labels of a series.
const LABELS: usize = 32;

/// One series of a page.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    /// Label names, with values as they are written: escapes stay.
    pub(crate) labels: Vec<(&'a str, &'a str)>,
    /// May be NaN or infinite.
    pub(crate) value: f64,
    /// Unix milliseconds, where the exporter tells.
    pub(crate) time_ms: Option<i64>,
}

/// Reads one line; `None` for comments and empty ones.
///
/// # Errors
/// A word on what is wrong.
pub(crate) fn line(text: &str) -> Result<Option<Line<'_>>, &'static str> {
    let text = text.trim();
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let end = text.find(|c: char| !is_name(c)).ok_or("value_missing")?;
    let (name, rest) = text.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("name");
    }
    let rest = rest.trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    // An exemplar may follow.
    let rest = rest.split_once(" # ").map_or(rest, |(before, _)| before);
    let mut words = rest.split_ascii_whitespace();
    let value = words.next().ok_or("value_missing")?;
    let value = number(value).ok_or("value")?;
    let time_ms = match words.next() {
        Some(time) => Some(time_ms(time).ok_or("time")?),
        None => None,
    };
    match words.next() {
        Some(_) => Err("trailing"),
        None => Ok(Some(Line { name, labels, value, time_ms })),
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':')
}

type Labels<'a> = (Vec<(&'a str, &'a str)>, &'a str);

fn labels(mut rest: &str) -> Result<Labels<'_>, &'static str> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start().trim_start_matches(',').trim_start();
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, after) = rest.split_once('=').ok_or("labels")?;
        let name = name.trim();
        if name.is_empty() || !name.chars().all(is_name) || labels.len() >= LABELS {
            return Err("labels");
        }
        let value = after.trim_start().strip_prefix('"').ok_or("labels")?;
        let mut escaped = false;
        let end = value.find(|c: char| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let end = end.ok_or("labels")?;
        labels.push((name, &value[..end]));
        rest = &value[end + 1..];
    }
}

fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" | "Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        _ => text.parse().ok(),
    }
}

/// Milliseconds, or seconds with a fraction as OpenMetrics has them.
fn time_ms(text: &str) -> Option<i64> {
    match text.parse::<i64>() {
        Ok(millis) => Some(millis),
        Err(_) => {
            let millis = text.parse::<f64>().ok()? * 1_000.0;
            (millis.abs() < 1e15).then(|| millis.round() as i64)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_exporters_are_read() {
        let read = |text| line(text).unwrap().unwrap();
        assert_eq!(line(""), Ok(None));
        assert_eq!(line("# HELP a b"), Ok(None));
        assert_eq!(read("up 1"), Line { name: "up", labels: vec![], value: 1.0, time_ms: None });
        let full = read(r#"disk:free{mount="/a \"b\"",dev = "sda",} 1.5e3 1790000000123"#);
        assert_eq!(full.labels, [("mount", r#"/a \"b\""#), ("dev", "sda")]);
        assert_eq!((full.value, full.time_ms), (1_500.0, Some(1_790_000_000_123)));
        assert_eq!(read("a{} +Inf").value, f64::INFINITY);
        assert!(read("a NaN").value.is_nan());
        assert_eq!(
            read(r#"a_bucket{le="1"} 7 1790000000.5 # {trace="x"} 0.6"#).time_ms,
            Some(1_790_000_000_500)
        );
    }

    #[test]
    fn wrong_lines_say_why() {
        for (text, why) in [
            ("up", "value_missing"),
            ("up ", "value_missing"),
            ("1up 1", "name"),
            ("{a=\"b\"} 1", "name"),
            ("up{a} 1", "labels"),
            ("up{a=\"b} 1", "labels"),
            ("up{a=b} 1", "labels"),
            ("up warm", "value"),
            ("up 1 soon", "time"),
            ("up 1 2 3", "trailing"),
        ] {
            assert_eq!(line(text), Err(why), "{text}");
        }
        let many: String = (0..40).map(|n| format!("l{n}=\"v\",")).collect();
        assert_eq!(line(&format!("a{{{many}}} 1")), Err("labels"));
    }

    proptest! {
        #[test]
        fn no_line_is_taken_amiss(text in "\\PC{0,80}") {
            let _ = line(&text);
        }

        #[test]
        fn no_jumble_is_taken_amiss(text in "[a-z0-9{}=\"\\\\, #.+-]{0,60}") {
            let _ = line(&text);
        }
    }
}
