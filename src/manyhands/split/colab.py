"""``ColabGPUTrainer``: a trainer in a notebook that nobody can dial, reached through a tunnel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manyhands.errors import UsageError
from manyhands.settings import load
from manyhands.settings.defaults import default, settled
from manyhands.split.doors import DiallingDoor, ListeningDoor
from manyhands.split.jobs import Mode
from manyhands.split.trainer import GPUTrainer
from manyhands.split.training.record import History
from manyhands.split.training.saving import Resume
from manyhands.split.tunnels.ngrok import NgrokTunnel
from manyhands.split.tunnels.ssh import SshTunnel
from manyhands.split.tunnels.tunnel import Tunnel

_CHOICES = ("auto", "ssh", "ngrok")


class ColabGPUTrainer(GPUTrainer):
    """A `GPUTrainer` that listens on this machine's loopback, and opens a tunnel to there.

    ``ngrok_auth_token`` None takes ``NGROK_AUTH_TOKEN`` of the settings. The other arguments are `GPUTrainer`'s.
    """

    def __init__(
        self,
        port: int = default("network.port"),
        device: str | torch.device | None = default("gpu.device"),  # noqa: B008 - a constant that is marked
        ngrok_auth_token: str | None = None,
        *,
        invite: str | None = None,
        checkpoint_dir: str | Path | None = None,
        checkpoint_interval: float = 5,
        resume: Resume = False,
        log: str | None = None,
    ) -> None:
        super().__init__(
            port,
            device,
            host="localhost",
            invite=invite,
            checkpoint_dir=checkpoint_dir,
            checkpoint_interval=checkpoint_interval,
            resume=resume,
            log=log,
        )
        self._ngrok_auth_token = ngrok_auth_token
        self._tunnel: Tunnel | None = None
        self._shows_instructions = True
        self._tunnel_info: dict[str, Any] | None = None

    def start_training_with_tunnel(
        self,
        show_local_instructions: bool = True,
        tunnel_region: str = default("colab.ngrok_region"),
        *,
        tunnel: str | Tunnel = "auto",
    ) -> History:
        """Open a tunnel, say what to run where the data is, and train as `start_training` does.

        ``tunnel`` is ``"ssh"`` (``colab.ssh_host`` of the settings says where to), ``"ngrok"``, or a tunnel made by
        hand such as ``SshTunnel("me@gateway")``; ``"auto"`` takes the first of these that is set up. UsageError where
        none is.
        """
        self._tunnel = self._chosen(tunnel, settled(tunnel_region)) if isinstance(tunnel, str) else tunnel
        self._shows_instructions = show_local_instructions
        try:
            return self.start_training()
        finally:
            self._tunnel.close()
            self._tunnel = self._tunnel_info = None

    def get_tunnel_info(self) -> dict[str, Any] | None:
        """``provider``, ``host``, ``port``, ``public_url`` and ``invite`` of the open tunnel; None without one."""
        return dict(self._tunnel_info) if self._tunnel_info is not None else None

    def _announce(self, door: ListeningDoor | DiallingDoor, mode: Mode) -> None:
        if self._tunnel is None or not isinstance(door, ListeningDoor):
            super()._announce(door, mode)
            return
        host, port = self._tunnel.open(door.address[1])
        invite = str(door.invite.with_address(host, port)) if door.invite is not None else None
        self._tunnel_info = {
            "provider": self._tunnel.name,
            "host": host,
            "port": port,
            "public_url": f"tcp://{host}:{port}",
            "invite": invite,
        }
        if self._shows_instructions:
            print(_instructions(self._tunnel.name, host, port, str(invite)), flush=True)  # noqa: T201 - asked for

    def _chosen(self, wanted: str, region: str) -> Tunnel:
        if wanted not in _CHOICES:
            raise UsageError(f"tunnel={wanted!r} is not one of {', '.join(map(repr, _CHOICES))}, or a tunnel")
        colab = load(split=True).colab
        token = self._ngrok_auth_token
        if token is None and colab.ngrok_auth_token is not None:
            token = colab.ngrok_auth_token.get_secret_value()
        if wanted == "ssh" or (wanted == "auto" and colab.ssh_host is not None):
            if colab.ssh_host is None:
                raise UsageError(
                    'tunnel="ssh" needs to know where to: set MANYHANDS_COLAB__SSH_HOST=user@host'
                )
            return SshTunnel(colab.ssh_host)
        if wanted == "ngrok" or token:
            return NgrokTunnel(token, region)
        raise UsageError(
            "no tunnel is set up. Set MANYHANDS_COLAB__SSH_HOST=user@host for one by ssh to a machine of yours, or "
            "NGROK_AUTH_TOKEN for one by ngrok; or do without: where the data is, open a port and call "
            "loader.start_loading(listen_port=PORT), and here trainer.start_training(cpu_host=HOST, cpu_port=PORT)"
        )


def quick_colab_setup(
    model_class: type[nn.Module],
    model_kwargs: Mapping[str, Any] | None = None,
    learning_rate: float = default("training.learning_rate"),
    ngrok_auth_token: str | None = None,
) -> ColabGPUTrainer:
    """A `ColabGPUTrainer` with ``model_class(**model_kwargs)`` set up; call `start_training_with_tunnel` next."""
    trainer = ColabGPUTrainer(ngrok_auth_token=ngrok_auth_token)
    trainer.setup_model(model_class(**(model_kwargs or {})), learning_rate=learning_rate)
    return trainer


def _instructions(provider: str, host: str, port: int, invite: str) -> str:
    return (
        f"The trainer is reached through {provider} at {host}:{port}. Where the data is:\n\n"
        f"    export MANYHANDS_INVITE={invite}\n\n"
        f"and in your script\n\n"
        f"    loader.start_loading(gpu_host={host!r}, gpu_port={port}, epochs=10)\n"
    )
