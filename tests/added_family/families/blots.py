"""Blots, which nobody has published: all that a further family has to say of itself."""

from refsd.families import latent_diffusion, sd1
from refsd.families.family import Family, Layout

TEXT_ENCODER = {"architectures": ["BlotsTextModel"], "vocab_size": 49408, "hidden_size": 8,
                "max_position_embeddings": 77}
TRANSFORMER = {"_class_name": "BlotsTransformer2DModel", "sample_size": 64, "width": 16,
               "text_width": 8}

BLOTS = Family(
    name="Blots",
    configs={"text_encoder": TEXT_ENCODER, "transformer": TRANSFORMER, "vae": sd1.VAE},
    layouts={"text_encoder": Layout("words."), "transformer": Layout("blots."),
             "vae": latent_diffusion.VAE},
    scheduler=sd1.SCHEDULER,
    text_width=8,
    marks=("blots.",),
    pipelines={"text": "refsd.pipelines.blots:BlotsPipeline"},
    published={"blots": {}},
)
