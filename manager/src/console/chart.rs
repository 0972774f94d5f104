//! Charts and timelines as SVG: numbers in, paths out. Pure.
//!
//! A plot is 1,000 wide and 100 high and is stretched to its place; words stand beside it, not in it. Where samples are
//! missing the line is broken, and the gap is shown as one.

use std::fmt::Write as _;

use super::words::{self, When};
use crate::core::presence::{Presence, State};

/// Width of a plot, in its own units.
const WIDTH: f64 = 1_000.0;
/// Height of a plot.
const HEIGHT: f64 = 100.0;
/// Points of a chart: a step is the shortest that needs no more.
const POINTS: i64 = 240;
/// Steps that charts are drawn in, in seconds; from five minutes on rollups answer.
const STEPS_S: [i64; 16] = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 21_600, 86_400];
/// Missing samples that make a gap, in spans between two.
const GAP: i64 = 3;
/// Shorter gaps are not shown: a sample may come late.
const GAP_LEAST_MS: i64 = 2_000;

/// A point: when, and what.
pub(super) type Point = (i64, f64);

/// A span of time that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// Its beginning, Unix milliseconds.
    pub(super) from_ms: i64,
    /// Its end.
    pub(super) to_ms: i64,
}

/// What a series has in a window.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Data {
    /// The device, empty for the node itself.
    pub(super) device: String,
    /// The metric.
    pub(super) metric: String,
    /// Its unit.
    pub(super) unit: Option<String>,
    /// The newest sample that there is.
    pub(super) newest: Option<Point>,
    /// The average of each step.
    pub(super) average: Vec<Point>,
    /// The lowest of each step.
    pub(super) lowest: Vec<Point>,
    /// The highest of each step.
    pub(super) highest: Vec<Point>,
}

/// A chart, drawn.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Chart {
    /// The device, empty for the node itself.
    pub(super) device: String,
    /// The metric.
    pub(super) metric: String,
    /// The newest value, in words.
    pub(super) last: String,
    /// The scale, from the top.
    pub(super) scale: Vec<String>,
    /// The line.
    pub(super) line: String,
    /// Points that have no neighbour to draw a line to.
    pub(super) dots: String,
    /// From the lowest to the highest of each step.
    pub(super) band: String,
    /// Where samples are missing: x and width.
    pub(super) gaps: Vec<(String, String)>,
    /// All of it in a sentence, for those who do not see it.
    pub(super) words: String,
}

/// One state in a timeline.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span {
    /// Where it begins.
    pub(super) x: String,
    /// How wide it is.
    pub(super) width: String,
    /// The state.
    pub(super) state: &'static str,
    /// Since when.
    pub(super) since: When,
    /// How long.
    pub(super) lasted: String,
}

impl Window {
    /// The step that a chart of it is drawn in, in milliseconds.
    pub(super) fn step_ms(self) -> i64 {
        let least = (self.to_ms - self.from_ms) / POINTS;
        let step = STEPS_S.into_iter().map(|seconds| seconds * 1_000).find(|step| *step >= least);
        step.unwrap_or(86_400_000)
    }

    fn x(self, at_ms: i64) -> f64 {
        let part = (at_ms - self.from_ms) as f64 / (self.to_ms - self.from_ms).max(1) as f64;
        (part * WIDTH).clamp(0.0, WIDTH)
    }
}

/// A number of a path: as short as the eye allows.
fn short(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Draws a series.
pub(super) fn draw(data: &Data, window: Window) -> Chart {
    let inside = |points: &[Point]| -> Vec<Point> {
        let last_ms = window.to_ms;
        points.iter().copied().filter(|(at_ms, value)| *at_ms <= last_ms && value.is_finite()).collect()
    };
    let average = inside(&data.average);
    let mut chart = Chart { device: data.device.clone(), metric: data.metric.clone(), ..Chart::default() };
    let (Some(first), Some(last)) = (average.first(), average.last()) else {
        chart.words = format!("{}: no samples in this time", data.metric);
        chart.gaps.push(("0".to_owned(), short(WIDTH)));
        return chart;
    };
    let (lowest, highest) = (inside(&data.lowest), inside(&data.highest));
    let values = || average.iter().chain(&lowest).chain(&highest).map(|(_, value)| *value);
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    let (bottom, top) = bounds(low, high, words::is_size(&data.metric, data.unit.as_deref()));
    let y = |value: f64| HEIGHT - (value - bottom) / (top - bottom) * HEIGHT;
    let gap_ms = gap(&average, window.step_ms());
    for piece in average.chunk_by(|a, b| b.0 - a.0 < gap_ms) {
        let begin = chart.line.len();
        for (at_ms, value) in piece {
            let word = if chart.line.len() == begin { "M" } else { "L" };
            let _ = write!(chart.line, "{word}{} {}", short(window.x(*at_ms)), short(y(*value)));
        }
        if let [(at_ms, value)] = piece {
            let _ = write!(chart.dots, "M{} {}h0", short(window.x(*at_ms)), short(y(*value)));
        }
    }
    if low < high {
        for piece in pieces(&lowest, &highest, gap_ms) {
            chart.band.push_str(&outline(&piece, window, y));
        }
    }
    let ends = [(window.from_ms, first.0), (last.0, window.to_ms)];
    let between = average.windows(2).map(|pair| (pair[0].0, pair[1].0));
    for (from_ms, to_ms) in between.chain(ends).filter(|(from, to)| to - from >= gap_ms) {
        let (x, end) = (window.x(from_ms), window.x(to_ms));
        chart.gaps.push((short(x), short(end - x)));
    }
    let newest = data.newest.filter(|(at_ms, value)| *at_ms <= window.to_ms && value.is_finite());
    let newest = newest.filter(|(at_ms, _)| *at_ms >= last.0).map_or(last.1, |(_, value)| value);
    let word = |value: f64| words::value(value, &data.metric, data.unit.as_deref());
    chart.last = word(newest);
    chart.scale = [top, f64::midpoint(top, bottom), bottom].map(word).to_vec();
    let gaps = match chart.gaps.len() {
        0 => String::new(),
        1 => ", one gap".to_owned(),
        many => format!(", {many} gaps"),
    };
    chart.words =
        format!("{}: last {}, between {} and {}{gaps}", data.metric, word(newest), word(low), word(high));
    chart
}

/// From how many milliseconds on there is a gap: samples come as they usually do.
fn gap(points: &[Point], step_ms: i64) -> i64 {
    let mut spans: Vec<i64> = points.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    spans.sort_unstable();
    let usual = spans.get(spans.len() / 2).copied().unwrap_or(step_ms);
    (usual.max(step_ms) * GAP).max(GAP_LEAST_MS)
}

/// The scale of a plot: whole steps around what is shown. Sizes are counted in powers of two.
fn bounds(low: f64, high: f64, binary: bool) -> (f64, f64) {
    let span = high - low;
    let room = if span > 0.0 { span } else { (high.abs() * 0.2).max(1.0) };
    let step = if binary {
        (room / 4.0).log2().ceil().exp2()
    } else {
        let ten = 10_f64.powf((room / 4.0).log10().floor());
        [1.0, 2.0, 5.0, 10.0].map(|n| n * ten).into_iter().find(|step| *step >= room / 4.0).unwrap_or(ten)
    };
    let (bottom, top) = ((low / step).floor() * step, (high / step).ceil() * step);
    if bottom < top { (bottom, top) } else { (bottom - step, top + step) }
}

/// Lowest and highest of each step, in pieces without gaps.
fn pieces(lowest: &[Point], highest: &[Point], gap_ms: i64) -> Vec<Vec<(i64, f64, f64)>> {
    let both = lowest.iter().zip(highest).filter(|(low, high)| low.0 == high.0);
    let both: Vec<_> = both.map(|(low, high)| (low.0, low.1, high.1)).collect();
    let pieces = both.chunk_by(|a, b| b.0 - a.0 < gap_ms);
    pieces.filter(|piece| piece.len() > 1).map(<[_]>::to_vec).collect()
}

fn outline(piece: &[(i64, f64, f64)], window: Window, y: impl Fn(f64) -> f64) -> String {
    let mut path = String::new();
    let there = piece.iter().map(|(at_ms, _, high)| (*at_ms, *high));
    let back = piece.iter().rev().map(|(at_ms, low, _)| (*at_ms, *low));
    for (at_ms, value) in there.chain(back) {
        let word = if path.is_empty() { "M" } else { "L" };
        let _ = write!(path, "{word}{} {}", short(window.x(at_ms)), short(y(value)));
    }
    path + "Z"
}

/// The states that a node had in a window, as far as they are remembered, oldest first.
pub(super) fn timeline(presence: &Presence, window: Window) -> Vec<Span> {
    let past = presence.past.iter().map(|past| (past.state, past.since_ms));
    let all: Vec<(State, i64)> = past.chain([(presence.state, presence.since_ms)]).collect();
    let mut spans = Vec::new();
    for (at, (state, since_ms)) in all.iter().enumerate() {
        let until_ms = all.get(at + 1).map_or(window.to_ms, |(_, next_ms)| *next_ms);
        if until_ms <= window.from_ms || *since_ms >= window.to_ms {
            continue;
        }
        let (x, end) = (window.x(*since_ms), window.x(until_ms));
        spans.push(Span {
            x: short(x),
            // A short absence is to be seen, too.
            width: short((end - x).max(2.0)),
            state: state.as_str(),
            since: When::at(since_ms, &window.to_ms),
            lasted: words::span(until_ms - since_ms),
        });
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::presence::Past;

    const WINDOW: Window = Window { from_ms: 0, to_ms: 240_000 };

    fn data(points: &[Point]) -> Data {
        Data { metric: "cpu_percent".to_owned(), average: points.to_vec(), ..Data::default() }
    }

    #[test]
    fn a_step_needs_no_more_points_than_there_is_room() {
        let step = |hours: i64| Window { from_ms: 0, to_ms: hours * 3_600_000 }.step_ms();
        assert_eq!((WINDOW.step_ms(), step(1), step(24), step(24 * 7)), (1_000, 15_000, 600_000, 3_600_000));
        assert_eq!(step(24 * 3_650), 86_400_000);
    }

    #[test]
    fn a_line_is_broken_where_samples_are_missing() {
        let points: Vec<Point> =
            (0..240).filter(|n| !(60..120).contains(n)).map(|n| (n * 1_000, 10.0)).collect();
        let chart = draw(&data(&points), WINDOW);
        assert_eq!(chart.line.matches('M').count(), 2, "{}", chart.line);
        assert_eq!(chart.gaps, [("245.8".to_owned(), "254.2".to_owned())]);
        assert!(chart.words.ends_with("one gap"), "{}", chart.words);
    }

    #[test]
    fn what_never_came_is_a_gap_and_a_lonely_sample_is_a_dot() {
        let chart = draw(&data(&[]), WINDOW);
        assert_eq!((chart.gaps.len(), chart.line.as_str()), (1, ""));
        let chart = draw(&data(&[(120_000, 5.0)]), WINDOW);
        assert_eq!((chart.dots.as_str(), chart.gaps.len()), ("M500 50h0", 2));
    }

    #[test]
    fn the_band_spans_lowest_to_highest() {
        let at = |value: f64| (0..3).map(|n| (n * 1_000, value)).collect::<Vec<_>>();
        let data = Data { average: at(5.0), lowest: at(0.0), highest: at(10.0), ..data(&[]) };
        let chart = draw(&data, WINDOW);
        assert_eq!(chart.band.matches('L').count(), 5);
        assert_eq!(chart.scale, ["10 %", "5 %", "0 %"]);
    }

    #[test]
    fn a_scale_has_whole_steps() {
        assert_eq!(bounds(84.4, 100.0, false), (80.0, 100.0));
        assert_eq!(bounds(23.5, 23.5, false), (22.0, 24.0));
        assert_eq!(bounds(0.0, 0.0, false), (-0.5, 0.5));
        let mib = 1_048_576.0;
        assert_eq!(bounds(3.1 * mib, 6.9 * mib, true), (3.0 * mib, 7.0 * mib));
    }

    #[test]
    fn numbers_that_are_none_are_left_out() {
        let chart = draw(&data(&[(0, f64::NAN), (1_000, f64::INFINITY), (2_000, 3.0)]), WINDOW);
        assert_eq!(chart.last, "3 %");
        assert!(!chart.line.contains("NaN") && !chart.line.contains("inf"), "{}", chart.line);
    }

    #[test]
    fn states_lie_where_they_were() {
        let past = vec![
            Past { state: State::New, since_ms: -10 },
            Past { state: State::Online, since_ms: 0 },
            Past { state: State::Offline, since_ms: 60_000 },
        ];
        let mut presence = Presence::default();
        (presence.state, presence.since_ms, presence.past) = (State::Online, 120_000, past);
        let spans = timeline(&presence, WINDOW);
        let told: Vec<_> =
            spans.iter().map(|span| (span.state, span.x.as_str(), span.width.as_str())).collect();
        assert_eq!(told, [("online", "0", "250"), ("offline", "250", "250"), ("online", "500", "500")]);
    }
}
