"""Sounds that are not speech, and rooms: all computed, so that a seed makes them again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.speech import SAMPLE_RATE_HZ, Samples

Noise = Callable[[int, np.random.Generator], Samples]
"""Makes so many samples of a sound."""


def coloured(length: int, dice: np.random.Generator) -> Samples:
    """Noise whose spectrum falls with frequency, with a few resonances: wind, fans, traffic."""
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLE_RATE_HZ)
    shape = np.maximum(frequencies, 30.0) ** (-dice.uniform(0.0, 1.1))
    for _ in range(dice.integers(0, 4)):
        centre, width = np.exp(dice.uniform(np.log(80), np.log(8000))), dice.uniform(0.05, 0.5)
        shape *= 1 + dice.uniform(0, 8) * np.exp(
            -((np.log(frequencies + 1) - np.log(centre)) ** 2) / width**2
        )
    noise = np.fft.irfft(shape * np.exp(2j * np.pi * dice.random(len(shape))), length)
    return noise * _swell(length, dice)


def hum(length: int, dice: np.random.Generator) -> Samples:
    """Mains hum and motors: a fundamental and its harmonics."""
    time_s = np.arange(length) / SAMPLE_RATE_HZ
    fundamental = dice.choice([50.0, 60.0, dice.uniform(40, 300)])
    harmonics = np.arange(1, dice.integers(3, 25))
    gains = dice.random(len(harmonics)) / harmonics ** dice.uniform(0.3, 1.5)
    waves = [
        gain * np.sin(2 * np.pi * (fundamental * harmonic * time_s + dice.random()))
        for gain, harmonic in zip(gains, harmonics, strict=True)
    ]
    return np.sum(waves, axis=0) + 0.1 * coloured(length, dice)


def music(length: int, dice: np.random.Generator) -> Samples:
    """Chords over a bass and a beat."""
    mix = np.zeros(length)
    beat_s = dice.uniform(0.25, 0.7)
    root = dice.uniform(80, 220)
    brightness = dice.uniform(0.5, 2.0)
    for at_s in np.arange(0, length / SAMPLE_RATE_HZ, beat_s):
        held_s = beat_s * dice.integers(1, 5)
        for semitones in dice.choice([0, 3, 4, 5, 7, 9, 12, 16, 19, 24], dice.integers(1, 5)):
            _add(mix, at_s, _note(root * 2 ** (semitones / 12), held_s, brightness, dice))
        if dice.random() < 0.6:
            drum = dice.standard_normal(int(0.12 * SAMPLE_RATE_HZ))
            drum *= np.exp(-np.arange(len(drum)) / dice.uniform(100, 900))
            _add(mix, at_s, dice.uniform(0.2, 1.5) * drum)
    return mix


def clatter(length: int, dice: np.random.Generator) -> Samples:
    """Knocks, clicks and keys: short resonances."""
    mix = 0.02 * coloured(length, dice)
    for _ in range(dice.integers(5, 60)):
        time_s = np.arange(int(dice.uniform(0.01, 0.3) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        ring = np.sin(2 * np.pi * np.exp(dice.uniform(np.log(100), np.log(6000))) * time_s)
        knock = (ring + 0.5 * dice.standard_normal(len(time_s))) * np.exp(
            -time_s / dice.uniform(0.003, 0.06)
        )
        _add(mix, dice.uniform(0, length / SAMPLE_RATE_HZ), dice.uniform(0.1, 1.0) * knock)
    return mix


NOISES = (coloured, coloured, hum, music, clatter)


def normalised(noise: Samples) -> Samples:
    """The noise with a root mean square of 1."""
    return (noise / np.sqrt(np.mean(noise**2) + 1e-12)).astype(np.float32)


def room(dice: np.random.Generator) -> Samples:
    """An impulse response: the direct sound, then decaying noise (a statistical room)."""
    decay_s = dice.uniform(0.08, 0.6)
    time_s = np.arange(int(min(decay_s, 0.5) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tail = dice.standard_normal(len(time_s)) * np.exp(-6.9 * time_s / decay_s)
    tail[: int(dice.uniform(0.001, 0.012) * SAMPLE_RATE_HZ)] = 0
    energy = np.sum(tail**2) + 1e-12
    tail *= np.sqrt(10 ** (-dice.uniform(5, 20) / 10) / energy)
    tail[0] = 1.0
    return tail


def microphone(frequencies: Samples, dice: np.random.Generator) -> Samples:
    """The gain of a device at each frequency in Hz: often a telephone's, always a little uneven."""
    octaves = np.log2(np.maximum(frequencies, 20.0) / 1000)
    gain_db = dice.uniform(-3, 3) * octaves + dice.uniform(-4, 4) * np.sin(
        octaves + dice.uniform(0, 6)
    )
    low, high = 20.0, 12_000.0
    kind = dice.random()
    if kind < 0.2:
        low, high = dice.uniform(150, 350), dice.uniform(3_200, 3_900)
    elif kind < 0.5:
        low, high = dice.uniform(20, 150), dice.uniform(3_800, 8_000)
    gain_db -= 12 * np.maximum(0, np.log2(low / np.maximum(frequencies, 1.0)))
    gain_db -= 60 * np.maximum(0, np.log2(np.maximum(frequencies, 1.0) / high))
    return 10 ** (np.clip(gain_db, -80, 20) / 20)


def _swell(length: int, dice: np.random.Generator) -> Samples:
    points = dice.uniform(dice.uniform(0.1, 1.0), 1.0, 2 + length // SAMPLE_RATE_HZ)
    return np.interp(np.linspace(0, len(points) - 1, length), np.arange(len(points)), points)


def _note(frequency: float, held_s: float, brightness: float, dice: np.random.Generator) -> Samples:
    time_s = np.arange(int(held_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    harmonics = range(1, max(2, min(12, int(8_000 / frequency))))
    wave = sum(
        np.sin(2 * np.pi * frequency * h * time_s + dice.random()) / h**brightness
        for h in harmonics
    )
    return wave * np.exp(-time_s * dice.uniform(0.5, 6)) * np.minimum(1, time_s / 0.01)


def _add(mix: Samples, at_s: float, sound: Samples) -> None:
    first = int(at_s * SAMPLE_RATE_HZ)
    part = mix[first : first + len(sound)]
    part += sound[: len(part)]
