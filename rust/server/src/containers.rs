//! Files with nothing but audio in them. Titles and pictures are of no use here, and a reader that
//! collects them takes a kilobyte for every tag of ten bytes.

use bytes::Bytes;

const WAV_MAGIC: &[u8] = b"RIFF";
const FLAC_MAGIC: &[u8] = b"fLaC";
const ID3_MAGIC: &[u8] = b"ID3";
const ID3_HEADER_BYTES: usize = 10;
const STREAM_INFO_BYTES: usize = 34;

/// What a file is, by what it begins with.
pub(crate) enum Container {
    Wav(Bytes),
    Flac(Bytes),
    /// Something else.
    Other(Bytes),
}

impl Container {
    /// The file without its metadata. Takes no memory where nobody else holds the file.
    ///
    /// # Errors
    /// Why there is no audio in it; meant for the client.
    pub(crate) fn of(file: Bytes) -> Result<Self, &'static str> {
        let file = without_id3(file);
        if file.starts_with(WAV_MAGIC) {
            let (audio_at, header) =
                wav_header(&file).ok_or("its chunks do not lead to audio of a known format")?;
            Ok(Self::Wav(with_header(file, audio_at, &header)))
        } else if file.starts_with(FLAC_MAGIC) {
            let (audio_at, header) =
                flac_header(&file).ok_or("its metadata does not lead to audio")?;
            Ok(Self::Flac(with_header(file, audio_at, &header)))
        } else {
            Ok(Self::Other(file))
        }
    }
}

/// The file from `audio_at` on, after `header`, which is no longer than what was there.
fn with_header(file: Bytes, audio_at: usize, header: &[u8]) -> Bytes {
    let start = audio_at - header.len();
    let mut file = Vec::from(file);
    file[start..audio_at].copy_from_slice(header);
    Bytes::from(file).slice(start..)
}

/// Passes the tags that MP3s, and now and then others, begin with (ID3v2, 3.1).
fn without_id3(mut file: Bytes) -> Bytes {
    while file.starts_with(ID3_MAGIC) && file.len() >= ID3_HEADER_BYTES {
        let size = file[6..10].iter().fold(0, |size, byte| size << 7 | usize::from(byte & 0x7f));
        let footer = if file[5] & 0x10 == 0 { 0 } else { ID3_HEADER_BYTES };
        let end = ID3_HEADER_BYTES + size + footer;
        if end > file.len() {
            break;
        }
        file = file.slice(end..);
    }
    file
}

/// Where the samples of a WAV file begin, and a header that says no more than what they are.
fn wav_header(file: &[u8]) -> Option<(usize, Vec<u8>)> {
    if file.get(8..12)? != b"WAVE" {
        return None;
    }
    let (mut at, mut format) = (12, None);
    loop {
        let tag = file.get(at..at + 4)?;
        let length: [u8; 4] = file.get(at + 4..at + 8)?.try_into().ok()?;
        let bytes = u32::from_le_bytes(length) as usize;
        let body = at + 8;
        match tag {
            b"fmt " => format = Some(wav_format(file.get(body..body.checked_add(bytes)?)?)?),
            b"data" => {
                let format = format?;
                // Lengths that are not known, as of a stream.
                let mut header = b"RIFF\xff\xff\xff\xffWAVEfmt ".to_vec();
                header.extend((format.len() as u32).to_le_bytes());
                header.extend(format);
                header.extend(b"data");
                header.extend(length);
                return Some((body, header));
            }
            _ => {}
        }
        at = body.checked_add(bytes)?.checked_next_multiple_of(2)?;
    }
}

/// The format, of exactly the length a reader will take.
fn wav_format(body: &[u8]) -> Option<Vec<u8>> {
    match body.len() {
        16 => Some(body.to_vec()),
        // With the length of an extension, which is none.
        18 => Some([&body[..16], &[0, 0]].concat()),
        40.. => Some(body[..40].to_vec()),
        _ => None,
    }
}

/// Where the frames of a FLAC file begin, and a header with nothing but the stream's parameters.
fn flac_header(file: &[u8]) -> Option<(usize, Vec<u8>)> {
    let mut at = FLAC_MAGIC.len();
    let mut header = None;
    loop {
        let &[kind, a, b, c] = file.get(at..at + 4)? else { return None };
        let body = at + 4;
        at = body + u32::from_be_bytes([0, a, b, c]) as usize;
        // Its parameters are the first block of a file, and of type 0.
        if header.is_none() {
            let info = file.get(body..at).filter(|info| info.len() == STREAM_INFO_BYTES)?;
            let last = [0x80, 0, 0, STREAM_INFO_BYTES as u8];
            header = (kind & 0x7f == 0).then(|| [FLAC_MAGIC, &last, info].concat());
            header.as_ref()?;
        }
        if kind & 0x80 != 0 {
            return (at <= file.len()).then_some((at, header?));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(name: &str) -> Vec<u8> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/audio_file/");
        std::fs::read(format!("{folder}{name}")).unwrap()
    }

    fn audio(file: &[u8]) -> Bytes {
        match Container::of(Bytes::copy_from_slice(file)).unwrap() {
            Container::Wav(file) | Container::Flac(file) | Container::Other(file) => file,
        }
    }

    #[test]
    fn titles_are_gone_and_audio_is_there() {
        for name in ["pcm16.wav", "mono.flac"] {
            let file = seed(name);
            assert!(file.windows(7).any(|text| text == b"a title"), "{name}");
            let audio = audio(&file);
            assert!(!audio.windows(7).any(|text| text == b"a title"), "{name}");
            assert!(file.ends_with(&audio[100..]), "{name}");
        }
    }

    #[test]
    fn tags_before_a_file_are_passed() {
        let tag = [&b"ID3\x04\0\0\0\0\x01\x02"[..], &[7; 130]].concat();
        let with_footer = [&b"ID3\x04\0\x10\0\0\0\x01"[..], &[7; 11]].concat();
        for name in ["pcm16.wav", "mono.flac", "mono.mp3"] {
            let file = seed(name);
            let tagged = [&tag, &with_footer, &tag, &file].map(Vec::as_slice).concat();
            assert_eq!(audio(&tagged), audio(&file), "{name}");
        }
        let cut = &tag[..100];
        assert_eq!(audio(cut), cut);
    }

    #[test]
    fn files_cut_in_their_headers_have_no_audio() {
        for (name, audio_bytes) in [("pcm16.wav", 3200), ("mono.flac", 0)] {
            let file = seed(name);
            let whole = audio(&file).len();
            let header =
                if audio_bytes > 0 { file.len() - audio_bytes } else { file.len() - whole };
            for length in 4..header {
                assert!(Container::of(file[..length].to_vec().into()).is_err(), "{name}, {length}");
            }
        }
    }
}
