//! Reads server-sent events (WHATWG HTML, section 9.2) out of chunks as they arrive.
//!
//! Pure; keeps at most one unfinished message.

/// Largest message, in bytes: a hub's largest is one batch of samples.
const MESSAGE_BYTES: usize = 8 * 1024 * 1024;

/// One message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Message {
    /// Its type; empty means `message`.
    pub event: String,
    /// Its data; lines are joined by a line feed.
    pub data: String,
}

/// A message is larger than this reader takes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of the stream is larger than 8 MiB")]
pub(super) struct TooLarge;

/// The unfinished rest.
#[derive(Debug, Default)]
pub(super) struct Reader {
    rest: Vec<u8>,
    message: Message,
    has_data: bool,
}

impl Reader {
    /// Takes a chunk and gives the messages it completes.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub(super) fn push(&mut self, chunk: &[u8]) -> Result<Vec<Message>, TooLarge> {
        let mut done = Vec::new();
        self.rest.extend_from_slice(chunk);
        let mut start = 0;
        while let Some(length) = self.rest[start..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&self.rest[start..start + length]).into_owned();
            start += length + 1;
            self.line(line.trim_end_matches('\r'), &mut done);
        }
        self.rest.drain(..start);
        if self.rest.len() + self.message.data.len() > MESSAGE_BYTES {
            return Err(TooLarge);
        }
        Ok(done)
    }

    fn line(&mut self, line: &str, done: &mut Vec<Message>) {
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            if std::mem::take(&mut self.has_data) {
                done.push(message);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.message.event),
            "data" => {
                if self.has_data {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
                self.has_data = true;
            }
            // A comment has an empty field; id and retry mean nothing here.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_whole_however_they_are_cut() {
        let text =
            ": hello\n\nevent: node\ndata: {\"a\":\ndata: 1}\n\nid: 7\ndata:x\r\n\r\nevent: lonely\n\n";
        let expected = [
            Message { event: "node".to_owned(), data: "{\"a\":\n1}".to_owned() },
            Message { event: String::new(), data: "x".to_owned() },
        ];
        for size in 1..text.len() {
            let mut reader = Reader::default();
            let found: Vec<_> =
                text.as_bytes().chunks(size).flat_map(|chunk| reader.push(chunk).unwrap()).collect();
            assert_eq!(found, expected, "chunks of {size}");
        }
    }

    #[test]
    fn an_endless_message_is_refused() {
        let mut reader = Reader::default();
        assert_eq!(reader.push(&vec![b'x'; MESSAGE_BYTES + 1]), Err(TooLarge));
    }
}
