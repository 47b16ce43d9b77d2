"""The hand-written interface of the compiled module against the module itself."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import moshi_ctl
from moshi_ctl import _native, shipped
from moshi_ctl.errors import ConfigError, UsageError

STUB = ast.parse((Path(moshi_ctl.__file__).parent / "_native.pyi").read_text())
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}
CONSTANTS = {
    node.target.id
    for node in STUB.body
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
}


def test_the_stub_names_what_the_module_has() -> None:
    public = {name for name in dir(_native) if not name.startswith("_")}
    assert public == set(FUNCTIONS) | CONSTANTS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_stub_has_the_module_s_parameters(name: str) -> None:
    parameters = inspect.signature(getattr(_native, name)).parameters.values()
    stub = FUNCTIONS[name].args
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert positional == [argument.arg for argument in stub.args]
    assert keywords == [argument.arg for argument in stub.kwonlyargs]


def test_build_info_names_the_version() -> None:
    assert _native.build_info()["version"] == moshi_ctl.__version__


def test_errors_carry_their_parts(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("instance = 1\n")
    with pytest.raises(ConfigError) as caught:
        _native.read_config(path, require_files=False)
    error = caught.value
    assert (error.file, error.line, error.key) == (str(path), 1, "instance")
    assert error.message in str(error)


def test_an_address_that_is_none_is_refused(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSHI_CTL_TINY_DIR", str(tiny_dir))
    with pytest.raises(UsageError, match="not an IP address"):
        _native.serve(
            shipped.path_of("tiny-random"),
            addr="somewhere",
            port=0,
            threads=None,
            decisions={},
            files={},
            read_keys=lambda: {"api_keys": None, "jwt_secret": None},
            tls_cert=None,
            tls_key=None,
            warmup=None,
            gpu_readings=None,
        )
