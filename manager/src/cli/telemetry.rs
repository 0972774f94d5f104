//! `fleet telemetry`: what a node measured, as a table with sparklines, JSON, YAML or CSV, and live.

use std::time::Duration;

use clap::{Args, ValueEnum};
use fleet_schemas::NodeId;
use serde_json::Value;

use super::{
    Context, Failure,
    output::{Cell, Format, Table, bytes, clean, number, time_in},
    period, spark, sse,
};
use crate::api::shapes::{Node, Series, Telemetry};

/// What to ask for.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fleet telemetry edge-1\n  fleet telemetry edge-1 --metric cpu_percent --since 1d --step 15m\n  \
    fleet telemetry edge-1 --device probe --since 7d -o csv > probe.csv\n  fleet telemetry edge-1 --follow"
)]
pub(super) struct TelemetryArgs {
    /// The node
    node: NodeId,
    /// Only this device; '' for the node itself
    #[arg(long)]
    device: Option<String>,
    /// Only this metric
    #[arg(long)]
    metric: Option<String>,
    /// How far back to begin, such as 15m, 1h or 7d
    #[arg(long, default_value = "1h", value_parser = period::parse)]
    since: Duration,
    /// How far back to end; the present when absent
    #[arg(long, value_parser = period::parse)]
    until: Option<Duration>,
    /// One point per step, such as 1m; every sample when absent (tables choose one)
    #[arg(long, value_parser = period::parse)]
    step: Option<Duration>,
    /// What a step's point is
    #[arg(long, value_enum, default_value_t)]
    agg: Agg,
    /// Go on with samples as they are stored
    #[arg(long, conflicts_with_all = ["until", "step", "agg"])]
    follow: bool,
}

/// What becomes of the samples of one step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Agg {
    /// The smallest.
    Min,
    /// The largest.
    Max,
    /// The mean.
    #[default]
    Avg,
    /// The newest.
    Last,
    /// Their sum.
    Sum,
    /// How many.
    Count,
}

/// Characters of a sparkline.
const SPARK: usize = 32;

impl Agg {
    fn as_str(self) -> &'static str {
        match self {
            Self::Min => "min",
            Self::Max => "max",
            Self::Avg => "avg",
            Self::Last => "last",
            Self::Sum => "sum",
            Self::Count => "count",
        }
    }
}

/// The time range asked for, Unix milliseconds.
#[derive(Debug, Clone, Copy)]
struct Range {
    from_ms: i64,
    to_ms: i64,
}

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(args: TelemetryArgs, context: &Context) -> Result<(), Failure> {
    let now_ms = super::node::now(context).await?;
    let range =
        Range { from_ms: now_ms - period::ms(args.since), to_ms: now_ms - args.until.map_or(0, period::ms) };
    if range.from_ms >= range.to_ms {
        return Err(Failure::Usage("--since begins after --until ends; make it longer".to_owned()));
    }
    if args.follow {
        return follow(&args, context).await;
    }
    let Context { client, out } = context;
    match out.format {
        Format::Table => {
            // One step per character; never finer than a second.
            let step = args.step.unwrap_or((args.since / SPARK as u32).max(Duration::from_secs(1)));
            let of = async |agg| fetch(&args, context, range, Some(step), agg).await;
            let drawn = of(args.agg).await?;
            let found = Figures {
                last: of(Agg::Last).await?,
                min: of(Agg::Min).await?,
                max: of(Agg::Max).await?,
                sum: of(Agg::Sum).await?,
                count: of(Agg::Count).await?,
            };
            if drawn.series.is_empty() {
                return out.print("no samples in this range; try a longer --since\n");
            }
            out.print(&table(&drawn, &found, range).text(out.color))
        }
        Format::Json | Format::Yaml => {
            let query = query(&args, range, args.step, args.agg);
            let value: Value = client.get(&path(&args), &borrowed(&query)).await?;
            out.show(&value, String::new)
        }
        Format::Csv => {
            let query = query(&args, range, args.step, args.agg);
            out.print(&client.text(&path(&args), &borrowed(&query), "text/csv").await?)
        }
    }
}

fn path(args: &TelemetryArgs) -> [&str; 5] {
    ["api", "v1", "nodes", args.node.as_str(), "telemetry"]
}

fn query(
    args: &TelemetryArgs,
    range: Range,
    step: Option<Duration>,
    agg: Agg,
) -> Vec<(&'static str, String)> {
    let mut query = vec![("from_ms", range.from_ms.to_string()), ("to_ms", range.to_ms.to_string())];
    query.extend(args.device.clone().map(|device| ("device", device)));
    query.extend(args.metric.clone().map(|metric| ("metric", metric)));
    if let Some(step) = step {
        query.push(("step_ms", period::ms(step).to_string()));
        query.push(("agg", agg.as_str().to_owned()));
    }
    query
}

fn borrowed<'a>(query: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    query.iter().map(|(key, value)| (*key, value.as_str())).collect()
}

async fn fetch(
    args: &TelemetryArgs,
    context: &Context,
    range: Range,
    step: Option<Duration>,
    agg: Agg,
) -> Result<Telemetry, Failure> {
    let query = query(args, range, step, agg);
    context.client.get(&path(args), &borrowed(&query)).await
}

/// What the columns beside the trend are made of, one value per step.
#[derive(Debug)]
struct Figures {
    last: Telemetry,
    min: Telemetry,
    max: Telemetry,
    sum: Telemetry,
    count: Telemetry,
}

/// The values of the series that is like this one.
fn values(telemetry: &Telemetry, like: &Series) -> Vec<f64> {
    let same = |series: &&Series| {
        series.device == like.device && series.metric == like.metric && series.unit == like.unit
    };
    let found = telemetry.series.iter().find(same);
    found.map_or_else(Vec::new, |series| series.points.iter().map(|(_, value)| *value).collect())
}

fn table(drawn: &Telemetry, found: &Figures, range: Range) -> Table {
    let mut table = Table::new(&["device", "metric", "unit", "last", "min", "avg", "max", "trend"]);
    for series in &drawn.series {
        let figure = |value: Option<f64>| {
            let text = match (value, series.unit.as_deref()) {
                (None, _) => "-".to_owned(),
                (Some(value), Some("By")) => bytes(value),
                (Some(value), _) => number(value),
            };
            Cell::right(text)
        };
        let sum: f64 = values(&found.sum, series).into_iter().sum();
        let count: f64 = values(&found.count, series).into_iter().sum();
        table.row(vec![
            Cell::left(if series.device.is_empty() { "-" } else { &series.device }),
            Cell::left(&series.metric),
            Cell::left(series.unit.as_deref().unwrap_or("-")),
            figure(values(&found.last, series).last().copied()),
            figure(values(&found.min, series).into_iter().reduce(f64::min)),
            figure((count > 0.0).then(|| sum / count)),
            figure(values(&found.max, series).into_iter().reduce(f64::max)),
            Cell::left(spark::line(&series.points, range.from_ms, range.to_ms, SPARK)),
        ]);
    }
    table
}

async fn follow(args: &TelemetryArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    if out.format == Format::Csv {
        out.print("time_ms,device,metric,unit,value")?;
    }
    let query = [("node", args.node.as_str()), ("kind", "samples")];
    let node: Node = client.get(&["api", "v1", "nodes", args.node.as_str()], &[]).await?;
    let wanted = |sample: &Value| {
        let is = |key: &str, want: &Option<String>| want.as_deref().is_none_or(|want| sample[key] == want);
        is("device", &args.device) && is("metric", &args.metric)
    };
    let each = |message: sse::Message| {
        if message.event == "cut" {
            return Err(Failure::Failed(
                "this terminal is too slow for the stream; narrow it with --metric".into(),
            ));
        }
        if message.event != "samples" {
            return Ok(());
        }
        let value: Value = serde_json::from_str(&message.data)
            .map_err(|error| Failure::Failed(format!("the hub's samples are not understood: {error}")))?;
        let samples = value["samples"].as_array().cloned().unwrap_or_default();
        let lines: String = samples
            .iter()
            .filter(|sample| wanted(sample))
            .map(|s| line(s, node.tz.as_deref(), out.format))
            .collect();
        if lines.is_empty() { Ok(()) } else { out.print(&lines) }
    };
    client.follow(&["api", "v1", "stream"], &query, each).await
}

fn line(sample: &Value, tz: Option<&str>, format: Format) -> String {
    let text = |key: &str| sample[key].as_str().unwrap_or_default();
    let (time_ms, value) = (sample["time_ms"].as_i64().unwrap_or(0), &sample["value"]);
    match format {
        Format::Table => {
            let name = match (text("device"), text("metric")) {
                ("", metric) => metric.to_owned(),
                (device, metric) => format!("{device}/{metric}"),
            };
            let value = value.as_f64().map_or_else(|| "-".to_owned(), number);
            clean(&format!("{}  {name:<32} {value:>12} {}", time_in(time_ms, tz), text("unit"))) + "\n"
        }
        Format::Json => format!("{sample}\n"),
        Format::Yaml => format!("---\n{}", super::yaml::text(sample)),
        Format::Csv => {
            let quoted = |text: &str| {
                if text.contains(['"', ',', '\n', '\r']) {
                    format!("\"{}\"", text.replace('"', "\"\""))
                } else {
                    text.to_owned()
                }
            };
            let (device, metric, unit) =
                (quoted(text("device")), quoted(text("metric")), quoted(text("unit")));
            format!("{time_ms},{device},{metric},{unit},{value}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn series(device: &str, points: &[(i64, f64)]) -> Telemetry {
        let series = Series {
            device: device.to_owned(),
            metric: "temperature".to_owned(),
            unit: Some("Cel".to_owned()),
            points: points.to_vec(),
        };
        Telemetry { series: vec![series] }
    }

    #[test]
    fn a_series_is_one_line_with_its_trend() {
        let ramp: Vec<_> = (0..32).map(|i| (i64::from(i) * 1_000, f64::from(i % 16))).collect();
        let avg = series("probe", &ramp);
        let found = Figures {
            last: series("probe", &[(0, 3.0), (31_000, 15.0)]),
            min: series("probe", &[(0, -1.0), (1, 0.0)]),
            max: series("probe", &[(0, 16.25)]),
            sum: series("probe", &[(0, 30.0), (1, 0.0)]),
            count: series("probe", &[(0, 3.0), (1, 1.0)]),
        };
        let range = Range { from_ms: 0, to_ms: 32_000 };
        insta::assert_snapshot!(table(&avg, &found, range).text(false), @r"
        DEVICE  METRIC       UNIT  LAST  MIN  AVG    MAX  TREND
        probe   temperature  Cel     15   -1  7.5  16.25  ▁▁▂▂▃▃▄▄▅▅▆▆▇▇██▁▁▂▂▃▃▄▄▅▅▆▆▇▇██
        ");
    }

    #[test]
    fn live_samples_have_a_line_in_every_form() {
        let sample =
            json!({"time_ms": 0, "device": "a,b", "metric": "t", "unit": "Cel", "value": 1.5, "late": false});
        assert_eq!(line(&sample, None, Format::Csv), "0,\"a,b\",t,Cel,1.5\n");
        assert!(line(&sample, None, Format::Table).starts_with("1970-01-01 00:00:00 UTC  a,b/t "));
        assert_eq!(serde_json::from_str::<Value>(&line(&sample, None, Format::Json)).unwrap(), sample);
    }
}
