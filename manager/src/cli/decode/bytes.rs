//! Bytes as people paste them: hexadecimal, base64, or as they are. Pure.

/// What the input most likely is: hexadecimal, then base64 when every character fits, else itself. A raw payload
/// is never mistaken: CBOR maps and zstd frames begin with bytes that neither has.
#[must_use]
pub(super) fn guess(input: Vec<u8>) -> Vec<u8> {
    hex(&input).or_else(|| base64(&input)).unwrap_or(input)
}

/// Reads hexadecimal; white space is skipped. `None` when it is something else or empty.
#[must_use]
pub(super) fn hex(input: &[u8]) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = (input.iter().filter(|byte| !byte.is_ascii_whitespace()))
        .map(|byte| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    let digits = digits.filter(|digits| !digits.is_empty() && digits.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Reads base64 (RFC 4648 sections 4 and 5), padded or not; white space is skipped. `None` when it is something
/// else or empty.
#[must_use]
pub(super) fn base64(input: &[u8]) -> Option<Vec<u8>> {
    let text: Vec<u8> = input.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let end = text.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    if end == 0 || end % 4 == 1 || text.len() - end > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(end * 3 / 4);
    for chunk in text[..end].chunks(4) {
        let mut group = 0_u32;
        for byte in chunk {
            group = group << 6 | u32::from(sextet(*byte)?);
        }
        group <<= 6 * (4 - chunk.len());
        let [_, whole @ ..] = group.to_be_bytes();
        bytes.extend_from_slice(&whole[..chunk.len() - 1]);
    }
    Some(bytes)
}

fn sextet(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_reads_the_vectors_of_rfc_4648() {
        for (text, bytes) in
            [("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob"), ("Zm9vYmFy\n", "foobar")]
        {
            assert_eq!(base64(text.as_bytes()).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(base64(b"-_8="), Some(vec![0xfb, 0xff]));
        for wrong in ["", "=", "A", "Zg===", "Z!g=", "Zg=g"] {
            assert_eq!(base64(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn the_form_is_guessed() {
        assert_eq!(guess(b"a1 61\n76 01".to_vec()), [0xa1, 0x61, 0x76, 0x01]);
        assert_eq!(guess(b"oWF2AQ==\n".to_vec()), [0xa1, 0x61, 0x76, 0x01]);
        assert_eq!(guess(vec![0xa1, 0x61, 0x76, 0x01]), [0xa1, 0x61, 0x76, 0x01]);
        assert_eq!(hex(b"abc"), None);
        assert_eq!(hex(&(0..=255).flat_map(|b: u8| format!("{b:02x}").into_bytes()).collect::<Vec<_>>()), {
            Some((0..=255).collect())
        });
    }
}
