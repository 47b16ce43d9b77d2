//! Writes Ogg Opus with any packet duration and any number of packets per page.

use opusic_c::{Application, Channels, Encoder, SampleRate};

const RATE_HZ: usize = 48_000;
pub const PRE_SKIP: usize = 312;

/// `pcm` at 48 kHz, interleaved, in packets of `packet_samples` per channel.
pub fn encode(pcm: &[f32], channels: usize, packet_samples: usize, per_page: usize) -> Vec<u8> {
    let layout = if channels == 2 { Channels::Stereo } else { Channels::Mono };
    let mut encoder = Encoder::new(layout, SampleRate::Hz48000, Application::Audio).unwrap();
    // The encoder lags by the pre-skip, so that much silence pushes the last samples out of it.
    let samples = pcm.len() / channels;
    let pcm = [pcm, &vec![0.0; PRE_SKIP * channels]].concat();
    let packets: Vec<Vec<u8>> = pcm
        .chunks(packet_samples * channels)
        .map(|chunk| {
            let mut chunk = chunk.to_vec();
            chunk.resize(packet_samples * channels, 0.0);
            let mut packet = vec![0; 8000];
            let length = encoder.encode_float_to_slice(&chunk, &mut packet).unwrap();
            packet.truncate(length);
            packet
        })
        .collect();
    let mut head = b"OpusHead\x01".to_vec();
    head.push(channels as u8);
    head.extend((PRE_SKIP as u16).to_le_bytes());
    head.extend((RATE_HZ as u32).to_le_bytes());
    head.extend([0, 0, 0]);
    // A comment packet over several pages, as one with a picture is.
    let mut tags = b"OpusTags".to_vec();
    tags.resize(100_000, 7);

    let mut out = Vec::new();
    let mut number = 0;
    write_packet_pages(&mut out, &mut number, &[&head], 2, 0);
    write_packet_pages(&mut out, &mut number, &[&tags], 0, 0);
    let pages = packets.chunks(per_page);
    let last = pages.len().saturating_sub(1);
    let mut granule = 0;
    for (i, page) in pages.enumerate() {
        granule += page.len() * packet_samples;
        let end = (samples + PRE_SKIP) as u64;
        let (flags, granule) =
            if i == last { (4, end.min(granule as u64)) } else { (0, granule as u64) };
        let page: Vec<&[u8]> = page.iter().map(Vec::as_slice).collect();
        write_packet_pages(&mut out, &mut number, &page, flags, granule);
    }
    out
}

/// Writes packets into as many pages as their segments need.
fn write_packet_pages(
    out: &mut Vec<u8>,
    number: &mut u32,
    packets: &[&[u8]],
    flags: u8,
    granule: u64,
) {
    let mut table = Vec::new();
    for packet in packets {
        table.extend(std::iter::repeat_n(255u8, packet.len() / 255));
        table.push((packet.len() % 255) as u8);
    }
    let body = packets.concat();
    let mut rest = body.as_slice();
    let mut continued = 0;
    let pages = table.chunks(255).count();
    for (i, table) in table.chunks(255).enumerate() {
        let (data, after) = rest.split_at(table.iter().map(|&n| usize::from(n)).sum());
        rest = after;
        let last_flag = if i + 1 == pages { flags & 4 } else { 0 };
        let mut page = b"OggS\0".to_vec();
        page.push(continued | last_flag | (flags & 2));
        page.extend(granule.to_le_bytes());
        page.extend(77u32.to_le_bytes());
        page.extend(number.to_le_bytes());
        page.extend(0u32.to_le_bytes());
        page.push(table.len() as u8);
        page.extend(table);
        page.extend(data);
        let crc = checksum(&page);
        page[22..26].copy_from_slice(&crc.to_le_bytes());
        out.extend(page);
        *number += 1;
        continued = u8::from(table.last() == Some(&255));
    }
}

/// CRC-32 as RFC 3533 wants it, bit by bit.
fn checksum(page: &[u8]) -> u32 {
    page.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ (u32::from(byte) << 24), |crc: u32, _| {
            (crc << 1) ^ if crc >> 31 == 1 { 0x04c1_1db7 } else { 0 }
        })
    })
}
