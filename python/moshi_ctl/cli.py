"""The command line: options and exit codes. What a command does is in the module it calls."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from moshi_ctl import (
    __version__,
    addresses,
    bench,
    checkpoint,
    config,
    demo,
    devices,
    doctor,
    env,
    fitting,
    hub,
    keys,
    logs,
    options,
    paths,
    plan,
    plan_view,
    quantizing,
    report,
    shipped,
    transcribing,
    worker,
)
from moshi_ctl.addresses import DEFAULT_URL
from moshi_ctl.config import Config
from moshi_ctl.errors import ConfigError, MoshiCtlError, UsageError
from moshi_ctl.monitoring import fetching, readiness, shipped_files, watching
from moshi_ctl.options import (
    AddrOption,
    CaOption,
    CapabilityOption,
    ComputePrecision,
    ConfigOption,
    CpuOption,
    DeviceOption,
    EveryOption,
    FreeOption,
    KvPrecisionOption,
    LogFormat,
    LogFormatOption,
    LogLevel,
    LogMaxFilesOption,
    LogMaxSizeOption,
    LogOption,
    OtlpEndpointOption,
    PortOption,
    PrecisionOption,
    ReserveOption,
    ServerArgument,
    SilentOption,
    ThreadsOption,
    TimeoutOption,
    TlsCertOption,
    TlsKeyOption,
)

app = typer.Typer(
    name="moshi-ctl",
    help="A self-hosted server for Kyutai's streaming speech models, and a client for it.",
    epilog="A file .env in the working directory can set environment variables; see .env.example.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DEMO: Final = "demo"
_DOCTOR: Final = "doctor"


class FilePrecision(str, Enum):
    """The number format of a language model's weights in a file."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    # Known so that the refusal can say where such a file comes from; not in the help.
    Q8 = "q8"


def main() -> NoReturn:
    """Runs the command line and ends the process.

    Exit codes: 0 for success, 1 for a failure, 2 for a command or configuration that is wrong.
    """
    try:
        app()
    except MoshiCtlError as error:
        report.fail(error)
        sys.exit(error.exit_code)
    sys.exit(0)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"moshi-ctl {__version__}")
        raise typer.Exit


@app.callback()
def _prepare(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    if context.invoked_subcommand == _DOCTOR:  # which says what is wrong with a `.env`
        return
    if context.invoked_subcommand != _DEMO:  # which is the same whatever is set for servers
        env.load_dot_env(Path.cwd())
    env.set_defaults()


@app.command(_DEMO)
def _demo(
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help="A WAV, MP3, FLAC or Ogg file instead of the bundled recording.",
        ),
    ] = None,
    mic: Annotated[
        bool,
        typer.Option("--mic", help="Listen to the microphone; needs `pip install moshi-ctl[mic]`."),
    ] = False,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help="As fast as the model takes a recording, instead of as it was spoken."
        ),
    ] = False,
    words: Annotated[
        bool, typer.Option("--words", help="List the words that the model knows, and do no more.")
    ] = False,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Hear the embedded model at work; needs no configuration, no download and no key.

    A server is started for it on this machine, and ended with it.
    """
    wishes = demo.Demo(
        file=file,
        mic=mic,
        fast=fast,
        words=words,
        precision=precision.value if precision else None,
        threads=threads,
    )
    raise typer.Exit(demo.run(wishes))


@app.command("worker")
def _worker(
    config: ConfigOption,
    log: LogOption = LogLevel.INFO,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_max_size_mb: LogMaxSizeOption = logs.DEFAULT_MAX_SIZE_MIB,
    log_max_files: LogMaxFilesOption = logs.DEFAULT_MAX_FILES,
    addr: AddrOption = options.DEFAULT_ADDR,
    port: PortOption = options.DEFAULT_PORT,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    device: DeviceOption = None,
    cpu: CpuOption = False,
    threads: ThreadsOption = None,
    precision: PrecisionOption = None,
    kv_precision: KvPrecisionOption = None,
    reserve_mb: ReserveOption = None,
    no_warmup: Annotated[
        bool, typer.Option("--no-warmup", help="Serve without warming up.")
    ] = False,
    silent: SilentOption = False,
    otlp_endpoint: OtlpEndpointOption = None,
) -> None:
    """Serve the models of a configuration until Ctrl-C or SIGTERM."""
    log_options = logs.LogOptions(
        level=log.value,
        format=log_format.value,
        silent=silent,
        max_size_mib=log_max_size_mb,
        max_files=log_max_files,
        otlp_endpoint=otlp_endpoint or None,
    )
    worker_options = worker.WorkerOptions(
        addr=addr,
        port=port,
        log=log_options,
        threads=threads,
        warmup=False if no_warmup else worker.warmup_from_environment(),
        wishes=options.wishes(device, precision, kv_precision, reserve_mb, cpu=cpu),
        tls_cert=tls_cert,
        tls_key=tls_key,
    )
    worker.run(shipped.find(config), worker_options)


def _plan(
    config_path: Path,
    wishes: plan.Wishes,
    free_mb: float | None,
    compute_capability: str | None,
) -> tuple[Config, plan.Plan]:
    configuration = config.read(config_path, warmup=worker.warmup_from_environment())
    simulated = options.simulated(free_mb, compute_capability, wishes.device)
    machine = devices.read_machine(simulated)
    return configuration, plan.make(configuration, machine, wishes, only_plans=True)


@app.command("plan")
def _show_plan(
    config: ConfigOption,
    device: DeviceOption = None,
    cpu: CpuOption = False,
    precision: PrecisionOption = None,
    kv_precision: KvPrecisionOption = None,
    reserve_mb: ReserveOption = None,
    free_mb: FreeOption = None,
    compute_capability: CapabilityOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what a worker would decide, without starting anything: device, precision, lanes."""
    wishes = options.wishes(device, precision, kv_precision, reserve_mb, cpu=cpu)
    _, decided = _plan(shipped.find(config), wishes, free_mb, compute_capability)
    if as_json:
        typer.echo(json.dumps(plan_view.as_json(decided), indent=2))
    else:
        plan_view.warn_of(decided)
        plan_view.show(decided, report.console())
    decided.refuse_what_does_not_fit()


@app.command("fit")
def _fit(
    config: ConfigOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    device: DeviceOption = None,
    cpu: CpuOption = False,
    precision: PrecisionOption = None,
    kv_precision: KvPrecisionOption = None,
    reserve_mb: ReserveOption = None,
    free_mb: FreeOption = None,
    compute_capability: CapabilityOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a copy of a configuration with the lanes and precisions that fit this machine."""
    wishes = options.wishes(device, precision, kv_precision, reserve_mb, cpu=cpu)
    configuration, decided = _plan(shipped.find(config), wishes, free_mb, compute_capability)
    changes = fitting.write(configuration, decided, out, overwrite=force)
    for change in changes:
        typer.echo(change)
    typer.echo(f"{out}: {len(changes) or 'no'} change{'' if len(changes) == 1 else 's'}")


@app.command(_DOCTOR)
def _doctor(
    config: Annotated[
        str | None,
        typer.Option(
            "--config", metavar="CONFIG", help="A TOML file or a shipped name, to check it too."
        ),
    ] = None,
    addr: AddrOption = options.DEFAULT_ADDR,
    port: PortOption = options.DEFAULT_PORT,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Check driver, cards, memory, port, TLS, keys, hub and files, and say what to do."""
    situation = doctor.Situation(addr, port, config, Path(), tls_cert=tls_cert, tls_key=tls_key)
    if not doctor.run(situation, as_json_text=as_json):
        raise typer.Exit(MoshiCtlError.exit_code)


@app.command("validate")
def _validate(
    configs: Annotated[
        list[str], typer.Argument(metavar="CONFIG...", help="TOML files or shipped names.")
    ],
) -> None:
    """Check configurations without loading a model."""
    failed = False
    for value in configs:
        try:
            checked = config.read(shipped.find(value))
        except ConfigError as error:
            report.fail(error)
            failed = True
            continue
        served = ", ".join(f"{name} at {module.path}" for name, module in checked.modules.items())
        typer.echo(f"{value}: ok ({served})")
        for file in checked.files:
            if hub.parse(file.value) is None and not paths.is_file(Path(file.value)):
                report.warn(
                    f"{value}: {file.key} of module {file.module!r}: {file.value} does not exist",
                    hint="a worker needs it",
                )
    if failed:
        raise typer.Exit(ConfigError.exit_code)


@app.command("configs")
def _configs(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The one to print; all are listed else.")
    ] = None,
) -> None:
    """List the shipped configurations, or print one."""
    if name is not None:
        typer.echo(shipped.path_of(name).read_text(encoding="utf-8"), nl=False)
        return
    names = shipped.names()
    width = max(map(len, names))
    for each in names:
        typer.echo(f"{each:{width}}  {shipped.summary(each)}")


@app.command("transcribe")
def _transcribe(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="WAV, MP3, FLAC or Ogg files.")
    ],
    url: Annotated[str, typer.Option("--url", help="The server's address.")] = DEFAULT_URL,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            help=f"API key, which lists of processes show; better set {env.MOSHI_API_KEY.name} "
            "(environment or .env), whose first one is used without this.",
            show_default=False,
        ),
    ] = None,
    ca: CaOption = None,
    form: Annotated[
        transcribing.Format, typer.Option("--format", help="How to write the transcript.")
    ] = transcribing.Format.TEXT,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File, or folder for several; else standard output."),
    ] = None,
) -> None:
    """Stream audio files to a server and write down what it hears."""
    if key is None:
        key = next((first.key for first in keys.keys_from_environment() or []), None)
    transcribing.run(transcribing.plan(files, output, form), url=url, key=key, ca=ca, form=form)


@app.command("metrics")
def _metrics(
    url: ServerArgument = fetching.DEFAULT_URL,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C, with rates.")
    ] = False,
    every: EveryOption = None,
    ca: CaOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with --watch an object a line.")
    ] = False,
) -> None:
    """Show what a running server measures: lanes, step times, missed deadlines, warm-up."""
    base = fetching.base_address(url)
    trust = addresses.trust(base, ca)
    if watch:
        every_s = every or watching.DEFAULT_EVERY_S
        watching.watch(base, every_s=every_s, as_json=as_json, trust=trust)
    elif every is not None:
        raise UsageError("--every: nothing is repeated", hint="add --watch")
    else:
        watching.show(base, as_json=as_json, trust=trust)


@app.command("warmup")
def _warmup(
    url: ServerArgument = fetching.DEFAULT_URL,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the server is ready.")] = False,
    timeout: TimeoutOption = None,
    ca: CaOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Say whether a server is ready and how its models were warmed up; fail if it is not."""
    base = fetching.base_address(url)
    if timeout is not None and not wait:
        raise UsageError("--timeout: nothing is waited for", hint="add --wait")
    wait_s = readiness.DEFAULT_TIMEOUT_S if timeout is None else timeout
    trust = addresses.trust(base, ca)
    readiness.run(base, wait_s=wait_s if wait else None, as_json=as_json, trust=trust)


@app.command("monitoring")
def _monitoring(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet.")],
) -> None:
    """Write configuration for Prometheus, with alert rules, and Grafana dashboards to a folder."""
    for path in shipped_files.write(target):
        typer.echo(target / path)
    typer.echo(f"{target / shipped_files.README} says how to run them and what each alert means")


@app.command("bench")
def _bench(
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="CONFIG",
            help="A TOML file or a shipped name; without it STT 1B's shape with random weights.",
        ),
    ] = None,
    module: Annotated[
        str | None, typer.Option("--module", help="Which module, where there are several.")
    ] = None,
    lanes: Annotated[
        str, typer.Option("--lanes", metavar="N,N,...", help="How many streams at once.")
    ] = bench.DEFAULT_LANES,
    context: Annotated[
        bench.Context,
        typer.Option("--context", case_sensitive=False, help="What streams have heard before."),
    ] = bench.Context.EMPTY,
    steps: Annotated[
        int, typer.Option("--steps", min=1, max=100_000, help="Steps per number of lanes.")
    ] = bench.DEFAULT_STEPS,
    threads: ThreadsOption = None,
    precision: Annotated[
        ComputePrecision | None,
        typer.Option(
            "--precision",
            case_sensitive=False,
            help="Of the language model; else the configuration's or the device's.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = None,
    cpu: CpuOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    random_dir: Annotated[
        Path | None,
        typer.Option(
            "--random-dir",
            help="Folder of the random weights (2.4 GB, written once).",
            show_default="in ~/.cache",
        ),
    ] = None,
) -> None:
    """Measure how many streams a model keeps in real time on this machine."""
    bench_options = bench.BenchOptions(
        lanes=bench.parse_lanes(lanes),
        context=context,
        steps=steps,
        threads=threads,
        precision=precision.value if precision else None,
        device=options.device_of(device, cpu=cpu),
        as_json=as_json,
    )
    if config is not None:
        if random_dir is not None:
            raise UsageError(
                "--random-dir: a configuration names its own files",
                hint="leave out --random-dir or --config",
            )
        bench.run(shipped.find(config), module, bench_options)
    elif module is not None:
        raise UsageError("--module: there is no configuration", hint="add --config")
    else:
        bench.run_with_random_weights(random_dir or bench.default_random_folder(), bench_options)


@app.command("random-checkpoint")
def _random_checkpoint(
    config: ConfigOption,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, another model.")] = 0,
    precision: Annotated[
        FilePrecision,
        typer.Option(
            "--precision",
            case_sensitive=False,
            metavar="[f32|f16|bf16]",
            help="Format of the language model.",
        ),
    ] = FilePrecision.BF16,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write random model files where a configuration wants them, to try it without a download."""
    written = checkpoint.write_random(
        shipped.find(config), seed=seed, precision=precision.value, overwrite=force
    )
    for path in written:
        typer.echo(path)


@app.command("quantize")
def _quantize(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A language model: safetensors or GGUF.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The GGUF file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a language model with its matrices in eight bits."""
    typer.echo(f"{target}: {quantizing.run(source, target, overwrite=force)}")
