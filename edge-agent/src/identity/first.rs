//! The first boot of a machine that was flashed from an image: a join token in a file makes it a node, by itself.
//!
//! Owns the file, what stands in it and how often the hub is asked. The agent runs meanwhile and collects; once the
//! machine has joined, it starts again as the node. The file goes when it has done its work, so that a token with many
//! uses does not lie on every board.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fleet_schemas::{
    NodeId,
    enrol::{JoinToken, NODE_HTTPS_PORT, RefusalCode},
};
use tokio::{select, sync::watch, time};
use tracing::{error, info, warn};

use super::{
    https::AskError,
    join::{HubAddress, JoinError, Outcome, Progress, Wish, WishedId, join},
    record::Joined,
};
use crate::{address::Address, clock, core::renewal, mqtt::HubUrl, stop::Stop};

/// The file's name in the data folder.
pub const FILE: &str = "join-token";
/// Where an image may have it otherwise.
pub const SYSTEM_FILE: &str = "/etc/clawland/join-token";
/// Largest file that is read, in bytes: a line has about 150.
const FILE_BYTES: u64 = 4_096;
/// Spreads the first questions of boards that were switched on together.
const FIRST: Duration = Duration::from_secs(2);
/// The pauses while there is no link, or no hub: doubled from one to the other.
const AWAY: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(300)];
/// The pauses after the hub said no: somebody has to bring another token first.
const REFUSED: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(3_600)];

/// An invitation that cannot be used. The text fits after "the join token in FILE ".
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// There is none in it.
    #[error(
        "is missing: write what `fleet join-token create` printed, `fleet-agent join HUB --token TOKEN`, or HUB TOKEN"
    )]
    Token,
    /// The token is no token.
    #[error("cannot be used: {0}")]
    Bad(#[from] fleet_schemas::enrol::TokenError),
    /// Nowhere to go.
    #[error(
        "is there, but no hub: write HUB TOKEN, such as hub.example:8443 fleet-join.…, or set `url` under [hub]"
    )]
    Hub,
    /// The hub is none.
    #[error("stands beside what is no hub: {0}")]
    Address(#[from] super::join::BadAddress),
}

/// Who is asked, and with what.
#[derive(Debug, Clone, PartialEq)]
struct Invitation {
    hub: HubAddress,
    token: JoinToken,
}

/// What the task needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// The data folder.
    pub(crate) data: PathBuf,
    /// The file.
    pub(crate) file: PathBuf,
    /// Where the hub is by the configuration, should the file not say.
    pub(crate) hub: Option<HubUrl>,
    /// The id that it would like.
    pub(crate) node: WishedId,
    /// A name for people.
    pub(crate) name: Option<String>,
    /// Told when the agent has to start again, as the node.
    pub(crate) restart: Arc<watch::Sender<bool>>,
}

/// The file with a join token, if the machine was given one: in the data folder, else the system's.
pub(crate) fn find(data: &Path) -> Option<PathBuf> {
    let says = |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() > 0);
    [data.join(FILE), PathBuf::from(SYSTEM_FILE)].into_iter().find(says)
}

/// Takes away what a crash left behind a join that came through. A token of another hub is left alone, and named.
pub(crate) fn tidy(data: &Path, joined: &Joined) {
    let Some(file) = find(data) else { return };
    match read(&file, None) {
        Ok(invitation) if !joined.is_of(invitation.token.pin) => warn!(
            file = %file.display(),
            "the join token is of another hub than the one that this node has joined, and is not used; to move the node: \
             fleet node move {} --hub URL --token T, at the hub that it has now", joined.node
        ),
        // Ours, or the address is in the configuration: the work is done.
        Ok(_) | Err(Unfit::Hub) => blank(&file),
        Err(Unfit::Token) => {}
        Err(error) => warn!("the join token in {} {error}", file.display()),
    }
}

/// Joins, as often as it takes, until told to stop.
pub(crate) async fn run(surroundings: Surroundings, mut stop: Stop) {
    let (mut failures, mut pause) = (0_u32, clock::jitter(FIRST));
    loop {
        select! {
            () = time::sleep(pause) => {}
            () = stop.wanted() => return,
        }
        let joined = select! {
            joined = attempt(&surroundings) => joined,
            () = stop.wanted() => return,
        };
        failures = failures.saturating_add(1);
        let [first, last] = match joined {
            Ok(node) => {
                info!(%node, "this machine has joined its hub, and starts again as its node");
                blank(&surroundings.file);
                surroundings.restart.send_replace(true);
                return;
            }
            Err(Failed::Unfit(error)) => {
                error!("the join token in {} {error}", surroundings.file.display());
                REFUSED
            }
            Err(Failed::Join(error)) => {
                let kind = if is_away(&error) { AWAY } else { REFUSED };
                warn!(attempt = failures, "this machine could not join yet: {error}");
                kind
            }
        };
        pause = clock::jitter(renewal::pause(failures, first, last));
    }
}

/// Why an attempt came to nothing.
enum Failed {
    /// The file.
    Unfit(Unfit),
    /// The hub, or the way to it.
    Join(JoinError),
}

async fn attempt(surroundings: &Surroundings) -> Result<NodeId, Failed> {
    let Surroundings { data, file, hub, node, name, restart: _ } = surroundings;
    // Read again: somebody may have brought another.
    let invitation = read(file, hub.as_ref()).map_err(Failed::Unfit)?;
    let Invitation { hub, token } = invitation;
    let (node, name, data) = (node.clone(), name.clone(), data.clone());
    let wish = Wish { hub, token, node, name, data, force: false };
    let tell = |progress: Progress<'_>| {
        if let Progress::Pending(pending) = progress {
            info!(node = %pending.node, "waits for approval: fleet node approve {} on the hub", pending.node);
        }
    };
    match join(&wish, tell).await.map_err(Failed::Join)? {
        Outcome::Joined(joined) | Outcome::Already(joined) | Outcome::Moved(joined) => Ok(joined.node),
    }
}

/// Whether time may heal it.
fn is_away(error: &JoinError) -> bool {
    match error {
        JoinError::Ask(error) => match error {
            AskError::Unreachable { .. } | AskError::Slow(_) | AskError::Broken(..) => true,
            AskError::Refused(refused) => {
                matches!(refused.code, RefusalCode::Unavailable | RefusalCode::ClockInDoubt)
            }
            AskError::Tls { .. } | AskError::Strange { .. } => false,
        },
        JoinError::Elsewhere { .. }
        | JoinError::Folder(_)
        | JoinError::Unfit(_)
        | JoinError::Config(_)
        | JoinError::Key(_) => false,
    }
}

/// Reads what people paste: the line that `fleet join-token create` printed, or a hub and a token. `#` begins a comment.
fn read(path: &Path, otherwise: Option<&HubUrl>) -> Result<Invitation, Unfit> {
    let mut text = String::new();
    fs::File::open(path)?.take(FILE_BYTES).read_to_string(&mut text)?;
    let words = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let words = words.flat_map(str::split_whitespace).filter(|word| !is_ours(word));
    let (tokens, hubs): (Vec<_>, Vec<_>) = words.partition(|word| word.starts_with("fleet-join."));
    let token: JoinToken = tokens.first().ok_or(Unfit::Token)?.parse()?;
    let hub = match (hubs.first(), otherwise) {
        (Some(hub), _) => hub.parse()?,
        (None, Some(url)) => HubAddress(Address { host: url.host.clone(), port: NODE_HTTPS_PORT }),
        (None, None) => return Err(Unfit::Hub),
    };
    Ok(Invitation { hub, token })
}

/// The words of a command line that are no hub and no token.
fn is_ours(word: &str) -> bool {
    word.ends_with("fleet-agent") || matches!(word, "sudo" | "join" | "--token")
}

/// Takes the token off this machine, as far as its disk can be written.
fn blank(file: &Path) {
    let removed = fs::remove_file(file)
        .or_else(|_| OpenOptions::new().write(true).truncate(true).open(file)?.sync_all());
    match removed {
        Ok(()) => {
            info!(file = %file.display(), "the join token has done its work and is taken off this machine");
        }
        Err(error) => warn!(
            file = %file.display(),
            "the join token has done its work and cannot be taken off this machine: {error}; whoever reads it can join \
             until it ends (`fleet join-token rm` ends it)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use fleet_schemas::enrol::Pin;

    use super::*;
    use crate::identity::given;

    fn token() -> JoinToken {
        JoinToken { pin: Pin([7; 32]), id: "k3x9".into(), secret: [9; 32] }
    }

    #[test]
    fn what_people_paste_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let token = token();
        let written = |text: &str, url: Option<&HubUrl>| {
            fs::write(&path, text).unwrap();
            read(&path, url)
        };
        for text in [
            format!("  fleet-agent join hub.example --token {token}\n"),
            format!("# for hall 3\nhub.example:8443 {token}"),
            format!("{token}\r\nhttps://hub.example\n"),
            format!("sudo /usr/bin/fleet-agent join hub.example:8443 --token {token}"),
        ] {
            let read = written(&text, None).unwrap_or_else(|error| panic!("{text:?} {error}"));
            assert_eq!((read.hub.to_string(), &read.token), ("hub.example:8443".to_owned(), &token));
        }
        let url = "mqtts://10.0.0.7:9883".parse().unwrap();
        assert_eq!(written(&token.to_string(), Some(&url)).unwrap().hub.to_string(), "10.0.0.7:8443");
        for (text, hint) in [
            (String::new(), "fleet join-token create"),
            ("hub.example".to_owned(), "fleet join-token create"),
            (token.to_string(), "HUB TOKEN"),
            (format!("hub.example {}", &token.to_string()[..60]), "copy the whole line"),
            (format!("mqtt://hub {token}"), "https://host:port"),
        ] {
            let error = written(&text, None).unwrap_err().to_string();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
    }

    #[test]
    fn what_a_crash_left_is_taken_away_and_another_hubs_token_is_not() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(find(data.path()).filter(|path| path.starts_with(data.path())), None);
        let joined = given::joined("edge-1");
        let file = data.path().join(FILE);
        let theirs = format!("hub.example {}", token());
        fs::write(&file, &theirs).unwrap();
        assert_eq!(find(data.path()), Some(file.clone()));
        tidy(data.path(), &joined);
        assert_eq!(fs::read_to_string(&file).unwrap(), theirs);
        let ours = JoinToken { pin: joined.pin, ..token() };
        fs::write(&file, ours.to_string()).unwrap();
        tidy(data.path(), &joined);
        assert!(!file.exists());
    }
}
