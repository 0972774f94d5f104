//! The stylesheet, the script and the icon: built into the binary, named with a digest so that a browser keeps them.

use std::sync::LazyLock;

use axum::{
    extract::Path,
    http::header,
    response::{IntoResponse as _, Response},
};
use fleet_schemas::batch::digest;

use crate::api::problem::Refusal;

const STYLE: &str = include_str!("assets/fleet.css");
const SCRIPT: &str = include_str!("assets/fleet.js");
const ICON: &str = include_str!("assets/icon.svg");

/// Changes with any of the files: pages ask for them by it.
pub(super) static VERSION: LazyLock<String> = LazyLock::new(|| {
    let all = [STYLE, SCRIPT, ICON].concat();
    digest(all.as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
});

/// `GET /assets/{file}`: for anybody, as the login page needs them.
pub(super) async fn get(Path(file): Path<String>) -> Result<Response, Refusal> {
    let (kind, text) = match file.as_str() {
        "fleet.css" => ("text/css; charset=utf-8", STYLE),
        "fleet.js" => ("text/javascript; charset=utf-8", SCRIPT),
        "icon.svg" => ("image/svg+xml", ICON),
        _ => return Err(Refusal::NotFound("there is no such file".to_owned())),
    };
    let kept = "public, max-age=31536000, immutable";
    Ok(([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, kept)], text).into_response())
}
