"""Launch mode: the same script on every core and every machine, on torch.distributed.

`agent` and `plan` start processes; `session` is what a script asks for its rank, device and wrapped model.
"""
