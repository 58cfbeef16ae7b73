"""Keeps every port of a one-machine service on the loopback interface.

Ray has settings for some of its listeners and none for three. Read in Ray 2.60:

- ``ray.init(_node_ip_address="127.0.0.1")`` is resolved to the machine's outside address
  (``services.resolve_ip_for_localhost``). Left alone, 127.0.0.1 makes every gRPC server of Ray's
  core listen on localhost only.
- a Serve replica opens an inter-deployment gRPC port on ``[::]`` (``replica.py``): it takes
  pickles.
- HAProxy's statistics and metrics listen on every interface: see ``haproxy.sh``.

On Kubernetes none of this applies: pods must reach each other, and NetworkPolicy closes the rest.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

HAPROXY = Path(__file__).with_name("haproxy.sh")


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reachable from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def pin_node_address() -> None:
    """In the process that calls ``ray.init``, before it does."""
    import ray._private.services as services

    def unresolved(host: str) -> str:
        return host

    services.resolve_ip_for_localhost = unresolved


def pin_replica_grpc() -> None:
    """In a replica, before Serve opens its inter-deployment port (in its constructor)."""
    import ray.serve._private.replica as replica

    add_port = replica.add_port_to_grpc_server

    def add_loopback_port(server: object, address: str) -> int:
        return int(add_port(server, address.replace("[::]", "127.0.0.1")))

    replica.add_port_to_grpc_server = add_loopback_port
