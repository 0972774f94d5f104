//! `fleet login`: keeps a hub's address, token and CA, so that other verbs need none of them.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::json;

use super::{
    Common, Failure,
    client::Client,
    contexts::{Context, Contexts},
    output::{Cell, Out, Table},
    target,
    trust::Trust,
};
use crate::api::shapes::Whoami;

/// Which hub, or what to do with those that are kept.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fleet login --hub https://hub.example:8080 --ca fleet-ca.pem --token-file -\n  \
    fleet login --hub https://hub.example:8080 --ca-pin PIN --token-file token --name berlin\n  \
    fleet login --list\n  fleet login --use berlin\n  fleet login --rm berlin\n\n\
    A token on the command line (--token) is seen by other users of this machine; FLEET_TOKEN and --token-file are not."
)]
pub(super) struct LoginArgs {
    /// Read the token from a file, or from the standard input with -
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A name for the context; the hub's host unless given
    #[arg(long, value_name = "CONTEXT")]
    name: Option<String>,
    /// List contexts
    #[arg(long, group = "what")]
    list: bool,
    /// Make a context the current one
    #[arg(long = "use", value_name = "CONTEXT", group = "what")]
    select: Option<String>,
    /// Forget a context
    #[arg(long, value_name = "CONTEXT", group = "what")]
    rm: Option<String>,
}

/// Longest token file, in bytes.
const TOKEN_BYTES: u64 = 4_096;

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(args: LoginArgs, common: &Common, out: Out) -> Result<(), Failure> {
    let path = Contexts::path().ok_or_else(|| {
        Failure::Failed("there is no home for contexts: set XDG_CONFIG_HOME or HOME".to_owned())
    })?;
    let mut contexts = Contexts::read(&path)?;
    if args.list {
        return list(&contexts, out);
    }
    if let Some(name) = &args.select {
        if !contexts.contexts.contains_key(name) {
            return Err(unknown(name));
        }
        contexts.current = Some(name.clone());
        contexts.write(&path)?;
        return out.show(&json!({ "current": name }), || format!("{name} is the current context\n"));
    }
    if let Some(name) = &args.rm {
        contexts.contexts.remove(name).ok_or_else(|| unknown(name))?;
        contexts.current = contexts.current.filter(|current| current != name);
        contexts.write(&path)?;
        return out.show(&json!({ "removed": name }), || {
            format!("{name} is forgotten here; `fleet operator rm` takes its token back at the hub\n")
        });
    }
    log_in(args, common, out, contexts, &path).await
}

fn unknown(name: &str) -> Failure {
    Failure::NotFound(format!("there is no context {name:?}; `fleet login --list` lists them"))
}

async fn log_in(
    args: LoginArgs,
    common: &Common,
    out: Out,
    mut contexts: Contexts,
    path: &Path,
) -> Result<(), Failure> {
    if common.hub.is_none() {
        return Err(Failure::Usage(
            "name the hub with --hub, such as --hub https://hub.example:8080".to_owned(),
        ));
    }
    let token = match (&common.token, &args.token_file) {
        (_, Some(file)) => read_token(file)?,
        (Some(token), None) => token.trim().to_owned(),
        (None, None) => {
            return Err(Failure::Usage(
                "give the token that `fleet operator create` printed: --token-file FILE, or - to paste it"
                    .to_owned(),
            ));
        }
    };
    let target = target::find(&Common { token: Some(token.clone()), ..common.clone() })?;
    let client = Client::new(target.clone())?;
    let who: Whoami = client.get(&["api", "v1", "whoami"], &[]).await?;
    let ca = match target.trust.filter(|_| target.base.scheme() == "https") {
        None => None,
        Some(Trust::Ca(pem)) => Some(pem),
        // Over a connection that the pin vouches for.
        Some(Trust::Pin(_)) => {
            Some(client.text(&["api", "v1", "pki", "ca.pem"], &[], "application/x-pem-file").await?)
        }
    };
    let plain = ca.is_none() && !matches!(client.host(), "localhost" | "127.0.0.1" | "[::1]");
    if plain {
        eprintln!("fleet: the token crosses the network in the clear; start the hub with --http-tls");
    }
    let name = args.name.unwrap_or_else(|| client.host().trim_matches(['[', ']']).replace(':', "-"));
    let hub = client.base().to_owned();
    contexts.put(&name, Context { hub: hub.clone(), token, name: who.name.clone(), ca })?;
    contexts.write(path)?;
    let value = json!({ "context": name, "hub": hub, "name": who.name, "role": who.role, "expires_ms": who.expires_ms });
    out.show(&value, || {
        format!("logged in to {hub} as {} ({}); {name} is the current context\n", who.name, who.role)
    })
}

fn read_token(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        io::stdin().take(TOKEN_BYTES).read_to_string(&mut text)
    } else {
        fs::File::open(file).and_then(|file| file.take(TOKEN_BYTES).read_to_string(&mut text))
    };
    read.map_err(|error| Failure::Usage(format!("--token-file {}: {error}", file.display())))?;
    // The hub's own file has the name in its first line; `fleet operator create` prints the token in its first.
    let word = text.lines().map(str::trim).find(|line| line.starts_with("fleet_"));
    word.map(str::to_owned).ok_or_else(|| {
        Failure::Usage(format!("--token-file {}: it holds no token; one begins with fleet_", file.display()))
    })
}

fn list(contexts: &Contexts, out: Out) -> Result<(), Failure> {
    let shown = |(name, context): (&String, &Context)| {
        let current = contexts.current.as_ref() == Some(name);
        json!({ "context": name, "current": current, "hub": context.hub, "name": context.name })
    };
    let items: Vec<_> = contexts.contexts.iter().map(shown).collect();
    out.show(&json!({ "items": items, "next": null }), || {
        let mut table = Table::new(&["", "context", "hub", "name"]);
        for (name, context) in &contexts.contexts {
            let mark = if contexts.current.as_ref() == Some(name) { "*" } else { "" };
            let cells = [mark, name, &context.hub, &context.name];
            table.row(cells.into_iter().map(Cell::left).collect());
        }
        if contexts.contexts.is_empty() {
            "no contexts; make one with `fleet login --hub URL --token-file -`\n".to_owned()
        } else {
            table.text(out.color)
        }
    })
}
