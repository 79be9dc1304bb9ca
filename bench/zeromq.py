"""TLS over ZeroMQ beside ZeroMQ alone and beside CurveZMQ: one way, and there and back.

Two processes on two cores, a DEALER and a ROUTER over TCP on the loopback, blocking pyzmq, one call
a message on both sides, begun afresh for every measurement. The three take turns within each round,
so that a busy moment of the machine hits all of them; of each the middle round counts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import struct
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zmq
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench import machine
from ciphermq.pki.authority import Authority
from ciphermq.zmq import TlsDealer, TlsRouter, client_context, server_context

SIZES = (100, 1024, 64 * 1024, 1024 * 1024)
ROADS = ("plain", "curve", "tls")
ONE_WAY_BYTES = 1_500_000_000
"""What one measurement carries at most, and"""
ONE_WAY_MOST = 500_000
"""so many messages, which takes a second or so."""
THERE_AND_BACK = 3000
PACED = 300
LARGE = 64 * 1024
"""From here on plain ZeroMQ and CurveZMQ send without a copy, which is faster for them."""

_STAMP = struct.Struct(">d")


def measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every size, both ways, on all three."""
    cores = machine.two_cores()
    files = _certificates(directory)
    results = [_size(size, files, options) for size in SIZES]
    return {
        "measured": "messages from a DEALER to a ROUTER in another process over TCP on the "
        "loopback; there and back: p50 and p99 of the whole trip; one way: of the trip of single "
        "messages, a millisecond apart",
        "cores_used": cores,
        "zeromq": zmq.zmq_version(),
        "pyzmq": zmq.__version__,
        "results": results,
    }


def _size(size: int, files: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    count = max(10, min(options.messages, ONE_WAY_MOST, ONE_WAY_BYTES // size))
    trips = max(10, min(options.messages, THERE_AND_BACK, ONE_WAY_BYTES // 4 // size))
    rounds: dict[str, list[dict[str, Any]]] = {road: [] for road in ROADS}
    for _ in range(options.rounds):
        for road in ROADS:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as afresh:
                made = afresh.submit(_round, road, size, count, trips, files).result()
            rounds[road].append(made)
    found: dict[str, Any] = {"bytes": size, "messages": count, "round_trips": trips}
    for road, made in rounds.items():
        found[road] = {
            "one_way": _middle([each["one_way"] for each in made], size),
            "round_trip": _middle([each["round_trip"] for each in made], size),
        }
    ours = found["tls"]
    found["tls_over_curve"] = {
        way: _ratio(ours[way], found["curve"][way]) for way in ("one_way", "round_trip")
    }
    found["tls_over_plain"] = {
        way: _ratio(ours[way], found["plain"][way]) for way in ("one_way", "round_trip")
    }
    return found


def _middle(made: list[dict[str, Any]], size: int) -> dict[str, Any]:
    rates = [each["messages_per_second"] for each in made]
    rate = statistics.median(rates)
    found = {
        "messages_per_second": round(rate),
        "mb_per_second": round(rate * size / 1e6, 1),
        "p50_ms": statistics.median(each["p50_ms"] for each in made),
        "p99_ms": statistics.median(each["p99_ms"] for each in made),
        "rounds_messages_per_second": [round(each) for each in rates],
    }
    if "cpu_us" in made[0]:  # of both processes together, all their threads
        found["cpu_us_per_message"] = round(statistics.median(each["cpu_us"] for each in made), 2)
    return found


def _ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    return {name: round(ours[name] / theirs[name], 2) for name in ("messages_per_second", "p50_ms")}


def _round(
    road: str, size: int, count: int, trips: int, files: dict[str, Any]
) -> dict[str, dict[str, float]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, road, size, count, trips, files)
    process = context.Process(target=_serve, args=arguments, daemon=True)
    process.start()
    theirs.close()
    port = ours.recv()
    dealer = DEALERS[road](files)
    dealer.connect(f"tcp://127.0.0.1:{port}")
    payload = os.urandom(size)
    send, recv = _sender(dealer, road, size), dealer.recv_multipart
    for _ in range(10):  # connected, shaken hands, warm
        send([payload])
        recv()
    cpu = time.process_time()
    for _ in range(count):
        send([payload])
    recv()
    cpu = time.process_time() - cpu
    for _ in range(PACED):
        stamped = _STAMP.pack(time.monotonic()) + payload[_STAMP.size :]
        send([stamped])
        time.sleep(0.001)
    recv()
    times = []
    for _ in range(trips):
        began = time.perf_counter()
        send([payload])
        recv()
        times.append(time.perf_counter() - began)
    found = ours.recv()
    found["cpu_us"] = (found["cpu_us"] + cpu) / count * 1e6
    process.join()
    dealer.close()
    trip = machine.percentiles(times)
    return {
        "one_way": found,
        "round_trip": {"messages_per_second": len(times) / sum(times), **trip},
    }


def _serve(
    pipe: Connection, road: str, size: int, count: int, trips: int, files: dict[str, Any]
) -> None:
    router = ROUTERS[road](files)
    sock = router.socket if isinstance(router, TlsRouter) else router
    pipe.send(sock.bind_to_random_port("tcp://127.0.0.1"))
    recv = router.recv_multipart
    if isinstance(router, TlsRouter):

        def answer(message: Any, payload: bytes) -> None:
            router.send_multipart(message[0], [payload])

        def payload_of(message: Any) -> bytes:
            return bytes(message[1][0])

    else:

        def answer(message: Any, payload: bytes) -> None:
            router.send_multipart([message[0], payload], copy=size < LARGE)

        def payload_of(message: Any) -> bytes:
            return bytes(message[1])

    for _ in range(10):
        message = recv()
        answer(message, b"warm")
    message = recv()
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(count - 1):
        message = recv()
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert len(payload_of(message)) == size
    answer(message, b"done")
    times = []
    for _ in range(PACED):
        message = recv()
        times.append(time.monotonic() - _STAMP.unpack_from(payload_of(message))[0])
    answer(message, b"done")
    for _ in range(trips):
        message = recv()
        answer(message, payload_of(message))
    rate = (count - 1) / took
    pipe.send({"messages_per_second": rate, "cpu_us": cpu, **machine.percentiles(times)})
    time.sleep(0.2)  # the last answer is on its way
    router.close()


def _sender(dealer: Any, road: str, size: int) -> Callable[[list[bytes]], None]:
    if road == "tls" or size < LARGE:
        found: Callable[[list[bytes]], None] = dealer.send_multipart
        return found
    return lambda parts: dealer.send_multipart(parts, copy=False)


# --- the six ends -----------------------------------------------------------------------------


def _plain_dealer(_files: dict[str, Any]) -> Any:
    return zmq.Context.instance().socket(zmq.DEALER)


def _plain_router(_files: dict[str, Any]) -> Any:
    return zmq.Context.instance().socket(zmq.ROUTER)


def _curve_dealer(files: dict[str, Any]) -> Any:
    sock = zmq.Context.instance().socket(zmq.DEALER)
    sock.curve_serverkey = files["curve"][0]
    sock.curve_publickey, sock.curve_secretkey = zmq.curve_keypair()
    return sock


def _curve_router(files: dict[str, Any]) -> Any:
    sock = zmq.Context.instance().socket(zmq.ROUTER)
    sock.curve_server = True
    sock.curve_publickey, sock.curve_secretkey = files["curve"]
    return sock


def _tls_dealer(files: dict[str, Any]) -> Any:
    return TlsDealer(client_context(**files["client"]), server_name="localhost")


def _tls_router(files: dict[str, Any]) -> Any:
    return TlsRouter(server_context(**files["server"]))


DEALERS = {"plain": _plain_dealer, "curve": _curve_dealer, "tls": _tls_dealer}
ROUTERS = {"plain": _plain_router, "curve": _curve_router, "tls": _tls_router}


def _certificates(directory: Path) -> dict[str, Any]:
    """An authority, a server, a client, and CurveZMQ's keys."""
    now_ms = int(time.time() * 1000)
    authority = Authority.create(directory / "ca", passphrase=None, now_ms=now_ms)
    authority.issue_crl(now_ms=now_ms)
    found: dict[str, Any] = {"curve": zmq.curve_keypair()}
    for name in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key()
        certificate = (
            authority.issue_server(["localhost"], public, now_ms=now_ms)
            if name == "server"
            else authority.issue_client("bench", public, now_ms=now_ms)
        )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (directory / f"{name}.key").write_bytes(pem)
        (directory / f"{name}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        found[name] = {
            "certificate": directory / f"{name}.crt",
            "key": directory / f"{name}.key",
            "authority": authority.path / "ca.crt",
            "revocations": authority.path / "crl.pem",
        }
    return found
