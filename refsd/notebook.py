"""A form to draw with, for notebooks: prompt, steps, guidance, seed, size, a button, the picture.

    from refsd.notebook import playground
    playground()

It needs ipywidgets (the extra `notebooks`); without them it is a plain call, which draws once.
"""

import io
import time
from typing import Any

from refsd.errors import RefsdError
from refsd.pipelines.stable_diffusion import StableDiffusionPipeline

PROMPT = "a glossy red sphere left of a small blue cube"


def playground(pipe: StableDiffusionPipeline | None = None, *, prompt: str = PROMPT,
               steps: int = 20, guidance: float = 3.0, seed: int = 2, width: int | None = None,
               height: int | None = None) -> Any:
    """The form as a widget that begins with these values; without ipywidgets, their picture.

    No `pipe` is the bundled model, no width or height the model's own.
    """
    pipe = StableDiffusionPipeline.from_pretrained() if pipe is None else pipe
    width, height = (pipe.default_size if n is None else n for n in (width, height))
    values = {"prompt": prompt, "num_inference_steps": steps, "guidance_scale": guidance,
              "generator": seed, "width": width, "height": height}
    try:
        import ipywidgets
    except ImportError:
        return pipe(**values).images[0]
    return _form(ipywidgets, pipe, values)


def _form(widgets, pipe, values):
    fields = {
        "prompt": widgets.Text(description="prompt", layout={"width": "auto"}),
        "num_inference_steps": widgets.IntSlider(description="steps", min=1, max=100),
        "guidance_scale": widgets.FloatSlider(description="guidance", min=0, max=15, step=0.5),
        "generator": widgets.IntText(description="seed"),
        "width": widgets.IntText(description="width"),
        "height": widgets.IntText(description="height"),
    }
    for name, value in values.items():
        fields[name].value = value
    button = widgets.Button(description="Draw", button_style="primary")
    said, picture = widgets.Label(), widgets.Image(format="png")

    def draw(_):
        button.disabled, said.value, begun = True, "", time.perf_counter()
        wanted = {name: field.value for name, field in fields.items()}
        try:
            drawn = pipe(**wanted, callback_on_step_end=tell).images[0]
            png = io.BytesIO()
            drawn.save(png, "png")
            picture.value = png.getvalue()
            said.value = f"{time.perf_counter() - begun:.1f} s"
        except RefsdError as problem:
            said.value = str(problem)
        finally:
            button.disabled = False

    def tell(_, step, timestep, tensors):
        said.value = f"step {step + 1} of {pipe.num_timesteps}"

    button.on_click(draw)
    return widgets.VBox([*fields.values(), widgets.HBox([button, said]), picture])
