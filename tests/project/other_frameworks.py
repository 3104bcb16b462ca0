"""docs/frameworks.md: the blocks that need Lightning, Transformers and Accelerate: `make test-frameworks`.

Not among the tests that run by themselves: the frameworks take 200 MB of an environment of their own, and no test is
skipped.
"""

from __future__ import annotations

import pytest

from pages import launched, python_blocks

PAGE = "frameworks.md"
(SHARED,) = python_blocks(PAGE, "What all blocks share")
LIGHTNING, LIGHTNING_CALLBACK = python_blocks(PAGE, "PyTorch Lightning")
TRAINER, TRAINER_CALLBACK, TRAINER_SUBCLASS = python_blocks(PAGE, "Hugging Face Trainer")
(ACCELERATE,) = python_blocks(PAGE, "Accelerate")

# A plain module, as one has it before the callback is added.
WITH_CALLBACK = """
class Plain(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = model

    def training_step(self, batch, index):
        return loss_fn(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

lightning.Trainer(max_epochs=2, callbacks=[Together()], default_root_dir=f"lightning/{rank}").fit(Plain(), loader)
"""

BLOCKS = {
    "lightning, module": ("lightning", LIGHTNING, 16),
    "lightning, callback": ("lightning", f"import lightning\n{LIGHTNING_CALLBACK}{WITH_CALLBACK}", 32),
    "trainer, callback": ("transformers", TRAINER + TRAINER_CALLBACK, 8),
    "trainer, subclass": ("transformers", TRAINER + TRAINER_SUBCLASS, 8),
    "accelerate": ("accelerate", ACCELERATE, 4),
}
"""What is run: the framework, the code, and the steps of each of two nodes."""


# Where torchvision does not fit torch, these frameworks cannot import it either.
TORCHVISION = "from dpwa import mend_torchvision\nmend_torchvision()"


@pytest.mark.parametrize("name", BLOCKS)
def test_two_nodes_train_together_by_a_block_of_the_page(name, tmp_path):
    framework, code, steps = BLOCKS[name]
    rule = "loss" if "subclass" in name else "constant"
    closings, output = launched(tmp_path, f"{TORCHVISION}\nimport {framework}", SHARED + code, interpolation=rule)
    for closing in closings:
        assert closing["step"] == steps, output
        assert closing["blended"] > 0, output
