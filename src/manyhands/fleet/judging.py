"""Who is right: leaves that came out non-finite, and audited sums that need an equal one.

A non-finite leaf is computed once more by another node of the numeric class. The same bits again: the data
or the model is to blame, and the run stops or skips the step. A finite answer: whoever had none is benched.
Other non-finite bits: a third node decides.
An audited subtree is taken when two nodes agree on its bits; a node that two others contradict is benched.
Whom to ask and when to believe is :mod:`manyhands.fleet.opinions`; this module carries it out.
"""

from __future__ import annotations

from manyhands.fleet import opinions
from manyhands.fleet.board import OpenLease
from manyhands.fleet.events import (
    Answer,
    Audit,
    Duplicate,
    Instruction,
    NonFinite,
    SkipStep,
    Stop,
    Verified,
)
from manyhands.fleet.granting import Granter
from manyhands.fleet.members import Members
from manyhands.fleet.roster import Node
from manyhands.fleet.tree import leaf_number


class Judge:
    """Hears second opinions and acts on them; its callers have checked the fence."""

    def __init__(self, granter: Granter, members: Members) -> None:
        self._granter = granter
        self._members = members

    # ---- non-finite leaves ----

    def non_finite(
        self, event: NonFinite, node: Node, lease: OpenLease, now: float, out: list[Instruction]
    ) -> None:
        """A node found a leaf of its lease non-finite."""
        board = self._granter.board
        leaf = 1 << event.leaf
        subtree = leaf_number(event.leaf, board.depth)
        if board.covered & leaf or not lease.keep & leaf or board.skipped:
            # Also a replay: the leaf was taken from the lease by the first report.
            self._granter.counts.duplicates += 1
            out.append(Duplicate(event.key, subtree, "differs" if board.covered & leaf else "unknown"))
            return
        for audited in [o for o in board.opinions.values() if o.leaves & leaf and o.kind == "verify"]:
            lease.pinned = False
            board.settle(audited)
        opinion = board.opinions.get(subtree)
        if opinion is None:
            opinion = opinions.Opinion(subtree, leaf, "nonfinite")
            board.wait_for(opinion)
        self._weigh(opinion, opinions.voice_of(node, event.digest), out)
        if lease.id in board.open and board.is_open:
            self._granter.trim(lease, lease.keep & ~leaf, out)
        self._granter.fill(now, out)

    def _weigh(self, opinion: opinions.Opinion, voice: opinions.Voice, out: list[Instruction]) -> None:
        """Weigh one more voice that says non-finite: alone, confirmed, or with bits that differ so far."""
        earlier = list(opinion.voices)
        opinion.voices.append(voice)
        opinion.holder = None
        if not opinions.confirms_non_finite(earlier, voice):
            return
        leaf, step = opinion.leaves.bit_length() - 1, self._granter.board.step
        for odd in opinions.contradicted(earlier, voice):
            reason = f"its leaf {leaf} of step {step} was non-finite with bits that two others do not get"
            self._members.bench(odd.key, reason, out)
        first = earlier[0].key
        self._give_up(
            f"leaf {leaf} of step {step} is not finite, computed {len(earlier) + 1} times, first by "
            f"{first[:12]}, "
            f"last by {voice.key[:12]}: look at its samples, the learning rate and the precision",
            out,
        )

    def _give_up(self, reason: str, out: list[Instruction]) -> None:
        """End the step without completing it."""
        granter = self._granter
        granter.end_all(out)
        granter.board.skipped = True
        stops = granter.policy.on_nonfinite == "stop"
        out.append(Stop(reason) if stops else SkipStep(granter.board.step, reason))

    def _acquit(self, opinion: opinions.Opinion, node: Node, out: list[Instruction]) -> None:
        """A node got finite numbers where others had none: those of its numeric class are wrong."""
        leaf = opinion.leaves.bit_length() - 1
        reason = f"its leaf {leaf} was non-finite, and the same leaf came out finite on another try"
        for voice in opinion.voices:
            if voice.numeric_class == node.numeric_class:
                self._members.bench(voice.key, reason, out)

    # ---- answers for leaves that wait ----

    def admits(
        self, event: Answer, node: Node, lease: OpenLease, leaves: int, out: list[Instruction]
    ) -> bool:
        """Whether an answer for leaves that wait for a second opinion is to be taken now."""
        board = self._granter.board
        touched = [opinion for opinion in board.opinions.values() if opinion.leaves & leaves]
        if any(o.kind == "verify" and o.subtree != event.subtree for o in touched):
            self._members.refuse(
                event.key, f"parts of subtree {event.subtree} are being audited; answer those alone", out
            )
            return False
        for opinion in touched:
            if opinion.kind == "nonfinite":
                self._acquit(opinion, node, out)
            elif not self._settles(opinion, event, node, lease, out):
                return False
            board.settle(opinion)
        return True

    def _settles(
        self, opinion: opinions.Opinion, event: Answer, node: Node, lease: OpenLease, out: list[Instruction]
    ) -> bool:
        """Whether this answer ends the audit."""
        if opinion.holder != lease.id and any(old.key == node.key for old in opinion.voices):
            self._granter.counts.duplicates += 1
            out.append(Duplicate(event.key, event.subtree, "unknown"))
            return False
        voice = opinions.voice_of(node, event.digest)
        verdict = opinions.verdict(opinion, voice, self._granter.able(opinion))
        if verdict is None:
            self._ask_further(opinion, voice, event, lease, out)
            return False
        equal = {old.key for old in opinion.voices if old.digest == event.digest} - {node.key}
        out.append(Verified(event.subtree, (*sorted(equal), node.key), verdict))
        for odd in opinions.contradicted(opinion.voices, voice):
            reason = f"its sum of subtree {event.subtree} differs from two that agree"
            self._members.bench(odd.key, reason, out)
        return True

    def _ask_further(
        self,
        opinion: opinions.Opinion,
        voice: opinions.Voice,
        event: Answer,
        lease: OpenLease,
        out: list[Instruction],
    ) -> None:
        """Note a voice that settles nothing yet; its lease has brought what it was to bring."""
        opinion.voices.append(voice)
        if opinion.holder == lease.id:
            opinion.holder = None
        out.append(Audit(event.key, lease.id, event.subtree, "another node is asked for the same sum"))
        lease.keep &= ~opinion.leaves
        if not lease.keep and lease.id in self._granter.board.open:
            self._granter.end(lease, None)
