//! Fields of frames: how each is written and read.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{LENGTH_BYTES, WireError};
use crate::epoch::{Epoch, Term};

/// XXH3-128 of a value: tells two values of one key apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Etag(pub u128);

impl Etag {
    /// The tag of a value.
    #[must_use]
    pub fn of(value: &[u8]) -> Self {
        Self(twox_hash::XxHash3_128::oneshot(value))
    }

    /// As it stands in HTTP: 32 hexadecimal digits in quotes.
    #[must_use]
    pub fn text(self) -> [u8; 34] {
        const DIGITS: [u8; 16] = *b"0123456789abcdef";
        let mut text = [b'"'; 34];
        for (pair, byte) in text[1..33].chunks_exact_mut(2).zip(self.0.to_be_bytes()) {
            pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 0xf)]]);
        }
        text
    }
}

/// As [`Etag::text`].
impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).expect("digits are ASCII"))
    }
}

/// Writes one frame: the kind, then what `body` adds; the length is set in the end.
pub(super) fn frame(out: &mut BytesMut, kind: u8, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u8(kind);
    body(out);
    let len = out.len() - start - LENGTH_BYTES;
    let len = u32::try_from(len).expect("a frame is bounded far below 4 GiB");
    out[start..start + LENGTH_BYTES].copy_from_slice(&len.to_le_bytes());
}

/// Bytes with their length in 16 bits before them. Requires: at most 65,535 bytes.
pub(super) fn put_short(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u16_le(u16::try_from(bytes.len()).expect("names, keys and addresses are bounded below 64 KiB"));
    out.put_slice(bytes);
}

pub(super) fn put_epoch(out: &mut impl BufMut, epoch: Epoch) {
    out.put_u64_le(epoch.term.counter);
    out.put_u16_le(epoch.term.seed);
    out.put_u64_le(epoch.seq);
}

pub(super) const fn yes_or_no(byte: u8) -> Result<bool, WireError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(WireError::Field("yes or no")),
    }
}

/// Takes the fields of one frame in their order.
pub(super) struct Fields {
    kind: u8,
    rest: Bytes,
}

impl Fields {
    /// Begins with the kind.
    pub(super) fn of(mut frame: Bytes) -> Result<Self, WireError> {
        let kind = frame.try_get_u8().map_err(|_| WireError::Length { kind: 0 })?;
        Ok(Self { kind, rest: frame })
    }

    pub(super) const fn kind(&self) -> u8 {
        self.kind
    }

    /// Ends it: nothing may be left.
    pub(super) fn end(self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::Length { kind: self.kind }) }
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        self.rest.try_get_u8().map_err(|_| self.short_of())
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        self.rest.try_get_u16_le().map_err(|_| self.short_of())
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        self.rest.try_get_u32_le().map_err(|_| self.short_of())
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.rest.try_get_u64_le().map_err(|_| self.short_of())
    }

    pub(super) fn u128(&mut self) -> Result<u128, WireError> {
        self.rest.try_get_u128_le().map_err(|_| self.short_of())
    }

    pub(super) fn bool(&mut self) -> Result<bool, WireError> {
        yes_or_no(self.u8()?)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let array = *self.rest.first_chunk::<N>().ok_or(WireError::Length { kind: self.kind })?;
        self.rest.advance(N);
        Ok(array)
    }

    /// Bytes with their length in 16 bits before them.
    pub(super) fn short(&mut self) -> Result<Bytes, WireError> {
        let len = usize::from(self.u16()?);
        if self.rest.len() < len {
            return Err(self.short_of());
        }
        Ok(self.rest.split_to(len))
    }

    /// So many bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<Bytes, WireError> {
        if self.rest.len() < len { Err(self.short_of()) } else { Ok(self.rest.split_to(len)) }
    }

    /// As [`Fields::short`], as a text of this meaning.
    pub(super) fn text(&mut self, what: &'static str) -> Result<String, WireError> {
        String::from_utf8(self.short()?.to_vec()).map_err(|_| WireError::Field(what))
    }

    pub(super) fn epoch(&mut self) -> Result<Epoch, WireError> {
        Ok(Epoch { term: Term { counter: self.u64()?, seed: self.u16()? }, seq: self.u64()? })
    }

    /// All that is left.
    pub(super) fn remainder(&mut self) -> Bytes {
        std::mem::take(&mut self.rest)
    }

    const fn short_of(&self) -> WireError {
        WireError::Length { kind: self.kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_written_in_hexadecimal() {
        for etag in [Etag(0), Etag(u128::MAX), Etag(0x0123_4567_89ab_cdef_0011_2233_4455_6677)] {
            assert_eq!(etag.to_string(), format!("\"{:032x}\"", etag.0));
        }
    }
}
