//! The messages of a session: MessagePack maps whose field `type` names the message.

use moshi_ctl_core::one_line;
use serde::{Deserialize, Serialize};

/// What a client says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum InMsg {
    /// Starts over: the next audio is the beginning of a new stream.
    Init,
    /// Samples at 24 kHz, mono.
    Audio(Vec<f32>),
    /// The next bytes of an Ogg Opus stream.
    OggOpus(Vec<u8>),
    /// Asks to be told when everything before it is transcribed.
    Marker(i64),
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type")]
pub(crate) enum OutMsg {
    /// A lane is ready for a new stream.
    Ready,
    /// A frame was processed; only models with semantic VAD heads say so.
    Step {
        /// Frames processed since the stream's start, this one included.
        step_idx: u64,
        /// One probability per VAD head.
        prs: Vec<f32>,
        /// Samples that wait for their turn.
        buffered_pcm: usize,
    },
    /// A word, and when it began, in seconds since the stream's start.
    Word { text: String, start_time: f64 },
    /// When the last word ended, in seconds since the stream's start.
    EndWord { stop_time: f64 },
    /// The client's marker: everything before it is transcribed.
    Marker { id: i64 },
    /// Why the session ends.
    Error { message: String },
}

impl OutMsg {
    /// The message as the bytes of a WebSocket message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        let mut serializer =
            rmp_serde::Serializer::new(&mut bytes).with_human_readable().with_struct_map();
        // Writing numbers and strings to memory has no way to fail.
        let written = self.serialize(&mut serializer);
        debug_assert!(written.is_ok(), "{written:?}");
        bytes
    }
}

/// Why a message cannot be understood; the text is meant for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("malformed message: {0}")]
    Malformed(String),
    #[error("unknown message type `{0}`; known: Init, Audio, OggOpus, Marker")]
    UnknownType(String),
}

#[derive(Deserialize)]
struct Tag<'a> {
    #[serde(rename = "type", borrow)]
    tag: std::borrow::Cow<'a, str>,
}

#[derive(Deserialize)]
struct Audio {
    #[serde(deserialize_with = "array_of_numbers")]
    pcm: Vec<f32>,
}

#[derive(Deserialize)]
struct OggOpus {
    #[serde(with = "serde_bytes")]
    data: Vec<u8>,
}

#[derive(Deserialize)]
struct Marker {
    id: i64,
}

/// Understands a binary message. Reads it twice, once for the type and once for what that type
/// carries, so that fields may come in any order and audio is never held in a generic form.
/// An array is never allocated by the length it claims, only by the items that are there.
pub(crate) fn decode(bytes: &[u8]) -> Result<InMsg, DecodeError> {
    let tag: Tag<'_> = field(bytes, "a map with a field `type`")?;
    match tag.tag.as_ref() {
        "Init" => Ok(InMsg::Init),
        "Audio" => {
            let Audio { pcm } = field(bytes, "Audio needs `pcm`, an array of numbers")?;
            Ok(InMsg::Audio(pcm))
        }
        "OggOpus" => {
            let OggOpus { data } = field(bytes, "OggOpus needs `data`, bytes")?;
            Ok(InMsg::OggOpus(data))
        }
        "Marker" => {
            let Marker { id } = field(bytes, "Marker needs `id`, an integer of 64 bits")?;
            Ok(InMsg::Marker(id))
        }
        unknown => {
            let quoted: String = unknown.chars().take(32).collect();
            Err(DecodeError::UnknownType(one_line(&quoted)))
        }
    }
}

/// An array and nothing else: `bin` would pass as a list of bytes, and no client means that.
fn array_of_numbers<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Vec<f32>, D::Error> {
    struct Numbers;

    impl<'de> serde::de::Visitor<'de> for Numbers {
        type Value = Vec<f32>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an array of numbers")
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, seq: A) -> Result<Vec<f32>, A::Error> {
            Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(seq))
        }
    }

    input.deserialize_any(Numbers)
}

fn field<'a, T: Deserialize<'a>>(bytes: &'a [u8], expected: &str) -> Result<T, DecodeError> {
    // serde quotes what it found, and that may be a text of megabytes.
    rmp_serde::from_slice(bytes).map_err(|error| {
        DecodeError::Malformed(format!("{expected} ({})", one_line(&error.to_string())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0x80 | fields.len() as u8];
        for (name, value) in fields {
            bytes.push(0xa0 | name.len() as u8);
            bytes.extend(name.as_bytes());
            bytes.extend(*value);
        }
        bytes
    }

    #[test]
    fn numbers_of_any_kind_are_samples() {
        // 0.5 as float32 and float64, then 1, -1 and 200 as integers.
        let mut pcm = vec![0x95, 0xca];
        pcm.extend(0.5f32.to_be_bytes());
        pcm.push(0xcb);
        pcm.extend(0.5f64.to_be_bytes());
        pcm.extend([0x01, 0xff, 0xcc, 200]);
        let expected = InMsg::Audio(vec![0.5, 0.5, 1.0, -1.0, 200.0]);
        let (audio, nested): (&[u8], &[u8]) = (b"\xa5Audio", b"\x81\xa1x\x92\xc0\xc3");
        for message in [
            map(&[("type", audio), ("pcm", &pcm)]),
            map(&[("pcm", &pcm), ("type", audio)]),
            map(&[("extra", nested), ("pcm", &pcm), ("more", b"\xc0"), ("type", audio)]),
        ] {
            assert_eq!(decode(&message).unwrap(), expected);
        }
    }

    #[test]
    fn opus_bytes_come_as_bin_or_as_array() {
        for data in [&b"\xc4\x03\x01\xff\x03"[..], b"\x93\x01\xcc\xff\x03"] {
            let message = map(&[("type", b"\xa7OggOpus"), ("data", data)]);
            assert_eq!(decode(&message).unwrap(), InMsg::OggOpus(vec![1, 255, 3]));
        }
    }

    #[test]
    fn markers_keep_their_sign() {
        let message = map(&[("type", b"\xa6Marker"), ("id", b"\xfe")]);
        assert_eq!(decode(&message).unwrap(), InMsg::Marker(-2));
    }

    #[test]
    fn nonsense_is_explained() {
        for (bytes, expected) in [
            (&b""[..], "`type`"),
            (b"\xc1", "`type`"),
            (b"hello", "`type`"),
            (&map(&[("type", b"\xa5Audio")]), "`pcm`"),
            (&map(&[("type", b"\xa5Audio"), ("pcm", b"\xc4\x01\x00")]), "`pcm`"),
            (&map(&[("type", b"\xa6Marker"), ("id", b"\xa1x")]), "`id`"),
            (&map(&[("type", b"\xa4Nope")]), "`Nope`"),
            (&map(&[("type", b"\xa3a\nb")]), "`a\\nb`"),
            // An array that claims 2^32 - 1 items.
            (&map(&[("type", b"\xa5Audio"), ("pcm", b"\xdd\xff\xff\xff\xff")]), "malformed"),
            (&map(&[("type", b"\xa7OggOpus"), ("data", b"\xc6\xff\xff\xff\xff")]), "malformed"),
        ] {
            let error = decode(bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{bytes:02x?}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_is_quoted_in_short() {
        let long = [&[0xdb, 0, 1, 0, 0][..], &[b'x'; 1 << 16]].concat();
        for message in [map(&[("type", b"\xa5Audio"), ("pcm", &long)]), map(&[("type", &long)])] {
            let error = decode(&message).unwrap_err().to_string();
            assert!(error.contains("xxx") && error.chars().count() < 600, "{error}");
        }
    }

    #[test]
    fn encoded_messages_begin_with_their_type() {
        let bytes = OutMsg::Step { step_idx: 1, prs: vec![0.5], buffered_pcm: 0 }.encode();
        let mut expected = b"\x84\xa4type\xa4Step\xa8step_idx\x01\xa3prs\x91\xca".to_vec();
        expected.extend(0.5f32.to_be_bytes());
        expected.extend(b"\xacbuffered_pcm\x00");
        assert_eq!(bytes, expected);
        assert_eq!(OutMsg::Ready.encode(), b"\x81\xa4type\xa5Ready");
    }
}
