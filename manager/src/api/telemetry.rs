//! `nodes/{id}/telemetry`: samples by range, series and step, as JSON or CSV.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};
use fleet_schemas::{DeviceId, MetricName, limits};

use super::{
    Api, nodes,
    problem::Refusal,
    query::{Params, node_id},
    shapes,
};
use crate::store::telemetry::{Aggregate, Query, SeriesPoints, Step};

/// The range when none is given.
const RANGE_MS: i64 = 3_600_000;
/// Most points of one answer: about 20 MB of JSON.
const POINTS: usize = 1_000_000;

/// `GET nodes/{id}/telemetry?device=&metric=&from_ms=&to_ms=&step_ms=&agg=`. The range is the last hour unless given
/// and excludes `to_ms`; `agg` is `min|max|avg|last|sum|count` of each step, `avg` unless given.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    params.only(&["device", "metric", "from_ms", "to_ms", "step_ms", "agg"])?;
    let node = nodes::number(&api, &node_id(&id)?)?;
    let query = read(&params, node, api.hub.clock().now().wall_ms)?;
    let csv = csv_wanted(&headers)?;
    let series = api.query(move |api| Ok(api.hub.telemetry().query(&query)?)).await?;
    if csv {
        let text = to_csv(&series)?;
        return Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], text).into_response());
    }
    let series = series.into_iter().map(|series| shapes::Series {
        device: series.device.to_string(),
        metric: series.metric.to_string(),
        unit: series.unit.map(|unit| unit.to_string()),
        points: series.points,
    });
    Ok(Json(shapes::Telemetry { series: series.collect() }).into_response())
}

fn read(params: &Params, node: u32, now_ms: i64) -> Result<Query, Refusal> {
    // One beyond the present: a sample of this very millisecond belongs to it.
    let to_ms = params.read("to_ms")?.unwrap_or(now_ms.saturating_add(1));
    let from_ms = params.read("from_ms")?.unwrap_or_else(|| to_ms.saturating_sub(RANGE_MS));
    if from_ms >= to_ms {
        return Err(Refusal::query("from_ms", "is not before to_ms"));
    }
    let aggregate = match params.text("agg") {
        None | Some("avg") => Aggregate::Avg,
        Some("min") => Aggregate::Min,
        Some("max") => Aggregate::Max,
        Some("last") => Aggregate::Last,
        Some("sum") => Aggregate::Sum,
        Some("count") => Aggregate::Count,
        Some(_) => return Err(Refusal::query("agg", "is none of min, max, avg, last, sum, count")),
    };
    let step = match params.read::<i64>("step_ms")? {
        Some(ms) if ms < 1 => return Err(Refusal::query("step_ms", "is not at least 1")),
        Some(ms) => Some(Step { ms, aggregate }),
        None if params.text("agg").is_some() => return Err(Refusal::query("agg", "needs step_ms")),
        None => None,
    };
    Ok(Query {
        node,
        device: params.read::<DeviceId>("device")?,
        metric: params.read::<MetricName>("metric")?,
        from_ms,
        to_ms,
        step,
        series_max: limits::SERIES_PER_NODE,
        points_max: POINTS,
    })
}

/// Whether the client prefers CSV; JSON when it takes both alike.
fn csv_wanted(headers: &HeaderMap) -> Result<bool, Refusal> {
    let mut best: Option<(f32, bool)> = None;
    let accepts: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    if accepts.is_empty() {
        return Ok(false);
    }
    for part in accepts.iter().flat_map(|accept| accept.split(',')) {
        let mut words = part.split(';').map(str::trim);
        let csv = match words.next().unwrap_or_default().to_ascii_lowercase().as_str() {
            "text/csv" | "text/*" => true,
            "application/json" | "application/*" | "*/*" => false,
            _ => continue,
        };
        let weight = words.find_map(|word| word.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0));
        if weight > 0.0 && best.is_none_or(|(known, was)| weight > known || weight >= known && was && !csv) {
            best = Some((weight, csv));
        }
    }
    best.map(|(_, csv)| csv).ok_or_else(|| {
        Refusal::MediaType(
            "telemetry is given as application/json or text/csv; accept one of them".to_owned(),
        )
    })
}

fn to_csv(series: &[SeriesPoints]) -> Result<Vec<u8>, Refusal> {
    let internal = |error: String| Refusal::Internal(format!("cannot write CSV: {error}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer
        .write_record(["time_ms", "device", "metric", "unit", "value"])
        .map_err(|e| internal(e.to_string()))?;
    for one in series {
        let unit = one.unit.as_ref().map_or("", MetricName::as_str);
        for (time, value) in &one.points {
            // The shortest text that reads back as the same number, as in JSON.
            let (time, value) = (time.to_string(), value.to_string());
            let record = [&time, one.device.as_str(), one.metric.as_str(), unit, &value];
            writer.write_record(record).map_err(|error| internal(error.to_string()))?;
        }
    }
    writer.into_inner().map_err(|error| internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_chooses_the_form() {
        for (accept, csv) in [
            ("text/csv", true),
            ("application/json", false),
            ("*/*", false),
            ("text/csv, */*;q=0.1", true),
            ("text/csv;q=0.5, application/json", false),
            ("application/json, text/csv", false),
            ("text/csv, application/json", false),
            ("text/html, text/csv;q=0.2", true),
        ] {
            let headers = [(header::ACCEPT, accept.parse().unwrap())].into_iter().collect();
            assert_eq!(csv_wanted(&headers), Ok(csv), "{accept}");
        }
        let headers = [(header::ACCEPT, "image/png".parse().unwrap())].into_iter().collect();
        assert!(csv_wanted(&headers).is_err());
        assert_eq!(csv_wanted(&HeaderMap::new()), Ok(false));
    }
}
