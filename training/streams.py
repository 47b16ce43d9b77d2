"""Streams to learn from: utterances in rooms and noise, and what the model should say to them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training import noise
from training.corpus import Corpus
from training.shape import FRAME_RATE_HZ, FRAME_SAMPLES, PAUSES_S, TEXT_END_OF_PADDING, TEXT_PADDING
from training.speech import SAMPLE_RATE_HZ, Samples, Word
from training.vocabulary import WORDS

FRAMES = 125
_LENGTH = FRAMES * FRAME_SAMPLES
# Room for the longest echo; a product of small primes.
_FFT_SIZE = _LENGTH + SAMPLE_RATE_HZ // 2
_SHARES = {
    "espeak": 0.2,
    "hibari": 0.14,
    "joe": 0.11,
    "flite": 0.17,
    "festival": 0.06,
    "rhvoice": 0.14,
    "kokoro_us": 0.06,
    "kokoro_gb": 0.12,
}
# Half of the utterances are played slower or faster, pitch and throat included.
_SLOWEST, _FASTEST = 0.82, 1.22
_NOISES = 60
_EARLY_FRAMES = 2
# Tokens of a SentencePiece model: four special ones come first.
FIRST_WORD_TOKEN = 4
TOKEN_OF = {word: FIRST_WORD_TOKEN + index for index, word in enumerate(WORDS)}

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stream:
    """Audio and targets. T frames."""

    audio: Samples
    """What the model hears, T × FRAME_SAMPLES."""
    text: Tokens
    """The text token of each step, T."""
    pauses: Tokens
    """For each step and head, T × heads: 0 where nobody has spoken for its time, else 1."""
    states: Tokens
    """Which third of which word is spoken in each frame, T: see `spoken_states`."""
    phonemes: Tokens
    """What is spoken in each half of a frame, T × 2: 0 for nothing, else a phoneme."""


def text_tokens(words: list[Word], frames: int, delay: int, dice: np.random.Generator) -> Tokens:
    """The text stream, `delay` frames after the audio.

    An end of padding where a word begins, then the word, and another end of padding where the word
    ends, unless the next one begins there. A word may come up to `_EARLY_FRAMES` frames early: so
    the model learns to say it still where it could have been said already. With one right frame
    for each word, one that is likely in two frames would be more unlikely than silence in both.
    """
    tokens = np.full(frames + 64, TEXT_PADDING, np.int64)
    steps = []
    for word in words:
        begin = round(word.start_s * FRAME_RATE_HZ) + delay - 1
        begin -= int(dice.integers(_EARLY_FRAMES + 1))
        begin = max(begin, steps[-1][0] + 2 if steps else 0)
        end = round(word.end_s * FRAME_RATE_HZ) + delay - 1
        steps.append((begin, max(end, begin + 2), TOKEN_OF[word.text]))
    nexts = [*(begin for begin, _, _ in steps), len(tokens)][1:]
    for (begin, end, token), following in zip(steps, nexts, strict=True):
        if begin + 1 >= frames:
            continue
        tokens[begin], tokens[begin + 1] = TEXT_END_OF_PADDING, token
        if end < following - 1 and end < frames:
            tokens[end] = TEXT_END_OF_PADDING
    return tokens[:frames]


def pause_classes(words: list[Word], frames: int) -> Tokens:
    """T × heads. A step knows the audio before its own frame."""
    classes = np.zeros((frames, len(PAUSES_S)), np.int64)
    for frame in range(frames):
        now_s = frame / FRAME_RATE_HZ
        last_s = max((min(word.end_s, now_s) for word in words if word.start_s < now_s), default=0)
        classes[frame] = [0 if now_s - last_s >= pause_s else 1 for pause_s in PAUSES_S]
    return classes


# Nobody speaks; another word; the thirds of each word.
STATES = 2 + 3 * len(WORDS)


def spoken_states(words: list[Word], frames: int) -> Tokens:
    """T. What the middle of each frame is part of."""
    states = np.zeros(frames, np.int64)
    for word in words:
        first, last = round(word.start_s * FRAME_RATE_HZ), round(word.end_s * FRAME_RATE_HZ)
        for frame in range(first, min(last, frames)):
            third = min(2, 3 * (frame - first) // (last - first))
            known = TOKEN_OF.get(word.text)
            states[frame] = 1 if known is None else 2 + 3 * (known - FIRST_WORD_TOKEN) + third
    return states


class Pronunciations:
    """Which phonemes words are made of, and so what is spoken when, roughly."""

    # The most phonemes there may be, silence included.
    CLASSES = 64
    _VOWELS = frozenset("aeiouAIOWYæɑɒɔəɛɜɪʊʌᵊᵻ")  # noqa: RUF001 - the phonetic alphabet

    def __init__(self, folder: Path) -> None:
        words = json.loads((folder / "pronunciations.json").read_text())
        alphabet = sorted(set("".join(words.values())))
        if len(alphabet) >= self.CLASSES:
            raise ValueError(f"{len(alphabet)} phonemes are more than {self.CLASSES - 1}")
        self._words = {
            word: (
                np.array([1 + alphabet.index(c) for c in text]),
                np.cumsum([0.0, *(1.6 if c in self._VOWELS else 1.0 for c in text)]),
            )
            for word, text in words.items()
        }

    def spoken(self, words: list[Word], frames: int) -> Tokens:
        """T × 2. Vowels get more of their word's time than consonants."""
        halves = np.zeros(2 * frames, np.int64)
        middles_s = (np.arange(2 * frames) + 0.5) / (2 * FRAME_RATE_HZ)
        for word in words:
            phonemes, ends = self._words[word.text]
            inside = np.flatnonzero((middles_s >= word.start_s) & (middles_s < word.end_s))
            share = (middles_s[inside] - word.start_s) / (word.end_s - word.start_s)
            place = np.searchsorted(ends, share * ends[-1], side="right") - 1
            halves[inside] = phonemes[np.clip(place, 0, len(phonemes) - 1)]
        return halves.reshape(frames, 2)


class Mixer:
    """Makes streams of a corpus."""

    def __init__(self, folder: Path, delay: int, seed: int) -> None:
        self._corpora = [Corpus(folder, name) for name in _SHARES]
        self._pronunciations = Pronunciations(folder)
        self._shares = np.array(list(_SHARES.values()))
        self._delay = delay
        dice = np.random.default_rng([seed, 1])
        self._noises = [self.noise(dice) for _ in range(_NOISES)]

    def stream(self, dice: np.random.Generator, *, easy: bool = False) -> Stream:
        """A stream of `FRAMES` frames; an easy one has speech alone, without a room or noise."""
        clean, words = self._speech(dice)
        audio = clean / max(1.0, np.abs(clean).max()) if easy else self._recorded(clean, dice)
        known = [word for word in words if word.text in TOKEN_OF]
        return Stream(
            audio,
            text_tokens(known, FRAMES, self._delay, dice),
            pause_classes(words, FRAMES),
            spoken_states(words, FRAMES),
            self._pronunciations.spoken(words, FRAMES),
        )

    def _speech(self, dice: np.random.Generator) -> tuple[Samples, list[Word]]:
        mix, words = np.zeros(_LENGTH, np.float32), []
        if dice.random() < 0.08:
            return mix, words
        at_s = dice.uniform(0, 0.8)
        loudness_db = 0.0
        while at_s < FRAMES / FRAME_RATE_HZ:
            corpus = self._corpora[dice.choice(len(self._corpora), p=self._shares)]
            utterance = corpus[int(dice.integers(len(corpus)))]
            speed = dice.uniform(_SLOWEST, _FASTEST) if dice.random() < 0.5 else 1.0
            samples = faster(utterance.samples, speed)
            first = int(at_s * SAMPLE_RATE_HZ)
            part = mix[first : first + len(samples)]
            part += samples[: len(part)] * 10 ** (loudness_db / 20)
            words += [
                Word(word.text, at_s + word.start_s / speed, at_s + word.end_s / speed)
                for word in utterance.words
            ]
            loudness_db = dice.uniform(-5, 5)
            at_s += len(samples) / SAMPLE_RATE_HZ + _gap_s(dice)
        return mix, words

    def _recorded(self, clean: Samples, dice: np.random.Generator) -> Samples:
        """The speech through a room and a microphone, with noise."""
        frequencies = np.fft.rfftfreq(_FFT_SIZE, 1 / SAMPLE_RATE_HZ)
        spectrum = np.fft.rfft(clean, _FFT_SIZE)
        if dice.random() < 0.35:
            spectrum *= np.fft.rfft(noise.room(dice).astype(np.float32), _FFT_SIZE)
        if noisy := dice.random() < 0.4:
            index = int(dice.integers(len(self._noises)))
            sound = np.roll(self._noises[index], int(dice.integers(_LENGTH)))
            active = clean[np.abs(clean) > 0.01]
            level = np.sqrt(np.mean(active**2)) if len(active) else 0.1
            snr_db = dice.uniform(3, 35)
            spectrum += np.fft.rfft(sound * np.float32(level * 10 ** (-snr_db / 20)), _FFT_SIZE)
        if dice.random() < 0.7:
            spectrum *= noise.microphone(frequencies, dice)
        audio = np.fft.irfft(spectrum, _FFT_SIZE)[:_LENGTH]
        peak = np.abs(audio).max() + 1e-9
        level_db = dice.uniform(-24, 0) if dice.random() < 0.97 else dice.uniform(3, 12)
        gain = 10 ** (level_db / 20) / peak if noisy or clean.any() else 1.0
        audio = np.clip(np.round(audio * gain * 32_768), -32_768, 32_767)
        return audio.astype(np.float32) / 32_768

    def noise(self, dice: np.random.Generator) -> Samples:
        """A sound as long as a stream with a root mean square of 1."""
        if dice.random() < 0.15:
            return noise.normalised(self._babble(dice))
        kind = noise.NOISES[int(dice.integers(len(noise.NOISES)))]
        return noise.normalised(kind(_LENGTH, dice))

    def _babble(self, dice: np.random.Generator) -> Samples:
        """Several people at once, backwards, so that nobody says a word."""
        return np.sum([self._speech(dice)[0][::-1] for _ in range(dice.integers(3, 7))], axis=0)


def _gap_s(dice: np.random.Generator) -> float:
    kind = dice.random()
    if kind < 0.35:
        return dice.uniform(0, 0.15)
    if kind < 0.8:
        return dice.exponential(0.5)
    return dice.uniform(1, 3)


def faster(samples: Samples, speed: float) -> Samples:
    """Played at another rate, pitch included."""
    if speed == 1.0:
        return samples
    at = np.arange(0, len(samples) - 1, speed, dtype=np.float32)
    return np.interp(at, np.arange(len(samples)), samples).astype(np.float32)
