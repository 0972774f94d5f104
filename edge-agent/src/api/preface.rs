//! Tells HTTP/2 from HTTP/1.1 by the first bytes of a connection, and gives them back to be read again.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// What a client that speaks HTTP/2 says first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Which HTTP a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// A stream whose first bytes were read and are read again.
#[derive(Debug)]
pub(super) struct Rewound<S> {
    first: [u8; PREFACE.len()],
    len: usize,
    at: usize,
    stream: S,
}

/// Reads as much as it takes to tell. A connection that ends before is HTTP/1.1, which knows what to do about it.
///
/// # Errors
/// What the stream says.
pub(super) async fn tell<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(Version, Rewound<S>)> {
    let mut first = [0; PREFACE.len()];
    let mut len = 0;
    let version = loop {
        if first[..len] != PREFACE[..len] {
            break Version::Http1;
        }
        if len == PREFACE.len() {
            break Version::Http2;
        }
        match stream.read(&mut first[len..]).await? {
            0 => break Version::Http1,
            more => len += more,
        }
    };
    Ok((version, Rewound { first, len, at: 0, stream }))
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.at < this.len {
            let part = (this.len - this.at).min(to.remaining());
            to.put_slice(&this.first[this.at..this.at + part]);
            this.at += part;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(cx, to)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(bytes: &[u8]) -> (Version, Vec<u8>) {
        let (version, mut stream) = tell(bytes).await.unwrap();
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.unwrap();
        (version, read)
    }

    #[tokio::test]
    async fn nothing_is_lost_by_looking() {
        let mut h2 = PREFACE.to_vec();
        h2.extend(b"\0\0\0\x04\0\0\0\0\0");
        for (bytes, version) in [
            (h2.as_slice(), Version::Http2),
            (b"PRI / HTTP/1.1\r\n\r\n", Version::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM", Version::Http1),
            (b"GET / HTTP/1.1\r\n\r\n", Version::Http1),
            (b"", Version::Http1),
        ] {
            assert_eq!(told(bytes).await, (version, bytes.to_vec()));
        }
    }
}
