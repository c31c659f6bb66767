//! A block of record headers, column by column.

use crate::bytes::{Take, put_signed, put_varint};
use crate::error::FormatError;
use crate::pos::{Checksum, PageSize, Timeline, Txid};
use crate::record::{RecordHeader, VERSION};
use crate::sealed::limit;

/// Records in each block but the last.
pub(crate) const RECORDS_PER_BLOCK: usize = limit(256, 4);

/// Version of a block whose records do not follow each other: each stands for all that were merged into it.
const GAPS: u64 = 2;

/// Writes headers that follow each other, at least one; with `gaps`, each follows the one before at some distance.
pub(crate) fn encode(headers: &[RecordHeader], gaps: bool, out: &mut Vec<u8>) {
    let before = headers.first().copied().unwrap_or_default();
    put_varint(out, if gaps { GAPS } else { u64::from(VERSION) });
    put_varint(out, headers.len() as u64);
    put_varint(out, u64::from(before.pre_page_size));
    put_varint(out, u64::from(before.pre_page_count));
    out.extend_from_slice(&before.pre_checksum.0.to_le_bytes());
    let mut column = |put: &dyn Fn(&mut Vec<u8>, &RecordHeader, &RecordHeader)| {
        let mut last = &RecordHeader::default();
        for header in headers {
            put(out, last, header);
            last = header;
        }
    };
    if gaps {
        column(&|out, last, h| put_varint(out, h.txid.0.wrapping_sub(last.txid.0)));
    }
    column(&|out, _, h| put_varint(out, u64::from(h.flags)));
    column(&|out, _, h| put_varint(out, u64::from(h.page_size.get().trailing_zeros())));
    column(&|out, last, h| put_signed(out, h.timeline.0.wrapping_sub(last.timeline.0) as i64));
    column(&|out, last, h| put_varint(out, h.time_us.wrapping_sub(last.time_us)));
    column(&|out, last, h| put_signed(out, i64::from(h.page_count) - i64::from(last.page_count)));
    column(&|out, last, h| put_varint(out, u64::from(h.wal.salt[0] ^ last.wal.salt[0])));
    column(&|out, last, h| put_varint(out, u64::from(h.wal.salt[1] ^ last.wal.salt[1])));
    column(&|out, last, h| put_signed(out, i64::from(h.wal.frame) - i64::from(last.wal.frame)));
    column(&|out, _, h| put_varint(out, u64::from(h.patch_count)));
    column(&|out, _, h| put_varint(out, h.body_len));
    column(&|out, last, h| {
        put_signed(
            out,
            i64::from(h.change_counter) - i64::from(last.change_counter),
        );
    });
    column(&|out, _, h| out.extend_from_slice(&h.post_checksum.0.to_le_bytes()));
    column(&|out, _, h| out.extend_from_slice(&h.body_hash.to_le_bytes()));
    column(&|out, last, h| {
        let same = h.wal.checksum == last.wal.checksum;
        out.push(u8::from(!same));
        if !same {
            out.extend_from_slice(&h.wal.checksum[0].to_le_bytes());
            out.extend_from_slice(&h.wal.checksum[1].to_le_bytes());
        }
    });
}

/// Headers of consecutive records.
pub(crate) struct RecordBlock {
    pub(crate) headers: Vec<RecordHeader>,
    /// Where each record begins, counted from the first one's begin; one more at the end.
    pub(crate) starts: Vec<u64>,
}

impl RecordBlock {
    /// Bytes of memory.
    pub(crate) fn cost(&self) -> usize {
        self.headers.capacity() * size_of::<RecordHeader>() + self.starts.capacity() * 8
    }

    /// Reads a block back whose first transaction is `first`.
    pub(crate) fn decode(raw: &[u8], first: Txid, gaps: bool) -> Result<RecordBlock, FormatError> {
        let mut take = Take::new(raw);
        let version = take.varint()?;
        if version != if gaps { GAPS } else { u64::from(VERSION) } {
            return Err(FormatError::Version(version as u16));
        }
        let count = take.varint()? as usize;
        if count == 0 || count > RECORDS_PER_BLOCK {
            return Err(FormatError::Invalid("an impossible number of records"));
        }
        let mut headers = vec![RecordHeader::default(); count];
        if let Some(header) = headers.first_mut() {
            header.pre_page_size = take.varint32()?;
            header.pre_page_count = take.varint32()?;
            header.pre_checksum = Checksum(take.u64()?);
        }
        if gaps {
            column(&mut take, &mut headers, |take, last, h| {
                h.txid = Txid(last.txid.0.wrapping_add(take.varint()?));
                Ok(())
            })?;
        }
        decode_columns(&mut take, &mut headers)?;
        if !take.is_empty() {
            return Err(FormatError::Invalid("bytes behind the block's last record"));
        }
        let mut starts = vec![0];
        let mut end = 0u64;
        let mut last: Option<RecordHeader> = None;
        for (index, header) in headers.iter_mut().enumerate() {
            if gaps {
                let in_order = match last {
                    Some(last) => last.txid < header.txid,
                    None => header.txid == first,
                };
                if !in_order {
                    return Err(FormatError::Invalid("transactions not in order"));
                }
            } else {
                let txid = first.0.checked_add(index as u64);
                header.txid =
                    Txid(txid.ok_or(FormatError::Invalid("a transaction out of bounds"))?);
            }
            if let Some(last) = last {
                header.pre_page_size = last.page_size.get();
                header.pre_page_count = last.page_count;
                header.pre_checksum = last.post_checksum;
            }
            // What is left of a merged record's patches may be longer than whole pages.
            header.check_but_body()?;
            if !gaps {
                header.check()?;
            }
            end = end.saturating_add(header.record_len());
            starts.push(end);
            last = Some(*header);
        }
        Ok(RecordBlock { headers, starts })
    }
}

/// Reads one column: what `read` takes for each record, beside the record before.
fn column(
    take: &mut Take<'_>,
    headers: &mut [RecordHeader],
    read: impl Fn(&mut Take<'_>, &RecordHeader, &mut RecordHeader) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    if let Some(first) = headers.first_mut() {
        read(take, &RecordHeader::default(), first)?;
    }
    for index in 1..headers.len() {
        let (before, rest) = headers.split_at_mut(index);
        if let (Some(last), Some(header)) = (before.last(), rest.first_mut()) {
            read(take, last, header)?;
        }
    }
    Ok(())
}

fn decode_columns(take: &mut Take<'_>, headers: &mut [RecordHeader]) -> Result<(), FormatError> {
    column(take, headers, |take, _, h| {
        h.flags = u16::try_from(take.varint()?).map_err(|_| OUT)?;
        Ok(())
    })?;
    column(take, headers, |take, _, h| {
        let bits = take.varint32()?;
        let size = 1u32.checked_shl(bits).and_then(PageSize::new);
        h.page_size = size.ok_or(FormatError::Invalid("impossible page size"))?;
        Ok(())
    })?;
    column(take, headers, |take, last, h| {
        h.timeline = Timeline(last.timeline.0.wrapping_add(take.signed()? as u64));
        Ok(())
    })?;
    column(take, headers, |take, last, h| {
        h.time_us = last.time_us.wrapping_add(take.varint()?);
        Ok(())
    })?;
    column(take, headers, |take, last, h| {
        h.page_count = moved(last.page_count, take)?;
        Ok(())
    })?;
    column(take, headers, |take, last, h| {
        h.wal.salt[0] = last.wal.salt[0] ^ take.varint32()?;
        Ok(())
    })?;
    column(take, headers, |take, last, h| {
        h.wal.salt[1] = last.wal.salt[1] ^ take.varint32()?;
        Ok(())
    })?;
    decode_counts_and_hashes(take, headers)
}

fn decode_counts_and_hashes(
    take: &mut Take<'_>,
    headers: &mut [RecordHeader],
) -> Result<(), FormatError> {
    column(take, headers, |take, last, h| {
        h.wal.frame = moved(last.wal.frame, take)?;
        Ok(())
    })?;
    column(take, headers, |take, _, h| {
        h.patch_count = take.varint32()?;
        Ok(())
    })?;
    column(take, headers, |take, _, h| {
        h.body_len = take.varint()?;
        Ok(())
    })?;
    column(take, headers, |take, last, h| {
        h.change_counter = moved(last.change_counter, take)?;
        Ok(())
    })?;
    column(take, headers, |take, _, h| {
        h.post_checksum = Checksum(take.u64()?);
        Ok(())
    })?;
    column(take, headers, |take, _, h| {
        h.body_hash = take.u64()?;
        Ok(())
    })?;
    column(take, headers, |take, last, h| {
        h.wal.checksum = match take.array()? {
            [0] => last.wal.checksum,
            [1] => [take.u32()?, take.u32()?],
            _ => return Err(OUT),
        };
        Ok(())
    })
}

const OUT: FormatError = FormatError::Invalid("a field out of bounds");

/// A 32-bit field that is stored as the difference to the record before.
fn moved(last: u32, take: &mut Take<'_>) -> Result<u32, FormatError> {
    let value = i64::from(last).checked_add(take.signed()?);
    value.and_then(|value| u32::try_from(value).ok()).ok_or(OUT)
}
