"""The recordings that the demo and the tests play, in voices that the training has not heard.

    python -m training.recordings FOLDER

For each a FLAC file (16 kHz) and a JSON file with what is said when.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile
import soxr

from training.pico import Pico
from training.shape import SAMPLE_RATE_HZ
from training.speech import Samples, Word

_RATE_HZ = 16_000
_GAP_S = 0.9

# A voice is a language and the dice that choose throat, rate and pitch.
ANNE, BETH, CARA, DORA = ("en-US", 14), ("en-US", 15), ("en-US", 9), ("en-US", 7)

# Voice and words of each phrase.
RECORDINGS = {
    "recording": (
        (ANNE, "please play music"),
        (ANNE, "turn left"),
        (BETH, "close window"),
        (ANNE, "television off"),
        (CARA, "one two three"),
        (BETH, "send message"),
        (CARA, "black white yellow"),
        (ANNE, "thanks goodbye"),
    ),
    "digits": (
        (DORA, "zero one two three four"),
        (BETH, "nine two seven one"),
        (CARA, "one two three"),
    ),
    "commands": (
        (BETH, "stop music"),
        (ANNE, "send message"),
        (CARA, "turn right"),
        (BETH, "close window"),
        (ANNE, "delete message"),
        (ANNE, "camera on"),
        (CARA, "yes please"),
    ),
}


def recording(phrases: tuple[tuple[tuple[str, int], str], ...]) -> tuple[Samples, list[Word]]:
    """The phrases with pauses between, and their words."""
    parts, words, at_s = [], [], _GAP_S
    silence = np.zeros(int(_GAP_S * SAMPLE_RATE_HZ), np.float32)
    parts.append(silence)
    for (language, seed), phrase in phrases:
        spoken = Pico(language).speak(phrase.split(), np.random.default_rng(seed))
        words += [Word(w.text, at_s + w.start_s, at_s + w.end_s) for w in spoken.words]
        parts += [spoken.samples, silence]
        at_s += (len(spoken.samples) + len(silence)) / SAMPLE_RATE_HZ
    return np.concatenate(parts), words


def main() -> None:
    """Writes all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, phrases in RECORDINGS.items():
        samples, words = recording(phrases)
        soundfile.write(
            folder / f"{name}.flac", soxr.resample(samples, SAMPLE_RATE_HZ, _RATE_HZ), _RATE_HZ
        )
        spoken = [
            {key: value if key == "text" else round(value, 3) for key, value in asdict(w).items()}
            for w in words
        ]
        (folder / f"{name}.json").write_text(json.dumps(spoken, indent=1) + "\n")
        print(f"{name}: {len(words)} words, {words[-1].end_s:.1f} s")


if __name__ == "__main__":
    main()
