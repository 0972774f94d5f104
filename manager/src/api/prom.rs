//! `POST prom/read`: the stored history as Prometheus reads it (remote read, version 0.1.0, `SAMPLES`).
//!
//! Serves `fleet_sample{node,site,device,metric,unit}`; `site` is what the registry says now. Nodes that the matchers
//! exclude are not read. Owns limits on an answer.

mod plan;
mod selection;
mod wire;

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
    time::Duration,
};

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};
use fleet_schemas::{NodeId, limits};

use super::{
    Api,
    problem::Refusal,
    query::{Body, Params, content_type},
};
use crate::{
    clock,
    core::fleet::Node,
    metrics::catalogue,
    store::telemetry::{Error, Query, Step},
};
use selection::Selection;
use wire::{QueryResult, ReadRequest, ReadResponse, Sample, TimeSeries};

/// Most queries in one request: Prometheus sends one.
const QUERIES: usize = 16;
/// Most series of one answer: one metric of every node of a large fleet.
const SERIES: usize = 20_000;
/// Most samples of one answer: about 40 MB while it is made.
const SAMPLES: usize = 1_000_000;
/// Time for reading: below Prometheus' own minute, so that the reason arrives.
const READING: Duration = Duration::from_secs(30);
/// Most external labels that may be named.
const EXTERNAL: usize = 16;

/// `POST prom/read?external=NAME,…`. `external` names labels that the asking Prometheus puts on all its series
/// (`external_labels`) and so into its queries: they choose nothing here, and are given back.
pub(super) async fn read(
    State(api): State<Arc<Api>>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    let began = clock::mono();
    let answer = answer(&api, &params, &headers, &body).await;
    let outcome = if answer.is_ok() { "answered" } else { "refused" };
    api.exporter.counter(&catalogue::HISTORY_READS, &[outcome]).increment(1);
    api.exporter.histogram(&catalogue::HISTORY_SECONDS).record((clock::mono() - began).as_secs_f64());
    answer
}

async fn answer(
    api: &Arc<Api>,
    params: &Params,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, Refusal> {
    params.only(&["external"])?;
    content_type(headers, &["application/x-protobuf"])?;
    let external = external(params.text("external").unwrap_or_default())?;
    let request = ReadRequest::unpack(body).map_err(|error| Refusal::BadRequest(error.to_string()))?;
    if !request.takes_samples() {
        let detail = "this hub answers with SAMPLES, which the request does not accept; let it accept type 0";
        return Err(Refusal::BadRequest(detail.to_owned()));
    }
    if request.queries.len() > QUERIES {
        let detail =
            format!("{} queries in one request, and at most {QUERIES} are answered", request.queries.len());
        return Err(Refusal::BadRequest(detail));
    }
    // Whoever asked is gone when this is: then nobody needs the rest.
    let asker = Arc::new(());
    let waiting = Arc::downgrade(&asker);
    let packed = api
        .query(move |api| {
            let mut reading = Reading::new(api, waiting);
            let results: Result<_, _> =
                request.queries.iter().map(|query| reading.result(query, &external)).collect();
            let counted = api.exporter.counter(&catalogue::HISTORY_NODES, &[]);
            counted.increment(reading.nodes as u64);
            let response = ReadResponse { results: results? };
            api.exporter.counter(&catalogue::HISTORY_SAMPLES, &[]).increment(reading.samples as u64);
            response.pack().map_err(|error| Refusal::Internal(format!("an answer is not packed: {error}")))
        })
        .await?;
    drop(asker);
    let headers = [(header::CONTENT_TYPE, "application/x-protobuf"), (header::CONTENT_ENCODING, "snappy")];
    Ok((headers, packed).into_response())
}

fn external(names: &str) -> Result<BTreeSet<String>, Refusal> {
    let names: BTreeSet<_> =
        names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let own = ["__name__", "node", "site", "device", "metric", "unit"];
    if let Some(name) = own.iter().find(|name| names.contains(**name)) {
        return Err(Refusal::query(
            "external",
            format!("names {name}, which is a label of the series themselves"),
        ));
    }
    if names.len() > EXTERNAL {
        return Err(Refusal::query("external", format!("names more than {EXTERNAL} labels")));
    }
    Ok(names)
}

/// A node that is read.
struct Chosen {
    number: u32,
    id: NodeId,
    site: String,
}

/// One request, being answered.
struct Reading<'a> {
    api: &'a Api,
    asker: Weak<()>,
    deadline: Duration,
    series: usize,
    samples: usize,
    nodes: usize,
}

impl<'a> Reading<'a> {
    fn new(api: &'a Api, asker: Weak<()>) -> Self {
        let deadline = clock::mono() + READING;
        Self { api, asker, deadline, series: 0, samples: 0, nodes: 0 }
    }

    fn result(&mut self, query: &wire::Query, external: &BTreeSet<String>) -> Result<QueryResult, Refusal> {
        let selection = Selection::read(&query.matchers, external)
            .map_err(|error| Refusal::BadRequest(error.to_string()))?;
        if query.start_timestamp_ms > query.end_timestamp_ms {
            return Err(Refusal::BadRequest("a query's start is after its end".to_owned()));
        }
        let chosen = self.chosen(&selection);
        if query.hints.as_ref().is_some_and(|hints| hints.func == "series") {
            return self.names(&selection, &chosen, query);
        }
        let mut ways = plan::ways(query).into_iter().peekable();
        let before = (self.series, self.samples);
        loop {
            let way = ways.next().flatten();
            match self.read(query, &selection, &chosen, way) {
                Err(Refusal::TooMuch(_)) if ways.peek().is_some() => (self.series, self.samples) = before,
                done => return done,
            }
        }
    }

    /// The nodes that can have chosen series.
    fn chosen(&self, selection: &Selection) -> Vec<Chosen> {
        if selection.is_empty() {
            return Vec::new();
        }
        let of = |node: &Node| Chosen {
            number: node.number,
            id: node.record.id.clone(),
            site: node.record.site.clone().unwrap_or_default(),
        };
        // Copied, so that the consumer does not wait for expressions.
        let mut all: Vec<_> = self.api.hub.with_fleet(|fleet| match selection.only_node() {
            Some(id) => {
                let node = NodeId::parse(id).ok().and_then(|id| fleet.nodes.get(&id));
                node.map(|node| of(node)).into_iter().collect()
            }
            None => fleet.nodes.values().map(|node| of(node)).collect(),
        });
        all.retain(|node| selection.takes_node(node.id.as_str(), &node.site));
        all
    }

    fn read(
        &mut self,
        query: &wire::Query,
        selection: &Selection,
        chosen: &[Chosen],
        way: Option<Step>,
    ) -> Result<QueryResult, Refusal> {
        let (from_ms, to_ms) = (query.start_timestamp_ms, query.end_timestamp_ms);
        let mut result = QueryResult::default();
        for node in chosen {
            self.in_time()?;
            self.nodes += 1;
            let ask = Query {
                node: node.number,
                device: None,
                metric: None,
                from_ms,
                to_ms: to_ms.saturating_add(1),
                step: way,
                series_max: limits::SERIES_PER_NODE.min(SERIES - self.series),
                points_max: SAMPLES - self.samples,
            };
            let wants =
                |device: &_, metric: &_, unit: Option<&_>| selection.takes_series(device, metric, unit);
            let found = match self.api.hub.telemetry().history(&ask, &wants) {
                Err(Error::TooMuch { .. }) => return Err(too_much()),
                found => found?,
            };
            for series in found {
                let mut points = series.points;
                // A step widens the range to whole steps; of several samples of one instant Prometheus takes one.
                points.retain(|(time_ms, _)| (from_ms..=to_ms).contains(time_ms));
                points.dedup_by(|next, kept| {
                    let same = next.0 == kept.0;
                    kept.1 = if same { next.1 } else { kept.1 };
                    same
                });
                if points.is_empty() {
                    continue;
                }
                self.series += 1;
                self.samples += points.len();
                let place = (node.id.as_str(), node.site.as_str());
                let labels = selection.labels(place, &series.device, &series.metric, series.unit.as_ref());
                let sample = |(timestamp, value)| Sample { value, timestamp };
                let samples = points.into_iter().map(sample).collect();
                result.timeseries.push(TimeSeries { labels, samples });
            }
        }
        Ok(result)
    }

    /// The series alone, for whoever lists them.
    fn names(
        &mut self,
        selection: &Selection,
        chosen: &[Chosen],
        query: &wire::Query,
    ) -> Result<QueryResult, Refusal> {
        let mut result = QueryResult::default();
        for node in chosen {
            self.in_time()?;
            self.nodes += 1;
            for latest in self.api.hub.telemetry().latest(node.number)? {
                let unit = latest.unit.as_ref();
                let heard = latest.time_ms >= query.start_timestamp_ms;
                if !heard || !selection.takes_series(&latest.device, &latest.metric, unit) {
                    continue;
                }
                self.series += 1;
                if self.series > SERIES {
                    return Err(too_much());
                }
                let place = (node.id.as_str(), node.site.as_str());
                let labels = selection.labels(place, &latest.device, &latest.metric, unit);
                result.timeseries.push(TimeSeries { labels, samples: Vec::new() });
            }
        }
        Ok(result)
    }

    fn in_time(&self) -> Result<(), Refusal> {
        if clock::mono() >= self.deadline || self.asker.strong_count() == 0 {
            return Err(Refusal::Slow);
        }
        Ok(())
    }
}

fn too_much() -> Refusal {
    Refusal::TooMuch(format!(
        "the query gives more than {SERIES} series or {SAMPLES} samples; name nodes or a metric, shorten the range or \
         take a larger step"
    ))
}
