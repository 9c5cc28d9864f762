//! As much of HTTP/1.1 as a load generator needs: answers with a Content-Length.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest time for one answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A longer head is none.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// The head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    /// Bytes of the head, with the empty line.
    pub(super) len: usize,
    pub(super) content_length: usize,
}

/// Reads a head at the start of `bytes`; `None`: there is more to come.
pub(super) fn head(bytes: &[u8]) -> io::Result<Option<Head>> {
    let Some(end) = bytes.windows(4).take(HEAD_BYTES_MAX).position(|four| four == b"\r\n\r\n") else {
        return if bytes.len() > HEAD_BYTES_MAX { Err(invalid("a head without an end")) } else { Ok(None) };
    };
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| invalid("a head that is no text"))?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    match (status, length) {
        (Some(status), Some(content_length)) => Ok(Some(Head { status, len: end + 4, content_length })),
        _ => Err(invalid("an answer without a status and a Content-Length")),
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The bytes of a GET.
pub(super) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").into_bytes()
}

/// The bytes of a POST of JSON.
pub(super) fn post(path: &str, json: &str) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n");
    format!("{head}Content-Length: {}\r\n\r\n{json}", json.len()).into_bytes()
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

/// One connection with one request at a time.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
}

impl Client {
    pub(super) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self { stream })
    }

    pub(super) fn ask(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.stream.write_all(request)?;
        let (mut bytes, mut part) = (Vec::new(), [0; 64 << 10]);
        loop {
            let n_read = match self.stream.read(&mut part) {
                // Somebody has asked to stop: that is looked at later.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if n_read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes.extend_from_slice(&part[..n_read]);
            if let Some(head) = head(&bytes)?
                && bytes.len() >= head.len + head.content_length
            {
                let text = String::from_utf8_lossy(&bytes[..head.len]).into_owned();
                let body = bytes[head.len..head.len + head.content_length].to_vec();
                return Ok(Answer { status: head.status, head: text, body });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_when_it_is_whole() {
        let bytes = b"HTTP/1.1 404 Not Found\r\nx: y\r\ncontent-LENGTH: 12\r\n\r\nhello";
        assert_eq!(head(bytes).expect("a head"), Some(Head { status: 404, len: 52, content_length: 12 }));
        assert_eq!(head(&bytes[..30]).expect("a part"), None);
        assert!(head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(head(&[b'x'; HEAD_BYTES_MAX + 1]).is_err());
    }
}
