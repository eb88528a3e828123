"""What code written for diffusers asks beyond what refsd has: the answers, in tables.

A word stands in a table because code in the wild uses it. What changes nothing here is taken, with
a line where somebody may hope for more; everything else is answered by name with what to write.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from refsd.arguments import ARITHMETICS, dtype_name, refuse_unknown, shown
from refsd.errors import UsageError
from refsd.pipelines.request import check_flag

ANY = object()  # any value is taken
NO_IP = "refsd has no IP-Adapter: leave it out"
OWN_CHECKER = "refsd ships none: load first, then set pipe.safety_checker to a function of images"
FROM_PICTURES = "that is another class: write refsd.StableDiffusion"
BY_BACKEND = "backend decides where it computes: write from_pretrained(backend=\"cuda\")"

# keyword: the values that change nothing here, and what to write instead of others
LOADING: dict[str, tuple[tuple, str]] = {
    "pretrained_model_name_or_path": ((None,), "write it first, without a keyword, or as path="),
    "pretrained_model_link_or_path": ((None,), "write it first, without a keyword, or as path="),
    "use_safetensors": ((None, True), "pickles can run code and are never read: leave it out"),
    "use_onnx": ((None, False), "refsd reads safetensors only: leave it out"),
    "use_flashpack": ((None, False), "refsd reads safetensors only: leave it out"),
    "safety_checker": ((None,), OWN_CHECKER),
    "load_safety_checker": ((None, False), OWN_CHECKER),
    "requires_safety_checker": ((ANY,), ""),
    "feature_extractor": ((ANY,), ""),  # the safety checker's
    "image_encoder": ((None,), NO_IP),
    "low_cpu_mem_usage": ((ANY,), ""),
    "disable_mmap": ((ANY,), ""),
    "device_map": ((None, "cpu", "auto", "balanced"), BY_BACKEND),
    "max_memory": ((None,), "refsd checks the memory itself; force=True goes on all the same"),
    "offload_folder": ((None,), "refsd does not offload: leave it out"),
    "offload_state_dict": ((ANY,), ""),
    "quantization_config": ((None,), "for smaller weights write dtype=\"bfloat16\""),
    "force_download": ((None, False), "write download=True; what is complete is not fetched again"),
    "resume_download": ((ANY,), ""),
    "proxies": ((None,), "set the environment variable HTTPS_PROXY"),
    "mirror": ((None,), "set the environment variable HF_ENDPOINT"),
    "subfolder": ((None, ""), "give the path of the folder itself"),
    "custom_pipeline": ((None,), "refsd runs no code of a model's"),
    "custom_revision": ((None,), "refsd runs no code of a model's"),
    "trust_remote_code": ((None, False), "refsd runs no code of a model's"),
    "load_connected_pipeline": ((None, False), "load each model by itself"),
    "provider": ((None,), "ONNX is not read: choose with backend=\"numba\" or \"numpy\""),
    "provider_options": ((None,), "ONNX is not read: choose with backend=\"numba\" or \"numpy\""),
    "sess_options": ((None,), "ONNX is not read: choose with backend=\"numba\" or \"numpy\""),
    "config": ((None,), "refsd knows the configuration of a single file: leave it out"),
    "original_config": ((None,), "refsd knows the configuration of a single file: leave it out"),
    "original_config_file": ((None,), "refsd knows the configuration of a single file: leave it "
                                      "out"),
    "controlnet": ((None,), "refsd.StableDiffusionControlNetPipeline takes it"),
    "unet": ((None,), "load first, then set pipe.unet"),
    "tokenizer": ((None,), "load first, then set pipe.tokenizer"),
    "tokenizer_2": ((None,), "load first, then set pipe.tokenizer_2"),
    "add_watermarker": ((None, False), "refsd hides no watermark in pictures: leave it out"),
    "force_zeros_for_empty_prompt": ((None,), "load first, then set the pipeline's attribute"),
    "requires_aesthetics_score": ((ANY,), ""),  # the UNet tells
}

HUB = ("cache_dir", "revision", "token")  # what goes to the hub

CALLING: dict[str, tuple[tuple, str]] = {
    "callback": ((None,), "write callback_on_step_end=f with f(pipe, step, timestep, tensors)"),
    "callback_steps": ((None, 1), "callback_on_step_end is called at every step: test there "
                                  "step % n"),
    "cross_attention_kwargs": ((None, {}), "give a dict with scale"),
    "ip_adapter_image": ((None,), NO_IP),
    "ip_adapter_image_embeds": ((None,), NO_IP),
    "image": ((None,), FROM_PICTURES + "Img2ImgPipeline.from_pipe(pipe)(...)"),
    "mask_image": ((None,), FROM_PICTURES + "InpaintPipeline.from_pipe(pipe)(...)"),
    "strength": ((None,), FROM_PICTURES + "Img2ImgPipeline.from_pipe(pipe)(...)"),
    "control_image": ((None,), "the pipelines with ControlNets take it"),
    "controlnet_conditioning_scale": ((None,), "the pipelines with ControlNets take it"),
    "seed": ((None,), "write generator=SEED"),
    "num_images": ((None,), "write num_images_per_prompt=N"),
    "steps": ((None,), "write num_inference_steps=N"),
    "cfg_scale": ((None,), "write guidance_scale=X"),
    "sampler": ((None,), "set pipe.scheduler = refsd.schedulers.NAME.from_config("
                         "pipe.scheduler.config)"),
    "scheduler": ((None,), "set pipe.scheduler first"),
}

# Of the networks alone. refsd has no inputs of these kinds.
NETWORKS: dict[str, tuple[tuple, str]] = {
    "return_dict": ((None, True), "give True or False"),
    "generator": ((ANY,), ""),  # decoding draws nothing
    "cross_attention_kwargs": ((None, {}), "give it to the pipeline, or call pipe.set_adapters"),
    "joint_attention_kwargs": ((None, {}), "give it to the pipeline, or call pipe.set_adapters"),
    "block_controlnet_hidden_states": ((None,), "they are of ControlNets: leave it out"),
    "added_cond_kwargs": ((None, {}), "only UNets and ControlNets have such inputs: leave it out"),
    "class_labels": ((None,), "the UNets of refsd have no classes: leave it out"),
    "attention_mask": ((None,), "refsd pads as CLIP does, without a mask: leave it out"),
    "encoder_attention_mask": ((None,), "refsd attends to all of the text: leave it out"),
    "down_intrablock_additional_residuals": ((None,), "refsd has no T2I-Adapter: leave it out"),
    "position_ids": ((None,), "they count from 0: leave it out"),
    "output_hidden_states": ((None, False), "only text encoders have them: leave it out"),
}

# Methods that refsd.adapters.methods has.
ADAPTERS = (
    "load_lora_weights", "set_adapters", "get_active_adapters", "get_list_adapters",
    "delete_adapters", "unload_lora_weights", "disable_lora", "enable_lora", "fuse_lora",
    "unfuse_lora", "lora_scaled",
)

# Methods that change nothing here, and why.
ALREADY = {
    "enable_attention_slicing": "attention never holds its whole matrix on numba",
    "enable_xformers_memory_efficient_attention": "attention never holds its whole matrix on numba",
    "enable_vae_slicing": "pictures are decoded one at a time",
    "enable_model_cpu_offload": "everything stays where the backend computes",
    "enable_sequential_cpu_offload": "everything stays where the backend computes",
    "enable_group_offload": "everything stays where the backend computes",
    "reset_device_map": "",
    "disable_freeu": "",
    "fuse_qkv_projections": "",
    "unfuse_qkv_projections": "",
    "disable_attention_slicing": "",
    "disable_xformers_memory_efficient_attention": "",
    "disable_vae_slicing": "",
    "maybe_free_model_hooks": "",
    "remove_all_hooks": "",
    "set_progress_bar_config": "",  # there is no progress bar to configure
}

# Methods that would change something, and what to do instead.
INSTEAD = {
    "cuda": BY_BACKEND,
    "half": "load it with from_pretrained(dtype=\"float16\")",
    "load_ip_adapter": NO_IP,
    "load_attn_procs": "write load_lora_weights, which reads such files too",
    "components": "name them: pipe.tokenizer, .text_encoder, .unet, .vae, .scheduler",
    "image_processor": "to_output(latents, \"pil\") makes pictures of latents, and "
                       "refsd.pipelines.images arrays of pictures",
    "numpy_to_pil": "output_type=\"pil\" gives them",
    "decode_latents": "to_output(latents, \"np\") does that",
    "prepare_latents": "write stages.initial_latents(pipe.scheduler, shape, dtype, generator)",
    "progress_bar": "callback_on_step_end is called at every step",
    "push_to_hub": "refsd sends nothing anywhere",
    "enable_freeu": "refsd has no FreeU: leave it out",
    "encode_prompt": "write stages.encode_text(pipe.text_encoder, pipe.tokenizer([prompt]))",
    "save_pretrained": "refsd export weights writes tensors; the folder loaded from stays as it is",
}


class NotHere(UsageError, AttributeError):
    """A method of diffusers' that refsd answers with what to write instead; hasattr is False."""


def take(function: str, given: Mapping[str, Any], table: Mapping[str, tuple[tuple, str]],
         known: Any) -> None:
    """Pass keywords of diffusers' that change nothing; UsageError for the others, by name."""
    for name, value in given.items():
        if name not in table:
            refuse_unknown(function, [name], known)
        harmless, instead = table[name]
        if not any(one is ANY or value is one or (type(value) is type(one) and value == one)
                   for one in harmless):
            raise UsageError(f"{function}: {name}={shown(value, 40)} has no meaning here; "
                             f"{instead}")


def calling(pipe: Any, others: Mapping[str, Any], table: Mapping[str, tuple[tuple, str]] = CALLING,
            *, further: Iterable[str] = ()) -> None:
    """`take` for what a pipeline's call does not name; what it names is known, and `further`.

    With it what the calls name that it extends, to which it hands the rest.
    """
    calls = [vars(cls)["__call__"] for cls in type(pipe).__mro__ if "__call__" in vars(cls)]
    named = [name for call in calls for name in _named(call) if name != "self"]
    take(type(pipe).__name__, others, table, dict.fromkeys([*named, *further]))


def _named(function: Callable[..., Any]) -> list[str]:
    """The arguments that a function's signature names."""
    found = inspect.signature(function).parameters.values()
    return [one.name for one in found if one.kind is not one.VAR_KEYWORD]


def answer(function: str, others: Mapping[str, Any]) -> Callable[[Any], Any]:
    """How a network gives its result: in a tuple of one with diffusers' return_dict=False."""
    as_tuple = others.get("return_dict") is False
    rest = {name: value for name, value in others.items() if not as_tuple or name != "return_dict"}
    take(function, rest, NETWORKS, NETWORKS)
    return lambda result: (result,) if as_tuple else result


def check_dtype(name: str, value: Any) -> str:
    """The name of one of ARITHMETICS, from its name or NumPy's, ml_dtypes' or torch's dtype."""
    found = dtype_name(value)
    if found in ARITHMETICS:
        return found
    meant = {"half": "float16", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}.get(found)
    hint = f"did you mean {meant}? " if meant else ""
    raise UsageError(f"{name} is {shown(value)}; {hint}give one of {', '.join(ARITHMETICS)}")


def check_device(pipe: Any, *wanted: Any, device: Any = None, dtype: Any = None,
                 silence_dtype_warnings: bool = False) -> Any:
    """pipe.to(...): the device and the dtype that the pipeline has; UsageError for others."""
    for one in (*wanted, device, dtype):
        if one is None:
            continue
        if str(one).partition(":")[0] in ("cpu", "cuda", "mps", "xpu", "hpu", "xla", "npu"):
            if str(one).partition(":")[0] != pipe.device:
                raise UsageError(f"to: {shown(one)}; the pipeline computes on {pipe.device}, and "
                                 f"{BY_BACKEND}, or another backend")
        elif check_dtype("to: dtype", one) != pipe.denoiser.dtype:
            raise UsageError(f"to: the pipeline is {pipe.denoiser.dtype}; load it with "
                             f"from_pretrained(dtype=\"{dtype_name(one)}\")")
    return pipe


def loading(function: Callable[..., Any], others: dict[str, Any], *, dtype: Any, torch_dtype: Any,
            download: bool, local_files_only: bool | None) -> tuple[str, bool, dict[str, Any]]:
    """from_pretrained's keywords of diffusers' as dtype, download, and what goes to the hub."""
    hub = {key: others.pop(key) for key in HUB if key in others}
    take("from_pretrained", others, LOADING, [*_named(function), *HUB])
    if torch_dtype is not None:
        dtype = check_dtype("torch_dtype", torch_dtype)
    return check_dtype("dtype", dtype), may_download(download, local_files_only), hub


def may_download(download: Any, local_files_only: Any) -> bool:
    """Whether the network may be touched; UsageError where the two contradict each other."""
    if local_files_only is None:
        return check_flag("download", download)
    if check_flag("local_files_only", local_files_only) and download:
        raise UsageError("download=True and local_files_only=True exclude each other; give one")
    return not local_files_only


def check_scheduler(scheduler: Any, argument: str = "pipe.scheduler") -> None:
    """UsageError for a scheduler, or a class of them, of diffusers' own: its arrays are torch's."""
    kind = scheduler if isinstance(scheduler, type) else type(scheduler)
    if kind.__module__.startswith("diffusers."):
        made = "" if kind is scheduler else ".from_config(scheduler.config)"
        raise UsageError(f"{argument} is diffusers' {kind.__name__}; set {argument} = "
                         f"refsd.schedulers.{kind.__name__}{made}")
