//! From text tokens to text, as SentencePiece's `DecodeIds` does it.
//!
//! The messages below are the part of `sentencepiece_model.proto` (google/sentencepiece) that
//! decoding needs, annotated by hand so that no protoc is needed.

use std::io::Read;
use std::path::Path;

use prost::Message;

/// Largest file of a tokenizer; those in use have less than one MiB.
const MOST_BYTES: u64 = 64 << 20;

/// Stands for a space inside a piece.
const SPACE_SYMBOL: char = '\u{2581}';

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<PieceProto>,
    #[prost(message, optional, tag = "2")]
    trainer_spec: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer_spec: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct PieceProto {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(enumeration = "Kind", optional, tag = "3", default = "Normal")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(string, optional, tag = "44", default = " \u{2047} ")]
    unk_surface: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// What one token stands for.
#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    Byte(u8),
    Unknown,
    Invisible,
}

/// Why a tokenizer file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct TokenizerError {
    /// Names the file.
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// Turns the tokens of a word into its text.
#[derive(Debug)]
#[cfg_attr(any(test, feature = "measure"), derive(Default))]
pub(crate) struct TextDecoder {
    pieces: Vec<Piece>,
    unknown_surface: String,
    strips_first_space: bool,
    strips_leading_spaces: bool,
}

impl TextDecoder {
    /// Reads a SentencePiece model that has a piece for each of `vocab_size` tokens.
    pub(crate) fn load(file: &Path, vocab_size: usize) -> Result<Self, TokenizerError> {
        let error = |what: String| TokenizerError {
            message: format!("text_tokenizer_file: `{}` {what}", file.display()),
            hint: "use the SentencePiece model (.model) published with the language model".into(),
        };
        let bytes = read(file).map_err(|cause| error(format!("cannot be read: {cause}")))?;
        let decoder = Self::parse(&bytes)
            .map_err(|cause| error(format!("is not a SentencePiece model: {cause}")))?;
        if decoder.pieces.len() < vocab_size {
            let found = decoder.pieces.len();
            return Err(error(format!(
                "has {found} pieces, but the model's text_out_vocab_size is {vocab_size}"
            )));
        }
        Ok(decoder)
    }

    /// # Errors
    /// What is wrong with the file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let proto = ModelProto::decode(bytes).map_err(|error| error.to_string())?;
        let normalizer = proto.normalizer_spec.unwrap_or_default();
        let trainer = proto.trainer_spec.unwrap_or_default();
        let pieces = proto
            .pieces
            .into_iter()
            .enumerate()
            .map(|(id, piece)| piece.into_piece().ok_or_else(|| format!("piece {id} is no byte")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            pieces,
            unknown_surface: trainer.unk_surface().to_string(),
            strips_first_space: normalizer.add_dummy_prefix()
                || normalizer.remove_extra_whitespaces(),
            strips_leading_spaces: normalizer.remove_extra_whitespaces(),
        })
    }

    /// The text of these tokens.
    pub(crate) fn decode(&self, tokens: &[u32]) -> String {
        let mut text = String::new();
        let mut bytes = Vec::new();
        let mut at_start = true;
        for &token in tokens {
            let piece = self.pieces.get(token as usize).unwrap_or(&Piece::Unknown);
            if let Piece::Byte(byte) = piece {
                bytes.push(*byte);
                continue;
            }
            push_utf8(&mut text, &mut bytes);
            at_start &= text.is_empty();
            match piece {
                Piece::Unknown => text.push_str(&self.unknown_surface),
                Piece::Text(piece) => {
                    let mut rest = piece.as_str();
                    if at_start
                        && self.strips_first_space
                        && let Some(stripped) = rest.strip_prefix(SPACE_SYMBOL)
                    {
                        rest = stripped;
                        at_start = self.strips_leading_spaces;
                    }
                    text.extend(rest.chars().map(|c| if c == SPACE_SYMBOL { ' ' } else { c }));
                }
                Piece::Invisible | Piece::Byte(_) => {}
            }
        }
        push_utf8(&mut text, &mut bytes);
        text
    }
}

impl PieceProto {
    fn into_piece(self) -> Option<Piece> {
        Some(match self.kind() {
            Kind::Unknown => Piece::Unknown,
            Kind::Control => Piece::Invisible,
            Kind::Byte => {
                let hex = self.piece().strip_prefix("<0x")?.strip_suffix('>')?;
                Piece::Byte(u8::from_str_radix(hex, 16).ok()?)
            }
            Kind::Normal | Kind::UserDefined | Kind::Unused => Piece::Text(self.piece?),
        })
    }
}

/// Reads a file, unless it is far too large for a tokenizer: another model's, named by mistake.
fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        let what = format!("it has more than {} MiB", MOST_BYTES >> 20);
        return Err(std::io::Error::other(what));
    }
    Ok(bytes)
}

/// Appends `bytes` as UTF-8, one replacement character for every byte that is not, and empties it.
fn push_utf8(text: &mut String, bytes: &mut Vec<u8>) {
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                break;
            }
            Err(error) => {
                let (valid, broken) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &broken[1..];
            }
        }
    }
    bytes.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder(normalizer: NormalizerSpec) -> TextDecoder {
        let pieces = [
            ("<unk>", Kind::Unknown),
            ("<s>", Kind::Control),
            ("\u{2581}hel", Kind::Normal),
            ("lo", Kind::Normal),
            ("\u{2581}", Kind::Normal),
            ("\u{2581}world\u{2581}", Kind::UserDefined),
            ("<0xC3>", Kind::Byte),
            ("<0xA9>", Kind::Byte),
        ];
        let pieces = pieces
            .into_iter()
            .map(|(piece, kind)| PieceProto { piece: Some(piece.into()), kind: Some(kind as i32) })
            .collect();
        let proto = ModelProto { pieces, trainer_spec: None, normalizer_spec: Some(normalizer) };
        TextDecoder::parse(&proto.encode_to_vec()).unwrap()
    }

    #[test]
    fn decodes_as_sentencepiece_does() {
        let decoder = decoder(NormalizerSpec::default());
        for (tokens, text) in [
            (&[2, 3][..], "hello"),
            (&[3, 2], "lo hel"),
            (&[2, 3, 5], "hello world "),
            (&[4, 4, 2], "hel"),
            (&[1, 2, 1, 3], "hello"),
            (&[2, 0, 3], "hel \u{2047} lo"),
            (&[0, 2], " \u{2047}  hel"),
            (&[2, 6, 7], "helé"),
            (&[6, 2], "\u{fffd} hel"),
            (&[7, 6, 6, 7], "\u{fffd}\u{fffd}é"),
            (&[], ""),
        ] {
            assert_eq!(decoder.decode(tokens), text, "{tokens:?}");
        }
    }

    #[test]
    fn only_the_first_space_goes_where_extra_whitespace_is_kept() {
        let keep =
            NormalizerSpec { add_dummy_prefix: Some(true), remove_extra_whitespaces: Some(false) };
        assert_eq!(decoder(keep).decode(&[4, 4, 2]), "  hel");
        let none =
            NormalizerSpec { add_dummy_prefix: Some(false), remove_extra_whitespaces: Some(false) };
        assert_eq!(decoder(none).decode(&[2]), " hel");
    }

    #[test]
    fn a_bad_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bad.model");
        for (content, expected) in
            [(None, "cannot be read"), (Some("\n"), "not a SentencePiece"), (Some(""), "0 pieces")]
        {
            if let Some(content) = content {
                std::fs::write(&file, content).unwrap();
            }
            let message = TextDecoder::load(&file, 4).unwrap_err().message;
            assert!(message.contains("bad.model") && message.contains(expected), "{message}");
        }
        // Sparse, so it takes no room.
        std::fs::File::create(&file).unwrap().set_len(MOST_BYTES + 1).unwrap();
        let message = TextDecoder::load(&file, 4).unwrap_err().message;
        assert!(message.contains("cannot be read: it has more than 64 MiB"), "{message}");
    }
}
