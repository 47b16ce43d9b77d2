"""Does every step fit into a frame's time, and how long do users wait for a word?"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.kit import RED, YELLOW, Query, Row, dashboard_of, graph, heatmap_of, stat_of
from dashboards.queries import SERIES, increase, of_module, quantile, rate
from moshi_ctl.protocol import FRAME_S

_STEP = "moshi_step_duration_seconds"
_WORD = "moshi_word_latency_seconds"
_STEPS = rate(of_module(f"{_STEP}_count"))
_MISSES = rate(of_module("moshi_deadline_misses_total"))
_LAG = of_module("moshi_lag_seconds")


def latency() -> Dashboard:
    """Builds the dashboard."""
    return dashboard_of(
        "moshi-latency",
        "latency",
        "Steps against the 80 ms that a frame of audio lasts, lag, and the wait for words.",
        [
            Row(
                "Now",
                [
                    stat_of(
                        "Step, median",
                        "Half of the steps took no longer.",
                        "s",
                        quantile(0.5, _STEP, by="le"),
                        levels={0.065: YELLOW, FRAME_S: RED},
                    ),
                    stat_of(
                        "Step, 99 %",
                        "One step in a hundred took longer. Above 80 ms a full server falls behind "
                        "from time to time; it catches up while the median is well below.",
                        "s",
                        quantile(0.99, _STEP, by="le"),
                        levels={FRAME_S: YELLOW, 0.24: RED},
                    ),
                    stat_of(
                        "Deadline misses",
                        "Share of steps that took longer than 80 ms.",
                        "percentunit",
                        f"sum({_MISSES}) / sum({_STEPS})",
                        levels={0.01: YELLOW, 0.05: RED},
                        decimals=1,
                    ),
                    stat_of(
                        "Lag",
                        "Of the slowest lane: audio that would have been spoken by now and is not "
                        "processed yet.",
                        "s",
                        f"max({_LAG})",
                        levels={0.5: YELLOW, 1: RED},
                    ),
                    stat_of(
                        "Word, median",
                        "From the arrival of the audio where a word begins to its message, the "
                        "model's own delay included.",
                        "s",
                        quantile(0.5, _WORD, by="le"),
                    ),
                    stat_of(
                        "Word, 95 %",
                        "One word in twenty took longer.",
                        "s",
                        quantile(0.95, _WORD, by="le"),
                    ),
                ],
            ),
            Row(
                "Steps",
                [
                    graph(
                        "Step duration",
                        "Quantiles of a step of all lanes that have a frame; the line is the 80 ms "
                        "that a frame lasts.",
                        "s",
                        Query(quantile(0.5, _STEP), f"{SERIES} 50 %"),
                        Query(quantile(0.95, _STEP), f"{SERIES} 95 %"),
                        Query(quantile(0.99, _STEP), f"{SERIES} 99 %"),
                        levels={FRAME_S: RED},
                        width=12,
                    ),
                    heatmap_of(
                        "Step durations",
                        "How many steps fell into each range. Two bands: steps with few and with "
                        "many lanes, or a machine that others use, too.",
                        "s",
                        f"sum by (le) ({increase(of_module(f'{_STEP}_bucket'))})",
                    ),
                    graph(
                        "Deadline misses per second",
                        "Steps that took longer than 80 ms.",
                        "short",
                        _MISSES,
                    ),
                    graph(
                        "Share of deadlines missed",
                        "Steps that took longer than 80 ms, of all steps; the line is where the "
                        "alert MoshiDeadlineMisses begins.",
                        "percentunit",
                        f"{_MISSES} / ({_STEPS} > 0)",
                        levels={0.05: RED},
                    ),
                    graph(
                        "Lanes per step",
                        "Frames in a step, on average: what its duration depends on most.",
                        "short",
                        f"{rate(of_module('moshi_frames_total'))} / ({_STEPS} > 0)",
                    ),
                ],
            ),
            Row(
                "Behind",
                [
                    graph(
                        "Lag of the slowest lane",
                        "Audio that would have been spoken by now and is not processed yet. Files "
                        "and audio that is sent ahead do not count.",
                        "s",
                        _LAG,
                        levels={1: RED},
                    ),
                    graph(
                        "Backlog",
                        "Audio of all lanes that arrived and is not processed yet, what was sent "
                        "ahead included.",
                        "s",
                        of_module("moshi_backlog_seconds"),
                    ),
                    graph(
                        "Step in progress",
                        "How long the step at the moment of the scrape had been running. Seconds "
                        "mean that the model is stuck.",
                        "s",
                        of_module("moshi_step_running_seconds"),
                        levels={3: RED},
                    ),
                ],
            ),
            Row(
                "Words",
                [
                    graph(
                        "Word latency",
                        "Quantiles of the time from the arrival of the audio where a word begins "
                        "to its message. The model's delay is in it: it never falls below.",
                        "s",
                        Query(quantile(0.5, _WORD), f"{SERIES} 50 %"),
                        Query(quantile(0.95, _WORD), f"{SERIES} 95 %"),
                        width=12,
                    ),
                    graph(
                        "Words per second",
                        "Words sent. None for long while lanes are used: silence, or a wrong "
                        "microphone.",
                        "short",
                        rate(of_module("moshi_words_total")),
                        width=12,
                    ),
                ],
            ),
        ],
    )
