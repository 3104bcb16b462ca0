"""A custom rule for the factor: learn from peers that do better, and ignore the others.

The config finds it as `interpolation: better_only:BetterOnly`. Because of the decorator it also has a name of its own,
for a config with `plugins: [better_only]` and `interpolation: better-only`.
"""

from dpwa import State, register


@register("better-only")
class BetterOnly:
    """The larger the peer's lead, the larger its share: most * (loss - peer_loss) / loss; 0 if the peer is behind."""

    def __init__(self, most: float = 0.5) -> None:
        """Take the options of the config.

        Args:
            most: the factor for a peer whose loss is zero, 0 to 1.
        """
        if not 0 <= most <= 1:
            raise ValueError(f"most: expected a number from 0 to 1, got {most}")
        self.most = most

    def factor(self, own: State, peer: State) -> float:
        """The share of the peer in the blend."""
        if own.loss is None or peer.loss is None or peer.loss >= own.loss:
            return 0.0
        return self.most * (own.loss - peer.loss) / own.loss
