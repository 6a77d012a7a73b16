"""What the layers of a model are called where something is told of each."""

from torch import nn

from alignment.models.heads import LanguageModel, ScalarModel

EMBEDDINGS, HEAD = "embeddings", "head"


def layers_of(model: LanguageModel | ScalarModel) -> dict[nn.Parameter, str]:
    """Of each weight, that of its adapter too, its layer: `layer_0`, `layer_1`, ..., of the decoder; `embeddings`, the
    tables, one that is the head's as well among them; and `head`, all the rest: what is behind the layers."""
    number = model.hf.config.get_text_config().num_hidden_layers
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == number]
    places = {id(p): f"layer_{place}" for each in lists[:1] for place, m in enumerate(each) for p in m.parameters()}
    return {p: EMBEDDINGS if id(p) in tables else places.get(id(p), HEAD) for p in model.parameters()}
