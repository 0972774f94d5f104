//! The CAs of a hub that was lost, in the hub that was restored from its backup.
//!
//! A change of the CA after the backup is known from the trail alone: of each CA that was made since there is a
//! certificate, signed by the one before it. Only what is signed so, down to a CA of the backup, is taken: whoever can
//! write to the trail can make no CA by that. Its key is lost: the restored hub trusts what it signed and signs nothing
//! by it, so that nodes come in by it and are given certificates of the hub's own CA.

use std::path::Path;

use fleet_schemas::enrol::Pin;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    Error,
    file::{FOLDER, FileError, Folder, KeptFormer},
    rotation::TOOL_LIFE,
};
use crate::core::{identity::trail::Line, time::millis};

/// What the trail said of CAs that the backup does not have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readmitted {
    /// CAs that are trusted now.
    pub trusted: u64,
    /// When the lost hub trusted the CA no more that this one shows itself by, Unix milliseconds: whoever heard of that
    /// does not trust this hub.
    pub dropped_ms: Option<i64>,
}

/// Brings the keys of a restored folder up to the trail.
///
/// # Errors
/// [`Error`]: the keys are as they were.
pub fn readmit(data: &Path, lines: &[Line], now_ms: i64) -> Result<Readmitted, Error> {
    let mut said = Readmitted::default();
    if !data.join(FOLDER).exists() {
        return Ok(said);
    }
    let folder = Folder::open(data)?;
    let Some(mut kept) = folder.read()? else { return Ok(said) };
    let damaged = || FileError::Damaged { path: data.join(FOLDER), why: "a CA's certificate".to_owned() };
    let own = kept.authorities.iter().map(|one| one.certificate.as_str());
    let own = own.chain(kept.former.iter().map(|one| one.certificate.as_str()));
    let mut known = own.map(der).collect::<Option<Vec<_>>>().ok_or_else(damaged)?;
    for line in lines {
        match line {
            Line::AuthorityMade { certificate, .. } => {
                let Some(made) = der(certificate).filter(|made| is_vouched(made, &known)) else { continue };
                let until_ms = now_ms.saturating_add(millis(TOOL_LIFE));
                kept.former.push(KeptFormer { certificate: certificate.clone(), until_ms });
                known.push(made);
                said.trusted += 1;
            }
            Line::AuthorityDropped { pin, at_ms } if *pin == kept.server.by => said.dropped_ms = Some(*at_ms),
            Line::AuthorityDropped { .. }
            | Line::NodeRevoked { .. }
            | Line::NodeLetIn { .. }
            | Line::TokenUsed { .. }
            | Line::TokenRemoved { .. }
            | Line::AccessRemoved { .. }
            | Line::OperatorRemoved { .. }
            | Line::FieldRemoved { .. } => {}
        }
    }
    if said.trusted > 0 {
        folder.write(&kept)?;
    }
    Ok(said)
}

fn der(pem: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

/// Whether it is a CA's, new, and signed by one that is known.
fn is_vouched(made: &CertificateDer<'_>, known: &[CertificateDer<'_>]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(made) else { return false };
    let pin_of = |certificate: &X509Certificate<'_>| Pin(Sha256::digest(certificate.public_key().raw).into());
    let mut vouched = false;
    for der in known {
        let Ok((_, other)) = X509Certificate::from_der(der) else { continue };
        if pin_of(&other) == pin_of(&certificate) {
            return false;
        }
        vouched |= certificate.verify_signature(Some(other.public_key())).is_ok();
    }
    vouched && certificate.is_ca()
}
