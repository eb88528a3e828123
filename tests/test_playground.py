"""The form of notebooks, without a browser: its fields, its button, and the call that replaces it.

ipywidgets, where it is installed, and a stand-in of the few classes that the form uses.
"""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from refsd import StableDiffusionPipeline
from refsd.notebook import playground

WIDGETS = ("Text", "IntSlider", "FloatSlider", "IntText", "Button", "Label", "Image", "HBox",
           "VBox")
VALUES = {"prompt": "a red cat", "steps": 2, "guidance": 3.0, "seed": 5}


class StandIn(SimpleNamespace):
    def __init__(self, children=(), **options):
        super().__init__(children=children, value=None, disabled=False, **options)

    def on_click(self, function):
        self.click = lambda: function(self)


@pytest.fixture(params=["ipywidgets", "stand-in"])
def form(request, monkeypatch, pipe):
    if request.param == "ipywidgets":
        pytest.importorskip("ipywidgets")
    else:
        stand_in = SimpleNamespace(**dict.fromkeys(WIDGETS, StandIn))
        monkeypatch.setitem(sys.modules, "ipywidgets", stand_in)
    return playground(pipe, **VALUES)


@pytest.fixture(scope="module")
def pipe(model):
    return StableDiffusionPipeline.from_pretrained(model, backend="numpy")


def parts(form):
    """The fields by their descriptions, the button, the line of text, the picture."""
    *fields, row, picture = form.children
    return {field.description: field for field in fields}, *row.children, picture


def drawn(pipe, **options):
    wanted = {"num_inference_steps": 2, "guidance_scale": 3.0, "generator": 5, **options}
    return np.asarray(pipe("a red cat", **wanted).images[0])


def test_the_button_draws_what_the_fields_say(form, pipe):
    fields, button, said, picture = parts(form)
    assert {name: field.value for name, field in fields.items()} == VALUES | {"width": 32,
                                                                             "height": 32}
    button.click()
    assert (np.asarray(Image.open(io.BytesIO(picture.value))) == drawn(pipe)).all()
    assert said.value.endswith(" s") and not button.disabled

    fields["width"].value, fields["seed"].value = 40, 6
    button.click()
    wanted = drawn(pipe, width=40, generator=6)
    assert (np.asarray(Image.open(io.BytesIO(picture.value))) == wanted).all()


def test_a_bad_size_is_said_in_the_form(form):
    fields, button, said, _ = parts(form)
    fields["width"].value = 33
    button.click()
    assert "width is 33; give a multiple of 8" in said.value and not button.disabled


def test_without_ipywidgets_it_is_a_plain_call(monkeypatch, pipe):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # import ipywidgets raises ImportError
    assert (np.asarray(playground(pipe, **VALUES)) == drawn(pipe)).all()
