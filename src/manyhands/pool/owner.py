"""What may be asked from outside beside a stream: by the owner status, stop and invites, by every peer an echo
and how it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import torch

from manyhands.errors import Refused
from manyhands.fleet import messages as m
from manyhands.fleet.visitors import Needs, Standing
from manyhands.release import __version__
from manyhands.wire.admission import Peer, Role

if TYPE_CHECKING:
    from manyhands.pool.run import Run


async def answer(run: Run, peer: Peer, request: bytes) -> bytes:
    """The answer to one question, as JSON but for an echo's; Refused where the role does not allow it."""
    question = m.decode_question(request)
    if isinstance(question, m.AskEcho):
        return run.echoes.answer(question, run.clock.monotonic())
    if isinstance(question, m.AskStanding):
        return msgspec.json.encode(standing(run, peer))
    allowed = (Role.OWNER, Role.OBSERVER) if isinstance(question, m.AskStatus) else (Role.OWNER,)
    if peer.role not in allowed:
        raise Refused(f"the invite's role is {peer.role}; this needs {' or '.join(allowed)}")
    return msgspec.json.encode(_answer(run, question))


def _answer(run: Run, question: m.AskStatus | m.AskStop | m.AskInvite | m.AskRevoke) -> dict[str, Any]:
    match question:
        case m.AskStatus():
            return status(run)
        case m.AskStop():
            run.stop()
            return {"stopping": True}
        case m.AskInvite(uses, hours, role):
            return {"invite": str(run.listener.invite(role, uses, hours))}
        case m.AskRevoke(id, ban):
            gate = run.gate
            if ban:
                gate.ban(id)
            else:
                gate.revoke(id)
            return {"revoked": id}


def status(run: Run) -> dict[str, Any]:
    """What ``manyhands status --json`` prints."""
    coordinator = run.coordinator
    states = {view.key: view.state for view in coordinator.machine.nodes()}
    nodes = [
        {
            "id": key,
            "name": member.name,
            "state": states.get(key, "ready"),
            "device": member.device,
            "numeric_class": member.numeric_class,
            "samples": member.samples,
            "samples_per_s": round(member.samples / member.computing_seconds, 3)
            if member.computing_seconds
            else 0.0,
            "sent_bytes": member.session.received_bytes,
            "received_bytes": member.session.sent_bytes,
        }
        for key, member in coordinator.members.items()
    ]
    leased = sum(len(leaves) for _, leaves in coordinator.machine.open_leases().values())
    coordinator.count()
    return {
        "run": run.saver.run,
        "state": "waiting" if run.state == "running" and not coordinator.members else run.state,
        "epoch": run.job.plan.epoch_of(min(coordinator.step, run.job.plan.num_steps - 1)),
        "step": coordinator.step,
        "loss": coordinator.loss,
        "nodes": nodes,
        "ledger": {
            "applied": coordinator.tally.samples_applied,
            "leased": leased,
            "reissued": coordinator.tally.reissued,
            "refused": coordinator.tally.refused,
        },
    }


def standing(run: Run, peer: Peer) -> Standing:
    """What ``manyhands doctor`` wants to know."""
    job, invite = run.job, next((i for i in run.gate.invites() if i.invite_id == peer.invite_id), None)
    tensors = [*job.state.model.parameters(), *job.state.model.buffers()]
    needs = Needs(
        parameters=sum(tensor.numel() for tensor in job.state.trainable.values()),
        model_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        leaf_samples=job.plan.leaf_samples,
        leaf_bytes=len(job.probe[0].frame),
        data=job.options.data,
        numerics=job.options.numerics,
        threads=torch.get_num_threads(),
    )
    return Standing(
        role=peer.role.value,
        run=run.saver.run,
        state=run.state,
        release=__version__,
        time=run.clock.time(),
        expires=None if invite is None else invite.expires,
        uses_left=None if invite is None else invite.uses_left,
        needs=needs,
    )
