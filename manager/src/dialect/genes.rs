//! Genes: checked, named by their digest. Pure.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::read::{Fault, Fields, depth};

/// Largest gene, in bytes of its canonical JSON.
pub(super) const GENE_BYTES: usize = 64 * 1024;
/// Deepest gene.
const DEPTH: usize = 32;

/// A gene that may be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gene {
    /// Its canonical JSON without `asset_id`: keys sorted, no blanks.
    pub json: String,
    /// SHA-256 of that, hexadecimal.
    pub digest: String,
    /// What its publisher calls it.
    pub asset_id: Option<String>,
    /// Whether that is the digest.
    pub verified: bool,
    /// Its type, for the event.
    pub kind: Option<String>,
}

/// Reads `{gene: {…}}`, or a gene by itself.
pub(super) fn gene(body: &Value) -> Result<Gene, Fault> {
    let fields = Fields::of(body, "")?;
    let gene = match fields.object(&["gene"])? {
        Some(gene) => gene,
        None if fields.has("asset_id") || fields.has("signals_match") => fields,
        None => return Err(Fault::new("/gene", "give the gene as an object here")),
    };
    let asset_id = gene.text(&["asset_id"], 256)?;
    let kind = gene.text(&["type"], 63)?;
    let mut plain = gene.map().clone();
    plain.remove("asset_id");
    let plain = Value::Object(plain);
    if depth(&plain) > DEPTH {
        return Err(Fault::new("/gene", format!("nested deeper than {DEPTH}")));
    }
    // Maps of this library are sorted.
    let json = plain.to_string();
    if json.len() > GENE_BYTES {
        return Err(Fault::new("/gene", format!("larger than {GENE_BYTES} bytes")));
    }
    let digest: String = Sha256::digest(&json).iter().map(|byte| format!("{byte:02x}")).collect();
    let claimed = asset_id.as_deref().map(|id| id.trim_start_matches("sha256:").to_ascii_lowercase());
    let verified = claimed.as_deref() == Some(&digest);
    Ok(Gene { json, digest, asset_id, verified, kind })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_gene_is_named_by_what_it_says() {
        let plain = json!({"type": "Gene", "id": "g1", "strategy": ["a"], "category": "repair"});
        let named = gene(&json!({ "gene": plain })).unwrap();
        assert_eq!(named.json, r#"{"category":"repair","id":"g1","strategy":["a"],"type":"Gene"}"#);
        assert!(!named.verified);
        let mut signed = plain;
        signed["asset_id"] = json!(format!("sha256:{}", named.digest));
        let verified = gene(&json!({ "gene": signed })).unwrap();
        assert_eq!((verified.digest, verified.verified), (named.digest, true));
        signed["id"] = json!("g2");
        assert!(!gene(&json!({ "gene": signed })).unwrap().verified, "another gene under the same name");
    }

    #[test]
    fn what_is_none_is_refused_with_its_place() {
        let large = json!({ "gene": { "x": "y".repeat(GENE_BYTES) } });
        let deep = (0..40).fold(json!(1), |inner, _| json!([inner]));
        for body in [json!({}), json!({"gene": 5}), large, json!({ "gene": { "x": deep } })] {
            assert_eq!(gene(&body).unwrap_err().pointer, "/gene");
        }
    }
}
