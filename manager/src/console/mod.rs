//! The web console at `/`: pages for people, drawn on the server and kept up to date over server-sent events.
//!
//! Reads through the same functions as the HTTP API and changes by the same intents; owns no data but who is logged in.
//! Everything that a page needs is in this binary; nothing is asked of any other host.

mod access;
mod alerts;
mod assets;
mod chart;
mod commands;
mod fleet;
mod form;
pub(crate) mod live;
mod login;
mod node;
mod overview;
mod page;
mod rollouts;
pub(crate) mod session;
mod view;
mod words;

use axum::{
    extract::DefaultBodyLimit,
    handler::Handler as _,
    http::{HeaderMap, HeaderValue, Method, header},
};

pub(crate) use page::{refused, refused_at};
pub use session::Sessions;

use crate::{
    api::rights::{Needs, Routes},
    core::identity::Role,
};

/// What a page may load and do: our own files, and nothing of anybody else. No script or style stands in a page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Largest form of a command: 10,000 nodes by name.
const COMMAND_BYTES: usize = 1024 * 1024;

/// Adds the console's routes.
pub(crate) fn routes(routes: Routes) -> Routes {
    let [viewer, operator, admin] = [Role::Viewer, Role::Operator, Role::Admin].map(Needs::Session);
    let sent = commands::create.layer(DefaultBodyLimit::max(COMMAND_BYTES));
    routes
        .on(viewer, Method::GET, "/", fleet::page)
        .on(viewer, Method::GET, "/live", fleet::live)
        .on(viewer, Method::GET, "/nodes/{id}", node::page)
        .on(viewer, Method::GET, "/live/nodes/{id}", node::live)
        .on(viewer, Method::GET, "/commands", commands::page)
        .on(operator, Method::POST, "/commands", sent)
        .on(viewer, Method::GET, "/commands/new", commands::new)
        .on(viewer, Method::GET, "/commands/{id}", commands::one)
        .on(operator, Method::POST, "/commands/{id}/cancel", commands::cancel)
        .on(viewer, Method::GET, "/live/commands", commands::live)
        .on(viewer, Method::GET, "/rollouts", rollouts::page)
        .on(viewer, Method::GET, "/rollouts/{id}", rollouts::one)
        .on(operator, Method::POST, "/rollouts/{id}/{act}", rollouts::act)
        .on(viewer, Method::GET, "/live/rollouts", rollouts::live)
        .on(viewer, Method::GET, "/live/rollouts/{id}", rollouts::live_one)
        .on(viewer, Method::GET, "/alerts", alerts::page)
        .on(viewer, Method::GET, "/live/alerts", alerts::live)
        .on(operator, Method::POST, "/alerts/{id}/acknowledge", alerts::acknowledge)
        .on(operator, Method::POST, "/alerts/{id}/silence", alerts::silence)
        .on(operator, Method::POST, "/silences/{id}/remove", alerts::unsilence)
        .on(admin, Method::GET, "/access", access::page)
        .on(admin, Method::GET, "/audit", access::trail)
        .on(viewer, Method::GET, "/live/commands/{id}", commands::live_one)
        .on(Needs::Nothing, Method::GET, "/login", login::form)
        .on(Needs::Nothing, Method::POST, "/login", login::log_in)
        .on(viewer, Method::POST, "/logout", login::log_out)
        .on(Needs::Nothing, Method::GET, "/assets/{file}", assets::get)
}

/// Whether a path is one of people's pages, where a refusal is a page too.
pub(crate) fn is_page(path: &str) -> bool {
    let plain = ["/livez", "/readyz", "/metrics", "/version"];
    !path.starts_with("/api/") && !plain.contains(&path)
}

/// Whether the one who asks is a browser.
pub(crate) fn reads_pages(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

/// Has a browser guess no types, put nothing of ours into others' frames, and load nothing but our own files.
pub(crate) fn harden(headers: &mut HeaderMap) {
    let all = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // Not `no-referrer`: with it a browser sends forms without an origin.
        (header::REFERRER_POLICY, "same-origin"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in all {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
