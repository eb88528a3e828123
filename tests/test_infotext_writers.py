"""What other programs write into pictures, read as they mean it."""

import json

import pytest

from refsd.cli.infotext import format_infotext, parse_infotext
from refsd.cli.metadata import find_description, find_infotext

LINE = "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 42, Size: 512x512"
SETTINGS = {"Steps": "20", "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": "7",
            "Seed": "42", "Size": "512x512"}


def texts(prompt="a red fox", negative="blurry", line=LINE):
    """An infotext as A1111 writes it."""
    return f"{prompt}\nNegative prompt: {negative}\n{line}" if negative else f"{prompt}\n{line}"


# How texts of one meaning differ between writers, and what editors do to line ends.
@pytest.mark.parametrize("change", [
    lambda text: text, lambda text: text + "\n", lambda text: text + "\n\n\n",
    lambda text: text + "\r\n", lambda text: text.replace("\n", "\r\n"),
    lambda text: text.replace("\n", "\r"), lambda text: text + "\0", lambda text: text + " ",
    lambda text: text.replace("\n", "\n\n"), lambda text: text.replace("\nSteps", "\n  Steps"),
    lambda text: text.replace("\n", " "), lambda text: text.replace("\n", "."),
    lambda text: text.replace("\n", ", "),
    lambda text: text.replace("\nNegative", " Negative"),
    lambda text: text.replace("Negative prompt", "Negative Prompt"),
    lambda text: text + ",", lambda text: text.replace(", ", ","),
], ids=["plain", "newline", "newlines", "CRLF at the end", "CRLF", "CR", "NUL", "blank",
        "empty lines", "indented", "one line", "dots", "commas", "negative within a line",
        "capital", "comma", "no blanks"])
@pytest.mark.parametrize("negative", ["blurry", "a,\nb", ""], ids=["one", "two lines", "none"])
def test_the_same_infotext_in_other_hands(change, negative):
    found = parse_infotext(change(texts("a red fox", negative)))
    assert found.settings == SETTINGS
    assert found.prompt.rstrip(".,") == "a red fox"
    assert found.negative_prompt.replace("\n", "").replace(" ", "").rstrip(".,") in (
        negative.replace("\n", ""), negative.replace("\n", "."), negative.replace("\n", ","))
    assert found.extras == ""


# Lines that follow the settings.
@pytest.mark.parametrize("extras", [
    "Template: a {red|blue} fox\nNegative Template: blurry, __bad__",
    "Template: a fox\n  with Steps: 3, Seed: 4, Size: 8x8\nNegative Template: b",
    "Template: a\nSteps: 1, Seed: 2, Size: 8x8, Version: v1\nNegative Template: b",
    "Time taken: 4.2 sec.", "<lora:x:1>", "(made with love)",
])
@pytest.mark.parametrize("end", ["", "\n"])
def test_lines_after_the_settings_are_extras(extras, end):
    found = parse_infotext(f"{texts()}\n{extras}{end}")
    assert found == ("a red fox", "blurry", SETTINGS, extras)


# Values that hold what separates settings, and names as extensions write them.
VALUES = {
    'Lora hashes: "a: 0123, b: 4567"': ("Lora hashes", "a: 0123, b: 4567"),
    'TI hashes: "easynegative: c74b4e810b03"': ("TI hashes", "easynegative: c74b4e810b03"),
    'ADetailer prompt: "x, \\"y\\"\\nz"': ("ADetailer prompt", 'x, "y"\nz'),
    'ADetailer prompt: "x,\ny"': ("ADetailer prompt", "x,\ny"),
    'ADetailer prompt: "(a\\(b\\):1.2), c"': ("ADetailer prompt", "(a\\(b\\):1.2), c"),
    'ControlNet 0: "Module: canny, Model: x [ab], Weight: 1.0, Resize Mode: Crop and Resize"':
        ("ControlNet 0", "Module: canny, Model: x [ab], Weight: 1.0, Resize Mode: Crop and Resize"),
    'Hashes: {"vae": "735e4c3a44", "model": "4726d3bab1"}':
        ("Hashes", '{"vae": "735e4c3a44", "model": "4726d3bab1"}'),
    'Civitai resources: [{"type":"checkpoint","modelVersionId":1},{"type":"lora","weight":0.8}]':
        ("Civitai resources",
         '[{"type":"checkpoint","modelVersionId":1},{"type":"lora","weight":0.8}]'),
    "Civitai metadata: {}": ("Civitai metadata", "{}"),
    "Skip layers: [7, 8, 9]": ("Skip layers", "[7, 8, 9]"),
    "Model: cats, dogs": ("Model", "cats, dogs"),
    "ADetailer negative prompt: x": ("ADetailer negative prompt", "x"),
    "Hires negative prompt: x": ("Hires negative prompt", "x"),
    'Model: "cats" and dogs': ("Model", '"cats" and dogs'),
    'Model: "cats': ("Model", '"cats'),
    "Model: [x": ("Model", "[x"),
    "Model: [x], y": ("Model", "[x], y"),
    "Diffusion in Low Bits: Automatic (fp16 LoRA)":
        ("Diffusion in Low Bits", "Automatic (fp16 LoRA)"),
    "Distilled CFG Scale: 3.5": ("Distilled CFG Scale", "3.5"),
    "Downcast alphas_cumprod: True": ("Downcast alphas_cumprod", "True"),
    "Denoising strength (hr): 0.4": ("Denoising strength (hr)", "0.4"),
    "Hires Steps: 10": ("Hires Steps", "10"),
    "App: SD.Next": ("App", "SD.Next"),
    "Version: v1.9.0": ("Version", "v1.9.0"),
    "Version: f2.0.1v1.10.1-previous-313-g8a042934": ("Version",
                                                      "f2.0.1v1.10.1-previous-313-g8a042934"),
    "Version: ComfyUI": ("Version", "ComfyUI"),
    "Größe: 1": ("Größe", "1"),
    "Empty: ": ("Empty", ""),
}


@pytest.mark.parametrize("written", VALUES)
@pytest.mark.parametrize("last", [False, True])
def test_values_and_names_of_settings(written, last):
    name, value = VALUES[written]
    line = f"{LINE}, {written}" if last else f"Steps: 20, {written}, {LINE[11:]}"
    assert parse_infotext(texts(line=line)) == ("a red fox", "blurry", {**SETTINGS, name: value},
                                                "")


@pytest.mark.parametrize("prompt", [
    "(cat:1.2), (dog:1.3), (sky:1.1)", "a fox, steps: three, four: five", "a\nb: c\nd",
    "Steps: three wooden steps, Size: small, Mood: dark",
    "Steps: 1, Seed: 2, Size: 8x8, Version: v1", "Template: x",
    "Steps: 1, Seed: 2, Size: 8x8\nTemplate: not after the settings",
], ids=range(7))
def test_prompts_that_look_like_something_else(prompt):
    """The settings come last; before them everything is prompt."""
    if "Template: not" not in prompt:  # in a foreign text nothing tells this one from extras
        assert parse_infotext(texts(prompt)) == (prompt, "blurry", SETTINGS, "")
    ours = {**SETTINGS, "Version": "refsd 0.1.0"}
    for negative in ("", prompt):
        text = format_infotext(prompt, negative, ours)
        for end in ("", "\n", "\r\n"):
            assert parse_infotext(text + end) == (prompt, negative, ours, "")


@pytest.mark.parametrize("text", [
    "(cat:1.2), (dog:1.3), (sky:1.1)", "a cat", "Steps: 3 of wood", "Negative prompt: a: b: c: d",
    "a: b, c", "", "\n\n", "Steps:", ":::", '"a": 1, "b": 2, "c": 3', '{"a": 1, "b": 2, "c": 3}',
])
def test_prompts_alone(text):
    found = parse_infotext(text)
    assert found.settings == {} and found.extras == ""
    assert f"{found.prompt}{found.negative_prompt}" == text.strip().removeprefix(
        "Negative prompt: ")


GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 5, "steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal",
        "denoise": 1, "model": ["4", 0], "positive": ["10", 0], "negative": ["10", 1],
        "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["8", 0], "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "8": {"class_type": "PrimitiveString", "inputs": {"value": "a red fox"}},
    "10": {"class_type": "ControlNetApplyAdvanced", "inputs": {
        "positive": ["6", 0], "negative": ["7", 0], "strength": 1}},
}
FLUX = {
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red fox", "clip": ["11", 0]}},
    "22": {"class_type": "BasicGuider", "inputs": {"model": ["12", 0], "conditioning": ["6", 0]}},
    "25": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
    "13": {"class_type": "SamplerCustomAdvanced", "inputs": {"noise": ["25", 0],
                                                             "guider": ["22", 0]}},
}
WORKFLOW = {"nodes": [{"id": 6, "type": "CLIPTextEncode", "widgets_values": ["a red fox"]},
                      {"id": 9, "type": "SaveImage", "widgets_values": ["x"]}, None]}
NOVELAI = {"steps": 28, "sampler": "k_euler", "seed": 5, "scale": 11.0, "uc": "blurry"}
DRAW_THINGS = {"c": "a red fox", "uc": "blurry", "steps": 8, "seed": 5, "sampler": "Euler A"}
XMP = ('<x:xmpmeta><rdf:Alt><rdf:li xml:lang="x-default">'
       + json.dumps(DRAW_THINGS).replace('"', "&quot;") + "</rdf:li></rdf:Alt></x:xmpmeta>")
# The texts of a picture, the program, its prompts, and a setting.
OTHERS = {
    "ComfyUI": ({"prompt": json.dumps(GRAPH), "workflow": json.dumps(WORKFLOW)},
                ("ComfyUI", "a red fox", "blurry"), ("ckpt_name", "m.safetensors")),
    "ComfyUI with NaN": ({"prompt": json.dumps(GRAPH)[:-1] + ', "1": {"is_changed": [NaN]}}'},
                         ("ComfyUI", "a red fox", "blurry"), ("seed", "5")),
    "ComfyUI, Flux": ({"prompt": json.dumps(FLUX)}, ("ComfyUI", "a red fox", ""),
                      ("noise_seed", "5")),
    "ComfyUI, the editor's": ({"workflow": json.dumps(WORKFLOW)}, ("ComfyUI", "", ""),
                              ("text of node 6", "a red fox")),
    "NovelAI": ({"Title": "AI generated image", "Description": "a red fox", "Software": "NovelAI",
                 "Source": "Stable Diffusion 81274D13", "Comment": json.dumps(NOVELAI)},
                ("NovelAI", "a red fox", "blurry"), ("sampler", "k_euler")),
    "NovelAI, later": ({"Comment": json.dumps({"prompt": "a red fox", **NOVELAI})},
                       ("NovelAI", "a red fox", "blurry"), ("seed", "5")),
    "InvokeAI": ({"invokeai_metadata": json.dumps({
        "positive_prompt": "a red fox", "negative_prompt": "blurry", "model": {"key": "x"}})},
        ("InvokeAI", "a red fox", "blurry"), ("model", '{"key": "x"}')),
    "InvokeAI, without a prompt": ({"invokeai_metadata": json.dumps({"seed": 5})},
                                   ("InvokeAI", "", ""), ("seed", "5")),
    "NovelAI, without a negative": ({"Description": "a red fox", "Software": "NovelAI",
                                     "Comment": json.dumps({"steps": 28})},
                                    ("NovelAI", "a red fox", ""), ("steps", "28")),
    "Tensor.Art": ({"generation_data": json.dumps({
        "prompt": "a red fox", "negativePrompt": "blurry", "cfgScale": 7}) + "\0"},
        ("an unknown program", "a red fox", "blurry"), ("cfgScale", "7")),
    "InvokeAI, earlier": ({"sd-metadata": json.dumps({"app_version": "2.2", "image": {
        "prompt": [{"prompt": "a red fox", "weight": 1.0}], "steps": 50}})},
        ("InvokeAI", "a red fox", ""), ("steps", "50")),
    "InvokeAI, first": ({"Dream": '"a red fox" -s 50 -S 42 -W 512'}, ("InvokeAI", "a red fox", ""),
                        ("options", "-s 50 -S 42 -W 512")),
    "Fooocus": ({"parameters": json.dumps({"prompt": "a red fox", "negative_prompt": "blurry",
                                           "sampler": "x"}), "fooocus_scheme": "fooocus"},
                ("Fooocus", "a red fox", "blurry"), ("sampler", "x")),
    "SwarmUI": ({"parameters": json.dumps({"sui_image_params": {
        "prompt": "a red fox", "negativeprompt": "blurry", "seed": 5}})},
        ("SwarmUI", "a red fox", "blurry"), ("seed", "5")),
    "Draw Things": ({"XML:com.adobe.xmp": XMP}, ("Draw Things", "a red fox", "blurry"),
                    ("steps", "8")),
    "Draw Things, EXIF": ({"UserComment": json.dumps(DRAW_THINGS)},
                          ("Draw Things", "a red fox", "blurry"), ("steps", "8")),
    "Easy Diffusion": ({"prompt": "a red fox", "negative_prompt": "blurry", "seed": "5"},
                       ("an unknown program", "a red fox", "blurry"), ("seed", "5")),
    "sd-scripts": ({"prompt": "a red fox", "negative-prompt": "blurry", "seed": "5"},
                   ("an unknown program", "a red fox", "blurry"), ("seed", "5")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_programs_without_an_infotext(name):
    written, words, setting = OTHERS[name]
    assert find_infotext(written) is None
    found = find_description(written)
    assert tuple(found[:3]) == words
    assert found.settings[setting[0]] == setting[1]


@pytest.mark.parametrize("key", ["parameters", "Parameters", "UserComment", "Comment", "comment",
                                 "ImageDescription", "XPComment"])
def test_an_infotext_under_any_of_its_names(key):
    """Its writer may have put a graph beside it: the infotext says more."""
    found = find_infotext({key: texts(), "prompt": json.dumps(GRAPH)})
    assert found == ("a red fox", "blurry", SETTINGS, "")


@pytest.mark.parametrize("written", [
    {}, {"Comment": "made with GIMP"}, {"UserComment": "holiday"}, {"Comment": "{}"},
    {"parameters": "{"}, {"prompt": "[1]"}, {"prompt": "{" * 10_000}, {"Comment": "[" * 10**5},
    {"prompt": '{"3": {"inputs": {"positive": ["3", 0], "model": 1}}}'},
    {"prompt": '{"3": {"inputs": {"positive": [], "steps": 1}}, "4": {"inputs": 1}}'},
    {"xmp": '{"' * 1000}, {"invokeai_metadata": "null"}, {"sd-metadata": '{"image": 1}'},
    {"workflow": '{"nodes": [1, {"type": 1}]}'}, {"Dream": '"'}, {"Comment": '{"uc": null}'},
], ids=str)
def test_texts_that_say_nothing_or_are_hostile(written):
    """Nothing is invented, nothing raises."""
    infotext, described = find_infotext(written), find_description(written)
    assert infotext is None or not infotext.settings
    assert described is None or described.program in ("ComfyUI", "InvokeAI", "NovelAI")
