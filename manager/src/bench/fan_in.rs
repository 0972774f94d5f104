//! Fan-in: QoS 1 publishes of many clients through gate and router to one consumer in this process, and the same
//! generator against other brokers, in turn and several times, so that what else the machine does hits all alike.

mod gate;
mod load;
mod mosquitto;
pub mod rumqttd;

use std::path::PathBuf;

use super::{Error, Report, Target::AtLeast, child};
use mosquitto::Mosquitto;

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The binary `fleet`.
    pub fleet: PathBuf,
    /// Where the temporary folder is made.
    pub folder: Option<PathBuf>,
    /// Publishers.
    pub clients: u16,
    /// Payload of a message, in bytes.
    pub bytes: usize,
    /// How long each broker is measured in a round.
    pub seconds: u16,
    /// How often each broker is measured.
    pub rounds: u16,
    /// Whether publishers come over TLS, with certificates.
    pub tls: bool,
}

/// What one broker did, round by round, in messages a second.
type Rates = Vec<f64>;

/// Over plain MQTT, at least so often what mosquitto does.
const BY_MOSQUITTO: f64 = 6.0;
/// The same with TLS on both.
const BY_MOSQUITTO_TLS: f64 = 3.0;

/// Runs it.
///
/// # Errors
/// [`Error`].
pub async fn run(config: &Config) -> Result<Report, Error> {
    let mut report = Report::new("fan-in");
    report.add("clients", f64::from(config.clients), "sessions");
    report.add("payload", config.bytes as f64, "bytes");
    report.add("rounds", f64::from(config.rounds), "rounds");
    let mosquitto = mosquitto::find()?;
    let theirs = mosquitto.as_ref().ok();
    let most = if config.tls {
        over_tls(config, theirs, &mut report).await?;
        "publishers over TLS with certificates, the subscriber over plain MQTT"
    } else {
        plain(config, theirs, &mut report).await?;
        "plain MQTT; mosquitto's subscriber at QoS 1, the other TCP subscribers at QoS 0"
    };
    match mosquitto {
        Ok(found) => report.note(format!("{}: nothing limited, nothing persisted", found.version)),
        Err(why) => report.note(format!("mosquitto: skipped, {why}")),
    }
    report.note(format!("published at QoS 1; {most}; medians of all rounds, and of the ratio in each"));
    report.note(format!(
        "{} publishes of a client in flight; generator and consumer share the machine",
        load::WINDOW
    ));
    Ok(report)
}

async fn plain(config: &Config, mosquitto: Option<&Mosquitto>, report: &mut Report) -> Result<(), Error> {
    let (mut ours, mut bare, mut theirs) = (Rates::new(), Rates::new(), Rates::new());
    let (mut beside, mut read) = (Rates::new(), Rates::new());
    for _ in 0..config.rounds {
        ours.push(gate::run(config, None, false).await.map_err(of("the gate"))?.0);
        bare.push(rumqttd::run(config, &config.fleet).await.map_err(of("rumqttd"))?);
        if let Some(mosquitto) = mosquitto {
            theirs.push(mosquitto.run(config, None).await.map_err(of("mosquitto"))?);
        }
        let (consumer, tool) = gate::run(config, None, true).await.map_err(of("the gate with a tool"))?;
        beside.push(consumer);
        read.extend(tool);
    }
    show(report, "gate and router", &ours);
    show(report, "bare rumqttd to a TCP subscriber", &bare);
    report.judge("gate and router by bare rumqttd", ratio(&ours, &bare), "times", AtLeast(1.0));
    show(report, "gate and router, a tool subscribed too", &beside);
    report.add("rounds in which it was cut off as too slow", (beside.len() - read.len()) as f64, "rounds");
    if !read.is_empty() {
        show(report, "what that tool gets", &read);
    }
    if !theirs.is_empty() {
        show(report, "mosquitto", &theirs);
        let target = AtLeast(BY_MOSQUITTO);
        report.judge("gate and router by mosquitto", ratio(&ours, &theirs), "times", target);
    }
    Ok(())
}

async fn over_tls(config: &Config, mosquitto: Option<&Mosquitto>, report: &mut Report) -> Result<(), Error> {
    let folder = child::Folder::new(config.folder.as_deref())?;
    let pki = Some(folder.path());
    let (mut ours, mut theirs) = (Rates::new(), Rates::new());
    for _ in 0..config.rounds {
        ours.push(gate::run(config, pki, false).await.map_err(of("the gate"))?.0);
        if let Some(mosquitto) = mosquitto {
            theirs.push(mosquitto.run(config, pki).await.map_err(of("mosquitto"))?);
        }
    }
    show(report, "gate and router", &ours);
    if !theirs.is_empty() {
        show(report, "mosquitto", &theirs);
        let target = AtLeast(BY_MOSQUITTO_TLS);
        report.judge("gate and router by mosquitto", ratio(&ours, &theirs), "times", target);
    }
    Ok(())
}

/// Says at which broker something went wrong.
fn of(broker: &'static str) -> impl Fn(Error) -> Error {
    move |error| Error::Child(format!("{broker}: {error}"))
}

/// The median as a figure, every round as a note.
fn show(report: &mut Report, name: &str, rates: &Rates) {
    report.add(name, median(rates.clone()), "messages/s");
    let rounds: Vec<_> = rates.iter().map(|rate| format!("{:.0}", rate / 1_000.0)).collect();
    report.note(format!("{name}, thousands a second, round by round: {}", rounds.join(", ")));
}

/// The median over rounds of `ours` by `theirs`.
fn ratio(ours: &Rates, theirs: &Rates) -> f64 {
    median(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect())
}

/// The middle one, or the mean of the two that are.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[half],
        _ => f64::midpoint(values[half - 1], values[half]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_round_does_not_decide() {
        assert!((median(vec![9.0, 1.0, 5.0]) - 5.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 90.0]) - 3.0).abs() < 1e-9);
        let (ours, theirs) = (vec![10.0, 30.0, 8.0], vec![5.0, 10.0, 8.0]);
        assert!((ratio(&ours, &theirs) - 2.0).abs() < 1e-9);
    }
}
