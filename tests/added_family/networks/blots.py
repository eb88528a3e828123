"""Two networks whose parts others have too: a config's class tells which is meant."""

from refsd.errors import ModelError
from refsd.networks.blocks import conv, linear
from refsd.networks.network import Network, width
from refsd.rules import anything, integer

TEXT = {
    "vocab_size": (49408, integer(1, 1 << 20)), "hidden_size": (8, width),
    "max_position_embeddings": (77, integer(2, 4096)), "architectures": (None, anything),
}  # fmt: skip
BLOTS = {"sample_size": (64, integer(1, 4096)), "width": (16, width), "text_width": (8, width)}


def text_shapes(config):
    wide = config["hidden_size"]
    return {"table": {"weight": (config["vocab_size"], wide)}, "proj": linear(wide, wide)}


def blots_shapes(config):
    wide = config["width"]
    return {"blot_in": conv(wide, 4), "time": linear(wide, wide),
            "read": linear(wide, config["text_width"]), "blot_out": conv(4, wide)}


def together(part, configs, elsewhere, where):
    text = configs.get("text_encoder", {}).get("hidden_size", configs[part]["text_width"])
    if text != configs[part]["text_width"]:
        raise ModelError(f"{where}: blots read text of width {configs[part]['text_width']}, the "
                         f"text encoder gives {text}. Give parts of one model")


PARTS = {
    "text_encoder": Network(
        "text encoder", ("BlotsTextModel",), ("model", "pytorch_model"), ("table.weight",), TEXT,
        text_shapes, "refsd.pipelines.blots:Words", whole_first=True),
    "transformer": Network(
        "transformer", ("BlotsTransformer2DModel",), ("diffusion_pytorch_model",),
        ("blot_in.weight",), BLOTS, blots_shapes, "refsd.pipelines.blots:Blots",
        together=together),
}  # fmt: skip
