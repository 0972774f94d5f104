//! `fleet-agent run`.

use std::os::unix::process::CommandExt as _;

use anyhow::anyhow;
use clap::Args;
use fleet_edge_agent::{
    launch,
    log::Format,
    run::{self, Ended, StartError},
};
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, Place, logging, print, runtime};

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Run {
    #[command(flatten)]
    place: Place,
    /// Print the configuration that would be used, as agent.toml, and end
    #[arg(long)]
    print_config: bool,
    /// The form of the log [env: FLEET_LOG_FORMAT] [default: auto]
    #[arg(long, value_name = "FORMAT", value_enum)]
    log_format: Option<Format>,
}

const EXAMPLES: &str = "\
Examples:
  fleet-agent run                                   a node that has joined (fleet-agent join) needs no more
  fleet-agent run --hub mqtts://10.0.0.7:8883       the same hub at another address
  fleet-agent run --hub mqtt://127.0.0.1:1883 --node edge-1     a hub on this machine
  FLEET_OUTBOX_UPLOAD_S=10 fleet-agent run          any setting as FLEET_{SECTION}_{KEY}
  FLEET_LOG=debug fleet-agent run                   more to read; for good: `level` under [log]
  FLEET_LOG=info,fleet_edge_agent::mqtt=debug fleet-agent run --log-format json      by module; one JSON object a line

The edge API, on 127.0.0.1:9099 unless told otherwise:
  GET  /healthz /api/health /api/v1/status /api/v1/outbox /api/v1/ledger /metrics
       /openapi.json, which describes all of it; the same as gRPC (fleet.edge.v1, with reflection) on the same port
  GET  /api/v1/config?wait_s=60&after=TAG   what the hub desires: at once, or when it is another than TAG
  POST /api/v1/telemetry   {\"device\":\"greenhouse\",\"samples\":[{\"metric\":\"humidity\",\"value\":61.5,\"unit\":\"%\"}]}
  POST /api/v1/events      {\"kind\":\"door_opened\",\"severity\":\"info\",\"message\":\"The door was opened.\"}
  POST /report /batch      readings as gateways in the field send them
  GET  /api/v1/devices     the devices behind this node; one is known from its first sample on (`register` under [devices])
  PUT or POST /api/v1/devices/{id}   {\"kind\":\"bme280\",\"firmware\":\"1.4.2\",\"heartbeat_s\":60}
  GET or DELETE /api/v1/devices/{id}
  POST /api/v1/devices/{id}/sleep    {\"for_s\":3600}   it may be silent for an hour
  GET  /api/v1/firmware/{digest}     what a device was told to fetch, at the address that it was told; with Range
  POST /api/v1/command /api/command  {\"kind\":\"exec\",\"params\":{\"argv\":[\"df\",\"-h\"]}}   what commands.toml allows
  GET  /api/v1/queue /api/v1/commands/{id}
  POST /api/v1/local/take  {\"kinds\":[\"blink\"],\"wait_s\":60,\"lease_s\":30}   an app takes a command of kind `local`
  POST /api/v1/local/{id}/extend /api/v1/local/{id}/report   then it asks for more time, or says what became of it

For other machines, in agent.toml (they bring the token in api-token; programs on this machine need neither):
  [api]             listen = \"0.0.0.0:9099\"  tls = true                 api-certificate.pem is what they trust
  [api]             certificate_file = \"/etc/edge/chain.pem\"  key_file = \"/etc/edge/key.pem\"   read again when they change

What the hub desires goes over agent.toml while the agent runs (`fleet config set` at the hub): /log/level,
/node/heartbeat_s, /outbox/{batch_samples,keep_s,prompt_s,quota_bytes,upload_s}, /system/interval_s,
/upload/{cron,day_bytes,every_s,hour_bytes,live_share,when_gone,zone}, /driver (takes the
place of the list; runs programs of agent.toml, and those under [desired] programs), and /apps, free for programs on the
node. A document that does not pass, or with which the hub is not reached within [desired] probation_s, is returned from.
Who the node is, where its hub is and where its data are is never changed this way.

A machine that has not joined, such as a board flashed from an image, joins by itself when it finds a join token in
DATA/join-token or /etc/clawland/join-token: the line that `fleet join-token create` printed, or HUB TOKEN. It tries until
there is a link, is named after its host and its key, and takes the file away when it is done. Make such a token with
--uses and --ttl, and leave DATA/identity out of the image: boards with one identity throw each other out.

Local rules: alerts.yaml in the data folder, as kits ship it, read again when it changes; they need no hub:
  alerts: [{id: hot, sensor: dht22, field: temperature, condition: \"value > 27\", severity: warn,
            message: \"{{ sensor }} has {{ value }}\", outputs: [log, webhook, buzzer], cooldown_s: 300}]
Boards over MQTT (MicroClaw's topics; off unless agent.toml says where; `fleet-agent device --help`):
  [devices]         listen = \"192.168.4.1:1883\"   open = false   register = \"auto\"   heartbeat_s = 900
Releases (`fleet rollout` at the hub), once the node has joined; what runs is under DATA/releases:
  [update]          enabled = true   probation_s = 60   reach_s = 600    on trial so long, then so long until the hub is reached
                    bytes_per_day = 50000000   metered_while = \"/run/on-4g\"   what is fetched of a link paid by the byte
  A skill is an archive (tar, or tar and zstd), unpacked beside the old one; its app starts from
  DATA/releases/skill/NAME/current, a link that is switched at once, and its skill.toml says how it is told and asked:
    [hooks]         started = [\"systemctl\", \"restart\", \"greeter\"]       after each switch, there and back
    [health]        command = [\"./well\"]   timeout_s = 10   interval_s = 5   or http = \"http://127.0.0.1:8000/healthz\",
                    or heartbeat = \"DEVICE\", heard since the switch; without [health], that it is there is enough
In agent.toml, what else is collected, and how much of a metered link is used:
  [rules]           webhook = \"http://127.0.0.1:8000/alert\"
  [rules.program.buzzer]  program = \"/usr/local/bin/buzz\"
  [[file]]          path = \"/sys/class/thermal/thermal_zone*/temp\"  device = \"{folder}\"  metric = \"t\"  scale = 0.001
  [[scrape]]        url = \"http://127.0.0.1:9100/metrics\"  metrics = [\"node_load1\", \"node_filesystem_*\"]
  [logs]            units = [\"greeter.service\"]  files = [\"/var/log/app.log\"]   kept beside the agent's own lines, 10 MB at
                    most, in DATA/logs, and shown by `fleet node logs NODE` at the hub
  [upload]          cron = \"0 */6 * * *\"  hour_bytes = 100000  day_bytes = 1000000  when_gone = \"wait\"
                    heartbeats take a quarter of each at most: they are as far apart as that makes them";

impl Run {
    pub(super) fn main(self) -> Result<(), Failure> {
        let mut config = self.place.load()?;
        config.log.format = self.log_format.unwrap_or(config.log.format);
        if self.print_config {
            print(&config.print());
            return Ok(());
        }
        if let Some((dial, tap)) = logging::start(&config.log) {
            (config.log.dial, config.logs.own) = (Some(dial), Some(tap));
        }
        config.commands.restarts = true;
        config.update.own_executable = true;
        let ended = runtime()?.block_on(async {
            let failed = |what| move |error| Failure::Failed(anyhow!("failed to listen for {what}: {error}"));
            let mut terminate = signal(SignalKind::terminate()).map_err(failed("SIGTERM"))?;
            let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("SIGINT"))?;
            let shutdown = async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            };
            run::run(config, shutdown).await.map_err(|error| {
                let usage = matches!(
                    error,
                    StartError::Config(_) | StartError::NotJoined(_) | StartError::OtherNode { .. }
                );
                let error = anyhow::Error::new(error).context("failed to start");
                if usage { Failure::Usage(error) } else { Failure::Failed(error) }
            })
        })?;
        match ended {
            Ended::Stopped => Ok(()),
            Ended::Restart => Err(again()),
        }
    }
}

/// Starts the agent again: by its launcher or service manager where there is one, else in its own place. Returns why it could not.
fn again() -> Failure {
    if launch::is_launched() || std::env::var_os("INVOCATION_ID").is_some() {
        return Failure::Again;
    }
    let mut words = std::env::args_os();
    let called = words.next().unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_else(|_| called.into());
    let error = std::process::Command::new(&program).args(words).exec();
    Failure::Failed(anyhow!("failed to start {} again: {error}", program.display()))
}
