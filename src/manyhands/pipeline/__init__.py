"""Pipeline mode: one model cut over several machines, skip connections included.

Read `graph` first (layers and the named edges between them), then `plan` (where to cut) and `schedules` (who
computes what when). `boss` and `worker` are the two roles.
"""
