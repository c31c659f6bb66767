//! The bytes of SQLite's WAL file: header, frame headers, checksums (fileformat2, section 4).

/// Bytes of the file's header.
pub(super) const HEADER_BYTES: usize = 32;
/// Bytes of a frame's header, before its page.
pub(super) const FRAME_HEADER_BYTES: usize = 24;
/// The only version of WAL and wal-index there is.
pub(super) const VERSION: u32 = 3_007_000;

/// First four bytes; the lowest bit says that checksums take words as big-endian.
const MAGIC: u32 = 0x377f_0682;

/// What the file's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Whether checksums take words as big-endian.
    pub big_endian: bool,
    /// 512 to 65536.
    pub page_size: u32,
    /// Counts the restarts of this file.
    pub sequence: u32,
    /// Repeated in each frame: a frame with other salts belongs to an earlier generation.
    pub salt: [u8; 8],
}

impl Header {
    /// The header's bytes, its checksum last. The first frame's checksum goes on from that.
    pub fn encode(&self) -> ([u8; HEADER_BYTES], [u32; 2]) {
        let mut bytes = [0u8; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&(MAGIC | u32::from(self.big_endian)).to_be_bytes());
        bytes[4..8].copy_from_slice(&VERSION.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.page_size.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.salt);
        let sum = checksum(self.big_endian, &bytes[..24], [0, 0]);
        bytes[24..28].copy_from_slice(&sum[0].to_be_bytes());
        bytes[28..32].copy_from_slice(&sum[1].to_be_bytes());
        (bytes, sum)
    }

    /// Reads a header; `None` if it is not one that SQLite would believe.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<(Header, [u32; 2])> {
        let magic = be32(bytes, 0);
        let header = Header {
            big_endian: magic & 1 == 1,
            page_size: be32(bytes, 8),
            sequence: be32(bytes, 12),
            salt: [
                bytes[16], bytes[17], bytes[18], bytes[19], bytes[20], bytes[21], bytes[22],
                bytes[23],
            ],
        };
        let (again, sum) = header.encode();
        let sane = header.page_size.is_power_of_two() && (512..=65536).contains(&header.page_size);
        (magic & !1 == MAGIC && sane && again == *bytes).then_some((header, sum))
    }
}

/// Puts a frame together: header and page into `out`, and gives the running checksum after it. `commit_pages` is the
/// size of the database in pages for the last frame of a transaction, 0 for the others.
pub(super) fn encode_frame(
    out: &mut Vec<u8>,
    big_endian: bool,
    salt: &[u8; 8],
    pgno: u32,
    commit_pages: u32,
    page: &[u8],
    before: [u32; 2],
) -> [u32; 2] {
    let mut header = [0u8; FRAME_HEADER_BYTES];
    header[0..4].copy_from_slice(&pgno.to_be_bytes());
    header[4..8].copy_from_slice(&commit_pages.to_be_bytes());
    header[8..16].copy_from_slice(salt);
    let sum = checksum(big_endian, page, checksum(big_endian, &header[..8], before));
    header[16..20].copy_from_slice(&sum[0].to_be_bytes());
    header[20..24].copy_from_slice(&sum[1].to_be_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(page);
    sum
}

/// Byte offset of a frame (its header), counted from 1.
pub(super) fn frame_offset(frame: u32, page_size: u32) -> u64 {
    HEADER_BYTES as u64
        + (u64::from(frame) - 1) * (u64::from(page_size) + FRAME_HEADER_BYTES as u64)
}

/// SQLite's running checksum over `data`, whose length is a multiple of 8.
pub(super) fn checksum(big_endian: bool, data: &[u8], before: [u32; 2]) -> [u32; 2] {
    if big_endian {
        sum_words(data, before, u32::from_be_bytes)
    } else {
        sum_words(data, before, u32::from_le_bytes)
    }
}

#[inline]
fn sum_words(data: &[u8], before: [u32; 2], word: impl Fn([u8; 4]) -> u32) -> [u32; 2] {
    let [mut s1, mut s2] = before;
    for pair in data.as_chunks::<8>().0 {
        let [a, b, c, d, e, f, g, h] = *pair;
        s1 = s1.wrapping_add(word([a, b, c, d])).wrapping_add(s2);
        s2 = s2.wrapping_add(word([e, f, g, h])).wrapping_add(s1);
    }
    [s1, s2]
}

/// The big-endian number at byte `offset`; 0 beyond the end.
pub(super) fn be32(bytes: &[u8], offset: usize) -> u32 {
    match bytes.get(offset..offset + 4) {
        Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_and_a_changed_one_does_not() {
        let header = Header {
            big_endian: false,
            page_size: 65536,
            sequence: 7,
            salt: [1, 2, 3, 4, 5, 6, 7, 8],
        };
        let (bytes, sum) = header.encode();
        assert_eq!(Header::decode(&bytes), Some((header, sum)));
        for at in 0..HEADER_BYTES {
            let mut other = bytes;
            other[at] ^= 1;
            assert_eq!(Header::decode(&other), None, "byte {at}");
        }
    }

    #[test]
    fn the_checksum_is_sqlites() {
        // Two words, by hand: s1 = 1 + 0, s2 = 2 + s1; then s1 += 3 + s2, s2 += 4 + s1.
        let mut data = [0u8; 16];
        for (n, word) in data.chunks_mut(4).enumerate() {
            word[0] = n as u8 + 1;
        }
        assert_eq!(checksum(false, &data, [0, 0]), [7, 14]);
        data.chunks_mut(4).for_each(<[u8]>::reverse);
        assert_eq!(checksum(true, &data, [0, 0]), [7, 14]);
    }
}
