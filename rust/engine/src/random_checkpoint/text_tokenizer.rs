//! A SentencePiece model (a protocol buffer, `sentencepiece_model.proto`) of made-up words.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{EngineError, whole_file};

/// Marks the start of a word.
const WORD_START: char = '\u{2581}';

/// The pieces before the first word, by id, with their types. The fourth is Kyutai's padding.
const SPECIAL_PIECES: [(&str, u64); 4] = [
    ("<unk>", TYPE_UNKNOWN),
    ("<s>", TYPE_CONTROL),
    ("</s>", TYPE_CONTROL),
    ("<pad>", TYPE_CONTROL),
];

const TYPE_NORMAL: u64 = 1;
const TYPE_UNKNOWN: u64 = 2;
const TYPE_CONTROL: u64 = 3;

const MODEL_TYPE_UNIGRAM: u64 = 1;

/// Writes a SentencePiece model of `pieces` pieces to `file`, replacing what is there: the usual
/// special ones, then pronounceable words that do not exist, every fifth without a word start.
///
/// # Errors
/// When `pieces` leaves no room for a word or the file cannot be written.
pub fn write_text_tokenizer(pieces: usize, file: &Path, seed: u64) -> Result<(), EngineError> {
    if pieces <= SPECIAL_PIECES.len() {
        return Err(EngineError::new(format!(
            "a text tokenizer of {pieces} pieces has no room for a word: {} are special",
            SPECIAL_PIECES.len()
        )));
    }
    let model = model(pieces, seed);
    whole_file::write(file, |out| Ok(out.write_all(&model)?))
}

fn model(pieces: usize, seed: u64) -> Vec<u8> {
    let mut model = Message::default();
    for (name, kind) in SPECIAL_PIECES {
        model.message(1, &piece(name, 0.0, kind));
    }
    for (rank, word) in words(pieces - SPECIAL_PIECES.len(), seed).iter().enumerate() {
        // Zipf's law: the n-th word is 1/n as frequent; scores are logarithms.
        let score = -((rank + 1) as f32).ln() - 2.0;
        model.message(1, &piece(word, score, TYPE_NORMAL));
    }

    let mut trainer = Message::default();
    trainer.integer(3, MODEL_TYPE_UNIGRAM);
    trainer.integer(4, pieces as u64);
    for (id, field) in (40..=43).enumerate() {
        trainer.integer(field, id as u64);
    }
    for (id, field) in (45..=48).enumerate() {
        trainer.text(field, SPECIAL_PIECES[id].0);
    }
    model.message(2, &trainer);

    let mut normalizer = Message::default();
    normalizer.text(1, "identity");
    // Dummy prefix, no extra whitespace, escaped whitespace: the defaults, spelt out.
    for field in 3..=5 {
        normalizer.integer(field, 1);
    }
    model.message(3, &normalizer);
    model.0
}

fn piece(text: &str, score: f32, kind: u64) -> Message {
    let mut piece = Message::default();
    piece.text(1, text);
    piece.float(2, score);
    piece.integer(3, kind);
    piece
}

/// `count` distinct pieces.
fn words(count: usize, seed: u64) -> Vec<String> {
    const ONSETS: [&str; 20] = [
        "b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "br", "gr", "pl",
        "st", "tr", "w",
    ];
    const VOWELS: [&str; 8] = ["a", "e", "i", "o", "u", "ai", "ea", "ou"];
    const CODAS: [&str; 8] = ["", "", "", "l", "n", "r", "s", "t"];

    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut seen = BTreeSet::new();
    let mut words = Vec::with_capacity(count);
    while words.len() < count {
        let mut word = String::new();
        if words.len() % 5 != 4 {
            word.push(WORD_START);
        }
        for _ in 0..rng.gen_range(1..=3) {
            for parts in [ONSETS.as_slice(), &VOWELS, &CODAS] {
                word.push_str(parts.choose(&mut rng).copied().unwrap_or_default());
            }
        }
        if seen.insert(word.clone()) {
            words.push(word);
        }
    }
    words
}

/// A protocol buffer message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn integer(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint((field << 3) | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn text(&mut self, field: u64, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    fn message(&mut self, field: u64, value: &Self) {
        self.bytes(field, &value.0);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint((field << 3) | 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_distinct_and_most_start_one() {
        let words = words(8_000, 1);
        assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), 8_000);
        assert_eq!(words.iter().filter(|w| w.starts_with(WORD_START)).count(), 6_400);
    }

    #[test]
    fn the_model_depends_on_the_seed_alone() {
        assert!(model(500, 1) == model(500, 1));
        assert!(model(500, 1) != model(500, 2));
    }

    #[test]
    fn a_vocabulary_without_words_is_refused() {
        let error = write_text_tokenizer(4, Path::new("never-written"), 0).unwrap_err();
        assert!(error.to_string().contains("4 pieces"));
        assert!(!Path::new("never-written").exists());
    }
}
