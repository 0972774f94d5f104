//! The devices behind the node.

use fleet_schemas::limits;
use tonic::{Request, Response, Status};

use super::{
    super::{
        devices::{self, Body, View},
        problem::Problem,
    },
    Edge, pb,
};

#[tonic::async_trait]
impl pb::devices_server::Devices for Edge {
    async fn list(&self, _: Request<pb::ListDevicesRequest>) -> Result<Response<pb::DeviceList>, Status> {
        let items = self.0.outbox.devices().await.map_err(Problem::from)?;
        Ok(Response::new(pb::DeviceList {
            items: items.into_iter().map(|device| View::from(device).into()).collect(),
            limit: u32::try_from(limits::DEVICES_PER_NODE).unwrap_or(u32::MAX),
        }))
    }

    async fn get(&self, request: Request<pb::GetDeviceRequest>) -> Result<Response<pb::Device>, Status> {
        let id = devices::device_id(&request.into_inner().id)?;
        Ok(Response::new(devices::find(&self.0, &id).await?.into()))
    }

    async fn register(
        &self,
        request: Request<pb::RegisterDeviceRequest>,
    ) -> Result<Response<pb::Device>, Status> {
        let (_, _held, message) = request.into_parts();
        let id = devices::device_id(&message.id)?;
        let body = Body {
            kind: message.kind,
            name: message.name,
            firmware: message.firmware,
            capabilities: Some(message.capabilities).filter(|list| !list.is_empty()),
            heartbeat_s: message.heartbeat_s,
            sleep_s: message.sleep_s,
        };
        let (_, view) = devices::register(&self.0, id, body).await?;
        Ok(Response::new(view.into()))
    }

    async fn remove(&self, request: Request<pb::RemoveDeviceRequest>) -> Result<Response<pb::Done>, Status> {
        let id = devices::device_id(&request.into_inner().id)?;
        devices::forget(&self.0, id).await?;
        Ok(Response::new(pb::Done {}))
    }

    async fn sleep(&self, request: Request<pb::SleepDeviceRequest>) -> Result<Response<pb::Device>, Status> {
        let (_, _held, pb::SleepDeviceRequest { id, for_s }) = request.into_parts();
        let id = devices::device_id(&id)?;
        Ok(Response::new(devices::sleeps(&self.0, id, for_s).await?.into()))
    }
}

impl From<View> for pb::Device {
    fn from(view: View) -> Self {
        let text =
            |word: Option<fleet_schemas::MetricName>| word.map_or(String::new(), |word| word.to_string());
        Self {
            id: view.id.to_string(),
            kind: text(view.kind),
            name: view.name.unwrap_or_default(),
            firmware: text(view.firmware),
            capabilities: view.capabilities.iter().map(ToString::to_string).collect(),
            state: view.state.to_owned(),
            since_ms: view.since_ms,
            last_seen_ms: view.last_seen_ms,
            until_ms: view.until_ms,
            heartbeat_s: view.heartbeat_s,
            sleep_s: view.sleep_s,
            registered: view.registered.to_owned(),
            registered_ms: view.registered_ms,
            unsequenced: view.unsequenced,
        }
    }
}
