//! Fixed-size structures, field by field: [`Put`] writes what [`Take`] reads, both little-endian.

use crate::error::FormatError;

/// Reads fields from the front of a byte slice.
pub(crate) struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Take<'a> {
        Take(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(FormatError::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reserved bytes: zero in this version, and refused otherwise.
    pub(crate) fn zeros<const N: usize>(&mut self) -> Result<(), FormatError> {
        if self.array::<N>()? == [0; N] {
            Ok(())
        } else {
            Err(FormatError::Invalid("reserved bytes are not zero"))
        }
    }
}

/// Writes fields one after the other into an array of exactly the structure's size.
pub(crate) struct Put<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Put<N> {
    pub(crate) fn new() -> Put<N> {
        Put {
            bytes: [0; N],
            at: 0,
        }
    }

    pub(crate) fn slice(mut self, field: &[u8]) -> Put<N> {
        let end = self.at + field.len();
        if let Some(place) = self.bytes.get_mut(self.at..end) {
            place.copy_from_slice(field);
        }
        self.at = end;
        self
    }

    pub(crate) fn u16(self, value: u16) -> Put<N> {
        self.slice(&value.to_le_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Put<N> {
        self.slice(&value.to_le_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Put<N> {
        self.slice(&value.to_le_bytes())
    }

    pub(crate) fn zeros(mut self, count: usize) -> Put<N> {
        self.at += count;
        self
    }

    /// The bytes written so far: what a checksum field that comes next covers.
    pub(crate) fn so_far(&self) -> &[u8] {
        self.bytes.get(..self.at).unwrap_or(&self.bytes)
    }

    /// The finished structure; every field was written, no more and no less.
    pub(crate) fn done(self) -> [u8; N] {
        debug_assert_eq!(self.at, N, "the fields do not add up to the structure");
        self.bytes
    }
}
