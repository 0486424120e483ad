"""Let the trained text model write. It needs torch and safetensors, and nothing of manyhands.

The text is 46 lines, so a model this size learns them nearly by heart (a perplexity of 1.1): a low temperature gives
lines back, a high one strays and makes words up.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_model
from text_model import CHARACTERS, LENGTH, TextModel, encode


def newest_checkpoint(folder: Path) -> Path:
    """The model file of the run that was saved last; `latest` holds the name of its newest step."""
    latest = max(folder.glob("*/latest"), key=lambda file: file.stat().st_mtime)
    return latest.parent / latest.read_text().strip() / "model.safetensors"


@torch.no_grad()
def write(
    model: TextModel, prompt: str, length: int, temperature: float, top_k: int, generator: torch.Generator
) -> str:
    """Continue `prompt` by `length` characters.

    Each is drawn from the `top_k` likeliest; a low `temperature` prefers the likeliest among them. The model
    has only ever seen one line at a time, so it is shown the line that it is writing.
    """
    tokens = encode("\n" + prompt)
    newline = tokens[0]
    for _ in range(length):
        start = len(tokens) - 1 - tokens[::-1].index(newline)
        window = torch.tensor([tokens[start:][-LENGTH:]])
        logits = model(window, torch.ones_like(window, dtype=torch.bool))[0, -1]
        values, choices = logits.topk(min(top_k, len(CHARACTERS)))
        chances = torch.softmax(values / temperature, dim=0)
        tokens.append(int(choices[torch.multinomial(chances, 1, generator=generator)]))
    return "".join(CHARACTERS[token] for token in tokens[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description="Sample from the newest checkpoint of text_server.py.")
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/text"))
    parser.add_argument("--prompt", default="The ")
    parser.add_argument("--length", type=int, default=300)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.temperature <= 0:
        parser.error("--temperature must be more than 0; --top-k 1 always takes the likeliest character")

    model = TextModel().eval()
    load_model(model, newest_checkpoint(given.folder))
    generator = torch.Generator().manual_seed(given.seed)
    print(write(model, given.prompt, given.length, given.temperature, given.top_k, generator))


if __name__ == "__main__":
    main()
