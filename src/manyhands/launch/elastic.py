"""Meetings that machines may leave and join: torch's dynamic rendezvous, over our store or as torchrun does.

Elastic (`--nnodes 1:4`) ranks are dealt anew whenever a machine comes or goes; all ranks are restarted then.
"""

from __future__ import annotations

import socket
import uuid

import torch.distributed.elastic.rendezvous.registry as registry
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler
from torch.distributed.elastic.rendezvous.utils import _parse_rendezvous_config

from manyhands.errors import UsageError
from manyhands.launch.addresses import source_address
from manyhands.launch.meeting import Meeting
from manyhands.launch.options import Order
from manyhands.launch.plan import USUAL_PORT

_JOIN_SECONDS = 900


def own_handler(order: Order, met: Meeting) -> RendezvousHandler:
    """A rendezvous of least to most machines in the store of node 0."""
    run_id = met.get_run_id()
    address = source_address(met.address) or met.address
    settings = {"timeout": _JOIN_SECONDS, **_parse_rendezvous_config(order.torchrun.rdzv_conf)}
    parameters = RendezvousParameters(
        "c10d", met.address, run_id, order.least_nodes, order.most_nodes, local_addr=address, **settings
    )
    return create_handler(met.store, C10dRendezvousBackend(met.store, run_id), parameters)


def torch_handler(order: Order) -> RendezvousHandler:
    """What `--rdzv-backend`, `--rdzv-endpoint`, `--rdzv-id`, `--rdzv-conf` and `--standalone` ask for."""
    given = order.torchrun
    backend, endpoint, run_id = given.rdzv_backend, given.rdzv_endpoint, given.rdzv_id
    local = given.local_addr
    if given.standalone:
        backend, endpoint, run_id, local = "c10d", "localhost:0", str(uuid.uuid4()), "127.0.0.1"
    settings = {"timeout": _JOIN_SECONDS, **_parse_rendezvous_config(given.rdzv_conf)}
    if backend == "static":
        settings["rank"] = given.node_rank
        endpoint = endpoint or f"{given.master_addr or '127.0.0.1'}:{given.master_port or USUAL_PORT}"
    if local is None:
        # torch would advertise getfqdn(), which other machines often cannot resolve.
        local = source_address(endpoint.rpartition(":")[0].strip("[]") or socket.gethostname())
    parameters = RendezvousParameters(
        backend, endpoint, run_id, order.least_nodes, order.most_nodes, local_addr=local, **settings
    )
    try:
        handler: RendezvousHandler = registry.get_rendezvous_handler(parameters)
    except ValueError as error:
        raise UsageError(f"--rdzv-backend {backend}: {error}") from None
    return handler
