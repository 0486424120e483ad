"""One rank of `notebook`: ``python -m manyhands.launch.cell FOLDER``."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Run the function, and leave what it returns for the notebook."""
    fn, arguments = pickle.loads((folder / "fn.pkl").read_bytes())  # noqa: S301 - the user's own notebook wrote it
    import cloudpickle  # type: ignore[import-untyped]

    result = cloudpickle.dumps(fn(*arguments))
    (folder / f"result-{os.environ['RANK']}.pkl").write_bytes(result)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
