"""One step of training on one machine, and what makes its bits repeat. Knows no network and no files."""
