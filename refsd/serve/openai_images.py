"""OpenAI's images API without a web framework: its fields as refsd's own, a job as its answers."""

import base64
import io
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from refsd.arguments import shown
from refsd.cli.pictures import as_picture
from refsd.cli.png import encode_png
from refsd.errors import UsageError
from refsd.rules import Rule, boolean, integer, only, text
from refsd.serve import asked, refusals
from refsd.serve.asked import Limits
from refsd.serve.jobs import CANCELLED, Job, Picture
from refsd.serve.refusals import Refused

STATUS = {**refusals.STATUS, "usage": 400}  # of jobs that failed so; all others are 500
PARTIAL_IMAGES = 3
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)
# What clients send that have no way to name another model: the server's first is drawn with.
OPENAI_MODELS = re.compile(r"(dall-e|gpt-image|chatgpt-image)-[\w.-]{1,60}", re.ASCII)
# Fields whose values are read and change nothing, with the reason; what else they say is refused.
UNUSED: dict[str, tuple[Rule, str]] = {
    "quality": (only("auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"),
                "steps says how much is worked on a picture"),
    "complexity": (only("low", "medium", "high"), "no picture is planned before it is drawn"),
    "style": (only("vivid", "natural"), "the prompt says how a picture is to look"),
    "input_fidelity": (only("low", "high"), "strength says how far from the picture is drawn"),
    "moderation": (only("auto", "low"), "nothing is moderated here"),
    "user": (text(1000), "nobody is told who asked"),
    "safety_identifier": (text(1000), "nobody is told who asked"),
    "background": (only("auto", "opaque"), "pictures are opaque here"),
    "output_format": (only("png"), "pictures are PNGs here, with their recipes"),
    "output_compression": (only(100), "nothing of a PNG is lost"),
}
NEUTRAL = ("auto", "opaque", "png", 100, "")  # values of those that want nothing
REFUSED = {"frame_count": "one picture is drawn, no film",
           "frame_duration_ms": "one picture is drawn, no film",
           "svg": "pictures are PNGs here", "markup": "give a mask"}
FORM_TEXTS = {*asked.TEXTS, *UNUSED, *REFUSED, "size", "response_format"} - {"output_compression"}


class Images(NamedTuple):
    """A request in refsd's words: the fields for Studio.read, and how its answer is to be.

    partial: how many previews a stream has at most. warnings: what of it has no effect.
    """

    said: dict[str, Any]
    stream: bool
    partial: int
    url: bool
    warnings: list[str]


def read_images(body: Mapping[str, Any], models: Iterable[str], limits: Limits) -> Images:
    """The request of a body of /v1/images/generations; null is what is not said.

    Fields of refsd's own, such as seed and steps, stay as they are. Raises UsageError, which names
    the field, and Refused (404) for a model that there is not.
    """
    said = {name: value for name, value in body.items() if value is not None}
    warnings = _leave_out(said)
    own = {"n": integer(1, limits.batch), "stream": boolean,
           "response_format": only("b64_json", "url"),
           "partial_images": integer(0, PARTIAL_IMAGES)}
    found = {name: said.pop(name) for name in own if name in said}
    for name, value in found.items():
        if wanted := own[name](value):
            raise UsageError(f"{name} is {shown(value)}; give {wanted}")
    stream, partial = found.get("stream", False), found.get("partial_images", 0)
    url = found.get("response_format") == "url"
    if partial and not stream:
        raise UsageError("partial_images are for a stream; give stream true too, or leave them out")
    if url and stream:
        raise UsageError("response_format is 'url', and a stream has pictures in base64; give "
                         "b64_json, or stream false")
    _put(said, "n", {"count": found["n"]} if "n" in found else {})
    if "size" in said:
        _put(said, "size", _sides(said.pop("size")))
    warnings += _name_model(said, models)
    return Images(said, stream, partial, url, warnings)


def _leave_out(said):
    """Take away what changes nothing; gives a line for each that wanted something."""
    for name, why in REFUSED.items():
        if name in said:
            raise UsageError(f"{name} is {shown(said[name])}, which refsd does not have: {why}; "
                             "leave it out")
    warnings = []
    for name, (rule, why) in UNUSED.items():
        value = said.pop(name, "")
        if value in NEUTRAL:
            continue
        if wanted := rule(value):
            raise UsageError(f"{name} is {shown(value)}; {why}: give {wanted}, or leave it out")
        warnings.append(f"{name} has no effect: {why}")
    return warnings


def _put(said, name, values):
    """Say in refsd's fields what `name` said, unless they say it already."""
    for field, value in values.items():
        if field in said:
            raise UsageError(f"{name} and {field} are both given; give one of them")
        said[field] = value


def _sides(size):
    """The sides of WIDTHxHEIGHT; none for auto, which is the model's own, or the picture's."""
    found = SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is None and size not in ("auto", ""):
        raise UsageError(f"size is {shown(size)}; give WIDTHxHEIGHT such as 512x512, or auto")
    return {} if found is None else {"width": int(found[1]), "height": int(found[2])}


def _name_model(said, models):
    """Have a model of the list, or none for the first; gives what is to be said about it."""
    name = said.get("model")
    if not isinstance(name, str) or name in (models := list(models)):
        return []
    if OPENAI_MODELS.fullmatch(name) is None:
        raise Refused(404, "model_not_found", f"model is {shown(name)}, which this server was not "
                      f"started with; give one of {', '.join(models)}, or leave it out")
    del said["model"]
    return [f"model is {name}, which only OpenAI has; drawn with {models[0]}"]


def read_form(items: Iterable[tuple[str, str | bytes]]) -> dict[str, Any]:
    """The body that the parts of a form say, files as bytes, for read_images.

    Raises UsageError, which names the part.
    """
    found: dict[str, Any] = {}
    for name, value in items:
        name = name.removesuffix("[]")
        if name in found:
            raise UsageError("image: several are given, and refsd draws from one; give one"
                             if name == "image" else f"{name} is given twice; give it once")
        if isinstance(value, bytes) != (name in ("image", "mask")):
            raise UsageError(f"{name} is a {'file' if isinstance(value, bytes) else 'text'}; give "
                             f"a {'text' if isinstance(value, bytes) else 'file'}")
        found[name] = value if isinstance(value, bytes) else _of_form(name, value)
    if "image" not in found:
        raise UsageError("there is no image; give the picture that is to be edited")
    _put(found, "image", {"init_image": _in_base64(found.pop("image"))})
    if "mask" in found:
        found["mask"] = _in_base64(drawn_where(found["mask"]))
    return found


def _of_form(name, value):
    """A text of a form as JSON would have said it; what cannot be read is judged as a text."""
    if name in FORM_TEXTS:
        return value or None
    try:
        return json.loads(value.lower() if name == "stream" else value)
    except (ValueError, RecursionError):
        return value or None


def drawn_where(mask: bytes) -> bytes:
    """A mask of refsd's, white where it draws, of one of OpenAI's, which is transparent there.

    A PNG from a PNG or a WebP. Raises UsageError where nothing is transparent.
    """
    alpha = as_picture("mask", mask).upright().convert("RGBA").getchannel("A")
    drawn = alpha.point(lambda value: 255 * (value == 0))
    if drawn.getbbox() is None:
        raise UsageError("mask: nothing of it is transparent; the picture is edited where its mask "
                         "is, so make that part transparent, or leave the mask out")
    return encode_png(drawn, {})


def _in_base64(data):
    return base64.b64encode(data).decode("ascii")


def is_due(step: int, steps: int, sent: int, most: int) -> bool:
    """Whether a preview after a step before the last is due, if `most` lie evenly among them."""
    return step * (most + 1) >= (sent + 1) * steps


def say_done(job: Job, warnings: list[str], base: str | None) -> dict[str, Any]:
    """What is answered of a finished job; `base` is the URL of this server, None for base64.

    Reads the files of its pictures. Raises what its failure is, see `require_done`.
    """
    require_done(job)
    data = [{"seed": picture.seed, **(
        {"b64_json": _in_base64(picture.png)} if base is None else {"url": url(picture, base)})}
        for picture in job.pictures]
    return {"created": int(job.created), **_about(job.pictures), "data": data,
            **_warned(job, warnings)}


def url(picture: Picture, base: str) -> str:
    """Where this server shows a picture."""
    return f"{base.rstrip('/')}/api/v1/pictures/{quote(picture.name)}"


def _about(pictures):
    """What an answer says of its pictures; the size is that of all, since one request has one."""
    about = {"output_format": "png", "background": "opaque"}
    if pictures:
        about["size"] = f"{pictures[0].width}x{pictures[0].height}"
    return about


def partial_event(kind: str, job: Job, image: bytes, index: int) -> dict[str, Any]:
    """A preview, as a stream of `kind` (image_generation or image_edit) says it."""
    from PIL import Image

    with Image.open(io.BytesIO(image)) as opened:
        width, height = opened.size
    return {"type": f"{kind}.partial_image", "b64_json": _in_base64(image),
            "partial_image_index": index, "created_at": int(job.created), "output_format": "png",
            "background": "opaque", "quality": "auto", "size": f"{width}x{height}"}


def completed_event(kind: str, job: Job, picture: Picture, warnings: list[str]) -> dict[str, Any]:
    """A picture, as a stream says it. Reads its file."""
    return {"type": f"{kind}.completed", "b64_json": _in_base64(picture.png), "seed": picture.seed,
            "created_at": int(job.created), "quality": "auto", **_about([picture]),
            **_warned(job, warnings)}


def _warned(job, warnings):
    """What has no effect, of the request and of the job, if anything."""
    found = [*warnings, *job.warnings]
    return {"warnings": found} if found else {}


def require_done(job: Job) -> None:
    """Raise Refused with what a job ended by, unless it is done; no client is to try it again."""
    if job.state == CANCELLED:
        raise Refused(409, "cancelled", "the job was cancelled", x_should_retry="false")
    if job.error is not None:
        raise Refused(STATUS.get(job.error["code"], 500), **job.error, x_should_retry="false")
