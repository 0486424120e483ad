"""A lent machine: one process that holds the secrets, and one without any that computes.

::

    coordinator ══ mutual TLS ══ agent ── two socket pairs, one shared memory ── compute child
                                 invite, key,                                    empty environment, limits,
                                 patience, watchdog                              the program, torch

The agent relays the stream's messages byte for byte and loads no torch; the child is an ordinary node whose
stream happens to end here. What the child is told and may say is in `words`; read `channel` for how, `lane` for
the agent's side and `compute` for the child's.
"""
