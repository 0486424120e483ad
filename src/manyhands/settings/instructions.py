"""Which vector instructions torch and its libraries may use: named by the environment, read when they are loaded.

Sums over 8 lanes and over 16 add in another order, so a run's machines must agree. A coordinator announces what it
computes with; a process that is started for the run is held to that where its machine has more. What a peer names
is looked up in a closed table before it comes near an environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from manyhands.errors import ProtocolError

_ATEN: Final = "ATEN_CPU_CAPABILITY"
LEVELS: Final = ("default", "avx2", "avx512")
"""What ATen calls its kernels' instruction sets, narrowest first."""
_CAPS: Final[Mapping[str, Mapping[str, str]]] = {
    "default": {"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {},
}
"""What keeps the other libraries from using more than a level of ATen's: what a machine of that level does anyhow."""
_KNOWN: Final[Mapping[str, tuple[str, ...]]] = {
    _ATEN: LEVELS,
    "ONEDNN_MAX_CPU_ISA": (
        *("DEFAULT", "ALL", "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE"),
        *(
            "AVX512_CORE_VNNI",
            "AVX512_CORE_BF16",
            "AVX512_CORE_FP16",
            "AVX512_CORE_AMX",
            "AVX512_CORE_AMX_FP16",
        ),
        *("AVX10_1_512", "AVX10_1_512_AMX"),
    ),
    "MKL_ENABLE_INSTRUCTIONS": (
        *("SSE4_2", "AVX", "AVX2", "AVX2_E1", "AVX512", "AVX512_E1", "AVX512_E2", "AVX512_E4"),
    ),
    "MKL_CBWR": (
        *("AUTO", "COMPATIBLE", "SSE2", "SSE4_2", "AVX", "AVX2", "AVX512", "AVX512_E1"),
        *("AVX2,STRICT", "AVX512,STRICT", "AVX512_E1,STRICT"),
    ),
}


def announced(capability: str) -> dict[str, str]:
    """What this process computes with: ATen's level (`capability` as torch says it), and what its environment sets."""
    named = {name: os.environ[name] for name in _KNOWN if name in os.environ}
    return {
        **{name: value for name, value in named.items() if value in _KNOWN[name]},
        _ATEN: capability.lower(),
    }


def pins(wanted: Mapping[str, str], capability: str) -> dict[str, str]:
    """What to start a process with so that it computes as `wanted` says; empty where it does so already.

    ``capability`` is the level that this machine's processes have by themselves. A machine that has less than the
    run's level cannot be helped: nothing, and its numeric class will tell.

    Raises:
        ProtocolError: a name or value that is in no table.

    """
    for name, value in wanted.items():
        if value not in _KNOWN.get(name, ()):
            raise ProtocolError(
                f"the coordinator computes with {name}={value}, which this version does not know"
            )
    level, own = wanted.get(_ATEN, capability.lower()), capability.lower()
    if own not in LEVELS or LEVELS.index(own) < LEVELS.index(level):
        return {}
    caps = _CAPS[level] if level != own else {}
    return {
        name: value
        for name, value in {**caps, **wanted}.items()
        if os.environ.get(name, own if name == _ATEN else None) != value
    }
