"""A notebook with a GPU, in the cloud: it trains with data that stays at home. Put this into a cell, or run it.

    python colab_gpu.py                                  a tunnel: by ssh, or by ngrok, whichever is set up
    python colab_gpu.py --dial home.example.org:29500    no tunnel: it dials colab_cpu.py, which listens at home

For ssh set MANYHANDS_COLAB__SSH_HOST=user@host, for ngrok NGROK_AUTH_TOKEN; GOOGLE_COLAB_SETUP.md says how. Whoever
dials needs the invite that the other side prints, in MANYHANDS_INVITE.
"""

import argparse

from digits import network

from manyhands import ColabGPUTrainer
from manyhands.config import get_config


def main() -> None:
    parser = argparse.ArgumentParser(description="Train in a notebook with data from home.")
    parser.add_argument("--port", type=int, default=get_config()["network.port"])
    parser.add_argument("--dial", metavar="HOST:PORT", help="where colab_cpu.py listens")
    parser.add_argument(
        "--checkpoints", help="a folder that outlives the notebook, such as one of a mounted drive"
    )
    given, _ = parser.parse_known_args()  # a notebook's kernel adds arguments of its own

    trainer = ColabGPUTrainer(
        port=given.port, checkpoint_dir=given.checkpoints, resume="auto" if given.checkpoints else False
    )
    trainer.setup_model(network())
    if given.dial:
        host, _, port = given.dial.rpartition(":")
        history = trainer.start_training(cpu_host=host, cpu_port=int(port))
    else:
        history = trainer.start_training_with_tunnel()  # says what to run at home
    for epoch, loss in zip(history["epochs"], history["train_loss"], strict=True):
        print(f"epoch {epoch}: loss {loss:.4f}")


if __name__ == "__main__":
    main()
