"""Where a model is: paths first, the local hub cache next, the network only when asked."""

import os
import socket
import subprocess
import sys

import huggingface_hub
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_samples import TINY, refused, write_folder

from refsd.errors import ModelError, RefsdError, ResourceError, UsageError
from refsd.weights import load_checkpoint, resolve


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_existing_paths_are_taken_as_they_are(tmp_path, monkeypatch):
    assert resolve(tmp_path) == tmp_path
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == resolve(tmp_path / "owner" / "name").relative_to(tmp_path)


BAD = [
    "", "..x", "../../x", "/no/such/model", "a/b/c", "a--b", "a/b--c", "a..b", "-a", "a-", ".a/b",
    "a.git", "a\0b", "a b", "a\nb", "\N{CYRILLIC SMALL LETTER A}/b", "café", "a" * 97, "x" * 10_000,
    "a/" + "b" * 97, "https://hub/a/b", "a:b", "~/x", "a\\b", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("model", BAD, ids=range(len(BAD)))
def test_what_is_neither_path_nor_id_is_refused(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    for download in (False, True):
        refused(lambda download=download: resolve(model, download=download), "model: ",
                "neither an existing path nor a hub id", error=UsageError)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(model=st.text(st.characters() | st.sampled_from("ab/.-_"), max_size=30))
def test_any_text_is_refused_or_looked_up_in_the_cache(tmp_path_factory, model):
    cache = tmp_path_factory.getbasetemp() / "no-cache"
    if os.path.exists(model.replace("\0", "") or "-"):
        return
    with pytest.raises(RefsdError) as caught:
        resolve(model, cache_dir=cache)
    assert type(caught.value) in (UsageError, ModelError)
    assert "\n" not in str(caught.value) and str(caught.value).isascii()
    assert not cache.exists()


def fake_cache(root):
    """A hub cache with one model, as huggingface_hub lays it out."""
    repository = root / "models--owner--tiny"
    write_folder(repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    blobs = repository / "blobs"
    blobs.mkdir()
    weights = repository / "snapshots/0123abcd/unet/diffusion_pytorch_model.safetensors"
    weights.rename(blobs / "feed")
    weights.symlink_to("../../../blobs/feed")
    return root


def test_a_cached_model_is_found_and_loaded(tmp_path):
    folder = resolve("owner/tiny", cache_dir=fake_cache(tmp_path))
    assert folder.name == "0123abcd"
    assert set(load_checkpoint(folder)) == set(TINY)


def test_a_model_that_is_not_cached_is_refused_with_advice(tmp_path):
    refused(lambda: resolve("owner/other", cache_dir=tmp_path), "'owner/other'", "--download",
            error=ModelError)  # fmt: skip


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_download_asks_for_safe_files_only(tmp_path, monkeypatch, variant):
    asked = {}

    def record(name, **options):
        asked.update(options, name=name)
        return tmp_path

    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    resolve("owner/name", download=True, variant=variant)
    assert asked["name"] == "owner/name" and asked["local_files_only"] is False

    files = {
        "model_index.json": True,
        "unet/config.json": True,
        "tokenizer/merges.txt": True,
        "unet/diffusion_pytorch_model.safetensors": variant is None,
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors": variant is None,
        "unet/diffusion_pytorch_model.fp16.safetensors": variant == "fp16",
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors": variant == "fp16",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json": variant == "fp16",
        "unet/diffusion_pytorch_model.non_ema.safetensors": False,
        "unet/diffusion_pytorch_model.bin": False,
        "v1-5-pruned.safetensors": False,
        "v1-5-pruned.ckpt": False,
        "safety_checker/model.safetensors": False,
        "unet/modeling.py": False,
    }
    patterns = {k: asked[k] for k in ("allow_patterns", "ignore_patterns")}
    found = set(huggingface_hub.utils.filter_repo_objects(list(files), **patterns))
    assert found == {name for name, wanted in files.items() if wanted}


@pytest.mark.parametrize("error", [OSError("403 Client Error.\nAccess is gated."), ValueError("x")])
def test_a_failed_download_is_one_line(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refused(lambda: resolve("owner/name", download=True), "'owner/name'",
            str(error).splitlines()[0], error=ResourceError)  # fmt: skip


def test_download_while_offline_is_one_line(tmp_path):
    code = (
        "import sys\n"
        "from refsd.errors import ResourceError\n"
        "from refsd.weights import resolve\n"
        "try:\n    resolve('owner/name', download=True, cache_dir=sys.argv[1])\n"
        "except ResourceError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment,
                           capture_output=True, text=True, timeout=60)  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("\n") == 1 and "'owner/name'" in found.stdout
