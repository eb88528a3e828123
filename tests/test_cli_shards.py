"""`refsd --prompts FILE --shard I/N`, and pictures as units of work, which any worker draws."""

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import asdict, replace

import pytest
import tiny
import tiny_three
from chaos import environment
from safetensors.numpy import save_file
from test_cli_adapters import tensors

from refsd.__main__ import main
from refsd.cli import batch, draw, units_pictures
from refsd.cli.batch import Picture, first_recipe
from refsd.cli.costs import Costs
from refsd.errors import ModelError
from refsd.pipelines.auto import AutoPipelineForText2Image
from refsd.pipelines.figures import Request, figures
from refsd.pipelines.outline import BUNDLED, outline

LINES = [{"prompt": "a cat", "steps": 4}, {"prompt": "a red cat", "width": 64},
         {"prompt": "a cat", "steps": 2}, {"prompt": "cat", "cfg": 1}, {"prompt": "a red cat"},
         {"prompt": "a cat", "steps": 4}]


@pytest.fixture
def run(model, tmp_path, monkeypatch, capfd):
    """Draw LINES into out; gives (exit code, objects on stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, LINES)))

    def call(*args):
        code = main(["--prompts", "prompts.jsonl", "-m", model, "-o", "out", "--steps", "1",
                     "--backend", "numpy", *args])
        said = capfd.readouterr()
        lines = [json.loads(line) for line in said.out.splitlines() if line.startswith("{")]
        return code, lines, said.err

    return call


def test_shards_together_are_the_whole_and_no_picture_is_in_two(run, tmp_path):
    shards = [run("--shard", f"{part}/3") for part in (3, 1, 2)]
    assert all(code == 0 for code, _, _ in shards)
    drawn = [one for _, said, _ in shards for one in said if one["drawn"]]
    assert len(drawn) == 5 == len({one["path"] for one in drawn})  # of six, two are the same
    assert {f"out/{path.name}" for path in (tmp_path / "out").iterdir()} == {
        one["path"] for one in drawn}
    said = sorted((one for _, said, _ in shards for one in said), key=lambda one: one["index"])
    _, whole, _ = run("-q")
    assert [{**one, "drawn": None} for one in said] == [{**one, "drawn": None} for one in whole]
    assert not any(one["drawn"] for one in whole)


def test_a_shard_says_how_much_it_is_of_the_work(run):
    code, said, err = run("--shard", "1/6")
    assert code == 0 and "shard 1/6: 1 of 5 pictures, " in err and " % of the work" in err
    assert {one["index"] for one in said} == {1}  # twice as many pixels are the longest to decode
    code, said, err = run("--shard", "6/6", "--results", "r-{shard}.jsonl")
    assert (code, said) == (0, []) and "shard 6/6: 0 of 5 pictures, 0.0 % of the work" in err


def test_each_shard_has_results_of_its_own(run, tmp_path):
    for part in (1, 6):
        assert run("--shard", f"{part}/6", "--results", "r-{shard}.jsonl", "-q")[0] == 0
    assert json.loads((tmp_path / "r-1-of-6.jsonl").read_text())["index"] == 1
    assert (tmp_path / "r-6-of-6.jsonl").read_bytes() == b""
    code, _, err = run("--shard", "1/6", "--results", "r.jsonl")
    assert code == 2 and "each shard needs a file of its own" in err
    assert run("--shard", "1/1", "--results", "r.jsonl", "-q")[0] == 0


@pytest.mark.parametrize("args, message", [
    (["--shard", "0/2"], "I/N"), (["--shard", "3/2"], "I/N"), (["--shard", "2"], "I/N"),
])
def test_what_is_no_shard(run, args, message):
    code, said, err = run(*args)
    assert (code, said) == (2, []) and message in err


def test_shards_are_of_prompts(capfd):
    assert main(["a cat", "--shard", "1/2"]) == 2
    assert "--shard is for the pictures of --prompts" in capfd.readouterr().err


# Costs.

def test_costs_are_those_of_plan_on_every_backend():
    plan = figures(outline(BUNDLED), Request(64, 128, 1, 20, True, backend="numpy")).flops
    for options in ({"backend": "numpy"}, {"backend": "numba"},
                    {"backend": "numba", "dtype": "bfloat16", "offload": "block"},
                    {"backend": "numpy", "weights": "int8"}):
        costs = Costs(AutoPipelineForText2Image.from_pretrained(None, **options))
        assert costs.sized(64, 128, 3.0) == (plan["step"], plan["decode"]), options
    assert 2 * costs.sized(64, 128, 1.0)[0] == plan["step"]


def test_a_transformer_has_costs_too(tmp_path):
    tiny_three.write_model(tmp_path / "model")
    costs = Costs(AutoPipelineForText2Image.from_pretrained(tmp_path / "model", backend="numpy"))
    small, large = costs.sized(16, 16, 7.0), costs.sized(32, 16, 7.0)
    assert small[0] < large[0] < 2 * small[0] and small[1] < large[1]


@pytest.mark.parametrize("condition, cfg_scale, copies", [
    (None, 3.0, 2), (None, 1.0, 1), (256, 8.0, 1)])
def test_a_model_that_reads_the_guidance_is_called_for_one_picture(condition, cfg_scale, copies):
    costs = Costs(Namespace(copies=2, denoiser=Namespace(time_cond_dim=condition)))
    costs._planned = lambda *asked: asked
    assert costs.sized(64, 32, cfg_scale) == (64, 32, copies)


# Pictures as units.

@pytest.fixture
def setup(model, tmp_path):
    """The options of a run of two pictures a line, as they open a worker: of JSON."""
    save_file(tensors(0), tmp_path / "a.safetensors")
    args = ["-m", model, "--steps", "2", "--backend", "numpy", "-b", "2", "--lora-dir",
            str(tmp_path), "--hires-scale", "2", "--sampler", "euler", "--schedule", "karras"]
    options = draw.parser().parse_args(args)
    options.seed, options.prompt = 5, ""
    return json.loads(json.dumps(vars(options)))


def pictures(worker, *lines):
    """As batch.py makes them of the lines of a file."""
    made = []
    for number, line in enumerate(lines, 1):
        asked = Namespace(**{**vars(worker.options), **line})
        first = first_recipe(worker.session, worker.own, asked)
        made += [Picture(len(made), number, asked, nth, batch.variation.nth(first, nth))
                 for nth in range(2)]
    return made


def test_a_worker_draws_the_picture_that_it_was_asked_for(setup, tmp_path):
    here, there = (units_pictures.open_worker(setup) for _ in range(2))
    made = pictures(here, {"prompt": "a <lora:a:2> cat", "compat": "a1111"},
                    {"prompt": "a cat", "variation_strength": 0.5, "seed": 7, "width": 32})
    job = units_pictures.job(here.session, setup, units_pictures.units(here.session, made))
    job = json.loads(json.dumps(asdict(job)))
    assert job["identity"] == there.identity == here.identity
    units = [units_pictures.Unit(**{**unit, "results": tuple(unit["results"])})
             for unit in job["units"]]
    assert len({unit.key for unit in units}) == 4
    again = [picture._replace(line=9) for picture in made]  # a unit is named after the first line
    assert units_pictures.units(here.session, [*made, *again]) == tuple(units)
    costs, recipe = Costs(here.session.pipe), made[0].recipe
    step, decode = costs.sized(64, 64, 7.0)  # of the second pass, of two steps as well
    assert units[0].cost == costs.of(replace(recipe, hires={})) + 2 * step + decode
    for picture, unit in zip(made, units):
        said = there.do(unit, tmp_path)
        path = tmp_path / unit.results[0]
        assert units_pictures.finished(unit, tmp_path) == {**said, "drawn": False} and said["drawn"]
        alone = tmp_path / "alone.png"
        batch.draw(here.session, picture.recipe, str(alone))
        assert path.read_bytes() == alone.read_bytes()
    path.write_bytes(alone.read_bytes()[:-50])
    assert units_pictures.finished(unit, tmp_path) is None
    assert units_pictures.finished(unit, tmp_path / "nowhere") is None


def test_places_are_those_of_the_caller_wherever_a_worker_is(tmp_path, monkeypatch):
    named = {action.dest for action in draw.parser()._actions
             if str(action.metavar).startswith(("PATH", "DIR", "MODEL"))}
    assert named - {"output"} == set(units_pictures.PLACES)
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b:1"):
        (tmp_path / name).touch()
    found = {"model": "a", "vae": "org/name", "lora": ["a:0.5", "b:1", "b:1:2", "c:3"]}
    session = Namespace(model={}, pipe=Namespace(backend="numpy"))
    setup = units_pictures.job(session, {**dict.fromkeys(units_pictures.PLACES), **found}, ()).setup
    assert setup == {**dict.fromkeys(units_pictures.PLACES), "model": f"{tmp_path}/a",
                     "vae": "org/name", "lora": [f"{tmp_path}/a:0.5", f"{tmp_path}/b:1",
                                                 f"{tmp_path}/b:1:2", "c:3"]}


def test_a_worker_with_another_file_does_not_draw(setup, tmp_path):
    here = units_pictures.open_worker(setup)
    made = pictures(here, {"prompt": "a <lora:a:2> cat"})
    unit = units_pictures.units(here.session, made)[0]
    save_file(tensors(1), tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="line 1, seed 5: here it would be another picture"):
        units_pictures.open_worker(setup).do(unit, tmp_path)
    assert not list(tmp_path.glob("*.png"))


def test_a_worker_with_another_model_is_another(setup, tmp_path):
    one = units_pictures.open_worker(setup).identity
    other = tiny.write_model(tmp_path / "other", seed=1)
    two = units_pictures.open_worker({**setup, "model": str(other)}).identity
    assert one["model"] != two["model"] and {**one, "model": ""} == {**two, "model": ""}


def test_a_picture_alone_imports_nothing_of_this(model, tmp_path):
    code = ("import sys\nfrom refsd.__main__ import main\n"
            f"main(['a cat', '-m', {str(model)!r}, '--steps', '1', '-q', '-o', 'a.png'])\n"
            "print(*(name for name in sys.modules if name.startswith('refsd.farm')"
            " or name in ('distributed', 'refsd.cli.batch', 'refsd.cli.costs')))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=tmp_path, env=environment(), check=True)
    assert done.stdout.splitlines()[1:] == [""]
