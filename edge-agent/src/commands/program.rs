//! One program of the allow-list: started within its bounds, its output passed on in pieces, ended when told to.

use std::{io, os::unix::process::ExitStatusExt as _, path::Path, process::ExitStatus, time::Duration};

use bytes::BytesMut;
use fleet_schemas::{CommandId, command::Reason, limits};
use rustix::process::{getgid, getuid};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, select, sync::oneshot, time};

use super::allow::Plan;
use crate::{
    core::queue::{End, Ending, reason},
    exec::{self, Bounds, Program, Running},
    outbox,
};

/// Output that is passed on without waiting for more, in bytes.
const PIECE_BYTES: usize = 4 * 1024;
/// How long output is gathered.
const PIECE: Duration = Duration::from_secs(1);
/// How long the output of a program that has ended is waited for: something that left its group may hold the pipe.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Runs it to its end. `stop` ends it early; it then has [`exec::GRACE`] until it is killed with its whole group.
pub(super) async fn run(
    id: CommandId,
    plan: Plan,
    timeout: Duration,
    outbox: &outbox::Handle,
    stop: &mut oneshot::Receiver<Ending>,
) -> End {
    let bounds = match bounds(&plan, timeout) {
        Ok(bounds) => bounds,
        Err(reason) => return End::Refused(reason),
    };
    let own = plan.timeout.unwrap_or(timeout);
    let program = Program { program: plan.program, args: plan.args, env: plan.env };
    let (mut running, pipe) = match program.start_bounded(&plan.folder, &bounds) {
        Ok(started) => started,
        Err(error) => {
            let message = format!(
                "{} cannot be started in {}: {error}; check the allow-list",
                program.program.display(),
                plan.folder.display()
            );
            return End::Failed(reason("not_started", message, false));
        }
    };
    let mut speaker = Speaker { id, outbox, pipe: Some(pipe), gathered: BytesMut::new(), said: 0 };
    let end = select! {
        end = attend(&mut running, &mut speaker) => end,
        () = time::sleep(own) => {
            let _ = running.stop(exec::GRACE).await;
            End::Overran
        }
        // An error says that the runner is gone.
        _ = stop => {
            let _ = running.stop(exec::GRACE).await;
            End::Stopped
        }
    };
    speaker.last_words().await;
    end
}

async fn attend(running: &mut Running, speaker: &mut Speaker<'_>) -> End {
    let mut due = Box::pin(time::sleep(PIECE));
    loop {
        select! {
            ended = running.ended() => return ended_as(ended),
            read = speaker.listen() => {
                if read == speaker.gathered.len() {
                    due.as_mut().set(time::sleep(PIECE));
                }
                if speaker.gathered.len() >= PIECE_BYTES {
                    speaker.speak().await;
                }
            }
            () = &mut due, if !speaker.gathered.is_empty() => speaker.speak().await,
        }
    }
}

fn ended_as(ended: io::Result<ExitStatus>) -> End {
    match ended.map(|status| (status.code(), status.signal())) {
        Ok((Some(code), _)) => End::Exited { code },
        Ok((None, signal)) => End::Killed { signal: signal.unwrap_or_default() },
        Err(error) => End::Failed(reason("lost", format!("the program cannot be waited for: {error}"), true)),
    }
}

/// Passes a program's output on.
struct Speaker<'a> {
    id: CommandId,
    outbox: &'a outbox::Handle,
    // Absent once it has ended.
    pipe: Option<pipe::Receiver>,
    gathered: BytesMut,
    said: usize,
}

impl Speaker<'_> {
    /// Gathers what comes next; how much it was. Waits for ever once the output has ended. Safe to cancel.
    async fn listen(&mut self) -> usize {
        if let Some(pipe) = &mut self.pipe {
            match pipe.read_buf(&mut self.gathered).await {
                Ok(0) | Err(_) => self.pipe = None,
                Ok(read) => return read,
            }
        }
        std::future::pending().await
    }

    /// What exceeds the limit is read, so that the program goes on, and passed on only as far as needed to say so.
    async fn speak(&mut self) {
        let mut piece = self.gathered.split();
        let most = (limits::COMMAND_OUTPUT_BYTES + 1).saturating_sub(self.said);
        piece.truncate(most);
        self.said += piece.len();
        if !piece.is_empty() {
            self.outbox.output(self.id, piece.freeze()).await;
        }
    }

    async fn last_words(mut self) {
        let rest = async {
            while let Some(pipe) = &mut self.pipe {
                match pipe.read_buf(&mut self.gathered).await {
                    Ok(0) | Err(_) => self.pipe = None,
                    Ok(_) if self.gathered.len() >= PIECE_BYTES => self.speak().await,
                    Ok(_) => {}
                }
            }
        };
        let _ = time::timeout(LAST_WORDS, rest).await;
        self.speak().await;
    }
}

fn bounds(plan: &Plan, timeout: Duration) -> Result<Bounds, Reason> {
    let refused = |message: String| reason("not_allowed", message, false);
    let user = match &plan.user {
        None => None,
        Some(name) => {
            let passwd = std::fs::read_to_string(Path::new("/etc/passwd")).unwrap_or_default();
            let found = user_of(&passwd, name);
            let (user, group) =
                found.ok_or_else(|| refused(format!("the node has no user {name:?}; correct `user`")))?;
            let (ours, our_group) = (getuid().as_raw(), getgid().as_raw());
            match ours {
                0 => Some((user, group)),
                // Nothing to switch.
                _ if (user, group) == (ours, our_group) => None,
                _ => {
                    let message = format!(
                        "only root may run a program as {name}; run the agent as root, or leave `user` away"
                    );
                    return Err(refused(message));
                }
            }
        }
    };
    Ok(Bounds { user, nice: plan.nice, memory_bytes: plan.memory_bytes, processor: timeout })
}

/// User and group of a name or number in the form of `/etc/passwd` (passwd(5)).
fn user_of(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()?;
        let user = fields.nth(1)?;
        let group = fields.next()?.parse().ok()?;
        (found == name || user == name).then_some((user.parse().ok()?, group))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nnobody:x:65534:65533::/:/bin/false\n";
        assert_eq!(user_of(passwd, "nobody"), Some((65534, 65533)));
        assert_eq!(user_of(passwd, "65534"), Some((65534, 65533)));
        assert_eq!(user_of(passwd, "broken"), None);
        assert_eq!(user_of(passwd, "x"), None);
    }
}
