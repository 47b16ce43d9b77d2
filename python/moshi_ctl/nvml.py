"""Asking NVML, the NVIDIA driver's library: each call gives a value or says why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from moshi_ctl.env import CUDA_VISIBLE_DEVICES

# NVML's codes that call for more than passing on what it says.
NO_PERMISSION: Final = 4
NOT_FOUND: Final = 6
DRIVER_NOT_LOADED: Final = 9
LIBRARY_NOT_FOUND: Final = 12
FUNCTION_NOT_FOUND: Final = 13
GPU_IS_LOST: Final = 15
VERSION_MISMATCH: Final = 18

UPDATE_DRIVER: Final = "install a newer NVIDIA driver"
_ASK_NVIDIA_SMI: Final = "see what nvidia-smi says, which asks the same library"
_HINTS: Final = {
    NO_PERMISSION: "let this user read and write /dev/nvidia*, or choose other cards with "
    f"{CUDA_VISIBLE_DEVICES.name}",
    FUNCTION_NOT_FOUND: UPDATE_DRIVER,
    GPU_IS_LOST: "see what nvidia-smi and the kernel's log say of it; it may take a reboot",
}

_MILLIWATTS_PER_WATT: Final = 1000
_PERCENT: Final = 100

# What nvidia-ml-py, which has no types, returns; or a `Refusal`.
Answer: TypeAlias = Any


@dataclass(frozen=True)
class Refusal:
    """What came instead of a value.

    Attributes:
        reason: Why, in a few words on one line.
        code: NVML's code, where it was NVML that refused.
        cause: The error that led to this one, where there was one.
    """

    reason: str
    code: int | None
    cause: BaseException | None

    @property
    def hint(self) -> str:
        """What to do next."""
        return _HINTS.get(self.code or 0, _ASK_NVIDIA_SMI)


def ask(function: str, *arguments: object) -> Answer:
    """What a function of `pynvml` returns for `arguments`, or a `Refusal`; never raises."""
    import pynvml

    try:
        return getattr(pynvml, function)(*arguments)
    except Exception as error:  # noqa: BLE001 - besides NVML's errors: text that is not UTF-8, ...
        code = error.value if isinstance(error, pynvml.NVMLError) else None
        return Refusal(_reason(error, code), code, error.__context__)


def ask_in_turn(*calls: tuple[Any, ...]) -> Answer:
    """The first answer among those to a function and its older variants, or why there is none.

    Args:
        calls: Arguments of `ask`, the preferred variant first.
    """
    refusals = []
    for call in calls:
        answer = ask(*call)
        if not isinstance(answer, Refusal):
            return answer
        refusals.append(answer)
    # That a variant does not exist says less than what another one failed with.
    telling = (one for one in refusals if one.code not in (None, FUNCTION_NOT_FOUND))
    return next(telling, refusals[-1])


def text(answer: Answer) -> str | None:
    """An answer that should be text on one line, or None where it is not."""
    return answer if isinstance(answer, str) and answer and answer.isprintable() else None


def value(answer: Answer) -> Answer:
    """An answer, or None for a `Refusal`."""
    return None if isinstance(answer, Refusal) else answer


def memory(handle: Answer) -> Answer:
    """Memory of a card or an instance in bytes, as `total`, `free` and `used`, or a `Refusal`."""
    import pynvml

    return ask_in_turn(
        ("nvmlDeviceGetMemoryInfo", handle, pynvml.nvmlMemory_v2),
        ("nvmlDeviceGetMemoryInfo", handle),
    )


def temperature_c(handle: Answer) -> int | None:
    """Temperature in degrees Celsius, where the driver tells it."""
    import pynvml

    temperature: int | None = value(
        ask_in_turn(
            ("nvmlDeviceGetTemperatureV", handle, pynvml.NVML_TEMPERATURE_GPU),
            ("nvmlDeviceGetTemperature", handle, pynvml.NVML_TEMPERATURE_GPU),
        )
    )
    return temperature


def power_w(handle: Answer) -> float | None:
    """What a card draws, in watts, where the driver tells it."""
    milliwatts: int | None = value(ask("nvmlDeviceGetPowerUsage", handle))
    return None if milliwatts is None else milliwatts / _MILLIWATTS_PER_WATT


def utilization(handle: Answer) -> float | None:
    """Share of the time, 0 to 1, in which a card computed, where the driver tells it."""
    rates = value(ask("nvmlDeviceGetUtilizationRates", handle))
    return None if rates is None or rates.gpu > _PERCENT else rates.gpu / _PERCENT


def _reason(error: Exception, code: int | None) -> str:
    try:
        said = str(error).strip().rstrip(".")
    except Exception:  # noqa: BLE001 - NVML is asked for the text, which may fail in any way
        said = ""
    if said and said.isprintable():
        return said
    return type(error).__name__ if code is None else f"NVML error {code}"
