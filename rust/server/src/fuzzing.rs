//! What fuzz targets run, one function each: bytes that others wrote go in, and nothing but an
//! orderly answer may come out. `rust/fuzz` feeds them, and the tests below replay its files.

use std::path::Path;

use bytes::Bytes;
use moshi_ctl_core::units::SAMPLE_RATE_HZ;

use crate::config::Config;
use crate::ogg_opus::{OggOpusDecoder, OggOpusError};
use crate::protocol::{self, InMsg};
use crate::token::TokenVerifier;
use crate::tokenizer::TextDecoder;
use crate::{audio_file, ogg};

/// Characters of an answer; what was wrong is quoted in it, but never at length.
const ANSWER_CHARS: usize = 1000;

/// Audio of a file after which a target has seen enough, in samples.
const FILE_SAMPLES: usize = 60 * SAMPLE_RATE_HZ as usize;

/// Samples that are decoded from one piece of a file at most: what a client's claims can make the
/// server hold at a time.
const PIECE_SAMPLES: usize = 4 * SAMPLE_RATE_HZ as usize;

fn assert_one_short_line(answer: &str) {
    assert!(answer.chars().count() <= ANSWER_CHARS, "an answer of {} bytes", answer.len());
    assert!(!answer.contains(char::is_control), "an answer of several lines: {answer:?}");
}

/// A message of a session.
///
/// # Panics
/// When a promise of the decoder's does not hold.
pub fn message(bytes: &[u8]) {
    match protocol::decode(bytes) {
        // Every number, and every byte, takes a byte of the message at least.
        Ok(InMsg::Audio(pcm)) => assert!(pcm.len() < bytes.len()),
        Ok(InMsg::OggOpus(data)) => assert!(data.len() < bytes.len()),
        Ok(InMsg::Init | InMsg::Marker(_)) => {}
        Err(error) => assert_one_short_line(&error.to_string()),
    }
}

/// An Ogg Opus stream in pieces, the first byte saying of which length.
///
/// # Panics
/// When a promise of the decoder's does not hold.
pub fn ogg_opus(bytes: &[u8]) {
    let Some((&piece, stream)) = bytes.split_first() else { return };
    let stream = &with_checksums(stream);
    let in_pieces = opus_pcm(stream, usize::from(piece) + 1);
    let at_once = opus_pcm(stream, stream.len().max(1));
    assert_eq!(in_pieces, at_once, "pieces of {} bytes", usize::from(piece) + 1);
}

/// `bytes`, in which Ogg pages have the checksums they should: a fuzzer does not guess them, and
/// would learn nothing of what is in a page.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut stream = bytes.to_vec();
    let mut rest = stream.as_mut_slice();
    while rest.starts_with(b"OggS")
        && let Some(length) = ogg::page_bytes(rest)
        && length <= rest.len()
    {
        let (page, after) = rest.split_at_mut(length);
        page[ogg::CHECKSUM_AT].fill(0);
        let checksum = ogg::checksum(page);
        page[ogg::CHECKSUM_AT].copy_from_slice(&checksum.to_le_bytes());
        rest = after;
    }
    stream
}

/// How many samples a stream has, a checksum over their bits, and how it ended.
fn opus_pcm(stream: &[u8], piece: usize) -> (usize, u64, Option<OggOpusError>) {
    let mut decoder = OggOpusDecoder::default();
    let (mut samples, mut sum) = (0, 0u64);
    for bytes in stream.chunks(piece) {
        decoder.feed(bytes);
        loop {
            match decoder.next_pcm() {
                Ok(Some(pcm)) => {
                    samples += pcm.len();
                    sum =
                        pcm.iter().fold(sum, |sum, x| sum.rotate_left(5) ^ u64::from(x.to_bits()));
                }
                Ok(None) => break,
                Err(error) => {
                    assert_one_short_line(&error.to_string());
                    return (samples, sum, Some(error));
                }
            }
        }
    }
    (samples, sum, None)
}

/// An audio file.
///
/// # Panics
/// When a promise of the decoder's does not hold.
pub fn audio_file(bytes: &[u8]) {
    let mut samples = 0;
    let decoded = audio_file::decode(Bytes::from(with_checksums(bytes)), |pcm| {
        assert!(pcm.len() <= PIECE_SAMPLES, "{} samples at once", pcm.len());
        samples += pcm.len();
        samples < FILE_SAMPLES
    });
    if let Err(error) = decoded {
        assert_one_short_line(&error.to_string());
    }
}

/// A configuration.
///
/// # Panics
/// When a promise of the reader's does not hold.
pub fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let env = |name: &str| name.starts_with('M').then(|| "value".to_string());
    match Config::parse(&text, Path::new("config.toml"), env) {
        Ok(config) => {
            assert!(!config.modules.is_empty());
            config.summary_json();
            config.files();
        }
        Err(error) => {
            assert_one_short_line(&error.to_string());
            assert_one_short_line(error.hint.as_deref().unwrap_or_default());
            let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
            assert!(error.line.is_none_or(|line| (1..=lines).contains(&line)), "{error}");
        }
    }
}

/// A tokenizer file; its last bytes are also what is decoded with it.
///
/// # Panics
/// When a promise of the reader's does not hold.
pub fn tokenizer(bytes: &[u8]) {
    match TextDecoder::parse(bytes) {
        Ok(decoder) => {
            let tokens: Vec<u32> = bytes.iter().rev().take(64).map(|&b| u32::from(b)).collect();
            decoder.decode(&tokens);
        }
        Err(error) => assert_one_short_line(&error),
    }
}

/// A token: as it is, and as header and claims that are signed.
///
/// # Panics
/// When a token opens that should not.
pub fn token(bytes: &[u8]) {
    let verifier = TokenVerifier::new(SECRET.as_bytes());
    let text = String::from_utf8_lossy(bytes);
    assert!(verifier.check(&text).is_err(), "nobody signed {text:?}");
    if let Some((header, claims)) = text.split_once('\n') {
        // Whether it opens is up to the claims.
        let _ = verifier.check(&made::signed(SECRET, header, claims));
    }
}

const SECRET: &str = "a secret of thirty-two bytes or more";

#[path = "../tests/support/token.rs"]
#[allow(dead_code, clippy::unwrap_used, clippy::duplicate_mod, reason = "shared with tests")]
mod made;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    /// Runs a target over its seeds and over every input that once was too much for it.
    fn replay(target: &str, run: fn(&[u8])) {
        let fuzz = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz"));
        let mut files = 0;
        for folder in ["seeds", "regressions"] {
            let Ok(entries) = fs::read_dir(fuzz.join(folder).join(target)) else { continue };
            for file in entries {
                let file = file.unwrap().path();
                println!("{}", file.display());
                run(&fs::read(file).unwrap());
                files += 1;
            }
        }
        assert!(files > 0, "there are no seeds of {target}");
    }

    #[test]
    fn messages() {
        replay("message", super::message);
    }

    #[test]
    fn ogg_opus_streams() {
        replay("ogg_opus", super::ogg_opus);
    }

    #[test]
    fn audio_files() {
        replay("audio_file", super::audio_file);
    }

    #[test]
    fn configurations() {
        replay("config", super::config);
    }

    #[test]
    fn tokenizers() {
        replay("tokenizer", super::tokenizer);
    }

    #[test]
    fn tokens() {
        replay("token", super::token);
    }
}
