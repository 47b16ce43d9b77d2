//! From text tokens to words with times (Delayed Streams Modeling, arXiv:2509.08753).

use moshi_ctl_core::units::{TEXT_TOKEN_END_OF_PADDING, TEXT_TOKEN_PADDING};

use crate::limits::WORD_TOKENS;

/// Something the tokens of a stream said. Times are in frames since the stream's start.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Spoken {
    Word { tokens: Vec<u32>, start: u64 },
    EndWord { stop: u64 },
}

/// The words of one stream. A text token lags the audio it is about by `delay` frames.
#[derive(Debug)]
pub(crate) struct Transcript {
    delay: u64,
    steps: u64,
    word: Vec<u32>,
    /// Whether a word was sent whose end was not.
    unended: bool,
    last_stop: u64,
}

impl Transcript {
    pub(crate) fn new(delay: usize) -> Self {
        Self { delay: delay as u64, steps: 0, word: Vec::new(), unended: false, last_stop: 0 }
    }

    /// Frames processed since the stream's start.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// The word that began and was not said yet, once no token will follow.
    pub(crate) fn finish(&mut self) -> Option<Spoken> {
        let tokens = std::mem::take(&mut self.word);
        (!tokens.is_empty()).then_some(Spoken::Word { tokens, start: self.last_stop })
    }

    /// Takes the token of the next frame; `say` hears what it completes.
    pub(crate) fn step(&mut self, token: u32, mut say: impl FnMut(Spoken)) {
        self.steps += 1;
        if self.steps < self.delay {
            return;
        }
        let is_text = token != TEXT_TOKEN_END_OF_PADDING && token != TEXT_TOKEN_PADDING;
        if is_text {
            self.word.push(token);
        }
        if !self.word.is_empty() && (!is_text || self.word.len() >= WORD_TOKENS) {
            let tokens = std::mem::take(&mut self.word);
            say(Spoken::Word { tokens, start: self.last_stop });
            self.unended = true;
        }
        if token == TEXT_TOKEN_END_OF_PADDING {
            self.last_stop = self.steps - self.delay;
            if std::mem::take(&mut self.unended) {
                say(Spoken::EndWord { stop: self.last_stop });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u32 = TEXT_TOKEN_END_OF_PADDING;
    const PAD: u32 = TEXT_TOKEN_PADDING;

    fn said(delay: usize, tokens: &[u32]) -> Vec<Spoken> {
        let mut transcript = Transcript::new(delay);
        let mut said = Vec::new();
        for &token in tokens {
            transcript.step(token, |spoken| said.push(spoken));
        }
        assert_eq!(transcript.steps(), tokens.len() as u64);
        said
    }

    fn word(tokens: &[u32], start: u64) -> Spoken {
        Spoken::Word { tokens: tokens.to_vec(), start }
    }

    #[test]
    fn a_word_starts_at_the_end_of_padding_and_stops_at_the_next() {
        // Steps:       1    2    3  4  5    6    7    8  9
        let tokens = [PAD, END, 10, 11, PAD, PAD, END, 12, PAD];
        assert_eq!(
            said(0, &tokens),
            [word(&[10, 11], 2), Spoken::EndWord { stop: 7 }, word(&[12], 7),]
        );
    }

    #[test]
    fn a_word_cut_short_by_the_next_is_ended_at_once() {
        let tokens = [END, 10, END, 11, END];
        assert_eq!(
            said(0, &tokens),
            [
                word(&[10], 1),
                Spoken::EndWord { stop: 3 },
                word(&[11], 3),
                Spoken::EndWord { stop: 5 },
            ]
        );
    }

    #[test]
    fn tokens_before_the_delay_say_nothing_and_times_count_from_it() {
        // The fourth step is the first at the delay; its time is 0.
        let tokens = [10, 11, 12, END, 13, PAD];
        assert_eq!(said(4, &tokens), [word(&[13], 0)]);
        assert_eq!(said(3, &tokens), [word(&[12], 0), Spoken::EndWord { stop: 1 }, word(&[13], 1)]);
    }

    #[test]
    fn a_word_that_nothing_followed_is_said_at_the_end() {
        let mut transcript = Transcript::new(0);
        for token in [END, 10, 11] {
            transcript.step(token, |spoken| panic!("{spoken:?}"));
        }
        assert_eq!(transcript.finish(), Some(word(&[10, 11], 1)));
        assert_eq!(transcript.finish(), None);
    }

    #[test]
    fn a_stream_without_padding_does_not_grow_for_ever() {
        let said = said(0, &[10; 2 * WORD_TOKENS]);
        assert_eq!(said.len(), 2);
    }
}
