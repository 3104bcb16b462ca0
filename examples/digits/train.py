"""Learns handwritten digits; in a cluster, each node sees only five of the ten.

Alone:         python examples/digits/train.py
As a cluster:  dpwa launch samples/four-local.yaml -- python examples/digits/train.py
What a node of the cluster would learn without the others:  python examples/digits/train.py --shard 1/4

Must not know: how dpwa works inside. Runs in: the training thread.
"""

from __future__ import annotations

import torch

from dpwa.examples.digits.data import load_split, shard_of_node
from dpwa.examples.digits.model import digits_network
from dpwa.examples.shards import Place
from dpwa.examples.training import Recipe, Task, argument_parser, run_node

FIRST_WEIGHTS_SEED = 1
EPOCHS = 44  # a shard holds 11 batches: 484 steps


def main() -> None:
    parser = argument_parser(
        "Learn handwritten digits. The images come with scikit-learn: --data-dir is not needed.", epochs=EPOCHS
    )
    arguments = parser.parse_args()
    place = arguments.shard or Place.of_this_node()
    trainable, held_out = load_split()
    torch.manual_seed(FIRST_WEIGHTS_SEED)
    task = Task(
        title="digits",
        model=digits_network(),
        shard=shard_of_node(trainable, place),
        held_out=held_out,
    )
    recipe = Recipe(epochs=arguments.epochs, batch_size=32, measure_every_steps=10)
    run_node(task, recipe, seed=place.index)


if __name__ == "__main__":
    main()
