"""Writes `rust/fuzz/seeds`: small inputs of every format, from which fuzzing sets out.

Everything is made here, from tones and made-up numbers. The files are in the repository, because
`cargo test` replays them; this is how they came about and how to add one.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import msgpack
import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[1]
SEEDS = ROOT / "rust" / "fuzz" / "seeds"

sys.path.insert(0, str(ROOT / "tests"))

from moshi_ctl.protocol import SAMPLE_RATE_HZ  # noqa: E402
from support import safetensors, tokens  # noqa: E402

Seeds = Iterator[tuple[str, bytes]]


def main() -> None:
    """Replaces all seeds."""
    targets = {
        "message": messages(),
        "ogg_opus": ogg_opus(),
        "audio_file": audio_files(),
        "config": configurations(),
        "tokenizer": tokenizers(),
        "token": token_texts(),
        "checkpoint": checkpoints(),
    }
    for target, seeds in targets.items():
        folder = SEEDS / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        total = 0
        for name, content in seeds:
            (folder / name).write_bytes(content)
            total += len(content)
        print(f"{target}: {len(list(folder.iterdir()))} seeds, {total} bytes")


def messages() -> Seeds:
    """Every message of a client, in the ways clients write them."""
    pcm = [0.0, 0.5, -0.25, 1.0]
    for name, message in {
        "init": {"type": "Init"},
        "audio_f64": {"type": "Audio", "pcm": pcm},
        "audio_last": {
            "pcm": [0, 1, -1, 200, 70_000],
            "extra": {"a": [None, True]},
            "type": "Audio",
        },
        "opus_bin": {"type": "OggOpus", "data": b"OggS\x00"},
        "opus_array": {"type": "OggOpus", "data": list(b"OggS\x00\xff")},
        "marker": {"type": "Marker", "id": -(2**63)},
        "unknown": {"type": "Nope", "ext": msgpack.ExtType(5, b"1234"), "text": "\u2047"},
    }.items():
        yield name, msgpack.packb(message)
    yield "audio_f32", msgpack.packb({"type": "Audio", "pcm": pcm}, use_single_float=True)


def tone(rate_hz: int, channels: int, seconds: float) -> np.ndarray:
    """A tone that gets higher and louder; each channel another."""
    t = np.arange(round(rate_hz * seconds)) / rate_hz
    pitches_hz = 200 * np.arange(1, channels + 1)
    return (
        0.5 * t[:, None] / seconds * np.sin(2 * np.pi * pitches_hz * (1 + t[:, None]) * t[:, None])
    )


def audio(
    kind: str, subtype: str, rate_hz: int, channels: int = 1, seconds: float = 0.2, title: str = ""
) -> bytes:
    """A file as libsndfile writes it."""
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", rate_hz, channels, subtype, format=kind) as file:
        if title:
            file.title = title
        file.write(tone(rate_hz, channels, seconds))
    return out.getvalue()


def audio_files() -> Seeds:
    """One of each format that is read, and of some variants."""
    yield "pcm16.wav", audio("WAV", "PCM_16", 8_000, title="a title")
    yield "pcm24_stereo.wav", audio("WAV", "PCM_24", 44_100, 2, seconds=0.05)
    yield "float.wav", audio("WAV", "FLOAT", SAMPLE_RATE_HZ, seconds=0.1)
    yield "double.wav", audio("WAV", "DOUBLE", 11_025, seconds=0.05)
    yield "u8.wav", audio("WAV", "PCM_U8", 16_000, seconds=0.1)
    yield "ulaw.wav", audio("WAV", "ULAW", 8_000)
    yield "extensible.wav", audio("WAVEX", "PCM_16", 48_000, 6, seconds=0.02)
    yield "mono.flac", audio("FLAC", "PCM_16", 16_000, title="a title")
    yield "stereo.flac", audio("FLAC", "PCM_24", 48_000, 2, seconds=0.1)
    yield "mono.mp3", audio("MP3", "MPEG_LAYER_III", 16_000, title="a title")
    yield "stereo.mp3", audio("MP3", "MPEG_LAYER_III", 44_100, 2)
    yield "mono.vorbis.ogg", audio("OGG", "VORBIS", 8_000, title="a title")
    yield "stereo.vorbis.ogg", audio("OGG", "VORBIS", 44_100, 2, seconds=0.1)
    yield "mono.opus.ogg", audio("OGG", "OPUS", SAMPLE_RATE_HZ)


def ogg_opus() -> Seeds:
    """Streams; the first byte says in which pieces they come."""
    mono = audio("OGG", "OPUS", 48_000, title="a title")
    stereo = audio("OGG", "OPUS", SAMPLE_RATE_HZ, 2, seconds=0.1)
    yield "mono", b"\xff" + mono
    yield "stereo_byte_by_byte", b"\x00" + stereo
    yield "two", b"\x63" + stereo + mono


def configurations() -> Seeds:
    """What `configs/` does not have; the fuzzer is given that folder too."""
    tiny = (ROOT / "configs" / "tiny-random.toml").read_text()
    top, modules = tiny.split("[modules.asr]", 1)
    yield (
        "everything.toml",
        (
            f'{top}authorized_ids = ["a", "b"]\ndevice = "cuda:1"\n[warmup]\nenabled = false\n'
            "[sizing]\nreserve_mb = 512\nestimate = true\nreal_time = false\n"
            f"[modules.asr]{modules}"
            '[modules.asr.model.conditioners.delay]\ntype = "ContinuousAttribute"\ndim = 16\n'
            "scale_factor = 10.0\nmax_period = 10000.0\n"
        ).encode(),
    )
    yield "asr.toml", tiny.replace("BatchedAsr", "Asr").replace("batch_size = 4\n", "").encode()
    yield "unknown.toml", tiny.replace("batch_size", "batch_sise").encode()
    yield "dotted.toml", b'a.b.c = 1\nmodules = { x = { type = "Lm" } }\n'


def tokenizers() -> Seeds:
    """A SentencePiece model with a piece of every type."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    pieces = [("<unk>", 2), ("<s>", 3), ("\u2581hel", 1), ("lo", 4), ("<0xC3>", 6), ("old", 5)]
    model = b"".join(
        field(1, field(1, text.encode()) + bytes([0x15, 0, 0, 0, 0, 0x18, kind]))
        for text, kind in pieces
    )
    trainer = b"\xe2\x02" + bytes([5]) + " \u2047 ".encode()
    normalizer = b"\x18\x01\x20\x00"
    yield "pieces.model", model + field(2, trainer) + field(3, normalizer)


def token_texts() -> Seeds:
    """Headers and claims, and a token whose secret is another."""
    claims = {"exp": 4_000_000_000, "nbf": 1, "aud": ["a"]}
    header = {"alg": "HS256", "typ": "JWT"}
    yield "signed", f"{json.dumps(header)}\n{json.dumps(claims)}".encode()
    yield "crit", json.dumps(header | {"crit": ["b64"], "jwk": {"kty": "oct"}}).encode() + b"\n{}"
    yield "token", tokens.token(claims).encode()


def checkpoints() -> Seeds:
    """Model files of both containers, with every format that is read and some that are not."""
    numbers = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        safetensors.write(path, {"a.weight": numbers, "b": numbers[0]})
        yield "f32.safetensors", path.read_bytes()
        header = {
            "__metadata__": {"format": "pt"},
            "h": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]},
            "i": {"dtype": "I64", "shape": [1], "data_offsets": [8, 16]},
            "f": {"dtype": "F16", "shape": [1, 1, 2], "data_offsets": [16, 20]},
        }
        written = json.dumps(header).encode()
        yield "mixed.safetensors", struct.pack("<Q", len(written)) + written + b"\x80\x3f" * 10
        writer = gguf.GGUFWriter(path, "moshi")
        writer.add_array("list", ["a", "b"])
        writer.add_float32("number", 1.0)
        writer.add_tensor("f32", numbers)
        writer.add_tensor("f16", numbers.astype(np.float16))
        q8 = gguf.quantize(numbers, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor("q8", q8, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        q4 = gguf.quantize(numbers, gguf.GGMLQuantizationType.Q4_0)
        writer.add_tensor("q4", q4, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        yield "every.gguf", path.read_bytes()


if __name__ == "__main__":
    main()
