//! Ogg pages and the packets in them (RFC 3533), from bytes that come in any pieces.

use std::collections::VecDeque;

use crate::limits::OGG_PACKET_BYTES;

const CAPTURE_PATTERN: &[u8] = b"OggS";
/// Bytes of a page before its table of segments.
const HEADER_BYTES: usize = 27;
pub(crate) const CHECKSUM_AT: std::ops::Range<usize> = 22..26;
/// A segment of this length says that the packet goes on in the next.
const FULL_SEGMENT: u8 = 255;

/// What makes a stream unreadable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OggError {
    #[error("not an Ogg stream: no page where one should begin")]
    NoPage,
    #[error("damaged Ogg page: its checksum is wrong")]
    Checksum,
    #[error("an Ogg packet of over {OGG_PACKET_BYTES} bytes")]
    PacketTooLong,
}

/// One packet of a logical stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) data: Vec<u8>,
    /// The first packet of its logical stream.
    pub(crate) first: bool,
    /// Granule position of the stream's end, where this packet is on the page that says so.
    pub(crate) end: Option<u64>,
}

impl Packet {
    /// How many of the packet's `samples` count, the last of `decoded` in its stream: those before
    /// the stream's end, which is counted in so many `granules` a sample. An end before this very
    /// packet's begin is not one to believe: live encoders write what they like there.
    pub(crate) fn counted(&self, samples: usize, decoded: u64, granules: u64) -> usize {
        let excess = self.end.map_or(0, |end| decoded.saturating_sub(end.div_ceil(granules)));
        if excess < samples as u64 { samples - excess as usize } else { samples }
    }
}

/// Reads the packets of the logical stream that began last; others' pages are skipped.
#[derive(Debug, Default)]
pub(crate) struct PacketReader {
    bytes: VecDeque<u8>,
    serial: Option<[u8; 4]>,
    /// The part of a packet whose rest is on the next page.
    partial: Vec<u8>,
    packets: VecDeque<Packet>,
}

impl PacketReader {
    /// Whether `bytes` begin like an Ogg stream whose first packet begins with `magic`.
    pub(crate) fn first_packet_starts_with(bytes: &[u8], magic: &[u8]) -> bool {
        let mut reader = Self::default();
        reader.feed(&bytes[..bytes.len().min(1024)]);
        matches!(reader.next_packet(), Ok(Some(packet)) if packet.data.starts_with(magic))
    }

    /// Adds the next bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// The next packet that is complete.
    pub(crate) fn next_packet(&mut self) -> Result<Option<Packet>, OggError> {
        while self.packets.is_empty() {
            match self.next_page()? {
                Some(page) => self.read_page(&page)?,
                None => return Ok(None),
            }
        }
        Ok(self.packets.pop_front())
    }

    /// Takes a whole page off the front, once it is there.
    fn next_page(&mut self) -> Result<Option<Vec<u8>>, OggError> {
        if !self.bytes.iter().zip(CAPTURE_PATTERN).all(|(found, expected)| found == expected) {
            return Err(OggError::NoPage);
        }
        let Some(&segments) = self.bytes.get(HEADER_BYTES - 1) else { return Ok(None) };
        let body = HEADER_BYTES + usize::from(segments);
        if self.bytes.len() < body {
            return Ok(None);
        }
        let body_bytes: usize = self.bytes.range(HEADER_BYTES..body).map(|&n| usize::from(n)).sum();
        if self.bytes.len() < body + body_bytes {
            return Ok(None);
        }
        let mut page: Vec<u8> = self.bytes.drain(..body + body_bytes).collect();
        let mut claimed = [0; 4];
        claimed.copy_from_slice(&page[CHECKSUM_AT]);
        page[CHECKSUM_AT].fill(0);
        if u32::from_le_bytes(claimed) != checksum(&page) {
            return Err(OggError::Checksum);
        }
        Ok(Some(page))
    }

    fn read_page(&mut self, page: &[u8]) -> Result<(), OggError> {
        let flags = page[5];
        let (continued, first, last) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
        let mut granule = [0; 8];
        granule.copy_from_slice(&page[6..14]);
        let end = last.then_some(u64::from_le_bytes(granule));
        let mut serial = [0; 4];
        serial.copy_from_slice(&page[14..18]);
        if first {
            self.serial = Some(serial);
            self.partial.clear();
        } else if self.serial != Some(serial) {
            return Ok(());
        }
        if !continued {
            self.partial.clear();
        }
        // The rest of a packet whose beginning was never seen is of no use.
        let mut orphan = continued && self.partial.is_empty();
        let segments = usize::from(page[HEADER_BYTES - 1]);
        let (table, mut rest) = page[HEADER_BYTES..].split_at(segments);
        let mut is_first = first;
        for &length in table {
            let (segment, after) = rest.split_at(usize::from(length));
            rest = after;
            self.partial.extend(segment);
            if self.partial.len() > OGG_PACKET_BYTES {
                return Err(OggError::PacketTooLong);
            }
            if length < FULL_SEGMENT {
                let data = std::mem::take(&mut self.partial);
                if !std::mem::take(&mut orphan) {
                    self.packets.push_back(Packet { data, first: is_first, end });
                    is_first = false;
                }
            }
        }
        if orphan {
            self.partial.clear();
        }
        Ok(())
    }
}

/// The checksum of RFC 3533, appendix: CRC-32 with polynomial 0x04c11db7, nothing reflected.
pub(crate) fn checksum(page: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = (byte as u32) << 24;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & (1 << 31) != 0 { (crc << 1) ^ 0x04c1_1db7 } else { crc << 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    page.iter().fold(0, |crc, &byte| (crc << 8) ^ TABLE[usize::from((crc >> 24) as u8 ^ byte)])
}

/// The length of the page that `bytes` begin with, as its table of segments says, once that is there.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn page_bytes(bytes: &[u8]) -> Option<usize> {
    let table_end = HEADER_BYTES + usize::from(*bytes.get(HEADER_BYTES - 1)?);
    let table = bytes.get(HEADER_BYTES..table_end)?;
    Some(table_end + table.iter().map(|&n| usize::from(n)).sum::<usize>())
}
