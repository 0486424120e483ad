"""What ``manyhands doctor`` looks at: this machine, its network, the way to a coordinator.

Each file gathers facts first and judges them in functions without I/O. Every look ends in findings, never in an
exception: one that fails is a finding itself. Loads no torch; a process of its own does (`torchfacts`).
"""
