//! What each route needs, declared with the route: there is no way to add one without.
//!
//! Owns the table and the caller that a request was found to have; the guard asks the table before anything is done.

use std::collections::BTreeMap;

use axum::{
    Router,
    extract::FromRequestParts,
    handler::Handler,
    http::{Method, request::Parts},
    routing::{MethodFilter, on},
};

use super::{Api, problem::Refusal};
use crate::core::identity::{Hash, Operator, Role};

/// What a request has to bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: health and version.
    Nothing,
    /// To come from this machine, or a viewer's token.
    Here,
    /// A token of this role, or of one that may do more.
    Role(Role),
    /// To be logged in to the console in this role, or in one that may do more.
    Session(Role),
}

/// A route and what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right {
    /// The method; HEAD is as GET.
    pub method: Method,
    /// The path, with `{…}` for what varies.
    pub path: &'static str,
    /// What it needs.
    pub needs: Needs,
}

/// Who asks, as the guard found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The operator's name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When its token ends, Unix milliseconds.
    pub expires_ms: Option<i64>,
    /// SHA-256 of the token; none for somebody who may look without one.
    pub token: Option<Hash>,
    /// The selector that its role is bound to.
    pub on: Option<String>,
}

/// Routes being put together.
pub(crate) struct Routes {
    router: Router<std::sync::Arc<Api>>,
    table: Vec<Right>,
}

/// What is needed, by path and method.
#[derive(Debug, Default)]
pub(super) struct Rights(BTreeMap<&'static str, Vec<(Method, Needs)>>);

impl Routes {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { router: Router::new(), table: Vec::new() }
    }

    /// Adds a route.
    pub(crate) fn on<H, T>(mut self, needs: Needs, method: Method, path: &'static str, handler: H) -> Self
    where
        H: Handler<T, std::sync::Arc<Api>>,
        T: 'static,
    {
        let filter = MethodFilter::try_from(method.clone()).expect("the methods of HTTP have filters");
        self.router = self.router.route(path, on(filter, handler));
        self.table.push(Right { method, path, needs });
        self
    }

    /// The router, without layers, and the table.
    pub(super) fn build(self) -> (Router<std::sync::Arc<Api>>, Vec<Right>) {
        (self.router, self.table)
    }
}

impl Rights {
    /// Sorts a table for look-up.
    pub(super) fn new(table: Vec<Right>) -> Self {
        let mut rights = Self::default();
        for Right { method, path, needs } in table {
            rights.0.entry(path).or_default().push((method, needs));
        }
        rights
    }

    /// What a request on a matched path needs; none for a method that the path does not take.
    pub(super) fn needs(&self, method: &Method, path: &str) -> Option<Needs> {
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        self.0.get(path)?.iter().find(|(known, _)| known == method).map(|(_, needs)| *needs)
    }
}

impl Caller {
    /// Somebody who may look without a token.
    pub(crate) fn anonymous() -> Self {
        Self { name: "anonymous".to_owned(), role: Role::Viewer, expires_ms: None, token: None, on: None }
    }

    /// The holder of a token.
    pub(crate) fn of(operator: &Operator) -> Self {
        let Operator { name, role, token, expires_ms, on, .. } = operator;
        let (name, on) = (name.clone(), on.clone());
        Self { name, role: *role, expires_ms: *expires_ms, token: Some(*token), on }
    }

    /// As it stands in the trail of changes.
    pub(crate) fn by(&self) -> String {
        format!("operator {}", self.name)
    }
}

impl FromRequestParts<std::sync::Arc<Api>> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &std::sync::Arc<Api>) -> Result<Self, Refusal> {
        let found = parts.extensions.get::<Self>().cloned();
        found.ok_or_else(|| Refusal::Internal("a route for anybody asks who calls".to_owned()))
    }
}
