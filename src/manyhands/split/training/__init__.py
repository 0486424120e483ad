"""What a trainer computes with the batches it is fed. Read `learner` first; no socket is known here."""
