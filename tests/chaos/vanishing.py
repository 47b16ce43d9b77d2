"""Clients that stop at some stage of a session and then are gone, one way or another.

As a program (`python -m chaos.vanishing PORT SEED COUNT`) it brings that many clients to a stage of
their own, says so, and waits to be killed.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

import numpy as np

from chaos import raw_websocket
from chaos.raw_session import AUTHORIZED, join
from chaos.raw_websocket import Frame, Opcode, RawWebSocket, close_frame, fragments
from moshi_ctl import protocol
from moshi_ctl.protocol import FRAME_SAMPLES

Client = RawWebSocket
Dice = random.Random


def _audio(frames: float) -> bytes:
    return protocol.encode_audio(np.full(round(frames * FRAME_SAMPLES), 0.1, dtype=np.float32))


def _connected(port: int, _: Dice) -> Client:
    return raw_websocket.dial(port)


def _in_the_handshake(port: int, dice: Dice) -> Client:
    client = raw_websocket.dial(port)
    request = raw_websocket.upgrade_request(port, headers=AUTHORIZED)
    client.socket.sendall(request[: dice.randrange(1, len(request))])
    return client


def _after_the_handshake(port: int, _: Dice) -> Client:
    client = raw_websocket.dial(port)
    client.socket.sendall(raw_websocket.upgrade_request(port, headers=AUTHORIZED))
    return client


def _refused(port: int, _: Dice) -> Client:
    client = raw_websocket.dial(port)
    client.socket.sendall(raw_websocket.upgrade_request(port))
    return client


def _ready(port: int, _: Dice) -> Client:
    return join(port)


def _in_a_frame(port: int, dice: Dice) -> Client:
    client = join(port)
    frame = Frame(_audio(2)).encode()
    client.socket.sendall(frame[: dice.randrange(1, len(frame))])
    return client


def _in_a_message(port: int, dice: Dice) -> Client:
    client = join(port)
    client.send(*fragments(_audio(2), [dice.randrange(100), 0, 1000])[:-1])
    client.send(Frame(b"", Opcode.PING))
    return client


def _speaking(port: int, dice: Dice) -> Client:
    client = join(port)
    client.send_message(_audio(dice.uniform(0.1, 30)))
    return client


def _waiting(port: int, dice: Dice) -> Client:
    client = join(port)
    client.send_message(_audio(dice.uniform(0.1, 4)))
    for number in range(dice.randrange(1, 20)):
        client.send_message(protocol.encode_marker(number))
    return client


def _in_a_post(port: int, dice: Dice) -> Client:
    client = raw_websocket.dial(port)
    head = raw_websocket.post_request(port, [*AUTHORIZED, ("Content-Length", "100000")])
    client.socket.sendall(head + bytes(dice.randrange(1000)))
    return client


STAGES: dict[str, Callable[[int, Dice], Client]] = {
    "connected": _connected,
    "in the handshake": _in_the_handshake,
    "after the handshake": _after_the_handshake,
    "refused": _refused,
    "ready": _ready,
    "in a frame": _in_a_frame,
    "in a message": _in_a_message,
    "speaking": _speaking,
    "waiting": _waiting,
    "in a post": _in_a_post,
}
"""How far a client goes, given a port."""


def _closes(client: Client) -> None:
    """With a close frame, wherever that lands, and without waiting for the answer."""
    client.send(close_frame(1000))
    client.socket.close()


def _hangs_up(client: Client) -> None:
    """With a FIN, or a RST where there is something unread."""
    client.socket.close()


def _half_closes(client: Client) -> None:
    """With a FIN only; then it reads to the end."""
    client.fin()
    while client.socket.recv(65_536):
        pass
    client.socket.close()


ENDS: dict[str, Callable[[Client], None]] = {
    "close": _closes,
    "hang up": _hangs_up,
    "FIN": _half_closes,
    "RST": RawWebSocket.reset,
}
"""How a client vanishes; the kernel's way with a killed process is the other one."""


def main() -> None:
    """Brings clients to their stages and waits to be killed."""
    port, seed, count = map(int, sys.argv[1:])
    dice = random.Random(seed)
    clients = [dice.choice(list(STAGES.values()))(port, dice) for _ in range(count)]
    print(len(clients), flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
