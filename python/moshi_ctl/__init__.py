"""A self-hosted server for Kyutai's streaming speech models, and a client for it."""

from importlib.metadata import version

from moshi_ctl.client import (
    AsrClient,
    AsrEvent,
    SpeechEvent,
    Transcript,
    listen,
    transcribe,
    transcribe_file,
)
from moshi_ctl.errors import (
    AudioError,
    ClientError,
    ConfigError,
    ModelFileError,
    MoshiCtlError,
    NoFreeChannelsError,
    UsageError,
    WorkerError,
)
from moshi_ctl.protocol import EndWord, Marker, Step, Word

__version__ = version("moshi-ctl")

__all__ = [
    "AsrClient",
    "AsrEvent",
    "AudioError",
    "ClientError",
    "ConfigError",
    "EndWord",
    "Marker",
    "ModelFileError",
    "MoshiCtlError",
    "NoFreeChannelsError",
    "SpeechEvent",
    "Step",
    "Transcript",
    "UsageError",
    "Word",
    "WorkerError",
    "__version__",
    "listen",
    "transcribe",
    "transcribe_file",
]
