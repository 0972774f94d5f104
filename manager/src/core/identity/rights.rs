//! What tools and operators may, and what such a grant may look like.

use fleet_schemas::topic;
use subtle::ConstantTimeEq as _;

use super::{Access, FILTERS, Hash, Identities, NAME_BYTES, NAMES, Operator, Role, Row, unknown};
use crate::core::{bounds, registry::RegistryError};

impl Role {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Identities {
    /// Who holds an API token, by its SHA-256. Looks at all of them, whichever fits.
    #[must_use]
    pub fn operator(&self, token: &Hash, now_ms: i64) -> Option<&Operator> {
        let fits = |operator: &Operator| bool::from(operator.token.ct_eq(token));
        let every = self.operators.values();
        let found = every.fold(None, |found, operator| if fits(operator) { Some(operator) } else { found });
        found.filter(|operator| operator.expires_ms.is_none_or(|ends| ends > now_ms))
    }

    pub(super) fn put_access(&mut self, access: Access) -> Result<Row, RegistryError> {
        access.check()?;
        if self.access.contains_key(&access.name) {
            return Err(RegistryError::Exists { what: "access", name: access.name });
        }
        if self.access.len() >= NAMES {
            return Err(field("/name", format!("there are {NAMES} already; remove one first")));
        }
        let row = Row::Access(access.name.clone());
        self.access.insert(access.name.clone(), access);
        Ok(row)
    }

    pub(super) fn put_operator(&mut self, operator: Operator) -> Result<Row, RegistryError> {
        name(&operator.name)?;
        if self.operators.contains_key(&operator.name) {
            return Err(RegistryError::Exists { what: "operator", name: operator.name });
        }
        if self.operators.len() >= NAMES {
            return Err(field("/name", format!("there are {NAMES} already; remove one first")));
        }
        if let Some(on) = &operator.on {
            if operator.role != Role::Operator {
                let role = operator.role;
                let why = format!("a {role} is not bound: viewers only look, and admins decide who is bound");
                return Err(field("/on", why));
            }
            bounds::read(on).map_err(|why| field("/on", why))?;
        }
        self.removed.remove(&operator.name);
        let row = Row::Operator(operator.name.clone());
        self.operators.insert(operator.name.clone(), operator);
        Ok(row)
    }

    pub(super) fn remove_operator(&mut self, name: String) -> Result<Row, RegistryError> {
        let known = self.operators.get(&name).ok_or_else(|| unknown("operator", &name))?;
        let admin = |operator: &&Operator| operator.role == Role::Admin && operator.expires_ms.is_none();
        if admin(&known) && self.operators.values().filter(admin).count() == 1 {
            return Err(field("/name", "this is the last admin; make another one first"));
        }
        if let Some(on) = self.operators.remove(&name).and_then(|operator| operator.on) {
            self.removed.insert(name.clone(), on);
        }
        Ok(Row::Operator(name))
    }

    pub(super) fn used(&mut self, name: String, at_ms: i64) -> Result<Row, RegistryError> {
        let operator = self.operators.get_mut(&name).ok_or_else(|| unknown("operator", &name))?;
        operator.used_ms = operator.used_ms.max(Some(at_ms));
        Ok(Row::Operator(name))
    }
}

impl Access {
    /// Whether name and filters are such as may be granted.
    ///
    /// # Errors
    /// [`RegistryError::Field`].
    pub fn check(&self) -> Result<(), RegistryError> {
        name(&self.name)?;
        if self.read.is_empty() && self.write.is_empty() {
            return Err(field("/read", "grant at least one filter to read or to write"));
        }
        if self.read.len().max(self.write.len()) > FILTERS {
            return Err(field("/read", format!("at most {FILTERS} filters are allowed")));
        }
        for (list, filters) in [("read", &self.read), ("write", &self.write)] {
            for (at, filter) in filters.iter().enumerate() {
                if let Some(why) = filter_error(filter, list == "write") {
                    return Err(field(&format!("/{list}/{at}"), why));
                }
            }
        }
        Ok(())
    }
}

/// What is wrong with a filter that is to be granted, if anything is.
#[must_use]
pub fn filter_error(filter: &str, write: bool) -> Option<String> {
    if let Err(error) = topic::check_form(filter) {
        return Some(error.to_string());
    }
    if filter.starts_with('$') {
        return Some(
            "topics that begin with $ are the broker's own; `fleet status` and /metrics have its figures"
                .into(),
        );
    }
    let levels: Vec<_> = filter.split('/').collect();
    let last = levels.len() - 1;
    let misplaced = |(at, level): (usize, &&str)| match *level {
        "+" => false,
        "#" => at != last,
        other => other.contains(['+', '#']),
    };
    if levels.iter().enumerate().any(misplaced) {
        return Some("+ stands alone in its level, # alone in the last one (MQTT 5 §4.7.1)".into());
    }
    let ours = ["fleet", "+", "#"].contains(&levels[0]);
    (write && ours).then(|| {
        "tools publish outside of fleet/: that branch is for nodes and the hub; name the first level".into()
    })
}

fn name(text: &str) -> Result<(), RegistryError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
    if text.is_empty() || text.len() > NAME_BYTES || !text.chars().all(plain) {
        return Err(field("/name", format!("1 to {NAME_BYTES} of a-z A-Z 0-9 . _ - @ are allowed")));
    }
    Ok(())
}

fn field(pointer: &str, why: impl Into<String>) -> RegistryError {
    RegistryError::Field { pointer: pointer.to_owned(), why: why.into() }
}
