"""Checks of what is set around a server: its port, its certificate, `.env`, keys, numbers."""

from __future__ import annotations

import difflib
import errno
import http.client
import io
import ipaddress
import json
import os
import re
import socket
import stat
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from typing import Final

from moshi_ctl import env, keys, needs, plan, tls, worker
from moshi_ctl.doctor.findings import Finding, Situation, failure, ok, warning
from moshi_ctl.doctor.machine import threads_from_environment
from moshi_ctl.env import BETTER_AUTH_SECRET, MOSHI_API_KEY
from moshi_ctl.errors import UsageError
from moshi_ctl.plan import Wishes
from moshi_ctl.units import counted

_ANSWER_TIMEOUT_S: Final = 1.0
_MOST_ANSWER_BYTES: Final = 65_536

EXPIRES_SOON: Final = timedelta(days=14)
"""How long before its end a certificate is warned of."""

_RENEW: Final = "renew it: a worker that runs takes the new files by itself"

_OTHERS: Final = stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH
_OURS: Final = "MOSHI_"
_KNOWN: Final = tuple(variable.name for variable in env.VARIABLES)
# How alike a name of somebody else's has to be to one of ours to be taken for a slip.
_SLIP: Final = 0.9


_NUMBERS: Final = (
    env.MOSHI_THREADS,
    env.MOSHI_WARMUP,
    env.MOSHI_RESERVE_MB,
    env.MOSHI_MEMORY_ESTIMATE,
    env.MOSHI_PER_BATCH_ITEM_MB,
    env.MOSHI_MODEL_PARAMS_BILLIONS,
)


def port(situation: Situation) -> list[Finding]:
    """Whether a server could listen."""
    addr = worker.ip_address(situation.addr)
    number = situation.port
    place = f"[{addr}]:{number}" if ":" in addr else f"{addr}:{number}"
    family = socket.AF_INET6 if ":" in addr else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            if sys.platform != "win32":  # as the server does
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((addr, number))
    except OSError as error:
        return [_port_failure(error, place, addr, number)]
    return [ok("port", f"{place} is free" if number else f"{addr}: any free port")]


def certificate(situation: Situation) -> list[Finding]:
    """Whether a server could serve TLS with its files, and clients accept its certificate now."""
    path, key = situation.tls_cert, situation.tls_key
    tls.check_files(path, key)
    if path is None or key is None:
        return []
    name = "certificate"
    found = tls.server_certificate(path, key)
    now = datetime.now(timezone.utc)
    what = f"{path} for {', '.join(found.names)}" if found.names else str(path)
    end = f"{found.not_after:%Y-%m-%d}"
    findings = []
    if now < found.not_before:
        message = f"{what} is not valid before {found.not_before:%Y-%m-%d %H:%M} UTC"
        remedy = "see whether this machine's clock is right, or use a certificate that is valid now"
        findings.append(failure(name, message, remedy))
    elif now > found.not_after:
        findings.append(failure(name, f"{what} expired on {end}", _RENEW))
    elif found.not_after - now < EXPIRES_SOON:
        message = f"{what} until {end}, in less than {EXPIRES_SOON.days} days"
        findings.append(warning(name, message, _RENEW))
    if not found.names:
        message = f"{path} names no host or IP address as subjectAltName: clients refuse it"
        remedy = "have one made with the server's names as subjectAltName, which clients look at"
        findings.append(warning(name, message, remedy))
    return findings or [ok(name, f"{what} until {end}")]


def dot_env(situation: Situation) -> list[Finding]:
    """Whether `.env` can be read, by us only, and sets what it seems to. Never shows a value."""
    from dotenv.parser import parse_stream

    path = situation.folder / env.DOT_ENV
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            return [warning(".env", f"{path} is not a file: it is ignored", "make it a file")]
        lines = list(parse_stream(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except FileNotFoundError:
        return [ok(".env", "none in this folder")]
    except (OSError, UnicodeDecodeError) as error:
        # What it says of bytes that are no text would show them.
        why = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        remedy = "make it a readable UTF-8 text file of NAME=value lines, or remove it"
        return [failure(".env", f"{path} cannot be read: {why}", remedy)]
    findings = []
    if os.name == "posix" and mode & _OTHERS:
        message = f"{path}: other users of this machine may read or change it"
        remedy = f"take that away: `chmod 600 {env.DOT_ENV}`"
        findings.append(warning(".env", f"{message} (mode {stat.S_IMODE(mode):o})", remedy))
    # Whatever such a line holds may be part of a key: its number has to do.
    unread = [env.line_number(line) for line in lines if line.error]
    if unread:
        message = f"{path}: ignored, because they are not NAME=value: {_numbered(unread)}"
        findings.append(warning(".env", message, "correct or remove them"))
    unset = [env.line_number(line) for line in lines if line.key and line.value is None]
    if unset:
        message = f"{path}: a name without a value, which no other command accepts"
        remedy = "write NAME=value, or remove the line"
        findings.append(failure(".env", f"{message}: {_numbered(unset)}", remedy))
    if situation.refuses_dot_env and not unset:
        message = f"{path}: a name or a value holds what no variable can, such as NUL"
        findings.append(failure(".env", message, "write plain NAME=value lines"))
    names = list(dict.fromkeys(line.key for line in lines if line.key and line.value is not None))
    for name in names:
        findings += _unknown_name(name, situation)
    return findings or [ok(".env", f"{path} sets {counted(len(names), 'variable')}")]


def api_keys(situation: Situation) -> list[Finding]:
    """Whether clients need a key, and whether it is one. Never shows any."""
    try:
        in_environment = keys.keys_from_environment() or []
        secret = keys.jwt_secret_from_environment()
    except UsageError as error:
        return [failure("keys", error.message, error.hint)]
    counts = [f"{len(in_environment)} in {MOSHI_API_KEY.name}"]
    configured = 0 if situation.configuration is None else situation.configuration.key_count
    if situation.configuration is not None:
        replaced = " (replaced by those)" if configured and in_environment else ""
        counts.append(f"{configured} in authorized_ids{replaced}")
    counts.append(f"{BETTER_AUTH_SECRET.name} is {'not ' if secret is None else ''}set")
    message = ", ".join(counts)
    if not in_environment and not configured and secret is None:
        remedy = f"{_new_secret(MOSHI_API_KEY.name)}; or serve this machine with --addr 127.0.0.1"
        why = "a server that asks for no key listens on loopback only"
        return [warning("keys", f"{message}: {why}", remedy)]
    findings = [ok("keys", message)]
    ours = [key.key for key in in_environment]
    listed = [] if in_environment else _listed_keys(situation)
    for place, values in ((MOSHI_API_KEY.name, ours), ("authorized_ids", listed)):
        known = [n for n, key in enumerate(values, 1) if keys.is_known_to_everybody(key)]
        if known:
            which = f"key {', '.join(map(str, known))} of {place}"
            remedy = _new_secret(MOSHI_API_KEY.name)
            findings.append(warning("keys", f"{which}: an example's, which anybody tries", remedy))
    if secret is not None and keys.is_known_to_everybody(secret):
        why = f"{BETTER_AUTH_SECRET.name}: an example's, which anybody tries"
        findings.append(warning("keys", why, _new_secret(BETTER_AUTH_SECRET.name)))
    elif secret is not None and keys.is_short_for_tokens(secret):
        findings.append(warning("keys", keys.TOO_SHORT, keys.TOO_SHORT_HINT))
    return findings


def numbers(situation: Situation) -> list[Finding]:
    """Whether variables that hold numbers, or are switches, do."""
    configuration = situation.configuration
    estimate = True if configuration is None else configuration.sizing.estimate
    refusals = (
        _refusal(lambda: needs.rules_from_environment(estimate=estimate)),
        _refusal(lambda: plan.reserve_mib(configuration, Wishes())),
        _refusal(threads_from_environment),
        _refusal(worker.warmup_from_environment),
    )
    findings = [failure("numbers", one.message, one.hint) for one in refusals if one is not None]
    if findings:
        return findings
    names = [variable.name for variable in _NUMBERS if env.value_of(variable) is not None]
    return [ok("numbers", f"{', '.join(names)} can be used" if names else "no variable sets any")]


def _port_failure(error: OSError, place: str, addr: str, number: int) -> Finding:
    if error.errno == errno.EADDRINUSE:
        who = _who_answers(addr, number)
        tool = "lsof -i" if sys.platform == "darwin" else "ss -ltnp"
        return failure(
            "port",
            f"{place} is taken{f': {who} answers there' if who else ''}",
            f"stop what listens there (`{tool}` lists it), or choose another port with --port",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        remedy = "choose another one with --addr: 0.0.0.0 is all of them, 127.0.0.1 this machine"
        return failure("port", f"{addr} is not an address of this machine", remedy)
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "choose a port from 1024 on with --port, or let this user have the lower ones"
        return failure("port", f"this user may not listen on {place}", remedy)
    why = error.strerror or type(error).__name__
    return failure("port", f"{place}: {why}", "choose another one with --addr or --port")


def _who_answers(addr: str, number: int) -> str | None:
    """The server on a port of this machine, if it is one of ours or of our kind."""
    address = ipaddress.ip_address(addr)
    if address.is_unspecified:
        addr = "127.0.0.1" if address.version == 4 else "::1"
    connection = http.client.HTTPConnection(addr, number, timeout=_ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", "/api/build_info")
        info = json.loads(connection.getresponse().read(_MOST_ANSWER_BYTES))
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        return None
    finally:
        connection.close()
    if not isinstance(info, dict) or "git_hash" not in info:
        return None
    version = info.get("version")
    if isinstance(version, str) and re.fullmatch(r"[\w.+-]{1,32}", version):
        return f"a moshi-ctl server {version}"
    return "a moshi server"


def _listed_keys(situation: Situation) -> list[str]:
    """The keys that the configuration lists."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    if situation.configuration is None:
        return []
    try:
        text = situation.configuration.path.read_text(encoding="utf-8")
        listed = tomlkit.parse(text).unwrap().get("authorized_ids", [])
    except TOMLKitError:  # which knows an older TOML than the server
        return []
    return [keys.without_name(key) for key in listed if isinstance(key, str)]


def _refusal(read: Callable[[], object]) -> UsageError | None:
    try:
        read()
    except UsageError as error:
        return error
    return None


def _unknown_name(name: str, situation: Situation) -> list[Finding]:
    alike = difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0.6)
    slip = bool(difflib.get_close_matches(name, _KNOWN, n=1, cutoff=_SLIP))
    if name in _KNOWN or not (name.startswith(_OURS) or slip) or _is_named(name, situation):
        return []
    remedy = f"did you mean {alike[0]}?" if alike else "see .env.example for those there are"
    message = f"{situation.folder / env.DOT_ENV} sets {name}, which moshi-ctl does not read"
    return [warning(".env", message, f"{remedy} A configuration may still use ${name}.")]


def _is_named(name: str, situation: Situation) -> bool:
    """Whether the configuration names a variable."""
    if situation.configuration is None:
        return False
    text = situation.configuration.path.read_text(encoding="utf-8")
    return re.search(rf"\${re.escape(name)}\b", text) is not None


def _numbered(lines: Iterable[int]) -> str:
    numbers_of_lines = list(lines)
    plural = "s" if len(numbers_of_lines) > 1 else ""
    return f"line{plural} {', '.join(map(str, numbers_of_lines))}"


def _new_secret(variable: str) -> str:
    return f"set {variable} to something that nobody guesses, as `openssl rand -base64 32` prints"
