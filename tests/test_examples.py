"""The page that draws with the ops alone draws what the pipeline draws."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from refsd import StableDiffusionPipeline, use
from refsd.pipelines.loading import bundled_model

PAGE = Path(__file__).parent.parent / "examples" / "sd.py"


@pytest.mark.parametrize("steps, guidance", [(3, 3.0), (4, 7.5)])
def test_the_page_draws_what_the_pipeline_draws(steps, guidance):
    """Both add up the same in float32; the text's sums in another order may move a grey level."""
    page = runpy.run_path(str(PAGE))
    prompt = "a matte green cone"
    with use("numpy"):
        drawn = page["draw"](prompt, bundled_model(), 7, steps=steps, guidance=guidance)
    pipe = StableDiffusionPipeline.from_pretrained(backend="numpy")
    wanted = np.asarray(pipe(prompt, num_inference_steps=steps, guidance_scale=guidance,
                             generator=7).images[0])
    difference = np.abs(drawn.astype(int) - wanted)
    assert difference.max() <= 1 and (difference == 0).mean() >= 0.999


def test_it_fits_on_a_page():
    assert len(PAGE.read_text().splitlines()) <= 170
