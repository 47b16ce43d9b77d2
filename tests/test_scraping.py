"""What is made of the text that a server answers with, and of answers that are none."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_ctl import _native
from moshi_ctl.errors import ClientError, UsageError
from moshi_ctl.monitoring import exposition, fetching, scrapes, server_metrics
from moshi_ctl.monitoring.exposition import ExpositionError
from moshi_ctl.monitoring.fetching import UnreachableError
from moshi_ctl.monitoring.histograms import Histogram
from moshi_ctl.monitoring.server_metrics import ServerMetrics, WarmupResult
from support import expositions
from support.expositions import Module
from support.scripted_server import Reply, closed_port, scripted_server, silent_port

INF = math.inf


def histogram(*buckets: tuple[float, float], total: float = 0.0) -> Histogram:
    made = Histogram.of(buckets, buckets[-1][1], total)
    assert made is not None
    return made


def read(text: str) -> ServerMetrics:
    return server_metrics.read(exposition.parse(text))


@pytest.mark.parametrize(
    ("buckets", "q", "expected"),
    [
        # 100 values, half of them in (0.1, 0.2]: the 50th is the 40th of 50 there.
        ([(0.1, 10), (0.2, 60), (0.4, 90), (INF, 100)], 0.5, 0.1 + 0.1 * 40 / 50),
        ([(0.1, 10), (0.2, 60), (0.4, 90), (INF, 100)], 0.1, 0.1),
        # The lowest bucket begins at 0.
        ([(0.1, 10), (0.2, 60), (0.4, 90), (INF, 100)], 0.05, 0.05),
        ([(0.1, 10), (0.2, 60), (0.4, 90), (INF, 100)], 0.9, 0.4),
        # Beyond the largest finite bound: that bound.
        ([(0.1, 10), (0.2, 60), (0.4, 90), (INF, 100)], 0.95, 0.4),
        ([(0.1, 10), (0.2, 60), (0.4, 90), (INF, 100)], 1.0, 0.4),
        ([(0.1, 0), (INF, 5)], 0.5, 0.1),
        # A lowest bound that is not positive is the answer itself.
        ([(-1, 4), (1, 8), (INF, 8)], 0.25, -1),
        ([(-1, 4), (1, 8), (INF, 8)], 0.75, 0),
        # An empty bucket is passed over.
        ([(1, 5), (2, 5), (3, 10), (INF, 10)], 0.6, 2.2),
        # Counts that fall are lifted: 10, 10, 20.
        ([(1, 10), (2, 8), (4, 20), (INF, 20)], 0.75, 3),
        # Two buckets of one bound are added.
        ([(1, 3), (1, 3), (2, 12), (INF, 12)], 0.5, 1),
        # Where histogram_quantile gives NaN.
        ([(1, 0), (INF, 0)], 0.5, None),
        ([(1, 3), (2, 4)], 0.5, None),
        ([(INF, 4)], 0.5, None),
        ([(1, 0), (INF, 4)], 0.0, None),
    ],
)
def test_quantiles_are_those_of_promql(
    buckets: list[tuple[float, float]], q: float, expected: float | None
) -> None:
    assert histogram(*buckets).quantile(q) == (
        None if expected is None else pytest.approx(expected)
    )
    assert histogram(*buckets[::-1][1:], buckets[-1]).quantile(q) == histogram(*buckets).quantile(q)


@given(
    values=st.lists(st.floats(0.0001, 5), min_size=1, max_size=60),
    q=st.floats(0.01, 1),
)
def test_a_quantile_is_in_the_bucket_of_the_value_it_stands_for(
    values: list[float], q: float
) -> None:
    bounds = (*expositions.STEP_BOUNDS_S, INF)
    buckets = [(bound, sum(value <= bound for value in values)) for bound in bounds]
    estimate = histogram(*buckets).quantile(q)
    exact = sorted(values)[max(0, math.ceil(q * len(values) - 1e-9) - 1)]
    above = max((bound for bound in bounds if bound < exact), default=0.0)
    up_to = min(bound for bound in bounds if bound >= exact)
    assert estimate is not None
    assert above - 1e-9 <= estimate <= min(up_to, bounds[-2]) + 1e-9


@pytest.mark.parametrize(
    "buckets", [[(1, -1), (INF, 3)], [(1, math.nan), (INF, 3)], [(math.nan, 1), (INF, 3)]]
)
def test_counts_that_are_none_make_no_histogram(buckets: list[tuple[float, float]]) -> None:
    assert Histogram.of(buckets, 3, 1.0) is None


def test_what_was_added_to_a_histogram() -> None:
    before = histogram((1, 5), (2, 8), (INF, 10), total=14.0)
    now = histogram((1, 6), (2, 12), (INF, 14), total=20.0)
    added = now.since(before)
    assert (added.cumulative, added.count, added.sum) == ((1, 4, 4), 4, 6.0)
    assert added.quantile(0.5) == pytest.approx(1 + 1 / 3)
    assert now.since(None) == now
    assert now.since(now).count == 0


def test_a_histogram_that_was_reset_counts_from_zero_in_every_bucket() -> None:
    before = histogram((1, 5), (2, 8), (INF, 10))
    # The first bucket is above its old count already; counting it alone would say 1 of 3.
    restarted = histogram((1, 6), (2, 7), (INF, 9), total=9.0)
    assert restarted.since(before) == restarted
    other_bounds = histogram((1, 6), (3, 12), (INF, 14))
    assert other_bounds.since(before) == other_bounds


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [(7, 5, 2), (5, 5, 0), (3, 5, 3), (0, 5, 0), (3, None, 3), (None, 5, None)],
)
def test_counters_increase_as_in_prometheus(
    now: float | None, before: float | None, expected: float | None
) -> None:
    assert server_metrics.increase(now, before) == expected


def metrics(start_unix_s: float, frames: int, steps_s: Sequence[float], **more: int) -> str:
    module = Module(frames=frames, steps_s=steps_s, refusals=more)
    return expositions.server(module, start_unix_s=start_unix_s, cpu_s=frames / 10)


def test_what_happened_between_two_scrapes() -> None:
    before = read(metrics(1000, 100, [0.03] * 10, full=1))
    now = read(metrics(1000, 160, [0.03] * 10 + [0.1] * 5, full=4)).since(before)
    (module,) = now.modules
    assert (module.frames, module.deadline_misses, module.deadline_miss_ratio) == (60, 5, 1.0)
    assert module.steps is not None
    assert module.steps.count == 5
    assert module.steps.quantile(0.5) == pytest.approx(0.095)
    assert module.refusals["full"] == 3
    assert now.process.cpu_s == pytest.approx(6)
    # Gauges are as they are.
    assert (module.lanes, module.lanes_used) == (64, 12)


def test_after_a_restart_everything_is_new_even_what_is_higher_than_before() -> None:
    before = read(metrics(1000, 100, [0.03] * 10))
    again = read(metrics(2000, 160, [0.03] * 4))
    assert again.is_another_process_than(before)
    (module,) = again.since(before).modules
    assert module.frames == 160
    assert module.steps is not None
    assert module.steps.count == 4


def test_a_module_that_was_not_there_before_counts_from_zero() -> None:
    before = read(expositions.server(Module("a", frames=3)))
    now = read(expositions.server(Module("a", frames=5), Module("b", frames=7))).since(before)
    assert {module.name: module.frames for module in now.modules} == {"a": 2, "b": 7}


def test_a_whole_server_is_read() -> None:
    text = expositions.server(
        Module(
            "asr",
            steps_s=[0.03, 0.05, 0.09],
            frames=36,
            words=4,
            latencies_s=[0.5],
            lag_s=0.25,
            backlog_s=0.5,
            received_bytes=1000,
            sent_bytes=200,
            refusals={"full": 2},
            sessions={"stream": 3},
            ended={("stream", "completed"): 2, ("file", "bad_audio"): 1},
        ),
        Module("other", alive=0, warmup="skipped"),
    )
    read_server = read(text + expositions.gpu() + expositions.gpu(device="cuda:1"))
    first, second = read_server.modules
    assert (first.name, first.type, first.path) == ("asr", "batched_asr", "/api/asr-streaming")
    assert (first.device, first.precision, first.kv_precision) == ("cuda:0", "bf16", "bf16")
    assert (first.lanes, first.lanes_used, first.frames, first.words) == (64, 12, 36, 4)
    assert (first.lag_s, first.backlog_s) == (0.25, 0.5)
    assert (first.received_bytes, first.sent_bytes) == (1000, 200)
    assert first.deadline_miss_ratio == pytest.approx(1 / 3)
    assert first.refusals["full"] == 2
    assert first.refusals["unauthorized"] == 0
    assert first.sessions == {"stream": 3, "file": 0}
    assert first.sessions_ended == {"file": {"bad_audio": 1}, "stream": {"completed": 2}}
    assert first.warmup is not None
    assert first.warmup.result is WarmupResult.SUCCEEDED
    assert first.warmup.duration_s == pytest.approx(1.24)
    assert second.loop_alive is False
    assert second.warmup is not None
    assert (second.warmup.result, second.warmup.duration_s) == (WarmupResult.SKIPPED, None)
    assert second.deadline_miss_ratio is None
    assert read_server.ready is True
    assert read_server.build["version"] == "0.2.0"
    assert read_server.process.resident_memory_bytes == 2 * 2**30
    assert [gpu.device for gpu in read_server.gpus] == ["cuda:0", "cuda:1"]
    assert read_server.gpus[0].name == "NVIDIA L4"
    assert read_server.gpus[0].utilization_ratio == 0.43
    assert read_server.kyutai.connections == 7


def test_what_is_read_here_is_what_the_server_says_it_measures() -> None:
    """Metrics and labels of the text that these tests are about, against the server's own list."""
    ended = {("stream", "completed"): 1}
    text = expositions.server(Module(ended=ended)) + expositions.gpu()
    read_here: dict[str, set[str]] = {}
    for name, samples in exposition.parse(text).samples.items():
        plain = re.sub(r"_(bucket|sum|count)$", "", name)
        plain = plain.removesuffix("_total") if plain == "asr_connect_total" else plain
        labels = {label for labelled in samples for label, _ in labelled}
        read_here.setdefault(plain, set()).update(labels - {"le", "handler"})
    measured = {each["name"]: set(each["labels"]) - {"handler"} for each in _native.metrics_table()}
    assert read_here == measured


def test_kyutais_counters_are_found_whatever_their_labels() -> None:
    for labels in ('{handler="all"}', "", '{handler="all",instance="a"}'):
        text = f"# TYPE asr_connect counter\nasr_connect{labels} 7\n"
        assert read(text).kyutai.connections == 7


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "9" * 400])
def test_numbers_that_say_nothing_count_as_absent(value: str) -> None:
    (module,) = read(f'moshi_lanes{{module="a"}} {value}\n').modules
    assert module.lanes is None


@pytest.mark.parametrize(
    "text",
    [
        'moshi_lanes{module="a"} 1\nmoshi_lanes{module="a"} 2\n',
        '# TYPE moshi_lanes gauge\n\n  moshi_lanes { module = "a" , } 1 1795307413000\n',
        '# a comment\n# HELP moshi_lanes \\n \\\\ "\nmoshi_lanes{module="a"} 1e0\n',
        'moshi_lanes{module="a"}\t1\r\n',
    ],
)
def test_odd_text_that_is_right_is_read(text: str) -> None:
    assert [(module.name, module.lanes) for module in read(text).modules] == [("a", 1)]


def test_labels_hold_anything() -> None:
    name = 'a "b" \\ c\n{d=e},'
    written = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    (module,) = read(f'moshi_lanes{{module="{written}"}} 3\n').modules
    assert (module.name, module.lanes) == (name, 3)
    # Names of Python's own parameters.
    text = 'moshi_gpu_power_watts{device="cuda:0",name="X",self="y",uuid=""} 3\n'
    assert read(text).gpus[0].power_watts == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<html><body>It works!</body></html>\n", "not Prometheus' text format"),
        ('{"status":"ok"}\n', "not Prometheus' text format"),
        ("moshi_lanes\n", "not Prometheus' text format"),
        ("moshi_lanes{module=a} 1\n", "not Prometheus' text format"),
        ('moshi_lanes{module="a" 1\n', "not Prometheus' text format"),
        ("# TYPE moshi_lanes something\n", "not Prometheus' text format"),
        ("moshi_lanes one\n", "not Prometheus' text format"),
        ('moshi_lanes{module="a"} 1\nmoshi_fra', "in the middle of a line"),
        ("moshi_ready" + " " * 100_000 + "1\n", "line 1 has 100,012 characters"),
    ],
)
def test_text_that_is_something_else_is_refused(text: str, said: str) -> None:
    with pytest.raises(ExpositionError, match=said):
        exposition.parse(text)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(alphabet='moshi_{}"=, \\#\n+-.0123NaInf\t', max_size=60),
            st.sampled_from(expositions.server(Module(steps_s=[0.03])).splitlines()),
        ),
        max_size=8,
    ).map(lambda lines: "\n".join(lines) + "\n")
)
def test_whatever_comes_is_read_or_refused(text: str) -> None:
    try:
        exposed = exposition.parse(text)
    except ExpositionError:
        return
    server_metrics.read(exposed)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://host:8080", "http://host:8080"),
        ("http://host:8080/", "http://host:8080"),
        ("http://host", "http://host"),
        ("https://host/metrics", "https://host"),
        ("host", "http://host:8080"),
        ("host:9000", "http://host:9000"),
        ("HOST:9000/metrics", "http://host:9000"),
        ("127.0.0.1:1", "http://127.0.0.1:1"),
        ("[::1]:8080/health/ready", "http://[::1]:8080"),
        ("http://[::1]", "http://[::1]"),
        ("ws://host:8080/api/asr-streaming", "http://host:8080"),
        ("wss://host/api/asr-streaming?auth_id=secret", "https://host"),
        ("ws://host:8080/somewhere/else", "http://host:8080"),
        ("https://host/speech/metrics", "https://host/speech"),
        ("wss://host/speech/api/asr-streaming", "https://host/speech"),
        ("https://host/speech/", "https://host/speech"),
        ("http://host/health", "http://host"),
    ],
)
def test_addresses_are_reduced_to_the_server(url: str, base: str) -> None:
    assert fetching.base_address(url) == base


@pytest.mark.parametrize(
    "url",
    ["", "8080", ":8080", "ftp://host", "http://", "host:0", "host:99999", "host:port", "a b",
     "http://[::1", "hôst", "file:///etc/passwd", "host\n"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is not the address of a server") as caught:
        fetching.base_address(url)
    assert "http://127.0.0.1:8080" in str(caught.value.hint)


def test_no_password_or_key_is_repeated() -> None:
    for url in ("http://me:canary@host", "ftp://host/?auth_id=canary"):
        with pytest.raises(UsageError) as caught:
            fetching.base_address(url)
        assert "canary" not in f"{caught.value}{caught.value.hint}"


def test_a_server_is_scraped_also_behind_a_redirect() -> None:
    text = expositions.server(Module(frames=5))
    with scripted_server(metrics=text) as server:
        first = scrapes.scrape(server.url)
        assert first.metrics.modules[0].frames == 5
        assert (first.interval, first.interval_s) == (None, None)
        moved = Reply(status=302, headers={"Location": f"{server.url}/elsewhere"})
        server.serves(metrics=moved, elsewhere=expositions.server(Module(frames=8)))
        second = scrapes.scrape(server.url, first)
        assert second.metrics.modules[0].frames == 8
        assert second.shown.modules[0].frames == 3
        assert second.interval_s is not None
        assert second.interval_s > 0
        third = scrapes.scrape(server.url, second)
        # A watch that goes on for weeks remembers one scrape.
        assert third.previous is not None
        assert third.previous.previous is None


def test_where_an_answer_came_from_is_said() -> None:
    with scripted_server(login="<html></html>\n") as server:
        server.serves(metrics=Reply(status=302, headers={"Location": "/login"}))
        with pytest.raises(ClientError, match=f"/metrics, redirected to {server.url}/login: "):
            scrapes.scrape(server.url)


REDIRECT_TO_ITSELF = Reply(status=302, headers={"Location": "/metrics"})
REDIRECT_TO_A_FILE = Reply(status=302, headers={"Location": "file:///etc/hostname"})


@pytest.mark.parametrize(
    ("reply", "said", "is_unreachable"),
    [
        (Reply("not found", status=404), r"there are no metrics \(HTTP 404\)", False),
        (Reply("", status=500), r"there are no metrics \(HTTP 500\)", False),
        (Reply("", status=401), r"there are no metrics \(HTTP 401\)", False),
        (Reply("Bad Gateway", status=502), "HTTP 502", True),
        (REDIRECT_TO_ITSELF, r"HTTP 302", False),
        (REDIRECT_TO_A_FILE, r"HTTP 302", False),
        (Reply("<html></html>\n"), "no metrics: not Prometheus' text format", False),
        (Reply(b"\xff\xfe\x00\n"), "no metrics: not text", False),
        (Reply(""), "neither moshi-ctl's nor Kyutai's", False),
        (Reply("\x1b[2J 1\n"), r"not Prometheus' text format: .*\\x1b\[2J", False),
        (Reply("node_load1 0.5\n"), "neither moshi-ctl's nor Kyutai's", False),
        (Reply(raw=b"SSH-2.0-OpenSSH_9.6\r\n"), "does not speak HTTP", False),
        (Reply(raw=b""), "the connection broke off", True),
        (Reply("moshi_ready 1\n", claimed_bytes=500), "the connection broke off", True),
        (Reply("moshi_ready 1\nmoshi_lan"), "in the middle of a line", False),
        (Reply("# more and more\n" * 10_000, endless=True), "longer than 4 MiB", False),
    ],
)
def test_answers_that_are_none(reply: Reply, said: str, is_unreachable: bool) -> None:
    with scripted_server(metrics=reply) as server:
        with pytest.raises(ClientError, match=said) as caught:
            scrapes.scrape(server.url)
        assert server.url in caught.value.message
        assert caught.value.hint
        assert isinstance(caught.value, UnreachableError) == is_unreachable


@pytest.mark.parametrize(
    "reply", [Reply("moshi_ready 1\n", stalls=True), Reply(drips=True)], ids=["stalls", "drips"]
)
def test_a_slow_answer_is_not_waited_for(reply: Reply) -> None:
    with (
        scripted_server(metrics=reply) as server,
        # It would go on for as long as the server runs.
        pytest.raises(UnreachableError, match=r"no answer within 0\.3 s"),
    ):
        scrapes.scrape(server.url, timeout_s=0.3)


def test_nobody_answers() -> None:
    with pytest.raises(UnreachableError, match="connection refused"):
        scrapes.scrape(f"http://127.0.0.1:{closed_port()}")
    with silent_port() as port, pytest.raises(UnreachableError, match="no answer within"):
        scrapes.scrape(f"http://127.0.0.1:{port}", timeout_s=0.2)
    with scripted_server() as server, pytest.raises(ClientError, match="does not speak TLS"):
        scrapes.scrape(server.url.replace("http:", "https:"))


def test_loopback_is_asked_directly_whatever_proxy_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    with scripted_server(metrics=expositions.server(Module())) as server:
        assert scrapes.scrape(server.url).metrics.modules
