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

    /// A number of variable length, as [`put_varint`] writes it.
    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64, FormatError> {
        // Most have one byte.
        match self.0 {
            [byte, rest @ ..] if *byte < 0x80 => {
                self.0 = rest;
                Ok(u64::from(*byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, FormatError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(FormatError::Invalid("a number of more than 64 bits"))
    }

    /// A number of variable length that must fit 32 bits.
    #[inline]
    pub(crate) fn varint32(&mut self) -> Result<u32, FormatError> {
        u32::try_from(self.varint()?)
            .map_err(|_| FormatError::Invalid("a number of more than 32 bits"))
    }

    /// A signed number, as [`put_signed`] writes it.
    pub(crate) fn signed(&mut self) -> Result<i64, FormatError> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    pub(crate) fn slice(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(FormatError::Short)?;
        self.0 = rest;
        Ok(head)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
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

/// Appends a number in 1 to 10 bytes: seven bits in each, the lowest first, the top bit set in all but the last.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed number: 0, -1, 1, -2, ... as 0, 1, 2, 3, ...
pub(crate) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, (value << 1 ^ value >> 63) as u64);
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

    #[inline]
    pub(crate) fn slice(mut self, field: &[u8]) -> Put<N> {
        let end = self.at + field.len();
        if let Some(place) = self.bytes.get_mut(self.at..end) {
            place.copy_from_slice(field);
        }
        self.at = end;
        self
    }

    /// As [`Put::slice`], of a length that the compiler knows: no call is left.
    #[inline(always)]
    fn array<const M: usize>(mut self, field: [u8; M]) -> Put<N> {
        let place = self.bytes.get_mut(self.at..);
        if let Some(place) = place.and_then(|place| place.first_chunk_mut::<M>()) {
            *place = field;
        }
        self.at += M;
        self
    }

    #[inline]
    pub(crate) fn u16(self, value: u16) -> Put<N> {
        self.array(value.to_le_bytes())
    }

    #[inline]
    pub(crate) fn u32(self, value: u32) -> Put<N> {
        self.array(value.to_le_bytes())
    }

    #[inline]
    pub(crate) fn u64(self, value: u64) -> Put<N> {
        self.array(value.to_le_bytes())
    }

    #[inline]
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
