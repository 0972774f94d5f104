//! Forms: read, and refused unless they bring the secret of their session.
//!
//! A handler that takes a [`Form`] cannot be reached without that check.

use std::sync::Arc;

use axum::{
    extract::{FromRequest, FromRequestParts, Request},
    http::{Uri, request::Parts},
};
use subtle::ConstantTimeEq as _;

use super::{page::Trouble, session::Seat};
use crate::api::{
    Api,
    problem::Refusal,
    query::{Body, content_type},
};

/// Most fields of a form: those of the longest, and a box for each node of a page.
const FIELDS: usize = 512;
/// The hidden field that every form has.
const CSRF: &str = "csrf";

/// A form of the session that sent it.
#[derive(Debug)]
pub(super) struct Form(pub(super) Fields);

/// The fields of a form or of a query, without those that are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads `application/x-www-form-urlencoded`.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Refusal> {
        let mut fields = Vec::new();
        for (name, value) in form_urlencoded::parse(text).filter(|(_, value)| !value.is_empty()) {
            if fields.len() == FIELDS {
                return Err(Refusal::BadRequest(format!("the form has more than {FIELDS} fields")));
            }
            fields.push((name.into_owned(), value.into_owned()));
        }
        Ok(Self(fields))
    }

    /// The query of a request.
    pub(super) fn of(uri: &Uri) -> Result<Self, Refusal> {
        Self::parse(uri.query().unwrap_or_default().as_bytes())
    }

    /// Every value of a field that may stand several times.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(of, _)| of == name).map(|(_, value)| value.as_str())
    }

    /// A field that is not empty.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str())
    }

    /// Whether it brings this secret.
    pub(super) fn brings(&self, csrf: &str) -> bool {
        let brought = self.text(CSRF).unwrap_or_default();
        bool::from(brought.as_bytes().ct_eq(csrf.as_bytes()))
    }
}

/// Reads a body as a form.
pub(super) async fn read(request: Request, api: &Arc<Api>) -> Result<Fields, Refusal> {
    content_type(request.headers(), &["application/x-www-form-urlencoded"])?;
    let Body(body) = Body::from_request(request, api).await?;
    Fields::parse(&body)
}

/// The answer to a form that was not of the session that sent it.
pub(super) fn foreign() -> Refusal {
    Refusal::Forbidden("this form is not of your session, or its session is over; load the page again".into())
}

impl FromRequestParts<Arc<Api>> for Fields {
    type Rejection = Trouble;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, Trouble> {
        Ok(Self::of(&parts.uri)?)
    }
}

impl FromRequest<Arc<Api>> for Form {
    type Rejection = Trouble;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Trouble> {
        let seat = request.extensions().get::<Seat>().cloned();
        let fields = read(request, api).await?;
        match seat {
            Some(seat) if fields.brings(&seat.csrf) => Ok(Self(fields)),
            Some(_) | None => Err(foreign().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_and_must_bring_the_secret() {
        let fields = Fields::parse(b"csrf=abc&q=a+b%3C&empty=&node=a&node=b").unwrap();
        assert_eq!((fields.text("q"), fields.text("empty")), (Some("a b<"), None));
        assert_eq!(fields.all("node").collect::<Vec<_>>(), ["a", "b"]);
        assert!(fields.brings("abc"));
        assert!(!fields.brings("abd") && !fields.brings("abcd") && !Fields::default().brings("abc"));
        assert!(Fields::parse("a=1&".repeat(FIELDS + 1).as_bytes()).is_err());
    }
}
