"""`moshi-ctl fit`: a copy of a configuration that fits, and is otherwise what it was."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from moshi_ctl import config, shipped
from support import configs
from support.plans import CARD, Command, Said

FIT_KEYS = ("batch_size", "precision", "kv_precision")


@pytest.fixture(autouse=True)
def _folder_of_the_tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSHI_CTL_TINY_DIR", "/tiny")


def fitted(command: Command, source: Path, *arguments: str) -> tuple[Said, str]:
    """What `fit` says, and the text that it writes."""
    target = source.with_name("fitted.toml")
    said = command("fit", "--config", source, "--out", target, *arguments)
    assert said.code == 0, said.err
    return said, target.read_bytes().decode()


def changed(before: str, after: str) -> tuple[list[str], list[str]]:
    """The lines that are gone, and those that came; blank ones do not count."""
    compared = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    gone, came = (
        [line[2:] for line in compared if line.startswith(mark) and line[2:].strip()]
        for mark in ("- ", "+ ")
    )
    return gone, came


def test_only_what_was_planned_changes(command: Command, tmp_path: Path) -> None:
    source = configs.shipped_copy(
        tmp_path,
        "stt-1b-en_fr",
        "batch_size   =   64   # as many as last year",
        section="# Ünïcode stays, as does\tthis tab.\n\n\n",
    )
    text = source.read_text()
    lanes = command.plan(source, *CARD).lanes
    said, after = fitted(command, source, *CARD)
    gone, came = changed(text, after)
    assert gone == ["batch_size   =   64   # as many as last year"]
    assert came == [
        f"batch_size   =   {lanes}   # as many as last year",
        'precision = "f32"',
        'kv_precision = "f32"',
    ]
    assert said.out.splitlines() == [
        f"modules.asr.batch_size: 64 -> {lanes}",
        "modules.asr.precision: not set -> 'f32'",
        "modules.asr.kv_precision: not set -> 'f32'",
        f"{tmp_path / 'fitted.toml'}: 3 changes",
    ]


@pytest.mark.parametrize("name", shipped.names())
@pytest.mark.parametrize(
    "facts",
    [
        ("--device", "auto", "--free-mb", "15000", "--compute-capability", "7.5"),
        ("--device", "auto", "--free-mb", "9000", "--compute-capability", "8.6"),
        ("--cpu", "--free-mb", "6000"),
    ],
)
def test_the_copy_is_valid_and_gets_the_same(
    command: Command, tmp_path: Path, name: str, facts: tuple[str, ...]
) -> None:
    target = tmp_path / "fitted.toml"
    assert command("fit", "--config", name, "--out", target, *facts).code == 0
    assert command("validate", target).code == 0
    before, after = (command.plan(path, *facts).module for path in (name, target))
    assert after["lanes"] == before["lanes"]
    if before["wanted_lanes"] == "auto" and before["device"] == "cpu":
        # How many keep real time is for the worker to find out.
        assert after["wanted_lanes"] == "auto"
    else:
        assert after["wanted_lanes"] == before["lanes"]
        assert after["limit"] == "batch_size"
    for key in ("precision", "kv_precision", "total_bytes"):
        assert after[key] == before[key]
    # What fits is not made to fit once more.
    again = command("fit", "--config", target, "--out", tmp_path / "again.toml", *facts)
    assert again.out == f"{tmp_path / 'again.toml'}: no changes\n"
    assert (tmp_path / "again.toml").read_bytes() == target.read_bytes()


def test_each_module_gets_its_own(command: Command, tmp_path: Path) -> None:
    source = configs.two_modules(
        tmp_path, "stt-1b-en_fr", ("batch_size = 40",), ('batch_size = "auto"',)
    )
    said, after = fitted(command, source, "--free-mb", "16000", "--compute-capability", "8.0")
    lanes = {name: module["lanes"] for name, module in command.plan(
        source, "--free-mb", "16000", "--compute-capability", "8.0"
    ).plan["modules"].items()}  # fmt: skip
    assert lanes["asr"] <= 40
    assert f"modules.asr2.batch_size: 'auto' -> {lanes['asr2']}" in said.out
    copy = config.read(tmp_path / "fitted.toml")
    assert {name: module.lanes for name, module in copy.modules.items()} == lanes
    assert after.count('precision = "bf16"') == 4


def dotted(prefix: str, table: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            lines += dotted(f"{name}.", value)
        else:
            lines.append(f"{name} = {literal(value)}")
    return lines


def literal(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {literal(one)}" for key, one in value.items()) + " }"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def all_dotted(facts: dict[str, Any]) -> str:
    return "\n".join(dotted("", facts)) + "\n"


def inline_module(facts: dict[str, Any]) -> str:
    modules = facts.pop("modules")
    return f"{all_dotted(facts)}[modules]\nasr = {literal(modules['asr'])} # the end\n"


def inline_modules(facts: dict[str, Any]) -> str:
    modules = facts.pop("modules")
    return f"{all_dotted(facts)}modules = {literal(modules)} # the end\n"


def dotted_module(facts: dict[str, Any]) -> str:
    module = facts["modules"]["asr"]
    model = module.pop("model")
    return all_dotted(facts) + f"[modules.asr.model]\n{all_dotted(model)}"


def module_after_its_model(facts: dict[str, Any]) -> str:
    module = facts.pop("modules")["asr"]
    model = module.pop("model")
    return (
        f"{all_dotted(facts)}[modules.asr.model]\n{all_dotted(model)}[warmup]\nenabled = true\n"
        f"[modules.asr]\n{all_dotted(module)}"
    )


def quoted(facts: dict[str, Any]) -> str:
    module = facts.pop("modules")["asr"]
    return f'{all_dotted(facts)}["modules" . "asr"]\n' + all_dotted(module).replace(
        "batch_size", '"batch_size"'
    )


@pytest.mark.parametrize(
    "form",
    [all_dotted, inline_module, inline_modules, dotted_module, module_after_its_model, quoted],
)
def test_every_form_of_toml_is_understood(
    form: Callable[[dict[str, Any]], str], command: Command, tmp_path: Path
) -> None:
    import tomlkit

    facts: dict[str, Any] = tomlkit.parse(shipped.path_of("stt-1b-en_fr").read_text()).unwrap()
    source = tmp_path / "config.toml"
    source.write_text(form(facts))
    lanes = command.plan(source, *CARD).lanes
    _, after = fitted(command, source, *CARD)
    assert command("validate", tmp_path / "fitted.toml").code == 0
    ours = command.plan(tmp_path / "fitted.toml", *CARD).module
    assert 0 < ours["wanted_lanes"] == ours["lanes"] == lanes < 64
    assert ours["precision_reason"] == "asked for"
    before, now = (tomlkit.parse(text).unwrap() for text in (source.read_text(), after))
    for key in FIT_KEYS:
        before["modules"]["asr"].pop(key, None)
        now["modules"]["asr"].pop(key)
    assert now == before
    assert after.count("#") == source.read_text().count("#")


def test_ends_of_lines_stay(command: Command, tmp_path: Path) -> None:
    source = tmp_path / "config.toml"
    text = shipped.path_of("stt-1b-en_fr").read_text().replace("\n", "\r\n")
    source.write_bytes(text.encode())
    _, after = fitted(command, source, *CARD)
    assert 'precision = "f32"\r\n' in after
    assert after.count("\n") == after.count("\r\n")
    assert changed(text, after)[0] == ["batch_size = 64"]


def test_a_byte_order_mark_stays(command: Command, tmp_path: Path) -> None:
    source = tmp_path / "config.toml"
    source.write_bytes(b"\xef\xbb\xbf" + shipped.path_of("stt-1b-en_fr").read_bytes())
    _, after = fitted(command, source, *CARD)
    assert after.startswith("\ufeff# Kyutai")
    assert command("validate", tmp_path / "fitted.toml").code == 0


@pytest.mark.parametrize(
    ("lines", "arguments", "expected"),
    [
        # Kyutai's name for the precision stays; what a flag asks for is what the copy says.
        (['dtype_override = "f16"'], [], {"dtype_override": "f16", "kv_precision": "f16"}),
        (
            ['dtype_override = "f16"'],
            ["--precision", "q8"],
            {"dtype_override": "q8", "kv_precision": "q8"},
        ),
        (
            ['dtype_override = "f16"', 'precision = "f16"'],
            ["--precision", "f32"],
            {"dtype_override": "f32", "precision": "f32", "kv_precision": "f32"},
        ),
        (
            ['dtype_override = "f16"', 'precision = "auto"'],
            [],
            {"dtype_override": "f16", "precision": "auto", "kv_precision": "f16"},
        ),
        (
            ['precision = "f32"', 'kv_precision = "f32"'],
            ["--precision", "auto", "--kv-precision", "f16"],
            {"precision": "f32", "kv_precision": "f16"},
        ),
        (
            ['precision = "auto"', 'kv_precision = "auto"'],
            [],
            {"precision": "f32", "kv_precision": "f32"},
        ),
    ],
)
def test_what_is_said_of_precisions_is_what_was_planned(
    lines: list[str],
    arguments: list[str],
    expected: dict[str, str],
    command: Command,
    tmp_path: Path,
) -> None:
    import tomlkit

    source = configs.shipped_copy(tmp_path, "stt-1b-en_fr", *lines)
    _, after = fitted(command, source, *CARD, *arguments)
    module = tomlkit.parse(after).unwrap()["modules"]["asr"]
    named = ("dtype_override", "precision", "kv_precision")
    assert {key: module[key] for key in named if key in module} == expected
    before = command.plan(source, *CARD, *arguments).module
    now = command.plan(tmp_path / "fitted.toml", *CARD).module
    for key in ("lanes", "precision", "kv_precision"):
        assert now[key] == before[key], key


# Where it may write.


def fit(command: Command, source: Path, target: str | Path, *arguments: str) -> Said:
    return command("fit", "--config", source, "--out", target, *CARD, *arguments)


def test_a_file_is_replaced_only_when_told(command: Command, tmp_path: Path) -> None:
    target = tmp_path / "there.toml"
    target.write_text("mine")
    said = fit(command, Path("stt-1b-en_fr"), target)
    assert (said.code, target.read_text()) == (2, "mine")
    assert said.error == f"error: {target} is already there"
    assert "--force" in said.hint
    assert fit(command, Path("stt-1b-en_fr"), target, "--force").code == 0
    assert command("validate", target).code == 0
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("how", ["same", "link", "another name"])
def test_the_configuration_itself_is_never_replaced(
    how: str, command: Command, tmp_path: Path
) -> None:
    source = configs.shipped_copy(tmp_path, "stt-1b-en_fr")
    text = source.read_text()
    target = {
        "same": source,
        "link": tmp_path / "link.toml",
        "another name": tmp_path / "folder/../stt-1b-en_fr.toml",
    }[how]
    (tmp_path / "folder").mkdir()
    if how == "link":
        target.symlink_to(source)
    said = fit(command, source, target, "--force")
    assert said.code == 2
    assert "is the configuration itself" in said.error
    assert "--out" in said.hint
    assert source.read_text() == text
    assert not source.is_symlink()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("file/fitted.toml", "Not a directory"),
        ("nowhere/fitted.toml", "No such file or directory"),
        (300 * "x", "File name too long"),
        ("folder", "is a folder"),
        ("", "is a folder"),
    ],
)
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_where_it_cannot_be_written_nothing_is(
    name: str, says: str, force: list[str], command: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    said = fit(command, Path("stt-1b-en_fr"), name, *force)
    assert said.code == 2
    assert says in said.error
    assert "--out" in said.hint
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "folder"}
    assert (tmp_path / "file").read_text() == "mine"


def test_a_draft_that_cannot_be_finished_leaves_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "there.toml"
    target.write_text("mine")
    monkeypatch.setattr(Path, "write_bytes", no_space)
    said = fit(command, Path("stt-1b-en_fr"), target, "--force")
    assert (said.code, said.error) == (
        2,
        f"error: {target}: cannot be written: No space left on device",
    )
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_text() == "mine"


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_who_may_not_read_the_configuration_may_not_read_the_copy(
    mode: int, command: Command, tmp_path: Path
) -> None:
    source = configs.shipped_copy(tmp_path, "stt-1b-en_fr")
    source.chmod(mode)
    fitted(command, source, *CARD)
    assert (tmp_path / "fitted.toml").stat().st_mode & 0o777 == mode


def test_what_does_not_fit_is_not_written(command: Command, tmp_path: Path) -> None:
    said = command(
        "fit", "--config", "stt-2.6b-en", "--out", "fitted.toml", "--free-mb", "1000",
        "--compute-capability", "7.5",
    )  # fmt: skip
    assert said.code == 1
    assert "module asr: one lane needs" in said.error
    assert not list(tmp_path.iterdir())


def test_a_configuration_that_only_the_server_can_read_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tomlkit
    from tomlkit.exceptions import UnexpectedCharError

    def strict(_: str) -> None:
        raise UnexpectedCharError(3, 7, "e")

    source = configs.shipped_copy(tmp_path, "stt-1b-en_fr")
    monkeypatch.setattr(tomlkit, "parse", strict)
    said = fit(command, source, "fitted.toml")
    assert said.code == 2
    assert f"{source}: cannot be changed" in said.error
    assert "line 3" in said.error
    assert not (tmp_path / "fitted.toml").exists()
