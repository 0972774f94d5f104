//! Telemetry and events.

use std::{collections::VecDeque, sync::Arc};

use fleet_schemas::{event, telemetry};
use tokio::select;
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::{
    super::{
        body::{self, Raw, RawEvent},
        http::Api,
        problem::Problem,
        write::{self, Written},
    },
    Answering, Answers, Edge, given, json_in, pb,
};
use crate::{
    stop::Stop,
    uplink::{Handed, Receipt},
};

/// Batches of one stream that may be on their way to the disk.
const IN_FLIGHT: usize = 16;

#[tonic::async_trait]
impl pb::telemetry_server::Telemetry for Edge {
    type SubmitStreamStream = Answers<pb::StreamAccepted>;

    async fn submit(&self, request: Request<pb::SubmitRequest>) -> Result<Response<pb::Accepted>, Status> {
        // Its place is in the extensions.
        let (_, place, message) = request.into_parts();
        let handed = one(&self.0, &message)?;
        accepted(&self.0, handed, place).await
    }

    async fn submit_batch(
        &self,
        request: Request<pb::TelemetryBatch>,
    ) -> Result<Response<pb::Accepted>, Status> {
        let (_, place, message) = request.into_parts();
        let handed = batch(&self.0, &message)?;
        drop(message);
        accepted(&self.0, handed, place).await
    }

    async fn submit_stream(
        &self,
        request: Request<Streaming<pb::TelemetryBatch>>,
    ) -> Result<Response<Self::SubmitStreamStream>, Status> {
        let submitting = Submitting {
            api: self.0.clone(),
            stop: self.0.stop.clone(),
            batches: Some(request.into_inner()),
            next: None,
            in_flight: VecDeque::new(),
            answered: pb::StreamAccepted::default(),
        };
        Ok(Response::new(submitting.answers()))
    }
}

#[tonic::async_trait]
impl pb::events_server::Events for Edge {
    async fn submit(&self, request: Request<pb::EventsRequest>) -> Result<Response<pb::Accepted>, Status> {
        let (_, place, message) = request.into_parts();
        let name = name_in(&message.id)?;
        let now_ms = self.0.clock.now().wall_ms;
        let handed = write::events(name, now_ms, |now_ms| events(&message.events, now_ms))?;
        let below = |problem: Problem| problem.below("/events");
        drop(message);
        let receipt = self.0.write(handed, place).await.map_err(below)?;
        Ok(Response::new(pb::Accepted { accepted: receipt.records, repeated: receipt.repeated }))
    }
}

async fn accepted(api: &Api, handed: Handed, place: Extensions) -> Result<Response<pb::Accepted>, Status> {
    let receipt = api.write(handed, place).await?;
    Ok(Response::new(pb::Accepted { accepted: receipt.records, repeated: receipt.repeated }))
}

fn name_in(text: &str) -> Result<Option<&str>, Problem> {
    write::check_name(text).map_err(|detail| Problem::field("/id", detail))
}

fn raw(sample: &pb::Sample) -> Raw<'_> {
    Raw { metric: &sample.metric, value: sample.value, unit: Some(&sample.unit), time_ms: sample.time_ms }
}

fn one(api: &Api, message: &pb::SubmitRequest) -> Result<Handed, Problem> {
    let Some(sample) = &message.sample else {
        return Err(Problem::field("/sample", "`sample` is missing; give one"));
    };
    let read = |now_ms| {
        let made = body::one_sample(Some(&message.device), raw(sample), now_ms);
        // A wrong device is told as such.
        Ok(vec![made.map_err(|problem| problem.below_unless("/device", "/sample"))?])
    };
    write::samples(name_in(&message.id)?, api.clock.now().wall_ms, read)
}

fn batch(api: &Api, message: &pb::TelemetryBatch) -> Result<Handed, Problem> {
    let now_ms = api.clock.now().wall_ms;
    write::samples(name_in(&message.id)?, now_ms, |now_ms| samples(message, now_ms))
}

fn samples(message: &pb::TelemetryBatch, now_ms: i64) -> Result<Vec<telemetry::Sample>, Problem> {
    body::samples(Some(&message.device), message.samples.iter().map(raw), now_ms)
}

fn events(events: &[pb::Event], now_ms: i64) -> Result<Vec<event::Event>, Problem> {
    body::check_events(events.len())?;
    let numbered = events.iter().enumerate();
    let read = numbered.map(|(at, event)| {
        let read = raw_event(event).and_then(|raw| body::event(raw, now_ms));
        read.map_err(|problem| problem.renamed("/data", "/data_json").below(&format!("/events/{at}")))
    });
    read.collect()
}

fn raw_event(event: &pb::Event) -> Result<RawEvent, Problem> {
    let severity = match event.severity() {
        pb::Severity::Info => event::Severity::Info,
        pb::Severity::Warning => event::Severity::Warning,
        pb::Severity::Error => event::Severity::Error,
        pb::Severity::Critical => event::Severity::Critical,
        pb::Severity::Unspecified => {
            return Err(Problem::field("/severity", "give info, warning, error or critical here"));
        }
    };
    Ok(RawEvent {
        kind: event.kind.clone(),
        severity,
        message: event.message.clone(),
        data: json_in("/data_json", &event.data_json)?,
        device: given(event.device.clone()),
        time_ms: event.time_ms,
        id: given(event.id.clone()),
    })
}

/// A client's stream of batches, and the answers to it.
struct Submitting {
    api: Arc<Api>,
    stop: Stop,
    // Absent once the client has said everything, or is not listened to any more.
    batches: Option<Streaming<pb::TelemetryBatch>>,
    // Read, and waiting for room.
    next: Option<Handed>,
    in_flight: VecDeque<Written>,
    answered: pb::StreamAccepted,
}

impl Answering for Submitting {
    type Answer = pb::StreamAccepted;

    /// Reads on while there is room; answers in order.
    async fn next(&mut self) -> Option<Result<pb::StreamAccepted, Status>> {
        loop {
            if self.stop.is_wanted() {
                self.batches = None;
                self.next = None;
            }
            let reads = self.next.is_none() && self.in_flight.len() < IN_FLIGHT && self.batches.is_some();
            let waits = !self.in_flight.is_empty();
            let weight = self.next.as_ref().map(|next| next.submission.len());
            select! {
                biased;
                done = first_done(&mut self.in_flight), if waits => return Some(self.answer(done)),
                room = self.api.places.room(weight.unwrap_or(0)), if weight.is_some() => {
                    let Some(next) = self.next.take() else { continue };
                    match self.api.hand_in_with(room, next).await {
                        Ok(written) => self.in_flight.push_back(written),
                        Err(problem) => return Some(Err(problem.into())),
                    }
                }
                message = next_message(&mut self.batches), if reads => match message {
                    Ok(Some(message)) => match batch(&self.api, &message) {
                        Ok(handed) => self.next = Some(handed),
                        Err(problem) => return Some(self.refuse(problem).await),
                    },
                    Ok(None) => self.batches = None,
                    Err(status) => return Some(Err(status)),
                },
                () = self.stop.wanted(), if self.batches.is_some() => {}
                else => return self.end(),
            }
        }
    }
}

impl Submitting {
    fn answer(&mut self, done: Result<Receipt, Problem>) -> Result<pb::StreamAccepted, Status> {
        let receipt = done?;
        self.answered.batches += 1;
        self.answered.records += receipt.records;
        self.answered.repeated += receipt.repeated;
        Ok(self.answered)
    }

    /// Nothing is read and nothing is on its way any more.
    fn end(&self) -> Option<Result<pb::StreamAccepted, Status>> {
        let stopping = || Status::unavailable("the agent is stopping; try again when it runs");
        self.stop.is_wanted().then(|| Err(stopping()))
    }

    /// A batch that cannot be taken; those before it are waited for, so that nothing answered so is in doubt.
    async fn refuse(&mut self, problem: Problem) -> Result<pb::StreamAccepted, Status> {
        self.batches = None;
        let at = self.answered.batches + self.in_flight.len() as u64;
        while let Some(done) = self.in_flight.pop_front() {
            done.done().await?;
        }
        let status = Status::from(problem);
        Err(Status::new(status.code(), format!("batch {at} of the stream: {}", status.message())))
    }
}

/// Waits for the first of those in flight and takes it out. Safe to cancel.
async fn first_done(in_flight: &mut VecDeque<Written>) -> Result<Receipt, Problem> {
    let Some(first) = in_flight.front_mut() else { return std::future::pending().await };
    let done = first.wait().await;
    in_flight.pop_front();
    done
}

async fn next_message(
    batches: &mut Option<Streaming<pb::TelemetryBatch>>,
) -> Result<Option<pb::TelemetryBatch>, Status> {
    match batches {
        Some(batches) => batches.message().await,
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const NOW_MS: i64 = 1_790_000_000_000;

    /// Names, good and bad.
    fn names() -> impl Strategy<Value = String> {
        prop_oneof![
            8 => "[a-zA-Z0-9_./%\u{b0} -]{1,20}",
            1 => Just(String::new()),
            1 => "[a-z]{60,70}",
            1 => Just("a\u{7}".to_owned()),
        ]
    }

    fn values() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<f64>().prop_filter("JSON has no others", |value| value.is_finite()),
            Just(-0.0),
            Just(1.0)
        ]
    }

    fn sample() -> impl Strategy<Value = pb::Sample> {
        (names(), prop::option::weighted(0.95, values()), names(), prop::option::of(any::<i64>()))
            .prop_map(|(metric, value, unit, time_ms)| pb::Sample { metric, value, unit, time_ms })
    }

    fn json_sample(sample: &pb::Sample) -> serde_json::Value {
        let mut json = json!({"metric": sample.metric, "unit": sample.unit, "time_ms": sample.time_ms});
        if let Some(value) = sample.value {
            json["value"] = json!(value);
        }
        json
    }

    fn event() -> impl Strategy<Value = pb::Event> {
        let data = prop::sample::select(vec![
            "",
            "null",
            "{\"a\":[1,-2.5,true,\"x\",null,{}]}",
            "1e3",
            "18446744073709551615",
        ]);
        (names(), 1..=4_i32, ".{0,30}", data, names(), prop::option::of(any::<i64>()), names()).prop_map(
            |(kind, severity, message, data, device, time_ms, id)| pb::Event {
                kind,
                severity,
                message,
                data_json: data.to_owned(),
                device,
                time_ms,
                id,
            },
        )
    }

    fn json_event(event: &pb::Event) -> serde_json::Value {
        let severity = ["", "info", "warning", "error", "critical"][usize::try_from(event.severity).unwrap()];
        let mut json = json!({"kind": event.kind, "severity": severity, "message": event.message, "time_ms": event.time_ms});
        if !event.data_json.is_empty() {
            json["data"] = serde_json::from_str(&event.data_json).unwrap();
        }
        // An empty text is none in a message.
        for (field, text) in [("device", &event.device), ("id", &event.id)] {
            if !text.is_empty() {
                json[field] = json!(text);
            }
        }
        json
    }

    /// The same records, or the same refusal at the same field.
    fn same<T: PartialEq + std::fmt::Debug>(
        over_grpc: Result<T, Problem>,
        over_rest: Result<T, Problem>,
        rest_prefix: &str,
    ) -> Result<(), TestCaseError> {
        match (over_grpc, over_rest) {
            (Ok(grpc), Ok(rest)) => prop_assert_eq!(grpc, rest),
            (Err(grpc), Err(rest)) => {
                let pointer = |problem: &Problem| serde_json::to_value(problem).unwrap()["pointer"].clone();
                let rest = pointer(&rest);
                let expected = rest.as_str().map(|rest| format!("{rest_prefix}{rest}"));
                let found = pointer(&grpc);
                prop_assert_eq!(found.as_str(), expected.as_deref());
            }
            (grpc, rest) => prop_assert!(false, "{:?} over gRPC, {:?} over REST", grpc, rest),
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn the_same_samples_are_the_same_records_in_both_forms(
            device in names(),
            sent in prop::collection::vec(sample(), 0..4),
        ) {
            let body = json!({"device": device, "samples": sent.iter().map(json_sample).collect::<Vec<_>>()});
            let message = pb::TelemetryBatch { device, samples: sent, id: String::new() };
            let over_rest = body::telemetry(body.to_string().as_bytes(), NOW_MS);
            // REST reads the whole body before it looks at a field, so a missing value is told before a wrong name.
            let missing = message.samples.iter().any(|sample| sample.value.is_none());
            let over_grpc = samples(&message, NOW_MS);
            if missing {
                prop_assert!(over_rest.is_err() && over_grpc.is_err());
            } else {
                let bits = |samples: Vec<telemetry::Sample>| {
                    samples.into_iter().map(|sample| (sample.value.to_bits(), sample)).collect::<Vec<_>>()
                };
                same(over_grpc.map(bits), over_rest.map(bits), "")?;
            }
        }

        #[test]
        fn the_same_events_are_the_same_records_in_both_forms(sent in prop::collection::vec(event(), 1..4)) {
            let body = json!(sent.iter().map(json_event).collect::<Vec<_>>());
            same(events(&sent, NOW_MS), body::events(body.to_string().as_bytes(), NOW_MS), "/events")?;
        }
    }
}
