//! The frames on the data port.
//!
//! A frame is its length as four bytes (what follows, little endian), one byte that names its kind, and the body.
//! Numbers are little endian. A router opens a connection with [`Hello`]; the node answers [`Welcome`] or [`Refused`];
//! then requests and answers flow, many at a time, each with the id that the router gave it. A node opens a connection to
//! a seed with [`Join`]; [`Control`] frames follow. The golden frames in `tests/golden` hold the format.

mod answer;
mod codec;
mod control;
mod handoff;
mod many;
mod request;

use bytes::{Buf, Bytes, BytesMut};

pub use answer::{
    Answer, AnswerBody, Entry, Failure, FailureCode, FromNode, MapAnswer, Refused, RegionInfo, Served, Welcome,
};
pub use codec::Etag;
pub use control::{CONTROL_FRAME_BYTES_MAX, Control, IDENTITY_BYTES_MAX, Join};
pub use handoff::{CHUNK_ENTRIES_MAX, Chunk, Handed};
pub use many::{GET_MANY_KEYS_MAX, GetMany, Hit, Hits, HitsWriter, Keys};
pub use request::{Ask, AskRef, GetRef, Hello, Precondition, Pull, Request, RequestBody, TAGS_MAX, Tags, ToNode};

/// Number of this protocol; a peer that speaks another one is refused.
pub const PROTOCOL: u16 = 1;
/// First bytes of every connection, so that a stray client is told apart from an old one.
pub const MAGIC: [u8; 4] = *b"dcch";
/// Longest frame that a node accepts as the first of a connection.
pub const GREETING_FRAME_BYTES_MAX: usize = 64 * 1024;
/// Largest value that is served or written.
pub const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest frame that a node accepts: the largest value and what goes around it.
pub const REQUEST_FRAME_BYTES_MAX: usize = VALUE_BYTES_MAX + 64 * 1024;
/// Longest frame that a router accepts: the largest value and what goes around it.
pub const ANSWER_FRAME_BYTES_MAX: usize = VALUE_BYTES_MAX + 64 * 1024;

const LENGTH_BYTES: usize = 4;
/// Room made at a time, so that one read can bring many frames.
const READ_BYTES: usize = 64 * 1024;
/// With less room than this, more is made.
const ROOM_BYTES_MIN: usize = 16 * 1024;
/// Of a long frame that is announced, so much is believed at a time.
const BELIEVED_BYTES_MAX: usize = 1024 * 1024;

/// Why bytes are no frame. Whoever meets one closes the connection: what follows cannot be told apart any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Longer than the reader accepts.
    #[error("a frame of {len} bytes is longer than {max}")]
    TooLong {
        /// Bytes announced.
        len: usize,
        /// Bytes accepted.
        max: usize,
    },
    /// The body ends before its last field, or goes on after it.
    #[error("a frame of kind {kind} has the wrong length")]
    Length {
        /// Its kind.
        kind: u8,
    },
    /// No such kind.
    #[error("there are no frames of kind {0} in this direction")]
    Kind(u8),
    /// A field that cannot have this content.
    #[error("a frame has a {0} that is none")]
    Field(&'static str),
    /// The first frame was something else.
    #[error("the connection did not begin with a greeting")]
    NoGreeting,
}

impl WireError {
    /// The kind of mistake in one word, for a metric's label.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "too_long",
            Self::Length { .. } => "length",
            Self::Kind(_) => "kind",
            Self::Field(_) => "field",
            Self::NoGreeting => "no_greeting",
        }
    }
}

/// Cuts a stream of bytes into frames. Holds at most one frame's bound and one read.
#[derive(Debug)]
pub struct FrameReader {
    buffer: BytesMut,
    frame_bytes_max: usize,
}

impl FrameReader {
    /// A reader that accepts frames up to this length.
    #[must_use]
    pub fn new(frame_bytes_max: usize) -> Self {
        Self { buffer: BytesMut::new(), frame_bytes_max }
    }

    /// Accepts frames up to this length from now on.
    pub const fn accept_up_to(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// Where the next bytes belong.
    pub fn space(&mut self) -> &mut BytesMut {
        let announced = self.announced().map_or(0, |len| LENGTH_BYTES + len.min(self.frame_bytes_max));
        let missing = announced.saturating_sub(self.buffer.len()).clamp(ROOM_BYTES_MIN, BELIEVED_BYTES_MAX);
        if self.buffer.capacity() - self.buffer.len() < missing {
            self.buffer.reserve(missing.max(READ_BYTES));
        }
        &mut self.buffer
    }

    /// Whether a frame has begun that has not ended.
    #[must_use]
    pub fn is_midway(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The next whole frame, its length taken off; `None` until more bytes come.
    ///
    /// # Errors
    /// [`WireError::TooLong`] as soon as the length is known.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, WireError> {
        let Some(len) = self.whole()? else { return Ok(None) };
        self.buffer.advance(LENGTH_BYTES);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }

    /// The next whole frame where it lies: it stays the next one until it is [skipped](FrameReader::skip).
    ///
    /// # Errors
    /// As [`FrameReader::next_frame`].
    pub fn peek(&self) -> Result<Option<&[u8]>, WireError> {
        Ok(self.whole()?.map(|len| &self.buffer[LENGTH_BYTES..LENGTH_BYTES + len]))
    }

    /// Passes over the frame that was peeked at.
    pub fn skip(&mut self) {
        if let Ok(Some(len)) = self.whole() {
            self.buffer.advance(LENGTH_BYTES + len);
        }
    }

    /// The length of the next frame, if all of it is there.
    fn whole(&self) -> Result<Option<usize>, WireError> {
        match self.announced() {
            Some(len) if len > self.frame_bytes_max => Err(WireError::TooLong { len, max: self.frame_bytes_max }),
            Some(len) if self.buffer.len() >= LENGTH_BYTES + len => Ok(Some(len)),
            _ => Ok(None),
        }
    }

    fn announced(&self) -> Option<usize> {
        let length = self.buffer.first_chunk::<LENGTH_BYTES>()?;
        Some(usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_cut_wherever_the_reads_end() {
        let stream = [&[3, 0, 0, 0, 1, 2, 3][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 9]].concat();
        for cut in 0..stream.len() {
            let mut reader = FrameReader::new(3);
            let mut frames = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                reader.space().extend_from_slice(part);
                while let Some(frame) = reader.peek().expect("short frames").map(<[u8]>::to_vec) {
                    frames.push(frame);
                    match frames.len() % 2 {
                        0 => reader.skip(),
                        _ => assert_eq!(
                            reader.next_frame().expect("as above").as_deref(),
                            frames.last().map(|last| &**last)
                        ),
                    }
                }
            }
            assert_eq!(frames, [vec![1, 2, 3], vec![], vec![9]], "cut at {cut}");
            assert!(!reader.is_midway());
        }
    }

    #[test]
    fn a_long_frame_is_refused_before_its_bytes_come() {
        let mut reader = FrameReader::new(3);
        reader.space().extend_from_slice(&[4, 0, 0, 0]);
        assert_eq!(reader.next_frame(), Err(WireError::TooLong { len: 4, max: 3 }));
    }
}
