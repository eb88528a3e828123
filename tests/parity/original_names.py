"""State dicts of diffusers and transformers as the original training codes name and store them.

Written by hand from those codes' modules (CompVis' latent diffusion, Stability AI's
generative-models and sd3.5, OpenCLIP) for the small networks of these tests.
"""

import torch

# Beginnings of names of UNets with two levels of one layer: as the code runs them.
_BLOCKS = {
    "down_blocks.0.resnets.0.": "input_blocks.1.0.",
    "down_blocks.0.attentions.0.": "input_blocks.1.1.",
    "down_blocks.0.downsamplers.0.conv.": "input_blocks.2.0.op.",
    "down_blocks.1.resnets.0.": "input_blocks.3.0.",
    "down_blocks.1.attentions.0.": "input_blocks.3.1.",
    "mid_block.resnets.0.": "middle_block.0.", "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
    "up_blocks.0.resnets.0.": "output_blocks.0.0.", "up_blocks.0.attentions.0.":
    "output_blocks.0.1.", "up_blocks.0.resnets.1.": "output_blocks.1.0.",
    "up_blocks.0.attentions.1.": "output_blocks.1.1.",
    "up_blocks.1.resnets.0.": "output_blocks.2.0.", "up_blocks.1.attentions.0.":
    "output_blocks.2.1.", "up_blocks.1.resnets.1.": "output_blocks.3.0.",
    "up_blocks.1.attentions.1.": "output_blocks.3.1.",
    "time_embedding.linear_1.": "time_embed.0.", "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.", "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_norm_out.": "out.0.", "conv_out.": "out.2.", "conv_in.": "input_blocks.0.0.",
}  # fmt: skip
# Where the finest level attends, or the coarsest.
SD2_BLOCKS = {**_BLOCKS, "up_blocks.0.upsamplers.0.": "output_blocks.1.1."}
SDXL_BLOCKS = {**_BLOCKS, "up_blocks.0.upsamplers.0.": "output_blocks.1.2."}
_RESNET = {"norm1.": "in_layers.0.", "conv1.": "in_layers.2.", "time_emb_proj.": "emb_layers.1.",
           "norm2.": "out_layers.0.", "conv2.": "out_layers.3.",
           "conv_shortcut.": "skip_connection."}  # fmt: skip
_VAE = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1", "conv_norm_out": "norm_out",
    ".conv_shortcut": ".nin_shortcut", ".group_norm": ".norm", ".to_q.": ".q.", ".to_k.": ".k.",
    ".to_v.": ".v.", ".to_out.0.": ".proj_out.", "samplers.0.": "sample.", ".resnets.": ".block.",
}  # fmt: skip
_CLIP = {"layers.": "transformer.resblocks.", "layer_norm": "ln_", "mlp.fc1": "mlp.c_fc",
         "mlp.fc2": "mlp.c_proj", "self_attn.out": "attn.out",
         "embeddings.token_embedding": "token_embedding", "final_ln_": "ln_final",
         "embeddings.position_embedding.weight": "positional_embedding",
         "encoder.": ""}  # fmt: skip
_MMDIT = {
    "pos_embed.pos_embed": "pos_embed", "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1", "proj_out": "final_layer.linear",
    "transformer_blocks": "joint_blocks",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
    "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
    "attn.to_add_out": "context_block.attn.proj", "attn.add_q_proj": "context_block.attn.qkv",
    "attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_q": "x_block.attn.qkv", "attn.to_out.0": "x_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k",
    "attn2.to_q": "x_block.attn2.qkv", "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k",
}  # fmt: skip


def prefixed(prefix, tensors):
    """The tensors below a prefix, each in memory of its own, as files are written from."""
    return {prefix + name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def unet(state, blocks):
    """A UNet of two levels of one layer, its blocks in the order of `blocks`."""
    found = {}
    for name, tensor in state.items():
        start = next(start for start in blocks if name.startswith(start))
        rest = name.removeprefix(start)
        found[blocks[start] + (_renamed(rest, _RESNET) if "resnets" in start else rest)] = tensor
    return found


def vae(state):
    """A VAE: its levels are counted from the finest, its attention is of 1 x 1 convolutions."""
    found, levels = {}, 1 + max(int(n.split(".")[2]) for n in state if "encoder.down_blocks" in n)
    table = {**_VAE, **{f"encoder.down_blocks.{i}": f"encoder.down.{i}" for i in range(levels)},
             **{f"decoder.up_blocks.{i}": f"decoder.up.{levels - 1 - i}" for i in range(levels)}}
    for name, tensor in state.items():
        kernel = "attentions" in name and tensor.dim() == 2
        found[_renamed(name, table)] = tensor[:, :, None, None] if kernel else tensor
    return found


def openclip(state):
    """A CLIPTextModel, with its projection if it has one, as OpenCLIP has it."""
    state, found = {n.removeprefix("text_model."): t for n, t in state.items()}, {}
    for name, tensor in state.items():
        if "q_proj" in name:
            fused = torch.cat([state[name.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            found[_renamed(name.replace("self_attn.q_proj.", "attn.in_proj_"), _CLIP)] = fused
        elif name == "text_projection.weight":
            found["text_projection"] = tensor.T
        elif "k_proj" not in name and "v_proj" not in name:
            found[_renamed(name, _CLIP)] = tensor
    return found


def mmdit(state):
    """An SD3Transformer2DModel: norms that are followed by nothing else shift first there."""
    found, last = {}, max(int(n.split(".")[1]) for n in state if n.startswith("transformer_bl"))
    for name, tensor in state.items():
        if ".to_k." in name or ".to_v." in name or ".add_k_proj." in name or ".add_v" in name:
            continue
        if ".to_q." in name or ".add_q_proj." in name:
            before, after = name.split("q_proj" if "add_q" in name else "to_q")
            tensor = torch.cat([state[f"{before}{x}{after}"] for x in (
                ("q_proj", "k_proj", "v_proj") if "add_q" in name else ("to_q", "to_k", "to_v"))])
        elif name.startswith(("norm_out.", f"transformer_blocks.{last}.norm1_context.")):
            scale, shift = tensor.chunk(2)
            tensor = torch.cat([shift, scale])
        found[_renamed(name, _MMDIT)] = tensor
    return found


def _renamed(name, table):
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name
