//! mosquitto, where it is installed, with nothing limited and nothing kept on disk.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use tokio::net::TcpStream;

use super::{
    super::{Error, certificates::Certificates, child},
    Config,
    load::{Door, Subscriber, measure},
};

/// The program.
pub(super) struct Mosquitto {
    program: PathBuf,
    /// What it says of itself.
    pub(super) version: String,
}

/// Looks for it; or says why there is none to compare with.
pub(super) fn find() -> Result<Result<Mosquitto, String>, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let Some(program) = folders.map(|folder| folder.join("mosquitto")).find(|path| path.is_file()) else {
        return Ok(Err("no program of that name is on PATH".to_owned()));
    };
    let help =
        Command::new(&program).arg("-h").output().map_err(Error::io("ask mosquitto for its version"))?;
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let version = help.lines().next().unwrap_or_default().to_owned();
    if !version.contains("version 2.") {
        return Ok(Err(format!("{version:?} is no version 2")));
    }
    Ok(Ok(Mosquitto { program, version }))
}

impl Mosquitto {
    /// Messages a second at its one subscriber, which comes over plain MQTT, as the hub's consumer has no TLS either.
    /// `pki` is the folder of keys when publishers come over TLS.
    pub(super) async fn run(&self, config: &Config, pki: Option<&Path>) -> Result<f64, Error> {
        let folder = child::Folder::new(config.folder.as_deref())?;
        let plain = child::free_address()?;
        let mut text = format!(
            "allow_anonymous true\npersistence false\nmax_inflight_messages 0\nmax_queued_messages 0\n\
             set_tcp_nodelay true\nlog_type error\nlistener {} 127.0.0.1\n",
            plain.port()
        );
        let mut door = Door { address: plain, certificates: None };
        if let Some(pki) = pki {
            let certificates = Certificates::of(pki)?;
            let files = certificates.write(folder.path())?;
            door = Door { address: child::free_address()?, certificates: Some(Arc::new(certificates)) };
            text.push_str(&format!(
                "listener {} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
                door.address.port(),
                files.ca.display(),
                files.certificate.display(),
                files.key.display()
            ));
            // It may have given up rights that reading its files needs.
            text.push_str("user root\n");
        }
        let file = folder.path().join("mosquitto.conf");
        fs::write(&file, text).map_err(Error::io("write mosquitto's configuration"))?;
        let file = file.display().to_string();
        let log = folder.path().join("mosquitto.log");
        let mut process = child::Process::start("mosquitto", &self.program, &["-c", &file], &log)?;
        process.until(async || TcpStream::connect(plain).await.ok()).await?;
        let subscriber = Subscriber::start(plain, 1);
        let rates = measure(config, &door, &[&subscriber.tally]).await;
        subscriber.end().await?;
        process.stop().await?;
        Ok(rates?[0])
    }
}
