"""What all pipelines of Stable Diffusion share: parts, loading, and pictures of latents.

A pipeline adds its __call__: a Drawing (refsd.pipelines.drawing) begun, the latents that the steps
start from and what the model sees besides, and the drawing finished.
"""

import logging
from pathlib import Path
from types import MethodType
from typing import Any, Self

from refsd.arguments import as_array, refuse_unknown, shown
from refsd.backends import choose_backend, find_backend
from refsd.dialects import DIFFUSERS, Dialect
from refsd.errors import UsageError
from refsd.families import COMPONENTS
from refsd.pipelines import from_diffusers, stages
from refsd.pipelines.calling import Called, with_more
from refsd.pipelines.graph_mode import check_graph
from refsd.pipelines.kind import Kind
from refsd.pipelines.request import check_flag, check_side
from refsd.places import on_host
from refsd.random import TorchGenerator
from refsd.registry import use
from refsd.weights.checkpoint import check_input

logger = logging.getLogger(__name__)


class Pipeline(Kind, Called):
    """The parts, under the names of a folder's: tokenizer, unet and so on; each works alone.

    The scheduler may be replaced. `from_pretrained` without a path gives the small model that ships
    with refsd.
    """

    controlled: Any = None  # what ControlNets are to add, a refsd.pipelines.control.Asked

    def __init__(self, *, backend: str = "auto", name: str = "", exact: bool = False, **parts: Any):
        settings = {name: parts.pop(name, value) for name, value in self.settings.items()}
        if set(self.parts) ^ set(parts) or None in (
                parts[part] for part in self.parts if part not in self.optional):
            raise TypeError(f"{type(self).__name__} got the parts {', '.join(parts)}; give "
                            f"{', '.join(self.parts)}")
        vars(self).update(parts, **settings)
        check_input(self.denoiser.in_channels, self.vae.config.latent_channels, self.inputs,
                    name or "the model")
        self.name = name
        self.backend, self.exact = choose_backend(backend), exact
        self.make_generator, self.check_finite = TorchGenerator, True
        self.drawing, self.resumed = None, None  # the run at hand, and what it goes on from
        self.safety_checker = None  # a function of images, see refsd.pipelines.safety
        self.preview_vae = None  # what decodes previews in the place of the VAE, such as a tiny one
        self.device = find_backend(backend).device
        self._interrupt, self._guidance_scale, self.num_timesteps = False, None, None
        self._said: set[str] = set()
        self._dialect = DIFFUSERS

    def __init_subclass__(cls) -> None:
        """Every pipeline's call takes cross_attention_kwargs={"scale": x}, and resume=FILE."""
        if "__call__" in vars(cls):
            cls.__call__ = with_more(cls.__call__)

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None, *, backend: str = "auto",
                        dtype: Any = "float32", weights: str | None = None,
                        download: bool = False, variant: str | None = None, ema: bool = False,
                        force: bool = False, exact: bool = False, scheduler: Any = None,
                        vae: Any = None, text_encoder: Any = None, text_encoder_2: Any = None,
                        prediction_type: str | None = None, torch_dtype: Any = None,
                        local_files_only: bool | None = None, offload: str | None = None,
                        memory_budget: int | None = None, graph: bool | None = None,
                        **others: Any) -> Self:
        """Load a diffusers folder, a single-file `.safetensors`, or a hub id from the local cache.

        `download` (local_files_only=False) lets a hub id be fetched; nothing else touches the
        network. `variant` ("fp16") and `ema` choose among copies of the weights; dtype
        (torch_dtype) is the arithmetic's, and that of latents and weights: float32, float64,
        bfloat16 or float16, or int8 (float32 whose linear layers multiply int8 by int8);
        `weights` is the form in which matrices and kernels are held meanwhile
        ("float32", "bfloat16", "float16", "int8", "as-is": as in the file); `force` loads what may
        not fit into memory; `exact` keeps convolutions to sums of products: no Winograd, no FFT;
        `graph` runs networks as fused graphs: True, False, or None, where that was found faster.
        `scheduler` replaces the model's, which is then not read: a scheduler, or a class or
        function that makes one of the model's options. `vae` and `text_encoder` (also _2 and _3)
        replace the model's by those of a path (a folder, a file) or a pipeline; `prediction_type`
        ("epsilon", "v_prediction", "sample") overrules the model. cache_dir, revision and token go
        to the hub. A part that a model may lack, given as None, is left out. `offload`
        ("component", "block") has weights in memory only while they are used, with the same
        pictures; "auto", or a `memory_budget` in bytes, lets refsd choose. Raises ModelError,
        ResourceError, UsageError.
        """
        from refsd.pipelines.loading import load_components

        for name, value in {"ema": ema, "force": force, "exact": exact}.items():
            check_flag(name, value)
        graph, without = check_graph(graph), cls.left_out(others)
        given = {"vae": vae, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2,
                 **{part: others.pop(part) for part in COMPONENTS
                    if part.startswith("text_encoder") and part in others}}
        dtype, download, hub = from_diffusers.loading(
            cls.from_pretrained, others, dtype=dtype, torch_dtype=torch_dtype, download=download,
            local_files_only=local_files_only)
        from_diffusers.check_scheduler(scheduler, "scheduler")
        backend = choose_backend(backend)
        parts = load_components(path, backend=backend, dtype=dtype, weights=weights,
                                download=download, variant=variant, ema=ema, force=force,
                                exact=exact, hub=hub, scheduler=scheduler, given=given,
                                prediction_type=prediction_type, kind=cls, without=without,
                                offload=offload, budget=memory_budget)
        made = cls(**parts, backend=backend, exact=exact)
        made.graph = graph
        return made

    from_single_file = from_pretrained

    @classmethod
    def from_pipe(cls, pipe: "Pipeline", **replaced: Any) -> Self:
        """A pipeline of this class with the parts of another, which both share; nothing is copied.

        replaced: parts to take instead, such as scheduler=... Raises UsageError for others.
        """
        if not isinstance(pipe, Pipeline):
            raise UsageError(f"from_pipe got {shown(pipe)}; give a pipeline of refsd")
        refuse_unknown("from_pipe", replaced, (*cls.parts, *cls.settings))
        if cls.parts != pipe.parts:
            raise UsageError(f"from_pipe got a {type(pipe).__name__}, whose model has other parts; "
                             "give a pipeline of the same family")
        parts = {name: getattr(pipe, name) for name in (*cls.parts, *cls.settings)}
        made = cls(**{**parts, **replaced}, backend=pipe.backend, name=pipe.name, exact=pipe.exact)
        made.make_generator, made.check_finite = pipe.make_generator, pipe.check_finite
        made._dialect = pipe._dialect
        made.safety_checker, made.controlled = pipe.safety_checker, pipe.controlled
        made.preview_vae = pipe.preview_vae
        return made

    def __getattr__(self, name: str) -> Any:
        """Methods of diffusers' pipelines: of adapters, nothing to do, or what to do instead."""
        if name in from_diffusers.ADAPTERS:
            from refsd.adapters import methods

            if "adapters" in self.lacks:
                raise from_diffusers.NotHere(f"{name}: {self.lacks['adapters']}; leave it out")

            return MethodType(getattr(methods, name), self)
        if name in from_diffusers.INSTEAD:
            raise from_diffusers.NotHere(f"{name}: {from_diffusers.INSTEAD[name]}")
        if name not in from_diffusers.ALREADY:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        def nothing_to_do(*args: Any, **options: Any) -> None:
            if why := from_diffusers.ALREADY[name]:
                self.remark(f"{name}: nothing to do, {why}")

        return nothing_to_do

    def to(self, *wanted: Any, **options: Any) -> Self:
        """The pipeline itself, if its own device and dtype are wanted; UsageError otherwise."""
        return from_diffusers.check_device(self, *wanted, **options)

    def load_textual_inversion(self, source: Any, token: Any = None, **others: Any) -> None:
        """Give words of prompts vectors of their own: see refsd.pipelines.textual_inversion.load"""
        from refsd.pipelines import textual_inversion

        textual_inversion.load(self, source, token, **others)

    def unload_textual_inversion(self, tokens: Any = None, **others: Any) -> None:
        """Take them away again: those of these words, or all."""
        from refsd.pipelines import textual_inversion

        textual_inversion.unload(self, tokens, **others)

    @property
    def networks(self) -> dict[str, Any]:
        """The parts that have weights."""
        parts = {part: getattr(self, part) for part in self.parts}
        return {part: value for part, value in parts.items() if hasattr(value, "tree")}

    @property
    def denoiser(self) -> Any:
        """The network that predicts: the UNet, or a transformer in its place."""
        return getattr(self, self.denoises)

    def embed(self, *texts: Any, size: tuple[int, int], **options: Any) -> Any:
        """The prompts as what the network reads, refsd.pipelines.prompts.Prompts.

        size: height and width of the pictures, which some networks read too.
        """
        from refsd.pipelines import prompts

        return prompts.embed(self, *texts, **options)

    @property
    def guidance_scale(self) -> float | None:
        """That of the run at hand; a callback sets `_guidance_scale`, as in diffusers."""
        return self._guidance_scale

    @property
    def interrupt(self) -> bool:
        """Whether the run at hand is to stop after this step; a callback sets `_interrupt`."""
        return self._interrupt

    @property
    def vae_scale_factor(self) -> int:
        """Pixels to a latent, along a side."""
        return self.vae.config.downscale

    @property
    def default_size(self) -> int:
        """The side in pixels that the model was trained at."""
        return self.denoiser.config.sample_size * self.vae.config.downscale

    def enable_vae_tiling(self) -> None:
        """Decode and encode in overlapping tiles, as diffusers: see VAE.enable_tiling."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """In one piece again, or in bands that give the same bits."""
        self.vae.disable_tiling()

    def to_output(self, latents: Any, output_type: str) -> Any:
        """Final latents as what the caller wants: "pil", "np" or "latent"."""
        latents = as_array("latents", latents, self.vae.dtype)
        if output_type == "latent":
            return on_host(latents)
        vae = self.coder("decoder")
        with use(self.backend, exact=self.exact):
            images = stages.decode(vae, as_array("latents", latents, vae.dtype))
        self.require_finite("decode", images)
        if output_type == "np":
            return images
        from PIL import Image

        return [Image.fromarray(image) for image in self.to_bytes(images)]

    def to_bytes(self, images: Any) -> Any:
        """Pictures as bytes, as the dialect rounds them.   (B, H, W, 3) in [0, 1] -> uint8"""
        return (stages.to_bytes if self.dialect.nearest else stages.cut_to_bytes)(images)

    @property
    def dialect(self) -> Dialect:
        """Whose prompts, noise and rounding: set it to "diffusers", "a1111" or "comfy".

        Setting it also sets `make_generator`, whose noise a seed makes: that of the tool.
        """
        return self._dialect

    @dialect.setter
    def dialect(self, name: Any) -> None:
        from refsd.dialects.names import find
        from refsd.random.by_name import GENERATORS

        found = find(name)
        if found is not DIFFUSERS:
            self.require("dialect")
        self._dialect = found
        self.make_generator = GENERATORS[self._dialect.rng]

    def preview(self, latents: Any, *, vae: bool = False) -> list[Any]:
        """Latents of the diffusion as PIL images: at once, by a linear map, or decoded by the VAE.

        For callbacks, whose "denoised" shows more than their "latents". UsageError: no map known.
        """
        from refsd.pipelines.preview import pictures

        return pictures(self, latents, vae=check_flag("vae", vae))

    def side(self, name: str, value: Any, latents: Any) -> int:
        """The size requested, else that of the caller's latents, else the model's own."""
        if value is None and latents is not None and len(latents.shape) == 4:
            value = latents.shape[2 if name == "height" else 3] * self.vae.config.downscale
        value = self.default_size if value is None else value
        return check_side(name, value, self.multiple)

    def require_finite(self, stage: str, *arrays: Any) -> None:
        """ModelError with the stage's name where one of its arrays has a NaN or an infinity."""
        for array in arrays:
            if self.check_finite and array is not None:
                stages.require_finite(array, stage)

    def remark(self, message: str, key: str | None = None) -> None:
        """A warning that this pipeline gives once, however often it would."""
        key = message if key is None else key
        if key not in self._said:
            self._said.add(key)
            logger.warning("%s", message)
