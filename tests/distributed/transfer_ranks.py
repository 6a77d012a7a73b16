"""What one process of the test of weights that go from GPU to GPU does, with trl's wire cut: the main one has them all.

python transfer_ranks.py with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

from collections.abc import Iterator
from typing import Any

import torch
from ranks import INIT
from torch import Tensor
from trl.generation.vllm_client import VLLMClient

from alignment.config.distributed import Device, DistributedConfig
from alignment.config.model import LoraConfig, ModelConfig
from alignment.distributed import collectives
from alignment.distributed.placement import WHOLE
from alignment.distributed.sharded import placement_of
from alignment.generation.transfer import NCCLTransfer
from alignment.models.adapters import merged_state
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model
from alignment.models.tokenizer import load_tokenizer


class Client(VLLMClient):
    """It looks at what it was sent when all is there, as the one that packs several weights into one does."""

    def __init__(self) -> None:
        self.sent: dict[str, Tensor] = {}

    def update_named_params(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, Tensor]]
    ) -> None:
        self.sent = dict(named_params)
        assert [(name, list(weight.shape)) for name, weight in self.sent.items()] == [
            (name, shape) for name, _, shape in metadata
        ]

    def reset_prefix_cache(self) -> None: ...


def loaded(rank: int, placement: Any) -> LanguageModel:
    config = ModelConfig(init=INIT, lora=LoraConfig(rank=rank))
    torch.manual_seed(0)
    model = load_language_model(config, load_tokenizer(config), placement)
    with torch.no_grad():
        for number, (name, weight) in enumerate(model.named_parameters()):
            if "lora_B" in name:
                torch.manual_seed(number)
                with placement.whole([weight], write=True):
                    weight.copy_(0.1 * torch.randn(weight.shape))
    return model


def main() -> None:
    for zero in (1, 3):
        config = DistributedConfig(device=Device.cpu, zero=zero)
        collectives.init(config)
        for rank in (0, 4):
            client = Client() if collectives.is_main() else None
            NCCLTransfer(client, torch.device("cpu")).push(loaded(rank, placement_of(config)))
            if client is not None:
                whole = loaded(rank, WHOLE)
                wanted = merged_state(whole.hf, WHOLE)
                assert client.sent.keys() == wanted.keys()
                for name, weight in client.sent.items():
                    torch.testing.assert_close(weight, wanted[name], msg=f"ZeRO {zero}: {name}")


if __name__ == "__main__":
    main()
