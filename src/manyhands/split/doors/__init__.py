"""How the two sides of a job meet: one listens, the other dials, and which is which is free.

::

    ListeningDoor   a stream that comes in ─► guest()   gate, invite, the line to paste
    DiallingDoor    a stream that we open  ─► guest()   again and again, until the guest is done

A *guest* is this side's end of one stream: it is told of its channel, and then of each message. Doors know no
message's meaning. Each works on a thread of its own, and never raises there: what nobody can mend by waiting goes to
`on_failure`.
"""

from manyhands.split.doors.dialling import DiallingDoor
from manyhands.split.doors.guests import Door, Guest
from manyhands.split.doors.listening import ListeningDoor

__all__ = ["DiallingDoor", "Door", "Guest", "ListeningDoor"]
