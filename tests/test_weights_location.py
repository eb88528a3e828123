"""Where a model is: paths first, the local hub cache next, the network only when asked."""

import json
import os
import shutil
import socket
import subprocess
import sys

import huggingface_hub
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_samples import STEM, TINY, refused, tiny_tensors, write_folder

from refsd.errors import ModelError, RefsdError, ResourceError, UsageError
from refsd.families import DEFAULT
from refsd.pipelines.auto import family_of_model
from refsd.weights import load_checkpoint, resolve, write_safetensors


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


@pytest.mark.parametrize("model", ["x.safetensors", "folder/x.gguf", "a/b/c.safetensors"])
def test_the_hub_is_not_asked_for_what_is_meant_as_a_file(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    for download in (False, True):
        refused(lambda download=download: resolve(model, download=download), "model: ", model,
                "no such file", error=UsageError)  # fmt: skip


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


class Hub:
    """A hub with one repository, a folder: what is asked for is copied into the cache."""

    def __init__(self, repository, cache, monkeypatch):
        self.repository, self.cache, self.reachable = repository, cache, True
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", self.list_repo_files)

    def list_repo_files(self, name):
        if not self.reachable:
            raise TypeError("an error of the HTTP library\nand more")
        files = (path for path in self.repository.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.repository).as_posix() for path in files)

    def snapshot_download(self, name, *, cache_dir, local_files_only, allow_patterns):
        assert not local_files_only
        if self.reachable:
            wanted = huggingface_hub.utils.filter_repo_objects(
                self.list_repo_files(name), allow_patterns=allow_patterns)  # fmt: skip
            for file in wanted:
                (self.cache / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.repository / file, self.cache / file)
        return str(self.cache)

    def fetched(self):
        return {path.relative_to(self.cache).as_posix()
                for path in self.cache.rglob("*.*") if path.is_file()}  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    return Hub(write_folder(tmp_path / "repository"), tmp_path / "cache", monkeypatch)


def test_download_fetches_what_is_read_and_nothing_else(hub):
    for other in ("v1-5.safetensors", "v1-5.ckpt", "README.md", "safety_checker/model.safetensors",
                  "unet/diffusion_pytorch_model.bin", "unet/modeling.py",
                  "unet/diffusion_pytorch_model.non_ema.safetensors",
                  "vae/diffusion_pytorch_model.fp16.safetensors"):  # fmt: skip
        (hub.repository / other).parent.mkdir(exist_ok=True)
        (hub.repository / other).write_bytes(b"not to be fetched")
    folder = resolve("owner/name", download=True)
    configs = {"model_index.json", *(f"{part}/config.json" for part in TINY)}
    weights = {f"{part}/{STEM[part]}.safetensors" for part in TINY}
    assert hub.fetched() == configs | weights
    assert set(load_checkpoint(folder)) == set(TINY)


def test_a_repository_without_one_of_the_parts_says_so_before_its_weights_are_fetched(hub):
    (hub.repository / "vae" / f"{STEM['vae']}.safetensors").rename(
        hub.repository / "vae" / f"{STEM['vae']}.bin")  # fmt: skip
    refused(lambda: resolve("owner/name", download=True), "'owner/name', vae", "pickle", "--vae")
    assert not list(hub.cache.rglob("*.safetensors"))
    resolve("owner/name", download=True, parts=("unet", "text_encoder"))  # the VAE is replaced
    assert len(list(hub.cache.rglob("*.safetensors"))) == 2
    shutil.rmtree(hub.repository / "unet")
    (hub.repository / "whole.safetensors").write_bytes(b"")
    refused(lambda: resolve("owner/name", download=True, parts=("unet",)),
            "no folder unet", "It holds whole.safetensors")  # fmt: skip


def test_the_family_is_told_before_any_weights_are_fetched(hub):
    assert family_of_model("owner/name", download=True) is DEFAULT
    assert hub.fetched() == {"model_index.json", *(f"{part}/config.json" for part in TINY)}


def test_a_repository_of_one_network_has_it_at_the_root(hub):
    for file in (hub.repository / "vae").iterdir():
        file.rename(hub.repository / file.name)
    resolve("owner/name", download=True, parts=("vae",))
    assert {"config.json", f"{STEM['vae']}.safetensors"} <= hub.fetched()


def test_a_cached_model_is_taken_when_the_hub_cannot_be_asked(hub, caplog):
    folder = resolve("owner/name", download=True)
    hub.reachable = False
    assert resolve("owner/name", download=True) == folder
    assert "an error of the HTTP library); what the cache holds is taken" in caplog.text


# Every spelling of whole files, shards and indices that diffusers, transformers and
# huggingface_hub have written: variant -> (index or None, file, file, ..)
SPELLINGS = {
    "whole": (None, None, "{}.safetensors"),
    "shards": (None, "{}.safetensors.index.json",
               "{}-00001-of-00002.safetensors", "{}-00002-of-00002.safetensors"),
    "whole variant": ("fp16", None, "{}.fp16.safetensors"),
    "variant before the number, diffusers 0.29 on and transformers": (
        "fp16", "{}.safetensors.index.fp16.json",
        "{}.fp16-00001-of-00002.safetensors", "{}.fp16-00002-of-00002.safetensors"),
    "variant after the number, transformers before": (
        "fp16", "{}.safetensors.index.fp16.json",
        "{}-00001-of-00002.fp16.safetensors", "{}-00002-of-00002.fp16.safetensors"),
    "diffusers before 0.30": (
        "fp16", "{}.safetensors.fp16.index.json",
        "{}-00001-of-00002.fp16.safetensors", "{}-00002-of-00002.fp16.safetensors"),
    "huggingface_hub": (
        "bf16", "{}.bf16.safetensors.index.json",
        "{}.bf16-00001-of-00002.safetensors", "{}.bf16-00002-of-00002.safetensors"),
    "another name of a variant": ("non_ema", None, "{}.non_ema.safetensors"),
}  # fmt: skip


def respell(folder, part, index, files, seed=1):
    """A part's weights under these names, with other numbers than the folder's."""
    stem, tensors = STEM[part], tiny_tensors(part, seed=seed)
    names, weight_map = list(tensors), {}
    for i, file in enumerate(files):
        mine = names[i * 20 :] if i == len(files) - 1 else names[i * 20 : i * 20 + 20]
        write_safetensors(folder / part / file.format(stem), {name: tensors[name] for name in mine})
        weight_map |= dict.fromkeys(mine, file.format(stem))
    if index:
        (folder / part / index.format(stem)).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("variant, index, files", [(v, i, f) for v, i, *f in SPELLINGS.values()],
                         ids=SPELLINGS)  # fmt: skip
def test_every_spelling_is_fetched_and_read(hub, caplog, part, variant, index, files):
    if variant is None:
        (hub.repository / part / f"{STEM[part]}.safetensors").unlink()
    respell(hub.repository, part, index, files)
    folder = resolve("owner/name", download=True, variant=variant)
    parts = load_checkpoint(folder, variant=variant)
    for name in TINY:
        expected = tiny_tensors(name, seed=int(name == part))
        assert all((parts[name].tensors[n] == array).all() for n, array in expected.items())
    others = [name for name in TINY if name != part]
    said = f"no weights of the variant {variant} everywhere: for {', '.join(others)} those of no v"
    assert caplog.text.count(said) == (variant is not None)
    assert len(caplog.records) == (variant is not None)
    assert len(hub.fetched()) == 1 + len(TINY) + 2 + len(files) + bool(index)

    # and a repository that has only this is read without being asked for it
    if variant is not None:
        (hub.repository / part / f"{STEM[part]}.safetensors").unlink()
        shutil.rmtree(hub.cache)
        folder = resolve("owner/name", download=True)
        first = next(iter(expected := tiny_tensors(part, seed=1)))
        assert (load_checkpoint(folder)[part].tensors[first] == expected[first]).all()
        assert f"no plain weights everywhere: for {part} those of the variant {variant}" in (
            caplog.text)  # fmt: skip


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
