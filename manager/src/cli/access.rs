//! `fleet access`: third-party MQTT tools, what they may read and write, and what they are configured with.

mod preset;

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use rcgen::{CertificateParams, KeyPair};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Context, Failure,
    output::{Cell, Table, read, time},
    place::{Place, joined},
};
use crate::api::shapes::{Access, NewAccess, Pki};
use preset::{Given, Login, Preset};

/// The verbs on access.
#[derive(Debug, Subcommand)]
pub(super) enum AccessVerb {
    /// Let a tool in: prints user and password this once, or makes a key and fetches a certificate
    #[command(
        after_help = "Examples:\n  fleet access create grafana --read 'fleet/v1/hub/#'\n  fleet access create raw --read 'fleet/v1/+/up/telemetry' -o json\n  \
        fleet access create red --preset node-red\n  fleet access create ha --preset home-assistant\n  \
        fleet access create bridge --read 'fleet/v1/hub/#' --write 'apps/#' --cert ./bridge-keys\n\n\
        Tools read what was granted; they publish outside of fleet/ only, which is for nodes and the hub."
    )]
    Create(CreateArgs),
    /// List tools and their grants
    #[command(after_help = "Examples:\n  fleet access ls")]
    Ls,
    /// Shut a tool out and cut its sessions
    #[command(after_help = "Examples:\n  fleet access rm grafana")]
    Rm {
        /// The name
        name: String,
    },
}

/// What a tool gets.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// The user name
    name: String,
    /// A filter it may subscribe to, and to all inside it; repeat for more
    #[arg(long, value_name = "FILTER", required_unless_present_any = ["write", "preset"])]
    read: Vec<String>,
    /// A filter it may publish to, outside of fleet/; repeat for more
    #[arg(long, value_name = "FILTER")]
    write: Vec<String>,
    /// Make a key in this folder and fetch a certificate for it, instead of a password
    #[arg(long, value_name = "DIR")]
    cert: Option<PathBuf>,
    /// Print configuration to paste; brings its own grants when none are named
    #[arg(long, value_enum)]
    preset: Option<Preset>,
}

const PATH: [&str; 3] = ["api", "v1", "access"];

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(verb: AccessVerb, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    match verb {
        AccessVerb::Create(args) => create(args, context).await,
        AccessVerb::Ls => {
            let items: Vec<Value> = client.list(&PATH, &[], None).await?;
            let tools: Vec<Access> = read(&items)?;
            out.show(&json!({ "items": items, "next": null }), || {
                if tools.is_empty() {
                    "no tools; let one in with `fleet access create`\n".to_owned()
                } else {
                    table(&tools).text(out.color)
                }
            })
        }
        AccessVerb::Rm { name } => {
            client.change(Method::DELETE, &[&PATH[..], &[&name]].concat(), None).await?;
            out.show(&Value::Null, || format!("access {name} removed\n"))
        }
    }
}

async fn create(mut args: CreateArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    if let Some(preset) = args.preset.filter(|_| args.read.is_empty() && args.write.is_empty()) {
        args.read = preset.read();
        args.write = preset.write();
    }
    let place = Place::of(client).await?;
    // Before anything is made at the hub: a folder that cannot be written would lose what it made.
    let key = args.cert.as_deref().map(|folder| Key::make(folder, &args.name)).transpose()?;
    let csr = key.as_ref().map(|key| key.csr.as_str());
    let body = json!({ "name": args.name, "read": args.read, "write": args.write, "csr": csr });
    let mut value = client.change(Method::POST, &PATH, Some(&body)).await?;
    let made: NewAccess = serde_json::from_value(value.clone())
        .map_err(|error| Failure::Failed(format!("the hub's answer is not understood: {error}")))?;
    let login = match (&key, &made.password) {
        (Some(key), _) => {
            let (certificate, ca) = (made.certificate.as_deref(), made.ca.as_deref());
            key.keep(certificate.unwrap_or_default(), ca.unwrap_or_default())?;
            Login::Certificate { file: key.file("crt"), key: key.file("key") }
        }
        (None, Some(password)) => Login::Password(password.clone()),
        (None, None) => {
            return Err(Failure::Failed("the hub gave neither password nor certificate".to_owned()));
        }
    };
    let address = place.address("mqtts");
    let given = match (&args.preset, &address) {
        (Some(_), None) => {
            return Err(Failure::Failed(format!(
                "{} may come in, but this hub serves no MQTT over TLS to paste an address of; start it with --mqtts",
                made.username
            )));
        }
        (Some(preset), Some(address)) => {
            let given = given(context, &args, address, &made.username, login.clone()).await?;
            Some((*preset, given))
        }
        (None, _) => None,
    };
    if let Some((preset, given)) = &given {
        value["config"] = json!(preset.text(given));
    }
    out.show(&value, || match &given {
        Some((preset, given)) => preset.text(given),
        None => text(&made.username, &login, address.as_ref().map(joined).as_deref()),
    })
}

async fn given(
    context: &Context,
    args: &CreateArgs,
    (host, port): &(String, u16),
    user: &str,
    login: Login,
) -> Result<Given, Failure> {
    let client = &context.client;
    let ca = client.text(&["api", "v1", "pki", "ca.pem"], &[], "application/x-pem-file").await?;
    let pki: Pki = client.get(&["api", "v1", "pki"], &[]).await?;
    Ok(Given {
        named: pki.server.names.contains(host),
        host: host.clone(),
        port: *port,
        user: user.to_owned(),
        login,
        read: args.read.clone(),
        ca,
    })
}

fn text(user: &str, login: &Login, address: Option<&str>) -> String {
    let mut text = format!("username  {user}\n");
    match login {
        Login::Password(password) => {
            text.push_str(&format!("password  {password}\n\nThe password is not shown again."));
        }
        Login::Certificate { file, key } => {
            text.push_str(&format!("certificate  {}\nkey          {}\n\n", file.display(), key.display()));
        }
    }
    if let Some(address) = address {
        text.push_str(&format!(" MQTT over TLS is at {address}; `fleet pki ca` prints the CA to trust."));
    }
    text.push('\n');
    text.replace("\n\n ", "\n\n")
}

fn table(tools: &[Access]) -> Table {
    let mut table = Table::new(&["name", "by", "read", "write", "made", "made by"]);
    for tool in tools {
        table.row(vec![
            Cell::left(&tool.name),
            Cell::left(&tool.by),
            Cell::left(tool.read.join(" ")),
            Cell::left(tool.write.join(" ")),
            Cell::left(time(tool.created_ms)),
            Cell::left(&tool.created_by),
        ]);
    }
    table
}

/// A key that was made here and never leaves.
struct Key {
    folder: PathBuf,
    name: String,
    csr: String,
}

impl Key {
    /// Makes an ECDSA P-256 key in a folder, and the request for its certificate.
    fn make(folder: &Path, name: &str) -> Result<Self, Failure> {
        let failed = |what: &dyn std::fmt::Display| {
            Failure::Failed(format!("a key cannot be made in {}: {what}", folder.display()))
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
        if !name.chars().all(plain) || name.starts_with('.') {
            return Err(Failure::Usage(format!(
                "{name:?} is no name for a file; use letters, digits and - _"
            )));
        }
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| failed(&error))?;
        let request =
            CertificateParams::default().serialize_request(&pair).map_err(|error| failed(&error))?;
        let csr = request.pem().map_err(|error| failed(&error))?;
        let made = Self { folder: folder.to_owned(), name: name.to_owned(), csr };
        let written = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            made.write("key", pair.serialize_pem().as_bytes())
        };
        written().map_err(|error: io::Error| failed(&error))?;
        Ok(made)
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", self.name))
    }

    /// Writes a file that is not there yet: somebody else's key is not overwritten.
    fn write(&self, kind: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.file(kind))?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn keep(&self, certificate: &str, ca: &str) -> Result<(), Failure> {
        let kept = self.write("crt", certificate.as_bytes()).and_then(|()| {
            let path = self.folder.join("ca.crt");
            fs::write(&path, ca)
        });
        kept.map_err(|error| {
            Failure::Failed(format!("the certificate cannot be kept in {}: {error}", self.folder.display()))
        })
    }
}
